"""A slow twin of the int8 payload, number by number: numpy and math only."""

import numpy as np


def int8_round_trip(values, block):
    """What arrives of (P,) float32 values, each block with a scale of its own, float32 steps."""
    arrived = np.zeros(len(values), np.float32)
    for start in range(0, len(values), block):
        part = values[start : start + block]
        scale = np.float32(max(abs(float(x)) for x in part)) / np.float32(127)
        for place, value in enumerate(part, start):
            steps = round(float(value / scale)) if scale else 0  # round() takes ties to even
            arrived[place] = np.float32(max(-127, min(127, steps))) * scale
    return arrived
