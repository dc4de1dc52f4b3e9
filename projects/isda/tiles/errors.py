"""Errors of images that cannot be cut as asked."""

from isda.errors import UserError

__all__ = ["TilesError"]


class TilesError(UserError, ValueError):
    """Windows are not possible; the message says why."""
