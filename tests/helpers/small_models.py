"""Small models of all methods that find something, and images for them."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from isda.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "configs/shapes"
ISDA = [
    *("MODEL.ISDA.HIDDEN_DIM", "32", "MODEL.ISDA.ENCODER_LAYERS", "1"),
    *("MODEL.ISDA.DECODER_LAYERS", "1", "MODEL.ISDA.NUM_CLASSES", "3"),
    *("MODEL.ISDA.MASK_HEAD_DIM", "32", "MODEL.ISDA.MASK_DIM", "32"),
]
SOLO = [
    *("MODEL.SOLO.HEAD_DIM", "32", "MODEL.SOLO.NUM_CONVS", "1", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.SOLO.GRID_SIZES", "[7, 6, 5, 4, 3]", "MODEL.SOLO.NUM_CLASSES", "3"),
]
SMALL = {
    "isda": ISDA,
    # More queries than the smallest images have tokens, and a second layer to hand boxes to.
    "isda_boxes": [
        *ISDA,
        *("MODEL.ISDA.DECODER_LAYERS", "2", "MODEL.ISDA.NUM_QUERIES", "300"),
        *("MODEL.ISDA.BOXES", "True", "MODEL.ISDA.BOX_REFINEMENT", "True"),
        *("MODEL.ISDA.RELATIVE_BOXES", "True", "MODEL.ISDA.EXACT_EXTENT", "True"),
        *("MODEL.ISDA.QUERY_SELECTION", "True", "MODEL.ISDA.QUERY_RELATION", "True"),
        *("MODEL.ISDA.TOKEN_CONTENT", "True", "MODEL.ISDA.ELLIPSE", "True"),
        *("MODEL.ISDA.KERNEL_POSITION", "False", "MODEL.ISDA.DENOISING_QUERIES", "6"),
        *("MODEL.ISDA.MASK_STRIDE", "2", "MODEL.ISDA.MASK_FEATURE_STRIDE", "4"),
    ],
    "istr": [
        *("MODEL.ISTR.NUM_STEPS", "2", "MODEL.ISTR.NUM_CLASSES", "3"),
        *("MODEL.ISTR.HIDDEN_DIM", "32", "MODEL.FPN.OUT_CHANNELS", "32"),
        *("MODEL.ISTR.FEEDFORWARD_DIM", "32", "MODEL.ISTR.DYNAMIC_DIM", "8"),
    ],
    "solo": SOLO,
    "solo_decoupled": [*SOLO, "MODEL.SOLO.DECOUPLED", "True"],
    "solov2": [
        *(x.replace(".SOLO.", ".SOLOV2.") for x in SOLO),
        *("MODEL.SOLOV2.MASK_HEAD_DIM", "32", "MODEL.SOLOV2.MASK_DIM", "32"),
    ],
}
SMALL |= {
    "condinst": [
        *("MODEL.CONDINST.NUM_CLASSES", "3", "MODEL.FPN.OUT_CHANNELS", "32"),
        *("MODEL.CONDINST.NUM_CONVS", "1", "MODEL.CONDINST.BRANCH_DIM", "16"),
        *("MODEL.CONDINST.BRANCH_CONVS", "1"),
    ],
    "blendmask": [
        *("MODEL.BLENDMASK.NUM_CLASSES", "3", "MODEL.FPN.OUT_CHANNELS", "32"),
        *("MODEL.BLENDMASK.NUM_CONVS", "1", "MODEL.BLENDMASK.BRANCH_DIM", "16"),
        *("MODEL.BLENDMASK.BRANCH_CONVS", "1"),
    ],
}
NARROW = ["MODEL.RESNETS.DEPTH", "10", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"]


def small_config(name: str, *opts: str) -> CfgNode:
    """Of one of ``SMALL``; with KEY VALUE pairs."""
    small = ["MODEL.DEVICE", "cpu", *NARROW, "TEST.DETECTIONS_PER_IMAGE", "12", *SMALL[name]]
    return load_config(str(SHAPES / f"{name.split('_')[0]}_tiny.yaml"), [*small, *opts])


def small_model(name: str, *opts: str) -> nn.Module:
    """As if trained: a fresh model's scores, masks, boxes and sampling points are all alike."""
    torch.manual_seed(0)
    model = build_model(small_config(name, *opts)).eval()
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "sampling_offsets" in key or "attention_weights" in key:
            nn.init.normal_(parameter, std=0.3)
        elif key in ("instance_head.classes.weight", "queries.features.weight"):
            nn.init.normal_(parameter, std=0.5)
        elif key in ("instance_head.kernels.4.weight", "queries.boxes.weight"):
            parameter.data += 0.3 * torch.randn_like(parameter)
        elif key.endswith((".layers.4.weight", "adjustment.weight")):  # of boxes and ellipses
            nn.init.normal_(parameter, std=0.2)
        elif key.endswith(("classes.bias", "masks.bias")):
            nn.init.normal_(parameter)
        elif key.startswith(("head.classes.", "head.masks.", "head.kernels.")):
            nn.init.normal_(parameter, std=0.3)  # of SOLO, without the prior
    return model


def random_image(height: int, width: int) -> torch.Tensor:
    """``(H, W, 3)`` uint8."""
    generator = torch.Generator().manual_seed(height)
    return torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
