"""Every config of the repository is read, built, trained for two steps and evaluated."""

import functools
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from recording import keys_read

from isda import add_config
from isda.checkpoint import Checkpointer
from isda.engine import precision
from isda.engine.architectures import node_with_classes
from isda.engine.config_keys import flattened
from isda.engine.custom_data import use_custom_data
from isda.engine.inference import inference_autocast
from isda.engine.setup import (
    ConfigError,
    check_config,
    load_config,
    resolve_classes,
    resolve_schedule,
)
from isda.engine.trainer import Trainer
from isda.tiles.plan import TilePlan

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.relative_to(ROOT / "configs") for path in ROOT.glob("configs/**/*.yaml"))

# Whatever a config asks for in size, a test asks for less. Kinds, norms, losses, optimisers,
# augmentations and every other key stay as the file has them.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_STD": [58.0, 58.0, 58.0],  # fresh weights have not absorbed one, as MSRA's have
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.VIT.IMG_SIZE": 96,
    "MODEL.VIT.EMBED_DIM": 48,
    "MODEL.VIT.DEPTH": 2,
    "MODEL.VIT.GLOBAL_BLOCKS": [1],
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ISDA.HIDDEN_DIM": 64,
    "MODEL.ISDA.MASK_HEAD_DIM": 64,
    "MODEL.ISDA.MASK_DIM": 64,
    "MODEL.ISDA.FEEDFORWARD_DIM": 32,
    "MODEL.ISDA.NUM_QUERIES": 12,
    "MODEL.ISDA.ENCODER_LAYERS": 1,
    "MODEL.ISDA.DECODER_LAYERS": 2,
    "MODEL.ISTR.HIDDEN_DIM": 32,
    "MODEL.ISTR.NUM_HEADS": 4,
    "MODEL.ISTR.FEEDFORWARD_DIM": 32,
    "MODEL.ISTR.DYNAMIC_DIM": 8,
    "MODEL.ISTR.NUM_QUERIES": 12,
    "MODEL.SOLO.HEAD_DIM": 32,
    "MODEL.SOLO.NUM_CONVS": 1,
    "MODEL.SOLO.GRID_SIZES": [8, 6, 4, 3, 2],
    "MODEL.SOLOV2.HEAD_DIM": 32,
    "MODEL.SOLOV2.NUM_CONVS": 1,
    "MODEL.SOLOV2.MASK_HEAD_DIM": 32,
    "MODEL.SOLOV2.MASK_DIM": 32,
    "MODEL.SOLOV2.GRID_SIZES": [8, 6, 4, 3, 2],
    # After two steps no score nor mask is above the prior.
    **{
        f"MODEL.{node}.{key}": 0.0
        for node in ("SOLO", "SOLOV2")
        for key in ("SCORE_THRESH_TEST", "FINAL_THRESH_TEST", "MASK_THRESHOLD")
    },
    "MODEL.CONDINST.BRANCH_DIM": 32,
    "MODEL.CONDINST.SCORE_THRESH_TEST": 0.0,  # after two steps no score reaches 0.05
    "MODEL.BLENDMASK.BRANCH_DIM": 32,
    "MODEL.BLENDMASK.SCORE_THRESH_TEST": 0.0,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,  # the shapes'
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,  # after two steps no score reaches 0.05
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "DATASETS.TRAIN": ("shapes_tiny8_train",),
    "DATASETS.TEST": ("shapes_tiny8_train",),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (64, 96),
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "INPUT.IMAGE_SIZE": 96,
    "INPUT.CROP.SIZE": [40, 64],
    "INPUT.CROP.RESIZE_BEFORE": (64, 96),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.EPOCHS": 0.5,  # of 8 images: 2 steps
    "SOLVER.STEP_EPOCHS": (0.25,),
    "SOLVER.WARMUP_ITERS": 1,
    "TEST.EVAL_EPOCHS": 0.5,
    "TEST.DETECTIONS_PER_IMAGE": 20,  # after two steps, many boxes of ISTR are not in the image
    "SEED": 0,
}


def small_config(path: Path, output: Path) -> CfgNode:
    cfg = load_config(str(ROOT / "configs" / path))
    small = SMALL | {"OUTPUT_DIR": str(output)}
    small["MODEL.SWIN.EMBED_DIM"] = 8 * cfg.MODEL.SWIN.NUM_HEADS[0]
    if cfg.MODEL.RESNETS.DEPTH >= 50:  # Detectron2 fixes the width of the smaller ones
        groups = min(cfg.MODEL.RESNETS.NUM_GROUPS, 2)
        small |= {"MODEL.RESNETS.NUM_GROUPS": groups, "MODEL.RESNETS.WIDTH_PER_GROUP": 16 // groups}
        small |= {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.RES2_OUT_CHANNELS": 32}
    if cfg.INPUT.CROP.TYPE == "relative":
        del small["INPUT.CROP.SIZE"]
    if cfg.MODEL.TORCH_BACKBONE.WEIGHTS == "pretrained":  # would be downloaded
        small["MODEL.TORCH_BACKBONE.WEIGHTS"] = ""
    cfg.merge_from_list([item for pair in small.items() for item in pair])
    check_config(cfg)
    resolve_classes(cfg, cfg.DATASETS.TRAIN)
    cfg.freeze()
    return cfg


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


def test_there_are_configs():
    assert {path.parent.name for path in CONFIGS} >= {
        "",
        "COCO-InstanceSegmentation",
        "ablations",
        "finetune",
        "nuclei",
        "shapes",
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_trains_and_evaluates(path, tmp_path, datasets, monkeypatch):
    cfg_text = (ROOT / "configs" / path).read_text()
    if "build_vit_backbone" in cfg_text and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is optional and not installed")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    # What a checkpoint holds is tested with the trainer; here it would only fill the disk.
    monkeypatch.setattr(Checkpointer, "save", lambda self, name, **state: None)
    torch.manual_seed(0)
    trainer = Trainer(small_config(path, tmp_path))
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    losses = []
    run = type(trainer._trainer)._write_metrics

    def record(self, loss_dict, *args, **kwargs):
        losses.append({name: float(loss) for name, loss in loss_dict.items()})
        return run(self, loss_dict, *args, **kwargs)

    monkeypatch.setattr(type(trainer._trainer), "_write_metrics", record)
    results = trainer.train()
    assert len(losses) == 2
    assert all(math.isfinite(loss) for step in losses for loss in step.values()), losses
    assert any(not p.equal(before[name]) for name, p in trained.items())
    assert set(results) == {"bbox", "segm"}
    assert 0 <= results["segm"]["AP"] <= 100


def test_unknown_keys_are_refused(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("MODEL:\n  ISDA:\n    NUM_QUERYS: 3\n")
    with pytest.raises(ConfigError, match="NUM_QUERYS.*did you mean MODEL.ISDA.NUM_QUERIES"):
        load_config(str(path))


def test_coco_recipe_in_numbers():
    """isda_R_50_42ep.yaml against the paper's training details, number by number."""
    cfg = load_config(str(ROOT / "configs/COCO-InstanceSegmentation/isda_R_50_42ep.yaml"))
    isda, solver = cfg.MODEL.ISDA, cfg.SOLVER
    assert (isda.HIDDEN_DIM, isda.NUM_QUERIES, isda.NUM_HEADS, isda.NUM_POINTS) == (256, 300, 8, 4)
    assert (isda.ENCODER_LAYERS, isda.DECODER_LAYERS, isda.FEEDFORWARD_DIM) == (6, 6, 1024)
    assert (isda.MASK_DIM, isda.MASK_HEAD_DIM, isda.MASK_STRIDE) == (256, 128, 4)
    assert (isda.MASK_POSITION, isda.KERNEL_POSITION, isda.DROPOUT) == (True, True, 0.1)
    assert (isda.CLASS_WEIGHT, isda.MASK_WEIGHT, isda.CLASS_COST, isda.MASK_COST) == (2, 3, 2, 3)
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 1.25e-4, 1e-4)
    assert (solver.BACKBONE_MULTIPLIER, solver.SAMPLING_MULTIPLIER) == (0.1, 0.1)
    assert (solver.EPOCHS, solver.STEP_EPOCHS, solver.GAMMA) == (42, (27,), 0.1)
    assert (solver.IMS_PER_BATCH, solver.REFERENCE_BATCH, solver.WARMUP_ITERS) == (8, 8, 0)
    clipping = solver.CLIP_GRADIENTS
    assert (clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE) == (True, "full_model", 0.1)
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == tuple(range(480, 801, 32))
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (
        1333,
        800,
        1333,
    )
    crop = cfg.INPUT.CROP
    assert (crop.ENABLED, crop.TYPE, list(crop.SIZE)) == (True, "absolute_range", [384, 600])
    assert (crop.PROBABILITY, tuple(crop.RESIZE_BEFORE)) == (0.5, (400, 500, 600))
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.BACKBONE.FREEZE_AT) == (50, 2)


def test_istr_recipe_in_numbers():
    """istr_R_50_FPN_3x.yaml against the paper's training details, number by number."""
    cfg = load_config(str(ROOT / "configs/COCO-InstanceSegmentation/istr_R_50_FPN_3x.yaml"))
    istr, solver = cfg.MODEL.ISTR, cfg.SOLVER
    assert (istr.HIDDEN_DIM, istr.NUM_QUERIES, istr.NUM_HEADS, istr.NUM_STEPS) == (256, 300, 8, 6)
    assert (istr.FEEDFORWARD_DIM, istr.DYNAMIC_DIM, istr.POOLER_RESOLUTION) == (2048, 64, 7)
    assert (istr.MASK_SIZE, istr.EMBEDDING_DIM, istr.MASK_NOISE) == (28, 60, False)
    assert (istr.IMAGE_FEATURE, istr.MASK_THRESHOLD) == (True, 0.5)
    costs = (istr.CLASS_COST, istr.BOX_COST, istr.GIOU_COST, istr.EMBEDDING_COST)
    weights = (istr.CLASS_WEIGHT, istr.BOX_WEIGHT, istr.GIOU_WEIGHT, istr.EMBEDDING_WEIGHT)
    assert costs == weights == (2, 5, 2, 2)
    assert istr.MASK_WEIGHT == 2
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 2.5e-5, 1e-4)
    assert (solver.WEIGHT_DECAY_NORM, solver.BACKBONE_MULTIPLIER) == (1e-4, 1)
    assert (solver.IMS_PER_BATCH, solver.REFERENCE_BATCH) == (16, 16)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.GAMMA) == (1000, 0.01, 0.1)
    assert not solver.AMP.ENABLED
    clipping = solver.CLIP_GRADIENTS
    assert (clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE) == (True, "full_model", 1)
    resolve_schedule(cfg, 117_266)
    assert pytest.approx(270_000, rel=1e-4) == cfg.SOLVER.MAX_ITER
    assert pytest.approx((210_000, 250_000), rel=1e-4) == cfg.SOLVER.STEPS
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == tuple(range(480, 801, 32))
    sizes = (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    assert sizes == (1333, 800, 1333)
    crop = cfg.INPUT.CROP
    assert (crop.ENABLED, crop.TYPE, list(crop.SIZE)) == (True, "relative", [0.7, 0.7])
    assert (crop.PROBABILITY, tuple(crop.RESIZE_BEFORE)) == (0.5, (400, 500, 600))
    assert cfg.INPUT.RANDOM_FLIP == "horizontal"
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.BACKBONE.FREEZE_AT) == (50, 2)
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1


@pytest.mark.parametrize(
    ("name", "warmup", "head"), [("solo", 0.3333, (256, 7)), ("solov2", 0.01, (512, 4))]
)
def test_solo_recipes_in_numbers(name, warmup, head):
    """The authors' training details, number by number."""
    cfg = load_config(str(ROOT / f"configs/COCO-InstanceSegmentation/{name}_R_50_FPN_1x.yaml"))
    solo, solver = cfg.MODEL[name.upper()], cfg.SOLVER
    assert head == (solo.HEAD_DIM, solo.NUM_CONVS)
    assert solo.GRID_SIZES == [40, 36, 24, 16, 12]
    assert solo.SCALE_RANGES == [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    assert (solo.CLASS_WEIGHT, solo.MASK_WEIGHT, solo.MASK_STRIDE) == (1, 3, 4)
    assert (solo.SCORE_THRESH_TEST, solo.PRE_NMS_TOPK_TEST) == (0.1, 500)
    assert (solo.NMS_KERNEL, solo.NMS_SIGMA, solo.FINAL_THRESH_TEST) == ("gaussian", 2, 0.05)
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.MOMENTUM) == ("SGD", 0.01, 0.9)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (1e-4, 1e-4)
    assert (500, warmup, 16) == (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.IMS_PER_BATCH)
    clipping = solver.CLIP_GRADIENTS
    assert (clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE) == (True, "full_model", 35)
    assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.RANDOM_FLIP) == ((800,), "horizontal")
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == (1333, 800)
    resolve_schedule(cfg, 117_266)
    assert pytest.approx(90_000, rel=1e-3) == solver.MAX_ITER
    long = load_config(str(ROOT / f"configs/COCO-InstanceSegmentation/{name}_R_50_FPN_3x.yaml"))
    assert tuple(long.INPUT.MIN_SIZE_TRAIN) == tuple(range(640, 801, 32))
    resolve_schedule(long, 117_266)
    assert pytest.approx((210_000, 250_000), rel=1e-4) == long.SOLVER.STEPS


def test_the_short_istr_schedule_in_iterations():
    cfg = load_config(str(ROOT / "configs/COCO-InstanceSegmentation/istr_R_50_FPN_1x.yaml"))
    resolve_schedule(cfg, 117_266)
    assert pytest.approx(90_000, rel=1e-3) == cfg.SOLVER.MAX_ITER
    assert pytest.approx((60_000, 80_000), rel=1e-3) == cfg.SOLVER.STEPS


ISTR_ABLATIONS = {
    "100_queries": {"NUM_QUERIES": 100},
    **{f"embedding_{d}": {"EMBEDDING_DIM": d} for d in (40, 60, 80, 100)},
    "1_step": {"NUM_STEPS": 1},
    **{f"{t}_steps": {"NUM_STEPS": t} for t in range(2, 7)},
    "no_image_feature": {"IMAGE_FEATURE": False},
    "embedding_loss": {"MASK_WEIGHT": 0.0},
    "dice_loss": {"EMBEDDING_WEIGHT": 0.0},
    "no_mask_cost": {"EMBEDDING_COST": 0.0},
}


def test_no_ablation_of_istr_goes_untested():
    files = {path.stem for path in ROOT.glob("configs/ablations/istr_*.yaml")}
    assert files == {f"istr_R_50_{name}" for name in ISTR_ABLATIONS}


@pytest.mark.parametrize(("name", "changed"), ISTR_ABLATIONS.items(), ids=str)
def test_istr_ablation_changes_what_its_name_says_and_nothing_else(name, changed):
    cfg = load_config(str(ROOT / f"configs/ablations/istr_R_50_{name}.yaml"))
    expected = load_config(str(ROOT / "configs/COCO-InstanceSegmentation/istr_R_50_FPN_3x.yaml"))
    for key, value in changed.items():
        expected.MODEL.ISTR[key] = value
    assert cfg == expected


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("isda_R_50_mfr_stride_8", {"MASK_STRIDE": 8}),
        ("isda_R_50_mfr_stride_4", {}),
        ("isda_R_50_mfr_stride_2", {"MASK_STRIDE": 2}),
        ("isda_R_50_no_position", {"MASK_POSITION": False, "KERNEL_POSITION": False}),
        ("isda_R_50_mask_position", {"KERNEL_POSITION": False}),
        ("isda_R_50_kernel_position", {"MASK_POSITION": False}),
    ],
)
def test_ablation_changes_what_its_name_says_and_nothing_else(name, changed):
    cfg = load_config(str(ROOT / f"configs/ablations/{name}.yaml"))
    expected = load_config(str(ROOT / "configs/COCO-InstanceSegmentation/isda_R_50_12ep.yaml"))
    for key, value in changed.items():
        expected.MODEL.ISDA[key] = value
    assert cfg == expected


@pytest.mark.parametrize("kind", ["nuclei", "shapes"])
@pytest.mark.parametrize("other", ["mask_rcnn", "istr", "condinst", "blendmask"])
def test_models_are_compared_on_the_same_terms(kind, other):
    ours = load_config(str(ROOT / f"configs/{kind}/isda_tiny.yaml"))
    theirs = load_config(str(ROOT / f"configs/{kind}/{other}_tiny.yaml"))
    assert ours.DATASETS == theirs.DATASETS
    for key in ours.INPUT:
        # The channel order is the weights'; a crop plays no part in the mapper "fixed".
        if key not in ("FORMAT", "CROP"):
            assert ours.INPUT[key] == theirs.INPUT[key], key
    for key in ours.TEST:
        if key != "EVAL_EPOCHS":
            assert ours.TEST[key] == theirs.TEST[key], key
    assert ours.MODEL.TORCH_BACKBONE == theirs.MODEL.TORCH_BACKBONE
    assert ours.MODEL.RESNETS.DEPTH == theirs.MODEL.RESNETS.DEPTH
    for key in ("IMS_PER_BATCH", "REFERENCE_BATCH"):
        assert ours.SOLVER[key] == theirs.SOLVER[key]
    # On the nuclei, models are trained for the same time, on the shapes ISTR as long as it learns.
    if (kind, other) == ("shapes", "mask_rcnn"):
        assert ours.SOLVER.EPOCHS == theirs.SOLVER.EPOCHS


@pytest.mark.parametrize("name", ["solo", "solov2"])
def test_solo_is_compared_on_the_nuclei_on_the_same_terms(name):
    ours = load_config(str(ROOT / f"configs/nuclei/{name}_mobilenet_v2.yaml"))
    theirs = load_config(str(ROOT / "configs/nuclei/mask_rcnn_mobilenet_v2.yaml"))
    assert ours.DATASETS == theirs.DATASETS
    assert ours.INPUT == theirs.INPUT
    assert ours.MODEL.TORCH_BACKBONE == theirs.MODEL.TORCH_BACKBONE
    assert ours.MODEL.FPN == theirs.MODEL.FPN
    assert ours.MODEL.PIXEL_STD == theirs.MODEL.PIXEL_STD
    assert ours.TEST.DETECTIONS_PER_IMAGE == theirs.TEST.DETECTIONS_PER_IMAGE


@pytest.mark.parametrize(
    "name",
    ["blendmask", "condinst", "decoupled_solo", "isda", "isda_boxes", "istr", "solo", "solov2"],
)
@pytest.mark.parametrize(("kind", "suffix"), [("nuclei", "mobilenet_v2"), ("shapes", "tiny")])
def test_all_methods_see_the_same_images_and_backbone(kind, suffix, name):
    ours = load_config(str(ROOT / f"configs/{kind}/{name}_{suffix}.yaml"))
    theirs = load_config(str(ROOT / f"configs/{kind}/mask_rcnn_{suffix}.yaml"))
    assert ours.DATASETS == theirs.DATASETS
    assert ours.MODEL.TORCH_BACKBONE == theirs.MODEL.TORCH_BACKBONE
    for key in ("DEPTH", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "NORM"):
        assert ours.MODEL.RESNETS[key] == theirs.MODEL.RESNETS[key]
    assert ours.MODEL.BACKBONE.FREEZE_AT == theirs.MODEL.BACKBONE.FREEZE_AT
    for key in ours.INPUT:
        # The channel order is the weights'; a crop plays no part in the mapper "fixed".
        if key not in ("FORMAT", "CROP"):
            assert ours.INPUT[key] == theirs.INPUT[key], key
    if kind == "shapes":
        assert ours.TEST.DETECTIONS_PER_IMAGE == theirs.TEST.DETECTIONS_PER_IMAGE


FINETUNE = sorted(ROOT.glob("configs/finetune/*.yaml"))


@pytest.mark.parametrize("path", FINETUNE, ids=lambda path: path.stem)
def test_finetuning_takes_data_and_classes_from_the_user(path):
    cfg = load_config(str(path))
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((), ())
    assert cfg.MODEL[node_with_classes(cfg)].NUM_CLASSES == 0
    assert cfg.SOLVER.EPOCHS > cfg.TEST.EVAL_EPOCHS > 0
    assert cfg.SOLVER.IMS_PER_BATCH == cfg.SOLVER.REFERENCE_BATCH == 4  # on one GPU or CPU


@pytest.mark.parametrize(("kind", "trained"), [("isda", "isda_boxes"), ("mask_rcnn", "mask_rcnn")])
def test_models_of_nuclei_can_be_finetuned(kind, trained):
    """Whatever shapes a weight is the same in both configs."""
    ours = load_config(str(ROOT / f"configs/finetune/{kind}_mobilenet_v2.yaml")).MODEL
    theirs = load_config(str(ROOT / f"configs/nuclei/{trained}_mobilenet_v2.yaml")).MODEL
    for cfg in (ours, theirs):
        cfg.ISDA.MASK_STRIDE = cfg.ROI_HEADS.NUM_CLASSES = 0
        cfg.ISDA.MASK_POINTS = 0
        cfg.ROI_HEADS.BATCH_SIZE_PER_IMAGE = cfg.RPN.POST_NMS_TOPK_TRAIN = 0
        cfg.RPN.POST_NMS_TOPK_TEST = 0
        cfg.ANCHOR_GENERATOR.SIZES = len(cfg.ANCHOR_GENERATOR.SIZES)
    assert ours == theirs


def run(cfg: CfgNode) -> None:
    """All of a training and an inference that reads keys; checks of values do not count."""
    use_custom_data(cfg)
    trainer = Trainer(cfg)
    trainer._settle_precision()
    inference_autocast(cfg, trainer.model)
    TilePlan.from_config(cfg)


def added_keys() -> set[str]:
    cfg = get_cfg()
    before = set(flattened(cfg))
    add_config(cfg)
    return set(flattened(cfg)) - before


# Everything that is off until it is asked for, and each kind of backbone and augmentation once.
ON = ["SOLVER.EMA.ENABLED", True, "SOLVER.AMP.ENABLED", True, "INPUT.CROP.ENABLED", True]
ON += ["TEST.AMP.ENABLED", True]
READERS = {
    "Base-ISDA.yaml": ON,
    "Base-ISDA-boxes.yaml": [],
    "Base-ISTR.yaml": [],
    "Base-SOLO.yaml": [],
    "Base-SOLOv2.yaml": [],
    "Base-CondInst.yaml": [],
    "Base-BlendMask.yaml": [],
    "finetune/isda_mobilenet_v2.yaml": [],
    "COCO-InstanceSegmentation/isda_swin_tiny_42ep.yaml": [],
    "COCO-InstanceSegmentation/isda_vit_base_42ep.yaml": [],
}


@pytest.mark.slow
def test_every_key_is_read(tmp_path, datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    added, read = added_keys(), set()
    assert len(added) > 80
    # Only where half precision is slower it matters what is done then.
    slower = precision.Speed(True, "as on a processor without instructions for it")
    monkeypatch.setattr(precision, "speed_of", lambda *_: slower)
    for path, opts in READERS.items():
        if "vit" in path and importlib.util.find_spec("timm") is None:
            added = {key for key in added if not key.startswith("MODEL.VIT.")}
            continue
        cfg = small_config(Path(path), tmp_path)
        cfg.defrost()
        cfg.merge_from_list(opts)
        read |= keys_read(cfg, run)
    assert sorted(added - read) == []


@pytest.mark.slow
def test_a_key_that_only_shares_its_last_name_is_found_unread(tmp_path, datasets, monkeypatch):
    """That the test above can fail: others of these names are read."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    cfg = small_config(Path("Base-ISDA.yaml"), tmp_path)
    cfg.defrost()
    unread = ["MODEL.ISDA.NUM_STEPS", "SOLVER.MASK_WEIGHT", "MODEL.TORCH_BACKBONE.EPOCHS"]
    for key in unread:
        node, _, name = key.rpartition(".")
        functools.reduce(getattr, node.split("."), cfg)[name] = 1.0
    read = keys_read(cfg, run)
    assert not read & set(unread)
    assert {"MODEL.ISDA.MASK_WEIGHT", "SOLVER.EPOCHS", "MODEL.ISDA.HIDDEN_DIM"} <= read
