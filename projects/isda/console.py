"""Safe output: no text obeyed by the terminal, and none that it cannot show ends a program.

Names of classes and files are other people's. :func:`printable` writes the invisible characters in
them as escapes; :func:`start` does so for all that a program prints and logs. Only the standard
library is imported here, so that programs can begin with it.
"""

import contextlib
import locale
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import TextIO

__all__ = ["guard", "printable", "printable_lines", "start", "unguarded"]

# Controls, line and paragraph separators, what turns the direction of text, and lone surrogates
# (bytes of a file name that are not UTF-8).
_ORDERS = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_ANY = re.compile(f"[{_ORDERS}]")
_OF_TEXT = re.compile(f"(?![\t\n])[{_ORDERS}]")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")  # as fvcore and Pygments put into messages
_OF_STREAM = re.compile(f"(?![\t\n\r])[{_ORDERS}]")  # a line of progress returns to its start


def printable(text: object) -> str:
    """The text on one line; what a terminal obeys instead of showing it is escaped.

    Letters of all languages stay: a stream that cannot show them escapes them itself, as
    :func:`guard` sets it up.
    """
    return _ANY.sub(_escape, str(text))


def printable_lines(text: object) -> str:
    """As :func:`printable`, with the lines and tabs of the text."""
    return _OF_TEXT.sub(_escape, str(text))


def _escape(match: re.Match) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def start() -> None:
    """Begin a program: text files are in UTF-8 whatever the locale says, and output is guarded.

    In another locale the interpreter starts again in its UTF-8 mode, because Detectron2 and
    pycocotools open files in the locale's encoding. To be called before anything else.
    """
    if _in_utf8() or os.environ.get("PYTHONUTF8") == "1":  # the latter: it has been tried
        guard()
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _in_utf8() -> bool:
    encoding = locale.getpreferredencoding(False)
    return encoding.replace("-", "").lower() == "utf8"


def guard() -> None:
    """Escape what this process prints and logs from here on; again changes nothing.

    Colors and lines that rewrite themselves stay possible: for those who hold the stream itself,
    see :func:`unguarded`, and by a carriage return.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _GuardedStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _GuardedStream(stream))
    logging.setLogRecordFactory(_GuardedRecord)


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """For setting up log handlers that color their lines: what they get is guarded already."""
    guarded = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (getattr(stream, "unguarded", stream) for stream in guarded)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = guarded


class _GuardedStream:
    """A stream of text that obeys nothing but the ends and returns of lines."""

    def __init__(self, stream: TextIO):
        self.unguarded = stream

    def __getattr__(self, name: str):
        return getattr(self.unguarded, name)

    def write(self, text: str) -> int:
        return self.unguarded.write(_OF_STREAM.sub(_escape, text))

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)


class _GuardedRecord(logging.LogRecord):
    """A record whose message and traceback a formatter may color, and a terminal show."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            lines = "".join(traceback.format_exception(*self.exc_info))
            self.exc_text = printable_lines(lines.rstrip("\n"))

    def getMessage(self) -> str:  # noqa: N802  (logging's own name)
        return printable_lines(_COLORS.sub("", super().getMessage()))
