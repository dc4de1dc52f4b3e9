#!/usr/bin/env bash
# Group norm treats each image on its own, and yet whether torch.nn.GroupNorm takes a level of one
# cell depends on how many images there are, and on which of its forms is called:
#
#   GroupNorm(32, 32), in eval mode, on (1, 32, 1, 1)   ValueError "Expected more than 1 value per
#                                                       channel when training"
#   the same on (2, 32, 1, 1)                           zeros (plus the bias), whatever the input
#   torch.group_norm on (1, 32, 1, 1)                   zeros
#
# The check counts the values of all images of a group together, and does not ask for the mode. So a
# head whose groups have one channel passes every training in batches, in which its coarsest level
# is silently nothing but the bias, and then refuses to predict for a single small image.
#
# Seen with PyTorch 2.14.1, Python 3.11, Linux x86_64, 29 November 2026. Exits with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import torch

norm = torch.nn.GroupNorm(32, 32).eval()


def answer(call, images):
    try:
        out = call(torch.arange(images * 32, dtype=torch.float32).view(images, 32, 1, 1))
    except ValueError as error:
        return "refused" if "more than 1 value per channel when training" in str(error) else error
    return "zeros" if out.abs().max() < 1e-3 else "other values"


seen = {
    "GroupNorm, one image": answer(norm, 1),
    "GroupNorm, two images": answer(norm, 2),
    "torch.group_norm, one image": answer(lambda x: torch.group_norm(x, 32), 1),
}
for name, what in seen.items():
    print(f"{name}: {what}")
sys.exit(list(seen.values()) != ["refused", "zeros", "zeros"])
PYTHON
