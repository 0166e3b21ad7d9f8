"""FedCLIP from a feature cache: extract once, federate many times."""
