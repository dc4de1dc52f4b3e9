"""Tables of config keys: when each is without effect, and what it does on ``--resume``.

Two tables of patterns, as of file names in a shell; the first row that fits a key decides. The
tests walk over all keys, so that a new one without a decision fails. Below ``MODEL`` whole nodes
are decided by rules, which hold for new keys as well.
"""

from collections.abc import Callable, Iterable
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from detectron2.config import CfgNode

from isda.engine.architectures import architecture
from isda.meta_arch import METHODS

__all__ = [
    "KNOWN_MODELS",
    "OnResume",
    "flattened",
    "idle_reason",
    "on_resume",
    "without_effect",
]

Condition = Callable[[CfgNode], str]  # why a key has no effect; "" where it has one


class OnResume(Enum):
    """What a change of a key does to a training that is resumed."""

    HOLDS = "the new value holds from the first resumed step on, as if it had from the start"
    REFUSED = "the checkpoint cannot be continued with another value"
    KEPT = "the checkpoint decides, so that the new value has no effect"


HOLDS, REFUSED, KEPT = OnResume

# Parameters, and what they have learnt to work with, belong to the checkpoint; below MODEL only
# these do not. New keys of a loss, a cost or a threshold fall under the patterns.
_ON_RESUME = (
    ("MODEL.DEVICE", HOLDS),
    ("MODEL.WEIGHTS MODEL.WEIGHTS_MIN_MATCHED MODEL.TORCH_BACKBONE.WEIGHTS", KEPT),
    ("MODEL.ISTR.MASK_DICTIONARY MODEL.RETINANET.PRIOR_PROB", KEPT),
    ("MODEL.*.BBOX_REG_WEIGHTS", REFUSED),
    ("MODEL.*_WEIGHT MODEL.*_COST MODEL.*_BETA MODEL.*.FOCAL_LOSS_* MODEL.*_LOSS_TYPE", HOLDS),
    ("MODEL.*_THRESH MODEL.*_THRESH_TEST MODEL.*_THRESHOLD MODEL.*_THRESHOLDS", HOLDS),
    ("MODEL.*.IOU_LABELS MODEL.*.IOUS MODEL.*_TOPK_* MODEL.*.TOPK_* MODEL.*.MIN_SIZE", HOLDS),
    ("MODEL.*.BATCH_SIZE_PER_IMAGE MODEL.*.POSITIVE_FRACTION MODEL.*.PROPOSAL_APPEND_GT", HOLDS),
    ("MODEL.*.USE_FED_LOSS MODEL.*.FED_LOSS_* MODEL.*.TRAIN_ON_PRED_BOXES", HOLDS),
    ("MODEL.*.NORMALIZE_LOSS_* MODEL.*.MIN_KEYPOINTS_* MODEL.PANOPTIC_FPN.*", HOLDS),
    ("MODEL.*.DROPOUT MODEL.*.DROP_PATH_RATE MODEL.*.GRADIENT_CHECKPOINTING", HOLDS),
    ("MODEL.*.SCALE_RANGES MODEL.*.NMS_KERNEL MODEL.*.NMS_SIGMA", HOLDS),
    ("MODEL.*.MASK_NOISE MODEL.*.KEEP_LARGEST_COMPONENT MODEL.*.MAX_MASKS_TRAIN", HOLDS),
    ("MODEL.*", REFUSED),
    ("INPUT.FORMAT INPUT.INTENSITY", REFUSED),
    ("INPUT.PAGE INPUT.CHANNEL INPUT.MAX_PIXELS", HOLDS),
    ("INPUT.MIN_SIZE_TRAIN INPUT.MIN_SIZE_TRAIN_SAMPLING INPUT.MAX_SIZE_TRAIN", HOLDS),
    ("INPUT.MIN_SIZE_TEST INPUT.MAX_SIZE_TEST INPUT.RANDOM_FLIP INPUT.RANDOM_ROTATE90", HOLDS),
    ("INPUT.CROP.* INPUT.COLOR_AUG INPUT.MASK_FORMAT INPUT.DATASET_MAPPER_NAME", HOLDS),
    ("INPUT.IMAGE_SIZE INPUT.MIN_SCALE INPUT.MAX_SCALE", HOLDS),
    # Their classes have to be the checkpoint's, which is compared apart.
    ("DATASETS.TRAIN DATASETS.TEST DATASETS.PATH DATASETS.CROWDS_ARE_INSTANCES", HOLDS),
    ("DATASETS.*PROPOSAL*", HOLDS),
    ("DATALOADER.NUM_WORKERS DATALOADER.ASPECT_RATIO_GROUPING DATALOADER.SAMPLER_TRAIN", HOLDS),
    ("DATALOADER.REPEAT_* DATALOADER.FILTER_EMPTY_ANNOTATIONS", HOLDS),
    ("SOLVER.OPTIMIZER", REFUSED),  # the moments of one are of no use to another
    ("SOLVER.LR_SCHEDULER_NAME SOLVER.MAX_ITER SOLVER.BASE_LR SOLVER.BASE_LR_END", HOLDS),
    ("SOLVER.MOMENTUM SOLVER.NESTEROV SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM", HOLDS),
    ("SOLVER.WEIGHT_DECAY_BIAS SOLVER.BIAS_LR_FACTOR SOLVER.*_MULTIPLIER", HOLDS),
    ("SOLVER.GAMMA SOLVER.STEPS SOLVER.NUM_DECAYS SOLVER.WARMUP_* SOLVER.RESCALE_INTERVAL", HOLDS),
    ("SOLVER.CHECKPOINT_PERIOD SOLVER.IMS_PER_BATCH SOLVER.REFERENCE_WORLD_SIZE", HOLDS),
    ("SOLVER.REFERENCE_BATCH SOLVER.ACCUMULATION SOLVER.EPOCHS SOLVER.STEP_EPOCHS", HOLDS),
    ("SOLVER.CHECKPOINT_EPOCHS SOLVER.CLIP_GRADIENTS.* SOLVER.AMP.* SOLVER.EMA.*", HOLDS),
    ("SOLVER.EARLY_STOP.PATIENCE SOLVER.MAX_NONFINITE_STEPS", HOLDS),
    ("TEST.EVAL_PERIOD TEST.EVAL_EPOCHS TEST.DETECTIONS_PER_IMAGE TEST.AMP.* TEST.TILES.*", HOLDS),
    ("TEST.EXPECTED_RESULTS TEST.KEYPOINT_OKS_SIGMAS TEST.AUG.* TEST.PRECISE_BN.*", HOLDS),
    # Another seed: the data come in another order from here on.
    ("SEED OUTPUT_DIR CUDNN_BENCHMARK VIS_PERIOD VERSION GLOBAL.HACK", HOLDS),
)


def _is(key: str, *values: Any) -> Condition:
    """Without effect where the value of ``key`` is one of ``values``."""

    def reason(cfg: CfgNode) -> str:
        value = _value(cfg, key)
        return f"{key} is {_shown(value)}" if value in values else ""

    return reason


def _is_not(key: str, *values: Any) -> Condition:
    """Without effect unless the value of ``key`` is one of ``values``."""

    def reason(cfg: CfgNode) -> str:
        value = _value(cfg, key)
        return "" if value in values else f"{key} is {_shown(value)}"

    return reason


def _above_0(key: str) -> Condition:
    def reason(cfg: CfgNode) -> str:
        value = _value(cfg, key)
        return f"{key} is {_shown(value)}" if value > 0 else ""

    return reason


def _because(reason: str) -> Condition:
    return lambda cfg: reason


def _any(*conditions: Condition) -> Condition:
    """The first reason that there is."""
    return lambda cfg: next(filter(None, (condition(cfg) for condition in conditions)), "")


def _architecture_is(*names: str) -> Condition:
    """Without effect for these meta-architectures; of others nothing is known."""

    def reason(cfg: CfgNode) -> str:
        known = architecture(cfg) in names
        return f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}" if known else ""

    return reason


KNOWN_MODELS = (*(method.__name__ for method in METHODS), "GeneralizedRCNN", "RetinaNet")


def _read_by(*readers: str) -> Condition:
    """Without effect for all meta-architectures of :data:`KNOWN_MODELS` but the ``readers``."""
    return _architecture_is(*(name for name in KNOWN_MODELS if name not in readers))


# The nodes that a builder of a backbone reads, beside MODEL.BACKBONE; of others nothing is known.
_RESNET, _RESNET_FPN = {"RESNETS"}, {"RESNETS", "FPN"}
_BACKBONES = {
    "build_resnet_backbone": _RESNET,
    "build_resnet_fpn_backbone": _RESNET_FPN,
    "build_retinanet_resnet_fpn_backbone": _RESNET_FPN,
    "build_basic_resnet_backbone": _RESNET,
    "build_basic_resnet_fpn_backbone": _RESNET_FPN,
    "build_swin_backbone": {"SWIN"},
    "build_swin_fpn_backbone": {"SWIN", "FPN"},
    "build_vit_backbone": {"VIT"},
    "build_fcos_resnet_fpn_backbone": _RESNET_FPN,
    "build_fcos_basic_resnet_fpn_backbone": _RESNET_FPN,
    "build_fcos_swin_fpn_backbone": {"SWIN", "FPN"},
    "build_fcos_torch_fpn_backbone": {"TORCH_BACKBONE", "FPN"},
    "build_torch_backbone": {"TORCH_BACKBONE"},
    "build_torch_fpn_backbone": {"TORCH_BACKBONE", "FPN"},
}


def _backbone_without(*nodes: str) -> Condition:
    """Without effect for backbones that read none of these nodes."""
    without = [name for name, read in _BACKBONES.items() if read.isdisjoint(nodes)]
    return _is("MODEL.BACKBONE.NAME", *without)


_BASIC = tuple(name for name in _BACKBONES if "_basic_resnet_" in name)
_NEVER: Condition = _because("")  # always in effect
_RCNN = _read_by("GeneralizedRCNN")
_EPOCHS, _NO_EPOCHS = _above_0("SOLVER.EPOCHS"), _is("SOLVER.EPOCHS", 0)
_NOT_CROPPED = _is("INPUT.DATASET_MAPPER_NAME", "fixed", "isda_lsj")
_SCHEDULE, _CLIPPING = "SOLVER.LR_SCHEDULER_NAME", "SOLVER.CLIP_GRADIENTS"
_NOT_REPEATED = _is_not("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")

_IDLE = (
    # Models
    ("MODEL.WEIGHTS_MIN_MATCHED", _is("MODEL.WEIGHTS", "")),
    ("MODEL.META_ARCHITECTURE MODEL.DEVICE MODEL.WEIGHTS MODEL.PIXEL_*", _NEVER),
    ("MODEL.BACKBONE.*", _NEVER),
    (
        "MODEL.ISDA.BOX_* MODEL.ISDA.GIOU_* MODEL.ISDA.RELATIVE_BOXES",
        _any(_read_by("ISDA"), _is("MODEL.ISDA.BOXES", False)),
    ),
    *(
        (f"MODEL.{node}.NMS_SIGMA", _any(_read_by(name), _is(f"MODEL.{node}.NMS_KERNEL", "linear")))
        for name, node in (("SOLO", "SOLO"), ("SOLOv2", "SOLOV2"))
    ),
    (
        "MODEL.BLENDMASK.SEMANTIC_WEIGHT",
        _any(_read_by("BlendMask"), _is("MODEL.BLENDMASK.SEMANTIC", False)),
    ),
    *((f"MODEL.{method.config_node}.*", _read_by(method.__name__)) for method in METHODS),
    (
        "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER",
        _any(_RCNN, _is("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", False)),
    ),
    ("MODEL.MASK_ON MODEL.KEYPOINT_ON MODEL.ROI_HEADS.* MODEL.ROI_BOX_HEAD.*", _RCNN),
    ("MODEL.PROPOSAL_GENERATOR.* MODEL.RPN.*", _RCNN),
    ("MODEL.ROI_MASK_HEAD.*", _any(_RCNN, _is("MODEL.MASK_ON", False))),
    ("MODEL.ROI_KEYPOINT_HEAD.*", _any(_RCNN, _is("MODEL.KEYPOINT_ON", False))),
    (
        "MODEL.ROI_BOX_CASCADE_HEAD.*",
        _any(_RCNN, _is("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "StandardROIHeads")),
    ),
    (
        "MODEL.ANCHOR_GENERATOR.ANGLES",
        _is("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
    ),
    ("MODEL.ANCHOR_GENERATOR.*", _read_by("GeneralizedRCNN", "RetinaNet")),
    ("MODEL.RETINANET.*", _read_by("RetinaNet")),
    ("MODEL.SEM_SEG_HEAD.* MODEL.PANOPTIC_FPN.*", _read_by()),
    ("MODEL.LOAD_PROPOSALS", _because("this trainer reads no proposals from files")),
    ("MODEL.RESNETS.DEPTH MODEL.RESNETS.OUT_FEATURES", _backbone_without("RESNETS")),
    ("MODEL.RESNETS.NORM MODEL.RESNETS.STEM_OUT_CHANNELS", _backbone_without("RESNETS")),
    ("MODEL.RESNETS.RES2_OUT_CHANNELS", _backbone_without("RESNETS")),
    ("MODEL.RESNETS.*", _any(_backbone_without("RESNETS"), _is("MODEL.BACKBONE.NAME", *_BASIC))),
    ("MODEL.FPN.OUT_CHANNELS", _backbone_without("FPN", "VIT")),
    ("MODEL.FPN.*", _backbone_without("FPN")),
    ("MODEL.SWIN.*", _backbone_without("SWIN")),
    ("MODEL.VIT.*", _backbone_without("VIT")),
    ("MODEL.TORCH_BACKBONE.*", _backbone_without("TORCH_BACKBONE")),
    # Data
    ("INPUT.DATASET_MAPPER_NAME INPUT.FORMAT INPUT.MASK_FORMAT", _NEVER),
    ("INPUT.INTENSITY INPUT.PAGE INPUT.CHANNEL INPUT.MAX_PIXELS", _NEVER),
    ("INPUT.MIN_SIZE_TEST INPUT.MAX_SIZE_TEST", _NEVER),
    ("INPUT.RANDOM_FLIP INPUT.RANDOM_ROTATE90 INPUT.COLOR_AUG", _NEVER),
    ("INPUT.MIN_SIZE_TRAIN* INPUT.MAX_SIZE_TRAIN", _is("INPUT.DATASET_MAPPER_NAME", "isda_lsj")),
    ("INPUT.CROP.ENABLED", _NOT_CROPPED),
    ("INPUT.CROP.*", _any(_NOT_CROPPED, _is("INPUT.CROP.ENABLED", False))),
    (
        "INPUT.IMAGE_SIZE INPUT.MIN_SCALE INPUT.MAX_SCALE",
        _is("INPUT.DATASET_MAPPER_NAME", "isda", "fixed"),
    ),
    ("DATASETS.TRAIN DATASETS.TEST DATASETS.PATH", _NEVER),
    ("DATASETS.CROWDS_ARE_INSTANCES", _is("DATASETS.PATH", "")),
    ("DATASETS.*PROPOSAL*", _because("this trainer reads no proposals from files")),
    ("DATALOADER.REPEAT_*", _NOT_REPEATED),
    ("DATALOADER.NUM_WORKERS DATALOADER.ASPECT_RATIO_GROUPING", _NEVER),
    ("DATALOADER.SAMPLER_TRAIN DATALOADER.FILTER_EMPTY_ANNOTATIONS", _NEVER),
    # Schedule
    ("SOLVER.MAX_ITER SOLVER.STEPS", _EPOCHS),
    ("SOLVER.STEP_EPOCHS", _NO_EPOCHS),
    ("SOLVER.CHECKPOINT_PERIOD", _above_0("SOLVER.CHECKPOINT_EPOCHS")),
    ("TEST.EVAL_PERIOD", _above_0("TEST.EVAL_EPOCHS")),
    ("SOLVER.EPOCHS SOLVER.CHECKPOINT_EPOCHS TEST.EVAL_EPOCHS", _NEVER),
    ("SOLVER.LR_SCHEDULER_NAME SOLVER.BASE_LR SOLVER.WARMUP_ITERS", _NEVER),
    ("SOLVER.BASE_LR_END", _is_not(_SCHEDULE, "WarmupCosineLR")),
    ("SOLVER.GAMMA", _is(_SCHEDULE, "WarmupCosineLR")),
    ("SOLVER.NUM_DECAYS", _is_not(_SCHEDULE, "WarmupStepWithFixedGammaLR")),
    ("SOLVER.WARMUP_FACTOR SOLVER.WARMUP_METHOD", _is("SOLVER.WARMUP_ITERS", 0)),
    ("SOLVER.RESCALE_INTERVAL", _is("SOLVER.WARMUP_ITERS", 0)),
    ("SOLVER.IMS_PER_BATCH SOLVER.ACCUMULATION SOLVER.REFERENCE_*", _NEVER),
    # Optimiser
    ("SOLVER.OPTIMIZER SOLVER.BIAS_LR_FACTOR SOLVER.WEIGHT_DECAY*", _NEVER),
    ("SOLVER.BACKBONE_MULTIPLIER SOLVER.MAX_NONFINITE_STEPS", _NEVER),
    ("SOLVER.MOMENTUM SOLVER.NESTEROV", _is_not("SOLVER.OPTIMIZER", "SGD")),
    # Only deformable attention has sampling offsets.
    ("SOLVER.SAMPLING_MULTIPLIER", _read_by("ISDA")),
    (f"{_CLIPPING}.ENABLED SOLVER.AMP.ENABLED SOLVER.EMA.ENABLED TEST.AMP.ENABLED", _NEVER),
    (
        f"{_CLIPPING}.NORM_TYPE",
        _any(_is(f"{_CLIPPING}.ENABLED", False), _is(f"{_CLIPPING}.CLIP_TYPE", "value")),
    ),
    (f"{_CLIPPING}.*", _is(f"{_CLIPPING}.ENABLED", False)),
    ("SOLVER.AMP.DTYPE SOLVER.AMP.IF_SLOWER", _is("SOLVER.AMP.ENABLED", False)),
    ("SOLVER.EMA.DECAY", _is("SOLVER.EMA.ENABLED", False)),
    ("SOLVER.EARLY_STOP.PATIENCE", _NEVER),
    # Evaluation
    ("TEST.AMP.DTYPE TEST.AMP.IF_SLOWER", _is("TEST.AMP.ENABLED", False)),
    ("TEST.DETECTIONS_PER_IMAGE TEST.TILES.*", _NEVER),
    ("TEST.EXPECTED_RESULTS", _because("results are compared with nothing here")),
    ("TEST.KEYPOINT_OKS_SIGMAS", _because("keypoints are not evaluated here")),
    ("TEST.AUG.*", _because("this project has no test-time augmentation")),
    ("TEST.PRECISE_BN.*", _because("this trainer has no precise BN")),
    # Everything else
    ("VIS_PERIOD", _read_by("GeneralizedRCNN", "RetinaNet")),
    ("SEED OUTPUT_DIR CUDNN_BENCHMARK", _NEVER),
    ("VERSION GLOBAL.HACK", _because("nothing reads it")),
)

# What only a training reads, beside the losses of a model.
_TRAINING = (
    "SOLVER.* DATALOADER.REPEAT_* DATALOADER.SAMPLER_TRAIN DATALOADER.ASPECT_RATIO_GROUPING "
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS TEST.EVAL_* INPUT.*_TRAIN INPUT.MIN_SIZE_TRAIN_SAMPLING "
    "INPUT.CROP.* INPUT.RANDOM_* INPUT.COLOR_AUG INPUT.IMAGE_SIZE INPUT.M??_SCALE "
    "INPUT.MASK_FORMAT INPUT.DATASET_MAPPER_NAME CUDNN_BENCHMARK"
)


def on_resume(key: str) -> OnResume | None:
    """What a change of ``key`` does between two starts; None: the table does not know the key."""
    return _decision(_ON_RESUME, key)


def idle_reason(key: str) -> Condition | None:
    """When ``key`` has no effect, and why; None: the table does not know the key."""
    return _decision(_IDLE, key)


def without_effect(cfg: CfgNode, keys: Iterable[str], is_training: bool = True) -> list[str]:
    """One sentence for each of ``keys`` that changes nothing in this configuration.

    Args:
        is_training: else the model is only evaluated.
    """
    sentences = []
    for key in dict.fromkeys(keys):
        reason = (idle_reason(key) or _NEVER)(cfg)
        if not is_training and _fits(_TRAINING, key):
            reason = "--eval-only trains nothing"
        if reason:
            sentences.append(f"{key} has no effect: {reason}")
    return sentences


def flattened(nested: dict, prefix: str = "") -> dict[str, Any]:
    """Full names and values of all keys, in their order."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _decision(table: tuple, key: str) -> Any:
    return next((decision for patterns, decision in table if _fits(patterns, key)), None)


def _fits(patterns: str, key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns.split())


def _value(cfg: CfgNode, key: str) -> Any:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "empty" if value == "" else str(value)
