"""Initial values that several heads share."""

import math

__all__ = ["prior_bias"]


def prior_bias(probability: float = 0.01) -> float:
    """Bias that makes a fresh sigmoid classifier answer ``probability`` (RetinaNet, 1708.02002)."""
    return -math.log((1 - probability) / probability)
