"""The parts of `make env`: standard library only, as they run before anything is installed.

Every module here must at least be *read* by Python 3.6, so that an old interpreter gets a
sentence instead of a syntax error: no newer syntax, and quoted annotations.
"""


class SetupError(Exception):
    """What is missing on this machine and what to do about it, in one sentence."""
