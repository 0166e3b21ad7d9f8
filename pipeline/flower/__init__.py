"""The same rounds over real machines, with Flower. The only importer of flwr."""
