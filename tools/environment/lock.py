"""Reading requirements.txt, the lock that `make lock` writes with uv.

One block per package and marker, each with its hashes, then the packages that asked for it:

    name==1.2 ; marker \\
        --hash=sha256:... \\
        --hash=sha256:...
        # via
        #   -r requirements.in
        #   another-name
"""

import re

ROOT = "-r requirements.in"


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Lock:
    """The blocks of a lock file by package name, and who asked for each package."""

    def __init__(self, text: str):
        self.blocks = {}  # name -> [lines of each block]
        self.parents = {}  # name -> names that require it, ROOT among them
        for block in re.split(r"\n(?=[A-Za-z0-9])", text):
            match = re.match(r"([A-Za-z0-9._-]+)==", block)
            if not match:
                continue
            name = normalised(match.group(1))
            lines = block.splitlines()
            pinned = [line for line in lines if not line.lstrip().startswith("#")]
            self.blocks.setdefault(name, []).append("\n".join(pinned))
            comments = [line.strip("# ") for line in lines if line.lstrip().startswith("#")]
            parents = [re.sub(r"^via\s*", "", comment) for comment in comments]
            self.parents.setdefault(name, set()).update(filter(None, parents))

    def select(self, names: "set[str]") -> str:
        """The part of the lock that pins these packages, as a requirements file."""
        chosen = [block for name in sorted(names) for block in self.blocks[name]]
        return "\n".join(chosen) + "\n"

    def missing(self, installed: "set[str]") -> "set[str]":
        """What must be added to an interpreter that has `installed` already.

        A package that only serves installed ones is not needed: whoever has a PyTorch has the
        CUDA libraries that go with it, whatever the lock says of another PyTorch's.
        """
        needed = {name for name in self.blocks if ROOT in self.parents[name]} - installed
        while True:
            more = {n for n in self.blocks if self.parents[n] & needed} - installed - needed
            if not more:
                return needed
            needed |= more
