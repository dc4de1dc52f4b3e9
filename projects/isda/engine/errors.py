"""What a user hears when the configuration is at fault."""

__all__ = ["ConfigError"]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and the remedy."""
