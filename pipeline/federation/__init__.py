"""Rounds of local training and averaging on tensors. Pure: no paths, no JSON, no clock."""
