"""Make the documentation as a web site in `site/`: `make docs` calls this with any Python.

MkDocs and its theme are installed in `.venv-docs`, once, from pins with hashes. The site opens
without a server. A link to a file or to a heading that does not exist is an error.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from environment import SetupError, checks, state, venvs
from environment.pip import run_pip

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-docs"
LOG = VENV / "make_docs.log"
LOCK = ROOT / "tools/docs_site/requirements.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--serve", action="store_true", help="show the site, and again after every change of a page"
    )
    serve = parser.parse_args().serve
    try:
        make_venv()
        return mkdocs("serve" if serve else "build")
    except (SetupError, OSError) as error:
        print(f"make docs: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def make_venv() -> None:
    """Bring `.venv-docs` up to date; returns at once where it is.

    Raises:
        SetupError: something is missing on this machine.
    """
    checks.check_python(sys.version_info, sys.executable)
    checks.check_venv_module()
    with state.exclusive(ROOT / ".env-lock", "make docs: waiting for another make to finish"):
        made_of = state.fingerprint([LOCK], sys.executable, sys.version)
        if state.read(VENV).get("dependencies") == made_of:
            return
        state.start_over(VENV)
        venvs.create(VENV, LOG)
        options = ["--require-hashes", "--no-deps", "-r", LOCK]
        run_pip(venvs.python_of(VENV), ["install", *options], LOG)
        state.write(VENV, dependencies=made_of)


def mkdocs(command: str) -> int:
    """The exit status of MkDocs, which prints what is wrong with the pages."""
    words = [str(venvs.python_of(VENV)), "-m", "mkdocs", "--quiet", command, "--strict"]
    # The theme's authors recommend their next one on every start.
    environ = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    status = subprocess.call(words, cwd=str(ROOT), env=environ)
    if command == "build" and not status:
        print(f"wrote {ROOT / 'site' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
