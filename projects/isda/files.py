"""Files that are whole: a write that fails, or is killed, leaves what was there before."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from isda.errors import UserError

__all__ = [
    "PARTIAL",
    "WriteError",
    "copy_file",
    "is_full",
    "remove_partial_files",
    "replaced_files",
    "replacing",
    "write_bytes",
    "write_error",
    "write_text",
]

PARTIAL = ".partial"  # ends the names of what is not complete yet

# No room: on the disk, in the user's share of it, in a file as large as the limit allows.
_FULL = tuple(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)
)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class WriteError(UserError, OSError):
    """A file that could not be written; the message names it and says why."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", *, durable: bool = False) -> Iterator[IO]:
    """Opens a file that takes the place of ``path`` when the block has ended without an error.

    Until then it lies beside it, as ``<name>.partial``, which an error removes. Devices and pipes
    are written as they are, and a link's target is replaced instead of the link.

    Args:
        mode: ``"wb"``, or ``"w"`` for text in UTF-8.
        durable: wait until the disk has it, so that not even a power failure leaves half of it.

    Raises:
        WriteError: the folder or the disk does not take it.
    """
    target = Path(os.path.realpath(path))
    special = target.exists() and not target.is_file()
    partial = target if special else target.with_name(target.name + PARTIAL)
    file = None
    try:
        file = partial.open(mode, encoding=None if "b" in mode else "utf-8")
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())
        file.close()
        if not special:
            _keep_mode(target, partial)
            os.replace(partial, target)
    except BaseException as error:
        if file is not None:
            with contextlib.suppress(OSError):  # closing flushes, and that fails once more
                file.close()
            if not special:
                partial.unlink(missing_ok=True)
        if cause := _cause(error, partial):
            raise write_error(path, cause) from error
        raise


def write_error(path: str | os.PathLike, cause: OSError) -> WriteError:
    """The error to raise where ``path`` could not be written because of ``cause``."""
    remedy = ""
    if cause.errno == errno.EFBIG:
        remedy = ": allow larger files (`ulimit -f`), or write to another disk"
    elif is_full(cause):
        remedy = ": free some space, and start again"
    elif cause.errno in _FORBIDDEN:
        remedy = ": check its permissions, or write to another folder"
    return WriteError(f"{os.fspath(path)} cannot be written ({cause.strerror or cause}){remedy}")


def is_full(error: OSError) -> bool:
    """Whether there was no room: on the disk, in a quota, in a file that may not grow."""
    return error.errno in _FULL


def _cause(error: BaseException | None, partial: Path) -> OSError | None:
    """What went wrong with the file itself; PyTorch hides it behind an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    if error is None or isinstance(error, WriteError):
        return None
    named = os.fspath(partial if error.filename is None else error.filename)
    return error if named.startswith(os.fspath(partial)) else None


def _keep_mode(target: Path, partial: Path) -> None:
    if target.exists():
        os.chmod(partial, target.stat().st_mode & 0o7777)


def write_text(path: str | os.PathLike, text: str, *, durable: bool = False) -> None:
    """Writes a whole text in UTF-8; raises as :func:`replacing`."""
    with replacing(path, "w", durable=durable) as file:
        file.write(text)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes whole content; raises as :func:`replacing`."""
    with replacing(path) as file:
        file.write(content)


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies the content of a file; raises as :func:`replacing`."""
    with open(source, "rb") as content, replacing(target) as file:
        shutil.copyfileobj(content, file)


@contextlib.contextmanager
def replaced_files(folder: str | os.PathLike) -> Iterator[str]:
    """A temporary folder whose files go to ``folder`` when the block has ended without an error.

    For code of others, which writes as it likes.

    Raises:
        WriteError: the folder or the disk does not take them.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + PARTIAL)
    try:
        if partial.exists():
            shutil.rmtree(partial)  # of a process that was killed
        partial.mkdir(parents=True)
        _make(folder)
        yield str(partial)
        _move_files(partial, folder)
    except Exception as error:
        if cause := _cause(error, partial):
            raise write_error(folder, cause) from error
        _move_files(partial, folder)  # whatever failed, it came after they had been written
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def _move_files(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.stat().st_size:
            os.replace(file, target / file.name)


def remove_partial_files(folder: str | os.PathLike) -> None:
    """Removes what a killed process could not complete in ``folder``."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
