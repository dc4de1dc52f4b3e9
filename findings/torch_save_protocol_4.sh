#!/usr/bin/env bash
# torch.save takes pickle_protocol, and torch.load cannot read by default what comes of 4 and 5, not
# even a dictionary with one tensor:
#
#   pickle_protocol   torch.load(file)                                             weights_only=False
#   2 (default)       reads it                                                     reads it
#   3                 reads it, and warns that it may not                          reads it
#   4, 5              UnpicklingError: "Unsupported operand 149", a warning, and   reads it
#                     an appeal to file an issue
#
# So a file of plain weights can only be opened by the way that is warned of, the one that executes
# what is in it; Python's own pickle has had protocol 4 as its default since 3.8. Operand 149 is
# FRAME, which begins every pickle of protocol 4. Nothing in the documentation of torch.save says
# that its argument decides this.
#
# Seen with PyTorch 2.14.1, Python 3.11, Linux x86_64, 29 November 2026. Exits with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import pickle
import sys
import warnings

import torch


def read(file, **options):
    file.seek(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            weights = torch.load(file, **options)
        except pickle.UnpicklingError as error:
            known = "Unsupported operand 149" in str(error) and "file an issue" in str(error)
            return "refused" if known else str(error)
    equal = torch.equal(weights["weight"], torch.ones(2))
    return f"{'read' if equal else 'other values'}{', warned' if caught else ''}"


expected = {2: "read", 3: "read, warned", 4: "refused", 5: "refused"}
same = True
for protocol, known in expected.items():
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, file, pickle_protocol=protocol)
    seen, trusting = read(file), read(file, weights_only=False)
    same &= seen == known and trusting == "read"
    print(f"pickle_protocol={protocol}: {seen}; with weights_only=False: {trusting}")
sys.exit(not same)
PYTHON
