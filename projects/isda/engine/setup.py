"""Set-up: a command line becomes a checked, complete configuration."""

import argparse
import difflib
import functools
import logging
import math
import os
from ast import literal_eval
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

import isda.modeling.backbone  # noqa: F401  (registers the backbones)
from isda.config import RENAMED_KEYS, add_config, present_names
from isda.console import unguarded
from isda.data.checks import check_datasets
from isda.data.classes import check_num_classes, num_classes_of
from isda.data.images import INTENSITY_RULES, check_intensity
from isda.data.packages import prepare_packages
from isda.engine.architectures import (
    check_node,
    check_trainable,
    has_masks,
    node_requirements,
    node_with_classes,
)
from isda.engine.config_keys import flattened, without_effect
from isda.engine.custom_data import use_custom_data
from isda.engine.devices import DeviceError, check_device
from isda.engine.resuming import Resumption, find_resumption, read_flat
from isda.errors import ConfigError
from isda.files import write_error, write_text
from isda.requirements import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    at_least,
    each,
    one_of,
    violation,
)
from isda.tiles.plan import MODES, MOST_OVERLAP
from isda.training.optimizer import CLIP_TYPES

__all__ = [
    "REQUIREMENTS",
    "check_config",
    "load_config",
    "resolve_schedule",
    "setup",
]

logger = logging.getLogger(__name__)

_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former where PyYAML was compiled


def setup(args: argparse.Namespace) -> CfgNode:
    """Read, complete and check the configuration, start logging, and seed.

    Args:
        args: what Detectron2's ``default_argument_parser`` returns.

    Raises:
        ConfigError: a key, a value, or a combination of values is wrong.
        DatasetError: a data set is not registered, or cannot be used as it is.
    """
    cfg, notes = configured(args)
    _make_folder(cfg.OUTPUT_DIR)
    _start_log(cfg.OUTPUT_DIR)
    _warn(notes)
    if cfg.MODEL.DEVICE.startswith("cuda") and not uses_cuda(cfg.MODEL.DEVICE, args.num_gpus):
        logger.warning("MODEL.DEVICE is cpu: no CUDA device can be used")
        cfg.MODEL.DEVICE = "cpu"
    cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    cfg.defrost()
    check_config(cfg, comm.get_world_size())
    train_names = () if args.eval_only else cfg.DATASETS.TRAIN
    _check_named("TEST" if args.eval_only else "TRAIN", cfg)
    prepare_packages((*train_names, *cfg.DATASETS.TEST))
    resolve_classes(cfg, (*train_names, *cfg.DATASETS.TEST))
    given = given_keys(args.config_file, args.opts)
    _warn(without_effect(cfg, given, is_training=not args.eval_only))
    resumption = None
    if args.resume:
        resumption = find_resumption(cfg.OUTPUT_DIR, to_train=not args.eval_only)
    cfg.SEED = _resolve_seed(cfg, args.resume, resumption)
    cfg.freeze()
    if resumption and not args.eval_only:
        _warn(resumption.check(cfg, load_config()))
    with unguarded():
        _begin(cfg, args)
    if comm.is_main_process():
        check_datasets(train_names, cfg.DATASETS.TEST)
    comm.synchronize()
    return cfg


def configured(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """The configuration of a command line, with the data set of ``--dataset`` registered.

    Args:
        args: as for :func:`setup`; ``dataset`` may be missing, as in Detectron2's own parser.

    Returns:
        The configuration, and what the user should know of the data set.
    """
    cfg = load_config(args.config_file, args.opts)
    path = getattr(args, "dataset", None) or ""
    if getattr(args, "crowds_are_instances", False):
        cfg.DATASETS.CROWDS_ARE_INSTANCES = True
    return cfg, use_custom_data(cfg, path, (args.opts or [])[::2], is_training=not args.eval_only)


def _check_named(key: str, cfg: CfgNode) -> None:
    if not cfg.DATASETS[key]:
        raise ConfigError(
            f"DATASETS.{key} is empty: give your own data by --dataset PATH, or the name of a "
            f"registered data set by DATASETS.{key}"
        )


def uses_cuda(device: str, num_gpus: int = 1) -> bool:
    """Whether CUDA is wanted (``--num-gpus 0`` declines it) and there."""
    return device.startswith("cuda") and num_gpus > 0 and torch.cuda.is_available()


def load_config(config_file: str = "", opts: list[str] | None = None) -> CfgNode:
    """Detectron2's defaults, ours, the file's and the command line's values, in this order.

    Raises:
        ConfigError: no such file or key, or a value of the wrong type.
    """
    cfg = get_cfg()
    add_config(cfg)
    if config_file:
        _merge(cfg, _read_yaml(config_file).items(), config_file)
    _merge(cfg, _pairs(opts or []), "the command line")
    _check_finite(flattened(cfg))
    return cfg


def _read_yaml(config_file: str) -> dict[str, Any]:
    """Values by the full names of keys, of a file and those below its ``_BASE_``."""
    if "\0" in config_file:  # which no file has
        raise ConfigError(f"config file {config_file} does not exist")
    try:
        content = _yaml_reader().load_yaml_with_base(config_file, allow_unsafe=False)
        if isinstance(content, dict):
            return flattened(content)
    except FileNotFoundError as error:
        missing = error.filename or config_file
        raise ConfigError(f"config file {missing} does not exist") from error
    except OSError as error:
        name, reason = error.filename or config_file, error.strerror or error
        raise ConfigError(f"config file {name} cannot be read ({reason})") from error
    except RecursionError as error:
        raise ConfigError(
            f"config file {config_file}, or one that it names by _BASE_, nests too deeply, or "
            "within itself by an alias (*NAME)"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {config_file} is not valid YAML: {error}") from error
    except TypeError as error:  # Detectron2 looks for _BASE_ in whatever the file holds
        raise ConfigError(f"config file {config_file} holds no keys") from error
    except (AssertionError, AttributeError) as error:  # Detectron2's, of what it merges
        raise ConfigError(
            f"config file {config_file}, or one that it names by _BASE_, does not nest as the "
            f"others do ({error}): _BASE_ is a path or a list of paths, and a key that holds keys "
            "in one file holds keys in all"
        ) from error
    raise ConfigError(f"config file {config_file} holds no keys")


def _yaml_reader() -> type[CfgNode]:
    """Detectron2's reader of a file and those below its ``_BASE_``.

    It notices a circle, and a key that stands twice: of a file with ``SOLVER:`` in two places the
    first would be lost.
    """
    chain: list[str] = []

    class Reader(CfgNode):
        @classmethod
        def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
            path = os.path.realpath(filename)
            if path in chain:
                circle = [os.path.basename(p) for p in (*chain[chain.index(path) :], path)]
                raise ConfigError(
                    f"config file {filename} includes itself by _BASE_ ({' → '.join(circle)}): "
                    "take it out of one of them"
                )
            chain.append(path)
            with cls._open_cfg(filename) as file:
                _refuse_repetition(yaml.compose(file, _YamlLoader), filename)
            content = super().load_yaml_with_base(filename, allow_unsafe=False)
            chain.pop()
            return content

    return Reader


def _refuse_repetition(node: yaml.Node | None, filename: str) -> None:
    """
    Raises:
        ConfigError: a table has a key twice.
    """
    nodes, seen = [node], set()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias may stand within what it names
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            nodes.append(value)
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(
                    f"config file {filename} has {name} twice, in lines {lines[name]} and {line}, "
                    "of which one would be lost: make one of them"
                )
            lines[name] = line


def _pairs(opts: list[str]) -> list[tuple[str, str]]:
    for opt in opts[::2]:
        if opt.startswith("--"):
            raise ConfigError(f"{opt} stands after KEY VALUE pairs: flags go before them")
        if "=" in opt:
            raise ConfigError(f"{opt}: write KEY VALUE with a space, not KEY=VALUE")
    if len(opts) % 2:
        raise ConfigError(f"{opts[-1]} has no value: overrides are KEY VALUE pairs")
    return list(zip(opts[::2], opts[1::2], strict=True))


def _merge(cfg: CfgNode, pairs: Iterable[tuple[str, Any]], source: str) -> None:
    known = flattened(cfg)
    for key, value in _renamed(pairs, source):
        if key not in known:
            raise ConfigError(f"unknown config key {key} in {source}{_suggestion(key, known)}")
        try:
            cfg.merge_from_list([key, _as_float(value, known[key])])
        except ValueError as error:
            wanted = type(known[key]).__name__
            raise ConfigError(
                f"{key} in {source} must be of type {wanted}, as {known[key]!r}; got {value!r}"
            ) from error


def _renamed(pairs: Iterable[tuple[str, Any]], source: str) -> Iterator[tuple[str, Any]]:
    """Keys by their present names, with one notice for each that has an old one."""
    for key, value in pairs:
        if key in RENAMED_KEYS:
            _notice(key, source)
        yield RENAMED_KEYS.get(key, key), value


@functools.cache  # a program loads its configuration several times
def _notice(key: str, source: str) -> None:
    logger.warning("%s in %s is now called %s", key, source, RENAMED_KEYS[key])


def _as_float(value: Any, default: Any) -> Any:
    """An int where a float is expected, as a float: nobody should have to write 12.0."""
    if isinstance(default, float):
        try:
            decoded = literal_eval(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError):
            return value
        if type(decoded) is int:
            return float(decoded)
    return value


def _suggestion(key: str, known: dict[str, Any]) -> str:
    matches = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    last = key.rsplit(".", 1)[-1]
    matches += [name for name in known if name.rsplit(".", 1)[-1] == last and name not in matches]
    return f"; did you mean {', '.join(matches[:3])}?" if matches else ""


def resolve_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> None:
    """Take the number of classes from the first data set, if left open, and compare with all.

    Raises:
        DatasetError: a data set is not registered, or has another number of classes.
    """
    key = node_with_classes(cfg)
    if key is None or not dataset_names:
        return
    node = cfg.MODEL[key]
    if node.NUM_CLASSES == 0:
        node.NUM_CLASSES = num_classes_of(dataset_names[0])
    check_num_classes(node.NUM_CLASSES, dataset_names, f"MODEL.{key}.NUM_CLASSES")


def _warn(notes: Iterable[str]) -> None:
    for note in notes if comm.is_main_process() else ():
        logger.warning(note)


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {path} cannot be made ({error.strerror})") from error


def _start_log(output_dir: str) -> None:
    try:
        with unguarded():
            setup_logger(output_dir, comm.get_rank(), name="isda")
    except OSError as error:
        raise write_error(error.filename or output_dir, error) from error


def given_keys(config_file: str, opts: Sequence[str] | None) -> list[str]:
    """Keys that the user has chosen: of the command line, and of the config file itself.

    Neither the file's ``_BASE_`` counts nor a complete configuration, such as the one that a
    training leaves in OUTPUT_DIR.
    """
    own = {}
    if config_file:
        with open(config_file, encoding="utf-8") as file:
            own = flattened(yaml.safe_load(file) or {})
        own.pop("_BASE_", None)
    if len(own) > len(flattened(get_cfg())) / 2:
        own = {}
    return [*present_names(dict.fromkeys([*own, *(opts or [])[::2]]))]


def _begin(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's ``default_setup``: logs, seeds, and config.yaml, whole or not at all."""
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, rank, name="fvcore")
    log = setup_logger(cfg.OUTPUT_DIR, rank)
    log.info("Process %d of %d", rank, comm.get_world_size())
    log.info("Environment info:\n%s", collect_env_info())
    log.info("Command line arguments: %s", args)
    log.info("Running with full config:\n%s", cfg.dump())
    if comm.is_main_process():
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
    seed_all_rng(cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def _resolve_seed(cfg: CfgNode, resume: bool, resumption: Resumption | None) -> int:
    """``SEED``, or one that all processes share: the interrupted training's, or a new one."""
    if cfg.SEED >= 0:
        return cfg.SEED
    if resumption and resumption.config.get("SEED", -1) >= 0:
        return resumption.config["SEED"]
    saved = os.path.join(cfg.OUTPUT_DIR, "config.yaml")  # of before the first checkpoint
    if resume and os.path.isfile(saved):
        with open(saved, encoding="utf-8", errors="replace") as file:
            seed = read_flat(file.read()).get("SEED")
        if isinstance(seed, int) and seed >= 0:
            return seed
    return comm.shared_random_seed()


def resolve_schedule(cfg: CfgNode, num_images: int) -> None:
    """Turn epochs into iterations and scale the learning rate with the batch, in place.

    An epoch is one pass over the ``num_images`` filtered training images. Warm-up stays in
    iterations, but ends before the training does. Resolving twice changes nothing.

    Raises:
        ConfigError: a step of the schedule lies outside it.
    """
    solver = cfg.SOLVER
    per_epoch = num_images / solver.IMS_PER_BATCH
    if solver.EPOCHS > 0:
        solver.MAX_ITER = max(round(solver.EPOCHS * per_epoch), 1)
        solver.STEPS = tuple(round(epoch * per_epoch) for epoch in solver.STEP_EPOCHS)
    if solver.CHECKPOINT_EPOCHS > 0:
        solver.CHECKPOINT_PERIOD = max(round(solver.CHECKPOINT_EPOCHS * per_epoch), 1)
    if cfg.TEST.EVAL_EPOCHS > 0:
        cfg.TEST.EVAL_PERIOD = max(round(cfg.TEST.EVAL_EPOCHS * per_epoch), 1)
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        logger.warning("SOLVER.WARMUP_ITERS shortened to fit %d iterations", solver.MAX_ITER)
        solver.WARMUP_ITERS = solver.MAX_ITER - 1
    if solver.REFERENCE_BATCH > 0:
        scale = solver.IMS_PER_BATCH / solver.REFERENCE_BATCH
        solver.BASE_LR *= scale
        solver.BASE_LR_END *= scale
        solver.REFERENCE_BATCH = solver.IMS_PER_BATCH  # what BASE_LR is meant for from now on
    logger.info(
        "%d images, %d per step, %.1f steps per epoch: %d iterations, learning rate %g, drops at "
        "%s, checkpoint every %d, evaluation every %d iterations",
        num_images,
        solver.IMS_PER_BATCH,
        per_epoch,
        solver.MAX_ITER,
        solver.BASE_LR,
        [step for step in solver.STEPS if step < solver.MAX_ITER],
        solver.CHECKPOINT_PERIOD,
        cfg.TEST.EVAL_PERIOD,
    )


# Detectron2 scales no image where the shorter side is to have 0 pixels.
_CROPS = ("relative_range", "relative", "absolute", "absolute_range")
_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
_NAMES = (lambda names: all(type(name) is str for name in names), "names of registered data sets")
_POINTS = (lambda points: all(point >= 0 for point in points), "numbers that are at least 0")
_BELOW_1 = (lambda value: 0 <= value < 1, "at least 0 and below 1")
REQUIREMENTS = {
    "SEED": (lambda value: value < 2**31, "below 2147483648; a negative one stands for a new one"),
    "VIS_PERIOD": NOT_NEGATIVE,
    "MODEL.BACKBONE.NAME": (
        lambda name: name in BACKBONE_REGISTRY,
        "the name of a registered builder, such as build_resnet_fpn_backbone",
    ),
    "MODEL.FPN.OUT_CHANNELS": COUNT,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.PIXEL_MEAN": (lambda values: all(map(math.isfinite, values)), "finite numbers"),
    "MODEL.PIXEL_STD": (lambda values: all(value > 0 for value in values), "values above 0"),
    "INPUT.FORMAT": one_of("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.INTENSITY": (check_intensity, INTENSITY_RULES),
    "INPUT.PAGE": at_least(-1),
    "INPUT.CHANNEL": at_least(-1),
    "INPUT.MAX_PIXELS": COUNT,
    "INPUT.MIN_SIZE_TRAIN": (
        lambda sizes: len(sizes) > 0 and all(type(s) is int and s >= 0 for s in sizes),
        "one or more sizes in pixels, each at least 0",
    ),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": COUNT,
    "INPUT.MIN_SIZE_TEST": NOT_NEGATIVE,
    "INPUT.MAX_SIZE_TEST": COUNT,
    "INPUT.CROP.TYPE": one_of(*_CROPS),
    "INPUT.CROP.SIZE": each(POSITIVE, 2),
    "DATASETS.TRAIN": _NAMES,
    "DATASETS.TEST": _NAMES,
    "DATALOADER.REPEAT_THRESHOLD": NOT_NEGATIVE,
    "SOLVER.IMS_PER_BATCH": COUNT,
    "SOLVER.ACCUMULATION": COUNT,
    "SOLVER.MAX_ITER": COUNT,
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.BASE_LR_END": NOT_NEGATIVE,
    "SOLVER.BIAS_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.OPTIMIZER": one_of("ADAMW", "SGD"),
    "SOLVER.MOMENTUM": _BELOW_1,
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": NOT_NEGATIVE,
    "SOLVER.LR_SCHEDULER_NAME": one_of(*_SCHEDULERS),
    "SOLVER.GAMMA": NOT_NEGATIVE,
    "SOLVER.NUM_DECAYS": NOT_NEGATIVE,
    "SOLVER.STEPS": _POINTS,
    "SOLVER.STEP_EPOCHS": _POINTS,
    "SOLVER.BACKBONE_MULTIPLIER": NOT_NEGATIVE,
    "SOLVER.SAMPLING_MULTIPLIER": NOT_NEGATIVE,
    "SOLVER.REFERENCE_BATCH": NOT_NEGATIVE,
    "SOLVER.EPOCHS": NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_EPOCHS": NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": COUNT,
    "SOLVER.WARMUP_ITERS": NOT_NEGATIVE,
    "SOLVER.WARMUP_FACTOR": NOT_NEGATIVE,
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.EARLY_STOP.PATIENCE": NOT_NEGATIVE,
    "SOLVER.MAX_NONFINITE_STEPS": COUNT,
    "SOLVER.AMP.DTYPE": one_of("bfloat16", "float16"),
    "SOLVER.AMP.IF_SLOWER": one_of("float32", "keep"),
    "SOLVER.EMA.DECAY": (lambda value: 0 < value < 1, "between 0 and 1, both excluded"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of(*CLIP_TYPES),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": POSITIVE,
    "TEST.AMP.DTYPE": one_of("bfloat16", "float16"),
    "TEST.AMP.IF_SLOWER": one_of("float32", "keep"),
    "TEST.EVAL_EPOCHS": NOT_NEGATIVE,
    "TEST.EVAL_PERIOD": NOT_NEGATIVE,
    "TEST.DETECTIONS_PER_IMAGE": COUNT,
    "TEST.TILES.MODE": one_of(*MODES),
    "TEST.TILES.IMAGE_SIZE": NOT_NEGATIVE,
    "TEST.TILES.OVERLAP": (lambda value: 0 <= value <= MOST_OVERLAP, "from 0 to 0.25"),
    "TEST.PRECISE_BN.ENABLED": (lambda value: not value, "False: this trainer has no precise BN"),
    "DATALOADER.NUM_WORKERS": NOT_NEGATIVE,
    "MODEL.WEIGHTS_MIN_MATCHED": SHARE,
    "MODEL.LOAD_PROPOSALS": (lambda value: not value, "False: proposals in files are not read"),
}


def check_config(cfg: CfgNode, world_size: int = 1) -> None:
    """Find wrong values before any work is done that they would waste.

    Raises:
        ConfigError: with the first key that is wrong.
    """
    values = flattened(cfg)
    for key, requirement in (REQUIREMENTS | node_requirements(cfg)).items():
        text = violation(values[key], requirement)
        if text:
            raise ConfigError(f"{key} {text}")
    _check_finite(values)
    check_trainable(cfg)
    try:
        check_device(cfg.MODEL.DEVICE, may_lack_cuda=True)
    except DeviceError as error:
        raise ConfigError(f"MODEL.DEVICE: {error}") from error
    _check_combinations(cfg, world_size)


_MAY_BE_INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)  # the largest of all


def _check_finite(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if key not in _MAY_BE_INFINITE and not _is_finite(value):
            raise ConfigError(f"{key} must be finite, got {value!r}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _check_combinations(cfg: CfgNode, world_size: int) -> None:
    solver = cfg.SOLVER
    share = world_size * solver.ACCUMULATION
    if solver.IMS_PER_BATCH % share:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH must be a multiple of {share} ({world_size} processes × "
            f"SOLVER.ACCUMULATION {solver.ACCUMULATION}), got {solver.IMS_PER_BATCH}"
        )
    check_node(cfg)
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != channels:
            raise ConfigError(
                f"MODEL.{key} must have a value for each of the {channels} channels of "
                f"INPUT.FORMAT {cfg.INPUT.FORMAT}, got {cfg.MODEL[key]}"
            )
    if solver.REFERENCE_BATCH and solver.REFERENCE_WORLD_SIZE:
        raise ConfigError(
            "SOLVER.REFERENCE_BATCH and SOLVER.REFERENCE_WORLD_SIZE both scale the learning rate: "
            "set one of them to 0"
        )
    evaluates = cfg.DATASETS.TEST and (cfg.TEST.EVAL_EPOCHS > 0 or cfg.TEST.EVAL_PERIOD > 0)
    if solver.EARLY_STOP.PATIENCE and not evaluates:
        raise ConfigError(
            "SOLVER.EARLY_STOP.PATIENCE counts evaluations: it needs DATASETS.TEST, and "
            "TEST.EVAL_EPOCHS above 0"
        )
    if cfg.TEST.TILES.MODE != "off" and not has_masks(cfg):
        raise ConfigError(
            f"TEST.TILES.MODE is {cfg.TEST.TILES.MODE}: windows are merged by masks, and the model "
            "has none: set it to off"
        )
    steps = list(solver.STEP_EPOCHS)
    if solver.EPOCHS > 0 and (steps != sorted(steps) or any(s >= solver.EPOCHS for s in steps)):
        raise ConfigError(
            f"SOLVER.STEP_EPOCHS must increase and stay below SOLVER.EPOCHS ({solver.EPOCHS:g}), "
            f"got {steps}"
        )
