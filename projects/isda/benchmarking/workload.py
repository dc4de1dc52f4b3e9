"""Models of config files, without weights, and synthetic images for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Instances
from torch import nn

from isda.engine.architectures import node_with_classes
from isda.engine.setup import load_config as read_config
from isda.meta_arch import ISTR
from isda.meta_arch.fcos import FCOSSegmentor
from isda.meta_arch.grid import GridSegmentor
from isda.model_zoo import get_config_file, is_known
from isda.modeling.folding import fold_norms
from isda.training.optimizer import build_gradient_clipper, build_optimizer

__all__ = [
    "Training",
    "build_for_inference",
    "build_training",
    "config_path",
    "load_config",
    "num_classes",
    "synthetic_inputs",
]

DETECTRON2_CONFIGS = Path(detectron2.__file__).parent / "model_zoo/configs"
CLASSES_OF_COCO = 80
_SMALLEST, _RANGE = 0.03, 0.27  # of instances, in shares of the image's sides
_DECISIVE = 1000.0
_CANDIDATES = 500  # scores of SOLO's cells above the threshold, a part of which point NMS leaves


def config_path(name: str) -> Path:
    """The file of a path, of a name of our model zoo, or of one in Detectron2's.

    Where both have a name, ours is meant; ``detectron2/NAME`` means theirs.

    Raises:
        FileNotFoundError: there is none.
    """
    if name.endswith(".yaml") and Path(name).is_file():
        return Path(name)
    if is_known(name):
        return Path(get_config_file(name))
    theirs = DETECTRON2_CONFIGS / f"{name.removeprefix('detectron2/').removesuffix('.yaml')}.yaml"
    if theirs.is_file():
        return theirs
    raise FileNotFoundError(
        f"no config {name}: give a YAML file, a name below configs/ such as "
        "COCO-InstanceSegmentation/isda_R_50_42ep, or one of Detectron2's model zoo such as "
        "detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
    )


def load_config(name: str, overrides: list[str]) -> CfgNode:
    """A config without weights, and with COCO's number of classes where the data decide it.

    Args:
        name: see :func:`config_path`.

    Raises:
        FileNotFoundError: there is no such config.
        ConfigError: a key or a value is wrong.
    """
    path = config_path(name)
    if path.is_relative_to(DETECTRON2_CONFIGS):
        cfg = read_config(opts=overrides)  # which names wrong keys
        cfg.merge_from_file(str(path))  # some of theirs compute values, which ours must not
        cfg.merge_from_list(overrides)
    else:
        cfg = read_config(str(path), overrides)
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.AMP.IF_SLOWER = cfg.TEST.AMP.IF_SLOWER = "keep"  # measured is what is asked for
    if node := node_with_classes(cfg):
        cfg.MODEL[node].NUM_CLASSES = cfg.MODEL[node].NUM_CLASSES or CLASSES_OF_COCO
    return cfg


def num_classes(cfg: CfgNode) -> int:
    """Of the model's instances."""
    node = node_with_classes(cfg)
    return cfg.MODEL[node].NUM_CLASSES if node else 0


def build_for_inference(cfg: CfgNode) -> nn.Module:
    """The model, with as much to do as if it had been trained: see :func:`_spread_boxes`.

    It finds as many instances as it may return.
    """
    cfg = cfg.clone()
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    for node in (cfg.MODEL.SOLO, cfg.MODEL.SOLOV2):
        node.FINAL_THRESH_TEST = 0.0
    for node in (cfg.MODEL.CONDINST, cfg.MODEL.BLENDMASK):
        node.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = fold_norms(build_model(cfg).eval())  # as everything does that predicts
    _spread_boxes(model)
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers):
            _decide(module.cls_score)
    if isinstance(model, ISTR):
        _spread_queries(model)
    if isinstance(model, GridSegmentor):
        _spread_cells(model)
    if isinstance(model, FCOSSegmentor):
        _spread_locations(model)
    return model


@torch.no_grad()
def _spread_boxes(model: nn.Module) -> None:
    """Let the boxes of Detectron2's detectors stay where the anchors are.

    Untrained ones leave the image or coincide, so that hardly any are left for what comes next.
    """
    for module in model.modules():
        if isinstance(module, StandardRPNHead):
            _zero(module.anchor_deltas)
        elif isinstance(module, (FastRCNNOutputLayers, RetinaNetHead)):
            _zero(module.bbox_pred)


@torch.no_grad()
def _decide(classes: nn.Linear) -> None:
    """Give each box one class with certainty, as trained layers do, and never the background."""
    classes.weight[-1] = classes.weight[0]
    classes.bias[-1] = -1.0
    classes.weight *= _DECISIVE


@torch.no_grad()
def _spread_queries(model: ISTR) -> None:
    """Boxes all over the image, as large as the ellipses, which no step moves."""
    boxes = model.queries.boxes.weight  # centre and size, in shares of the image
    boxes[:, :2] = 0.2 + 0.6 * torch.rand(len(boxes), 2, device=boxes.device)
    boxes[:, 2:] = _SMALLEST + _RANGE * torch.rand(len(boxes), 2, device=boxes.device)
    for step in model.refinement.steps:
        _zero(step.deltas)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


@dataclass
class Training:
    """A model and what the recipe of its config does in a step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    clip: Callable
    autocast_dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """Mixed precision as in ``SOLVER.AMP``."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.model.device.type, self.autocast_dtype, enabled=enabled)

    def update(self) -> None:
        """Clip the gradients and let the optimiser step."""
        self.clip(p for p in self.model.parameters() if p.requires_grad)
        self.optimizer.step()


def build_training(cfg: CfgNode) -> Training:
    """Model, optimiser, clipping and precision of a config; boxes as :func:`_spread_boxes` says."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    _spread_boxes(model)
    clipping, amp = cfg.SOLVER.CLIP_GRADIENTS, cfg.SOLVER.AMP
    return Training(
        model,
        build_optimizer(cfg, model),
        build_gradient_clipper(
            clipping.CLIP_TYPE if clipping.ENABLED else None,
            clipping.CLIP_VALUE,
            clipping.NORM_TYPE,
        ),
        getattr(torch, amp.DTYPE) if amp.ENABLED else None,
    )


def synthetic_inputs(
    batch: int, height: int, width: int, num_instances: int, num_classes: int
) -> list[dict]:
    """Noise with overlapping ellipses of 3 to 30 % of the image's sides."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inputs = []
    for _ in range(batch):
        masks = torch.zeros(num_instances, height, width, dtype=torch.bool)
        for mask, (y, x, h, w) in zip(masks, torch.rand(num_instances, 4, generator=generator)):
            radii = (_SMALLEST + _RANGE * torch.stack([h, w])) * torch.tensor([height, width]) / 2
            distance = ((rows - y * height) / radii[0]) ** 2 + (
                (columns - x * width) / radii[1]
            ) ** 2
            torch.le(distance, 1, out=mask)
        instances = Instances((height, width))
        instances.gt_masks = BitMasks(masks)
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances.gt_classes = torch.randint(num_classes, (num_instances,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances})
    return inputs


@torch.no_grad()
def _spread_cells(model: GridSegmentor) -> None:
    """Some hundred candidates of all classes, as trained SOLOs have, whose masks are half full."""
    classes = model.head.classes
    nn.init.normal_(classes.weight, std=classes.weight[0].numel() ** -0.5)
    scores = classes.out_channels * sum(side**2 for side in model.head.grid_sizes)
    rarity = torch.special.ndtri(torch.tensor(1 - min(_CANDIDATES / scores, 0.25)))
    # Behind a norm and a ReLU the logits have a standard deviation of about √½.
    threshold = torch.logit(torch.tensor(model.selector.score_threshold))
    nn.init.constant_(classes.bias, float(threshold - rarity * 0.5**0.5))
    for module in getattr(model.head, "masks", nn.Module()).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _spread_locations(model: FCOSSegmentor) -> None:
    """Boxes of four strides around every location: of neighbours, NMS leaves both."""
    _zero(model.head.distances)
    nn.init.constant_(model.head.distances.bias, 2.0)
    classes = model.head.classes
    nn.init.normal_(classes.weight, std=classes.weight[0].numel() ** -0.5)
