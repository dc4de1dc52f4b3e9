"""The smallest models of all methods, and the smallest data set that a whole training needs.

A module of its own, because the programs that tests start and kill need it as well.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone
from torch import nn

from isda import add_config
from isda.cli.arguments import argument_parser
from isda.engine.launch import run
from isda.meta_arch.isda import ISDA
from isda.modeling.backbone.fpn import with_fpn

CHANNELS = {"res2": 8, "res3": 16, "res4": 16, "res5": 32}

# Overrides that make an ISTR of the toy.
ISTR = ("MODEL.META_ARCHITECTURE", "ISTR", "MODEL.BACKBONE.NAME", "build_toy_fpn_backbone")

# The same of SOLO and SOLOv2.
_SOLO = ("MODEL.BACKBONE.NAME", "build_toy_fpn_backbone", "MODEL.META_ARCHITECTURE")
SOLO, SOLOV2 = (*_SOLO, "SOLO"), (*_SOLO, "SOLOv2")

# A CondInst and a BlendMask, without norms whose statistics depend on the batch.
CONDINST = (
    *("MODEL.META_ARCHITECTURE", "CondInst", "MODEL.BACKBONE.NAME", "build_toy_fpn_backbone"),
    *("MODEL.CONDINST.NUM_CLASSES", 2, "MODEL.CONDINST.NUM_CONVS", 1),
    *("MODEL.CONDINST.IN_FEATURES", ["p2", "p3", "p4", "p5"], "MODEL.CONDINST.NORM", ""),
    *("MODEL.CONDINST.BRANCH_IN_FEATURES", ["p2", "p3"], "MODEL.CONDINST.BRANCH_DIM", 8),
    *("MODEL.CONDINST.BRANCH_CONVS", 1, "MODEL.CONDINST.SEMANTIC", True),
    *("MODEL.CONDINST.SCORE_THRESH_TEST", 0.0),
)
BLENDMASK = (
    *("MODEL.META_ARCHITECTURE", "BlendMask", "MODEL.BACKBONE.NAME", "build_toy_fpn_backbone"),
    *("MODEL.BLENDMASK.NUM_CLASSES", 2, "MODEL.BLENDMASK.NUM_CONVS", 1),
    *("MODEL.BLENDMASK.IN_FEATURES", ["p2", "p3", "p4", "p5"], "MODEL.BLENDMASK.NORM", ""),
    *("MODEL.BLENDMASK.BRANCH_IN_FEATURES", ["p2", "p3"], "MODEL.BLENDMASK.BRANCH_DIM", 8),
    *("MODEL.BLENDMASK.BRANCH_CONVS", 1, "MODEL.BLENDMASK.SCORE_THRESH_TEST", 0.0),
    *("MODEL.BLENDMASK.MASK_SIZE", 28, "MODEL.BLENDMASK.ATTENTION_SIZE", 7),
)

# A RetinaNet of toys.
RETINANET = (
    *("MODEL.META_ARCHITECTURE", "RetinaNet"),
    *("MODEL.BACKBONE.NAME", "build_toy_fpn_backbone"),
    *("MODEL.RETINANET.IN_FEATURES", ["p2", "p3"], "MODEL.RETINANET.NUM_CONVS", 1),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]], "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
)

# Overrides that give the toy boxes.
BOXES = (
    *("MODEL.ISDA.BOXES", True, "MODEL.ISDA.BOX_REFINEMENT", True),
    *("MODEL.ISDA.RELATIVE_BOXES", True, "MODEL.ISDA.EXACT_EXTENT", True),
    *("MODEL.ISDA.QUERY_SELECTION", True, "MODEL.ISDA.QUERY_RELATION", True),
    *("MODEL.ISDA.TOKEN_CONTENT", True, "MODEL.ISDA.ELLIPSE", True),
    *("MODEL.ISDA.KERNEL_POSITION", False, "MODEL.ISDA.DENOISING_QUERIES", 4),
)


@BACKBONE_REGISTRY.register()
class ToyBackbone(Backbone):
    """One convolution per stage."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        norm = cfg.MODEL.RESNETS.NORM
        self.stem = nn.Conv2d(input_shape.channels, 8, 3, stride=2, padding=1)
        before, self.stages = 8, nn.ModuleDict()
        for name, channels in CHANNELS.items():
            convolution = nn.Conv2d(before, channels, 3, stride=2, padding=1)
            normed = get_norm(norm, channels) or nn.Identity()
            self.stages[name] = nn.Sequential(convolution, normed, nn.ReLU())
            before = channels

    def forward(self, x):
        x, features = self.stem(x), {}
        for name, stage in self.stages.items():
            x = features[name] = stage(x)
        return features

    def output_shape(self):
        strides = dict(zip(CHANNELS, (4, 8, 16, 32), strict=True))
        return {name: ShapeSpec(channels=c, stride=strides[name]) for name, c in CHANNELS.items()}


@BACKBONE_REGISTRY.register()
def build_toy_fpn_backbone(cfg, input_shape):
    return with_fpn(cfg, ToyBackbone(cfg, input_shape))


@META_ARCH_REGISTRY.register()
class PoisonedISDA(ISDA):
    """An ISDA that sees NaN in every image of a file whose name contains "poison"."""

    def preprocess(self, batched_inputs):
        images = super().preprocess(batched_inputs)
        for row, inputs in zip(images.tensor, batched_inputs, strict=True):
            if "poison" in inputs["file_name"]:
                row.fill_(float("nan"))
        return images


def toy_config(output_dir, *overrides) -> CfgNode:
    cfg = get_cfg()
    add_config(cfg)
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.SEED = 7
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ISDA"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "ToyBackbone"
    cfg.MODEL.RESNETS.NORM = "BN"
    isda = cfg.MODEL.ISDA
    isda.NUM_CLASSES, isda.HIDDEN_DIM, isda.NUM_QUERIES, isda.NUM_HEADS = 2, 64, 6, 4
    isda.ENCODER_LAYERS, isda.DECODER_LAYERS, isda.FEEDFORWARD_DIM = 1, 2, 32
    isda.MASK_HEAD_DIM = isda.MASK_DIM = 64
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = list(CHANNELS), 32
    istr = cfg.MODEL.ISTR
    istr.NUM_CLASSES, istr.HIDDEN_DIM, istr.NUM_QUERIES, istr.NUM_HEADS = 2, 32, 6, 4
    istr.NUM_STEPS, istr.FEEDFORWARD_DIM, istr.DYNAMIC_DIM = 2, 32, 8
    istr.POOLER_RESOLUTION, istr.EMBEDDING_DIM = 3, 10
    cfg.MODEL.SOLOV2.MASK_HEAD_DIM = cfg.MODEL.SOLOV2.MASK_DIM = 64
    for solo in (cfg.MODEL.SOLO, cfg.MODEL.SOLOV2):
        solo.NUM_CLASSES, solo.HEAD_DIM, solo.NUM_CONVS = 2, 64, 1
        solo.GRID_SIZES, solo.SCALE_RANGES = [8, 6, 4, 2, 1], [[1, 96]] * 5
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("toy",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.DATASET_MAPPER_NAME = "fixed"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (32, 48), 64
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 32, 64
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 6, ()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 1e-3, 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.merge_from_list(list(overrides))
    return cfg


def toy_data(folder: Path, name="toy", **content) -> None:
    """Write and register a data set, instead of an earlier one of this name."""
    write_toy_data(folder, name, **content)
    register_toy_data(folder, name)


def register_toy_data(folder: Path, name="toy") -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    register_coco_instances(name, {}, str(folder / f"{name}.json"), str(folder))


def write_toy_data(folder: Path, name, file_names=None, sizes=((48, 64), (64, 48))) -> None:
    """No rectangle in the first image, two in the second, three in the third and so on.

    Never one: with less than one pair per process on average, the loss is divided by one.
    """
    file_names = file_names or [f"image_{i}.png" for i in range(5)]
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, file_name in enumerate(file_names):
        height, width = sizes[number % len(sizes)]
        pixels = rng.integers(0, 100, (height, width, 3), dtype=np.uint8)
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        for rectangle in range(number and number + 1):
            x, y, w, h = 2 + 11 * rectangle, 8 + 3 * number, 9, 20
            pixels[y : y + h, x : x + w] += 120
            annotation = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            annotation |= {"category_id": 1 + rectangle % 2, "bbox": [x, y, w, h], "area": w * h}
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(annotation)
        cv2.imwrite(str(folder / file_name), pixels)
    categories = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))


def same_weights(first: dict, second: dict) -> bool:
    """Equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def same_size_config(output_dir, *overrides) -> CfgNode:
    """Without anything that couples the images of a batch or draws random numbers.

    Images of one size need no padding, there is neither batch normalisation nor dropout; SGD is
    linear in the gradient, where AdamW would turn the smallest difference into a whole step.
    """
    return toy_config(
        output_dir,
        *("MODEL.RESNETS.NORM", "", "MODEL.ISDA.DROPOUT", 0.0),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 64),
        *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.01, "SOLVER.MAX_ITER", 3),
        # Clipping would hide a gradient of the wrong size.
        *("SOLVER.CLIP_GRADIENTS.ENABLED", False),
        *overrides,
    )


def call(train_net, *words):
    """What ``main`` of the program returns."""
    results = []
    arguments = argument_parser().parse_args(list(map(str, words)))
    run(lambda args: results.append(train_net.main(args)), arguments)
    return results[0]
