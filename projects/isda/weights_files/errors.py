"""What is raised for a file of weights that cannot be used."""

__all__ = ["WeightsError"]


class WeightsError(ValueError):
    """Weights that cannot be used; the message says why and what to do."""
