"""What a user hears when a prediction cannot be done as it is asked for."""

from isda.errors import UserError

__all__ = ["RequestError"]


class RequestError(UserError):
    """Something that the user asked for is not possible; the message says why."""
