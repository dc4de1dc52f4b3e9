#!/usr/bin/env bash
# One place of a padded image is another place in each level of Deformable DETR. transformers' model
# (the authors' code does the same) says how much of a level is image by resizing the mask of the
# padding to the level and counting its cells. A cell that is image in part counts as a whole one,
# and by that share reference points are scaled:
#
#   an image of 320 x 400 pixels in a batch of 320 x 416; the token of the finest level at column
#   49, whose centre is at pixel 396 of 400, samples
#     in the levels of stride 8 and 16   at pixel 396
#     in that of stride 32               at pixel 411.8, in the padding
#     in that of stride 64               at pixel 443.5, beyond it
#
# Training teaches the offsets to live with it, as far as the sizes of its images are mixed.
#
# Seen with transformers 5.23.0, PyTorch 2.14.1, Python 3.11, Linux x86_64, 29 November 2026. Exits
# with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 transformers==5.23.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import torch
from transformers import DeformableDetrConfig, DeformableDetrModel, ResNetConfig

STRIDES, WIDTHS = (8, 16, 32, 64), (52, 26, 13, 7)

config = DeformableDetrConfig(
    backbone_config=ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    ),
    use_timm_backbone=False,
    use_pretrained_backbone=False,
    backbone=None,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    num_queries=5,
)
model = DeformableDetrModel(config).eval()
seen = []
model.encoder.layers[0].register_forward_pre_hook(
    lambda module, args, kwargs: seen.append(kwargs["reference_points"]), with_kwargs=True
)
mask = torch.zeros(1, 320, 416, dtype=torch.long)
mask[:, :, :400] = 1
with torch.no_grad():
    model(torch.rand(1, 3, 320, 416), pixel_mask=mask)
shares = seen[0][0, 49, :, 0].tolist()  # of each level's width
pixels = [round(s * w * d, 1) for s, w, d in zip(shares, WIDTHS, STRIDES)]
print("token at pixel 396 samples around the pixels", pixels)
sys.exit(pixels != [396.0, 396.0, 411.8, 443.5])
PYTHON
