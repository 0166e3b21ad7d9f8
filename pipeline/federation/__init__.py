"""Rounds of local training and averaging on tensors. Pure: no path, no JSON file, no clock."""
