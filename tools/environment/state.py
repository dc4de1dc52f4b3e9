"""What `make env` has made so far: a record inside the environment, and a lock beside it."""

import hashlib
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

from environment import SetupError

RECORD = "isda-env.json"


def fingerprint(files: "list[Path]", *facts: str) -> str:
    """A hash of the files' contents and of the facts."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for fact in facts:
        digest.update(hashlib.sha256(fact.encode()).digest())
    return digest.hexdigest()


def read(venv: Path) -> dict:
    """The record; empty where there is none, or where it was being written as it all stopped."""
    try:
        return json.loads((venv / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def write(venv: Path, **entries: str) -> None:
    (venv / RECORD).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def start_over(venv: Path) -> None:
    """An empty folder with an empty record, in place of whatever `make` had left there.

    Raises:
        SetupError: the folder there is somebody else's.
    """
    if venv.exists():
        if not (venv / RECORD).exists():
            raise SetupError(
                f"{venv} exists and was not made by `make`: move it away or delete it."
            )
        # The record goes last, so that a removal that is interrupted can be taken up again.
        for entry in venv.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                _remove(entry)
            elif entry.name != RECORD:
                entry.unlink()
    venv.mkdir(parents=True, exist_ok=True)
    write(venv)


def _remove(folder: Path, tries: int = 5, pause: float = 2.0) -> None:
    """Remove a folder in which a child of an interrupted `make env` may still be writing."""
    for left in reversed(range(tries)):
        try:
            shutil.rmtree(str(folder))
            break
        except OSError as error:
            if not left:
                raise SetupError(f"{folder} cannot be removed ({error}): delete it.") from error
            time.sleep(pause)


@contextmanager
def exclusive(path: Path, waiting: str):
    """Hold a lock that ends with the process, however it ends; print `waiting` if it is taken.

    The lock is inherited by pip, which may outlive a killed `make env` and still write.
    """
    with path.open("a", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            _lock(file, wait=False)
        except OSError:
            print(waiting, flush=True)
            _lock(file, wait=True)
        yield


def _lock(file, wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        return
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
