"""What a user hears when the configuration is at fault."""

from isda.errors import UserError

__all__ = ["ConfigError"]


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the key and the remedy."""
