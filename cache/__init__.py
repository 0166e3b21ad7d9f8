"""The feature cache: what stage one leaves and stage two reads."""
