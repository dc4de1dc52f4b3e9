"""Errors for users, shown without a traceback."""

__all__ = ["ConfigError", "MissingPackageError", "UsageError", "UserError"]


class UserError(Exception):
    """Something that the user can mend; the message names the culprit and the remedy.

    A program ends with the message alone. What is raised is a class of the part at fault, such as
    :class:`isda.data.DatasetError`, and most are a :class:`ValueError` or :class:`OSError` too.
    """

    @property
    def sentence(self) -> str:
        """The message as it is shown."""
        return str(self)


class UsageError(UserError):
    """Arguments of a command that do not go together; its usage is shown as well."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the key and the remedy."""


class MissingPackageError(UserError, ImportError):
    """A package that is not installed with this one is needed for what was asked for."""
