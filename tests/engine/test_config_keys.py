"""Each key of the configuration has a decision, and the decisions are what the code does."""

import shutil
from pathlib import Path

import pytest
import yaml
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detectron2.solver import build_lr_scheduler
from recording import changed, keys_read
from toys import (
    BLENDMASK,
    CHANNELS,
    CONDINST,
    ISTR,
    RETINANET,
    SOLO,
    SOLOV2,
    call,
    toy_config,
    toy_data,
)

from isda.data.augmentation import build_augmentations
from isda.engine import config_keys
from isda.engine.config_keys import (
    OnResume,
    flattened,
    idle_reason,
    on_resume,
    without_effect,
)
from isda.engine.loader import build_sampler
from isda.engine.setup import given_keys, load_config
from isda.training.optimizer import build_optimizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))

RCNN = (
    *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
    *("MODEL.BACKBONE.NAME", "build_toy_fpn_backbone", "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3"]),
    *("MODEL.RPN.IN_FEATURES", ["p2", "p3"], "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]]),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
)
MASK_RCNN = (*RCNN, "MODEL.MASK_ON", True)
CASCADE = (*MASK_RCNN, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads")
CASCADE += ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
MODELS = {
    "isda": (),
    "istr": ISTR,
    "solo": SOLO,
    "solov2": SOLOV2,
    "condinst": CONDINST,
    "blendmask": BLENDMASK,
    "rcnn": RCNN,
    "mask_rcnn": MASK_RCNN,
    "cascade": CASCADE,
    "retinanet": RETINANET,
}
SMALL_BACKBONES = (
    *("MODEL.SWIN.DEPTHS", [1, 1, 1, 1], "MODEL.SWIN.EMBED_DIM", 48),
    *("MODEL.VIT.IMG_SIZE", 96, "MODEL.VIT.EMBED_DIM", 48, "MODEL.VIT.DEPTH", 2),
    *("MODEL.VIT.GLOBAL_BLOCKS", [1], "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", list(CHANNELS)),
)
DEEP = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
BACKBONE_NODES = ("RESNETS", "FPN", "SWIN", "VIT", "TORCH_BACKBONE")
# Read elsewhere than where the model is built, or by all backbones.
OTHERS = (*BACKBONE_NODES, "BACKBONE", "WEIGHTS", "WEIGHTS_MIN_MATCHED")


def all_keys():
    return list(flattened(load_config()))


def node_of(key):
    return key.split(".")[1]


def is_idle(cfg, key):
    return bool(idle_reason(key)(cfg))


def test_every_key_has_a_decision():
    """A new key fails here until both tables of isda/engine/config_keys.py say what it does."""
    assert len(all_keys()) > 200
    assert [key for key in all_keys() if on_resume(key) is None] == []
    assert [key for key in all_keys() if idle_reason(key) is None] == []


def test_every_row_decides_about_a_key():
    for table in (config_keys._ON_RESUME, config_keys._IDLE):
        used = set()
        for key in all_keys():
            rows = (i for i, (patterns, _) in enumerate(table) if config_keys._fits(patterns, key))
            used.add(next(rows))
        assert [table[i][0] for i in range(len(table)) if i not in used] == []


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_reads_and_what_it_does_not(tmp_path, name):
    """Against the keys that are read when the model is built."""
    cfg = toy_config(tmp_path, *MODELS[name])
    read = keys_read(cfg, build_model)
    keys = [k for k in flattened(cfg) if k.startswith("MODEL.") and node_of(k) not in OTHERS]
    keys.append("VIS_PERIOD")
    assert {k for k in keys if not is_idle(cfg, k)} == {k for k in keys if k in read}


@pytest.mark.parametrize("name", config_keys._BACKBONES)
def test_what_a_backbone_reads_and_what_it_does_not(tmp_path, name):
    resnet = () if "basic" in name else DEEP
    cfg = toy_config(tmp_path, *SMALL_BACKBONES, *resnet, "MODEL.BACKBONE.NAME", name)
    read = keys_read(cfg, build_backbone)
    keys = [k for k in flattened(cfg) if k.startswith("MODEL.") and node_of(k) in BACKBONE_NODES]
    assert {k for k in keys if not is_idle(cfg, k)} == {k for k in keys if k in read}


def test_every_backbone_of_ours_is_in_the_table():
    ours = [name for name, f in BACKBONE_REGISTRY if f.__module__.startswith("isda.")]
    assert len(ours) >= 7
    assert set(ours) <= set(config_keys._BACKBONES)


@pytest.mark.parametrize("optimizer", ["ADAMW", "SGD"])
def test_what_the_optimizer_reads(tmp_path, optimizer):
    cfg = toy_config(tmp_path, "SOLVER.OPTIMIZER", optimizer)
    model = build_model(cfg)
    read = keys_read(cfg, lambda recorded: build_optimizer(recorded, model))
    for key in ("SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.WEIGHT_DECAY_NORM"):
        assert is_idle(cfg, key) == (key not in read)


@pytest.mark.parametrize(
    "name", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"]
)
def test_what_the_schedule_reads(tmp_path, name):
    cfg = toy_config(tmp_path, "SOLVER.LR_SCHEDULER_NAME", name)
    optimizer = build_optimizer(cfg, build_model(cfg))
    read = keys_read(cfg, lambda recorded: build_lr_scheduler(recorded, optimizer))
    for key in ("SOLVER.GAMMA", "SOLVER.NUM_DECAYS", "SOLVER.BASE_LR_END"):
        assert is_idle(cfg, key) == (key not in read)


@pytest.mark.parametrize("mapper", ["isda", "isda_lsj", "fixed"])
@pytest.mark.parametrize("crops", [True, False])
def test_what_the_augmentation_reads(tmp_path, mapper, crops):
    cfg = toy_config(tmp_path, "INPUT.DATASET_MAPPER_NAME", mapper, "INPUT.CROP.ENABLED", crops)
    read = keys_read(cfg, lambda recorded: build_augmentations(recorded, is_train=True))
    keys = [k for k in flattened(cfg) if k.startswith("INPUT.") and "TEST" not in k]
    of_files = [f"INPUT.{name}" for name in ("INTENSITY", "PAGE", "CHANNEL", "MAX_PIXELS")]
    keys = [k for k in keys if k not in ("INPUT.FORMAT", "INPUT.MASK_FORMAT", *of_files)]
    assert {k for k in keys if not is_idle(cfg, k)} == {k for k in keys if k in read}


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_what_the_sampler_reads(tmp_path, name):
    cfg = toy_config(tmp_path, "DATALOADER.SAMPLER_TRAIN", name)
    dicts = [{"annotations": [{"category_id": 0}]}] * 3
    read = keys_read(cfg, lambda recorded: build_sampler(recorded, dicts))
    for key in ("DATALOADER.REPEAT_THRESHOLD", "DATALOADER.REPEAT_SQRT"):
        assert is_idle(cfg, key) == (key not in read)


@pytest.mark.parametrize(
    "name",
    ["isda", "istr", "solo", "solov2", "condinst", "blendmask", "mask_rcnn", "retinanet"],
)
def test_what_holds_on_resume_does_not_shape_the_model(tmp_path, name):
    def shapes(cfg):
        return {k: tuple(v.shape) for k, v in build_model(cfg).state_dict().items()}

    cfg = toy_config(tmp_path, *MODELS[name])
    expected, tried = shapes(cfg), 0
    for key, value in flattened(cfg).items():
        holds = key.startswith("MODEL.") and on_resume(key) is OnResume.HOLDS
        if key.endswith("USE_FED_LOSS"):  # goes with another loss, and counts of a data set
            continue
        if holds and not is_idle(cfg, key) and changed(value) != value:
            assert shapes(toy_config(tmp_path, *MODELS[name], key, changed(value))) == expected, key
            tried += 1
    assert tried >= 6


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("SOLVER.EPOCHS", 42.0), "SOLVER.MAX_ITER has no effect: SOLVER.EPOCHS is 42"),
        (("SOLVER.EPOCHS", 0.5), "SOLVER.STEPS has no effect: SOLVER.EPOCHS is 0.5"),
        ((), "SOLVER.STEP_EPOCHS has no effect: SOLVER.EPOCHS is 0"),
        (
            ("SOLVER.CHECKPOINT_EPOCHS", 1.0),
            "SOLVER.CHECKPOINT_PERIOD has no effect: SOLVER.CHECKPOINT_EPOCHS is 1",
        ),
        (("TEST.EVAL_EPOCHS", 2.0), "TEST.EVAL_PERIOD has no effect: TEST.EVAL_EPOCHS is 2"),
        (ISTR, "MODEL.ISDA.NUM_QUERIES has no effect: MODEL.META_ARCHITECTURE is ISTR"),
        ((), "MODEL.ISTR.NUM_STEPS has no effect: MODEL.META_ARCHITECTURE is ISDA"),
        (SOLO, "MODEL.SOLOV2.MASK_DIM has no effect: MODEL.META_ARCHITECTURE is SOLO"),
        (
            (*SOLOV2, "MODEL.SOLOV2.NMS_KERNEL", "linear"),
            "MODEL.SOLOV2.NMS_SIGMA has no effect: MODEL.SOLOV2.NMS_KERNEL is linear",
        ),
        (
            ("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
            "MODEL.SWIN.DEPTHS has no effect: MODEL.BACKBONE.NAME is build_resnet_backbone",
        ),
        ((), "INPUT.CROP.SIZE has no effect: INPUT.DATASET_MAPPER_NAME is fixed"),
        (
            ("INPUT.DATASET_MAPPER_NAME", "isda"),
            "INPUT.CROP.SIZE has no effect: INPUT.CROP.ENABLED is False",
        ),
        ((), "INPUT.MAX_SCALE has no effect: INPUT.DATASET_MAPPER_NAME is fixed"),
        ((), "SOLVER.MOMENTUM has no effect: SOLVER.OPTIMIZER is ADAMW"),
        ((), "SOLVER.AMP.DTYPE has no effect: SOLVER.AMP.ENABLED is False"),
        ((), "MODEL.WEIGHTS_MIN_MATCHED has no effect: MODEL.WEIGHTS is empty"),
        ((), "TEST.AUG.ENABLED has no effect: this project has no test-time augmentation"),
        (RCNN, "MODEL.ROI_MASK_HEAD.NUM_CONV has no effect: MODEL.MASK_ON is False"),
        (RCNN, "SOLVER.SAMPLING_MULTIPLIER has no effect: MODEL.META_ARCHITECTURE is General"),
        # A variant reads what it is derived from, and nothing is claimed of unknown backbones.
        (
            ("MODEL.META_ARCHITECTURE", "PoisonedISDA"),
            "MODEL.RPN.NMS_THRESH has no effect: MODEL.META_ARCHITECTURE is PoisonedISDA",
        ),
    ],
)
def test_sentences(tmp_path, overrides, sentence):
    key = sentence.split()[0]
    (found,) = without_effect(toy_config(tmp_path, *overrides), [key, key])
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    "key", ["MODEL.SWIN.DEPTHS", "MODEL.ISDA.NUM_QUERIES", "SOLVER.MAX_ITER", "SOLVER.BASE_LR"]
)
def test_no_word_where_a_key_has_an_effect_or_may_have_one(tmp_path, key):
    assert without_effect(toy_config(tmp_path), [key]) == []  # the toy backbone is unknown


def test_an_evaluation_reads_nothing_of_a_training(tmp_path):
    cfg = toy_config(tmp_path)
    keys = ["SOLVER.BASE_LR", "INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST", "DATASETS.TEST"]
    assert without_effect(cfg, keys, is_training=False) == [
        "SOLVER.BASE_LR has no effect: --eval-only trains nothing",
        "INPUT.MIN_SIZE_TRAIN has no effect: --eval-only trains nothing",
    ]


def test_keys_that_the_user_has_chosen(tmp_path):
    base, file, whole = (tmp_path / f"{name}.yaml" for name in ("base", "file", "whole"))
    base.write_text(yaml.safe_dump({"SOLVER": {"MAX_ITER": 5}}))
    file.write_text(yaml.safe_dump({"_BASE_": "base.yaml", "SOLVER": {"EPOCHS": 2.0}}))
    whole.write_text(toy_config(tmp_path).dump())
    assert given_keys(str(file), ["SEED", "1"]) == ["SOLVER.EPOCHS", "SEED"]
    assert given_keys(str(whole), ["SEED", "1"]) == ["SEED"]
    assert given_keys("", None) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_config_of_the_repository_states_a_key_without_effect(path):
    if not path.stem.startswith("Base"):  # which serves many
        assert without_effect(load_config(str(path)), given_keys(str(path), [])) == []


def test_the_program_says_it_once(tmp_path, train_net):
    toy_data(tmp_path)
    file = tmp_path / "toy.yaml"
    file.write_text(toy_config(tmp_path / "out", "SOLVER.EPOCHS", 1.0).dump())
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    words = ("--config-file", file, "--num-gpus", 0, "SOLVER.MAX_ITER", 1000)
    call(train_net, *words)
    said = "SOLVER.MAX_ITER has no effect: SOLVER.EPOCHS is 1"
    assert (tmp_path / "out" / "log.txt").read_text().count(said) == 1
