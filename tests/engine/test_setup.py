import argparse

import pytest
import torch
import yaml
from toys import ISTR, SOLO, SOLOV2, toy_config, toy_data

from isda.engine import setup as configuration
from isda.engine.resuming import read_flat
from isda.engine.setup import check_config, given_keys, load_config, resolve_schedule, setup
from isda.errors import ConfigError


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_file_command_line_and_base(tmp_path):
    write(tmp_path / "base.yaml", {"SOLVER": {"BASE_LR": 0.5, "EPOCHS": 12}})
    file = write(
        tmp_path / "a.yaml", {"_BASE_": "base.yaml", "MODEL": {"ISDA": {"NUM_QUERIES": 7}}}
    )
    cfg = load_config(file, ["SOLVER.BASE_LR", "1", "INPUT.MIN_SIZE_TRAIN", "(64, 96)"])
    assert cfg.MODEL.ISDA.NUM_QUERIES == 7
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.EPOCHS) == (1.0, 12.0)  # integers given for floats
    assert type(cfg.SOLVER.BASE_LR) is float
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64, 96)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"MODEL": {"ISDA": {"NUM_QUERY": 7}}},
            "unknown config key MODEL.ISDA.NUM_QUERY in .*did you mean MODEL.ISDA.NUM_QUERIES",
        ),
        ({"NUM_QUERIES": 7}, "unknown config key NUM_QUERIES.*MODEL.ISDA.NUM_QUERIES"),
        (
            {"MODEL": {"ISDA": {"NUM_QUERIES": "many"}}},
            "MODEL.ISDA.NUM_QUERIES in .* must be of type int, as 300; got 'many'",
        ),
        ({"MODEL": {"ISDA": 3}}, "unknown config key MODEL.ISDA "),
    ],
)
def test_wrong_keys_and_types_in_a_file(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "a.yaml", content))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.BASE_LEARNING_RATE", "1"], "unknown config key SOLVER.BASE_LEARNING_RATE in the"),
        (["SOLVER.MAX_ITER", "ten"], "SOLVER.MAX_ITER in the command line must be of type int"),
        (["SOLVER.MAX_ITER", "1", "--num-gpus", "2"], "--num-gpus stands after KEY VALUE pairs"),
        (["SOLVER.MAX_ITER=1"], "write KEY VALUE with a space, not KEY=VALUE"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
    ],
)
def test_wrong_command_lines(opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", opts)


@pytest.mark.parametrize(
    ("bases", "circle"),
    [
        (["a.yaml"], "a.yaml → a.yaml"),
        (["b.yaml", "./a.yaml"], "a.yaml → b.yaml → a.yaml"),
        ([["good.yaml", "b.yaml"], "c.yaml", "b.yaml"], "b.yaml → c.yaml → b.yaml"),
    ],
    ids=["itself", "two", "among others"],
)
def test_configs_in_a_circle(bases, circle, tmp_path):
    write(tmp_path / "good.yaml", {"SEED": 1})
    for name, base in zip("abc", bases):
        write(tmp_path / f"{name}.yaml", {"_BASE_": base})
    with pytest.raises(ConfigError) as error:
        load_config(str(tmp_path / "a.yaml"))
    assert f"includes itself by _BASE_ ({circle}): take it out of one" in str(error.value)


def test_a_base_that_two_files_share_is_no_circle(tmp_path):
    write(tmp_path / "common.yaml", {"SEED": 5})
    for name in ("left", "right"):
        write(tmp_path / f"{name}.yaml", {"_BASE_": "common.yaml", "VERSION": 2})
    file = write(tmp_path / "a.yaml", {"_BASE_": ["left.yaml", "right.yaml"]})
    assert load_config(file).SEED == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_BASE_": 5}, "does not nest as the others do .*: _BASE_ is a path or a list of paths"),
        ({"_BASE_": "words.yaml", "SEED": 1}, "holds no keys"),
        ({"_BASE_": "flat.yaml", "MODEL": {"MASK_ON": True}}, "does not nest as the others do"),
        ({"_BASE_": "folder"}, "folder cannot be read"),
    ],
    ids=str,
)
def test_bases_that_do_not_serve(content, message, tmp_path):
    (tmp_path / "words.yaml").write_text("[1, 2]")
    write(tmp_path / "flat.yaml", {"MODEL": 3})
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "a.yaml", content))


def test_a_config_that_is_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00SEED: 1")
    with pytest.raises(ConfigError, match="a.yaml is not valid YAML"):
        load_config(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "SOLVER:\n  GAMMA: 1.0\nSEED: 1\nSOLVER:\n  EPOCHS: 2\n",
            "SOLVER twice, in lines 1 and 4",
        ),
        ("SOLVER:\n  GAMMA: 1.0\n  GAMMA: 2.0\n", "GAMMA twice, in lines 2 and 3"),
        ("DATASETS: {TRAIN: [{a: 1, a: 2}]}", "a twice, in lines 1 and 1"),
        ("MODEL: &all\n  X: *all\n", "nests too deeply, or within itself"),
        (f"SEED: {'[' * 3000}{']' * 3000}", "nests too deeply, or within itself"),
    ],
    ids=["tables", "keys", "in a list", "alias", "deep"],
)
def test_yaml_that_says_something_else(content, message, tmp_path):
    (tmp_path / "base.yaml").write_text(content)
    with pytest.raises(ConfigError, match=f".yaml.* {message}"):
        load_config(write(tmp_path / "a.yaml", {"_BASE_": "base.yaml"}))


def test_an_alias_is_no_repetition(tmp_path):
    text = "MODEL:\n  PIXEL_MEAN: &same [1.0, 1.0, 1.0]\n  PIXEL_STD: *same\n"
    (tmp_path / "a.yaml").write_text(text)
    assert load_config(str(tmp_path / "a.yaml")).MODEL.PIXEL_STD == [1.0] * 3


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config("a\0.yaml")
    with pytest.raises(ConfigError, match="config file nowhere.yaml does not exist"):
        load_config("nowhere.yaml")
    file = write(tmp_path / "a.yaml", {"_BASE_": "gone.yaml"})
    with pytest.raises(ConfigError, match="config file .*gone.yaml does not exist"):
        load_config(file)
    (tmp_path / "b.yaml").write_text("MODEL: [1, 2")
    with pytest.raises(ConfigError, match="b.yaml is not valid YAML"):
        load_config(str(tmp_path / "b.yaml"))
    (tmp_path / "c.yaml").write_text("just words")
    with pytest.raises(ConfigError, match="c.yaml holds no keys"):
        load_config(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ISDA.NUM_QUERIES", -5, "MODEL.ISDA.NUM_QUERIES must be at least 1, got -5"),
        ("MODEL.ISDA.MASK_STRIDE", 3, "MODEL.ISDA.MASK_STRIDE must be one of 1, 2, 4, 8, got 3"),
        ("MODEL.ISDA.MASK_STRIDE", 1, "MODEL.ISDA.MASK_STRIDE 1 needs .*MASK_FEATURE_STRIDE"),
        ("MODEL.ISDA.MASK_FEATURE_STRIDE", 2, r"MASK_STRIDE \(4\) must not be above .* \(2\)"),
        ("MODEL.ISDA.MASK_POINTS", -1, "MODEL.ISDA.MASK_POINTS must be at least 0"),
        ("MODEL.ISDA.BOX_REFINEMENT", True, "BOX_REFINEMENT is True, .*MODEL.ISDA.BOXES True"),
        ("MODEL.ISDA.QUERY_SELECTION", True, "needs boxes: set MODEL.ISDA.BOXES True"),
        ("MODEL.ISDA.TOKEN_CONTENT", True, "needs tokens that are chosen"),
        ("MODEL.ISDA.QUERY_RELATION", True, "needs boxes: set MODEL.ISDA.BOXES True"),
        ("MODEL.ISDA.ELLIPSE", True, "needs boxes: set MODEL.ISDA.BOXES True"),
        ("MODEL.ISDA.DENOISING_QUERIES", 9, "DENOISING_QUERIES is 9, .*MODEL.ISDA.BOXES True"),
        ("MODEL.ISDA.HIDDEN_DIM", 100, "MODEL.ISDA.HIDDEN_DIM must be a positive multiple of 32"),
        ("MODEL.ISDA.NUM_HEADS", 5, r"HIDDEN_DIM \(64\) must be a multiple of .*NUM_HEADS \(5\)"),
        ("MODEL.ISDA.DROPOUT", 1.0, "MODEL.ISDA.DROPOUT must be at least 0 and below 1"),
        ("MODEL.ISDA.DECODER_LAYERS", 0, "DECODER_LAYERS must be at least 1"),
        ("SOLVER.IMS_PER_BATCH", 7, r"IMS_PER_BATCH must be a multiple of 2 \(2 processes"),
        ("SOLVER.ACCUMULATION", 2, r"multiple of 4 \(2 processes × SOLVER.ACCUMULATION 2\), got 2"),
        ("SOLVER.ACCUMULATION", 0, "SOLVER.ACCUMULATION must be at least 1"),
        ("SOLVER.BASE_LR", 0.0, "SOLVER.BASE_LR must be above 0"),
        ("SOLVER.OPTIMIZER", "adamw", "SOLVER.OPTIMIZER must be one of ADAMW, SGD, got 'adamw'"),
        ("INPUT.FORMAT", "XYZ", "INPUT.FORMAT must be one of BGR, RGB, L, YUV-BT.601, got 'XYZ'"),
        ("INPUT.MIN_SIZE_TRAIN", (), "INPUT.MIN_SIZE_TRAIN must be one or more sizes"),
        ("INPUT.MIN_SIZE_TRAIN", (32, -1), "sizes in pixels, each at least 0, got .32, -1."),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "all", "_SAMPLING must be one of choice, range"),
        ("INPUT.MAX_SIZE_TRAIN", 0, "INPUT.MAX_SIZE_TRAIN must be at least 1, got 0"),
        ("INPUT.MIN_SIZE_TEST", -5, "INPUT.MIN_SIZE_TEST must be at least 0, got -5"),
        ("INPUT.MAX_SIZE_TEST", 0, "INPUT.MAX_SIZE_TEST must be at least 1, got 0"),
        ("MODEL.DEVICE", "gpu", "MODEL.DEVICE: there is no device 'gpu': give cpu"),
        ("SOLVER.AMP.DTYPE", "half", "SOLVER.AMP.DTYPE must be one of bfloat16, float16"),
        ("TEST.AMP.DTYPE", "half", "TEST.AMP.DTYPE must be one of bfloat16, float16"),
        ("SOLVER.EMA.DECAY", 1.0, "SOLVER.EMA.DECAY must be between 0 and 1"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all", "CLIP_TYPE must be one of full_model, norm"),
        ("MODEL.WEIGHTS_MIN_MATCHED", 50.0, "WEIGHTS_MIN_MATCHED must be between 0 and 1"),
        ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.ENABLED must be False"),
    ],
)
def test_wrong_values(tmp_path, key, value, message):
    toy_data(tmp_path)
    check_config(toy_config(tmp_path), world_size=2)
    with pytest.raises(ConfigError, match=message):
        check_config(toy_config(tmp_path, key, value), world_size=2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEED", 2**31, "SEED must be below 2147483648"),
        ("SOLVER.BASE_LR", float("inf"), "SOLVER.BASE_LR must be finite, got inf"),
        ("SOLVER.EPOCHS", float("inf"), "SOLVER.EPOCHS must be finite, got inf"),
        ("SOLVER.STEP_EPOCHS", ("a",), "SOLVER.STEP_EPOCHS must be numbers that are at least 0"),
        ("SOLVER.STEPS", (-1,), "SOLVER.STEPS must be numbers that are at least 0"),
        ("SOLVER.GAMMA", -1.0, "SOLVER.GAMMA must be at least 0"),
        ("SOLVER.WEIGHT_DECAY", -1.0, "SOLVER.WEIGHT_DECAY must be at least 0"),
        ("SOLVER.MOMENTUM", 5.0, "SOLVER.MOMENTUM must be at least 0 and below 1"),
        ("SOLVER.LR_SCHEDULER_NAME", "X", "SOLVER.LR_SCHEDULER_NAME must be one of WarmupMulti"),
        ("SOLVER.WARMUP_METHOD", "x", "SOLVER.WARMUP_METHOD must be one of linear, constant"),
        ("MODEL.BACKBONE.NAME", "x", "MODEL.BACKBONE.NAME must be the name of a registered buil"),
        ("MODEL.PIXEL_STD", [0.0, 1.0, 1.0], "MODEL.PIXEL_STD must be values above 0"),
        ("MODEL.PIXEL_MEAN", [1.0, 1.0], "MODEL.PIXEL_MEAN must have a value for each of the 3"),
        ("MODEL.PIXEL_MEAN", ["a", 1.0, 1.0], "MODEL.PIXEL_MEAN must be finite numbers"),
        ("INPUT.MIN_SIZE_TRAIN", ("a",), "INPUT.MIN_SIZE_TRAIN must be one or more sizes in pi"),
        ("INPUT.MIN_SIZE_TRAIN", (1.5,), "INPUT.MIN_SIZE_TRAIN must be one or more sizes in pi"),
        ("INPUT.CROP.TYPE", "x", "INPUT.CROP.TYPE must be one of relative_range, relative, abs"),
        ("DATASETS.TRAIN", (3,), "DATASETS.TRAIN must be names of registered data sets"),
    ],
)
def test_values_that_would_end_in_a_traceback_or_train_something_else(
    tmp_path, key, value, message
):
    with pytest.raises(ConfigError, match=message):
        check_config(toy_config(tmp_path, key, value))


def test_the_largest_of_all_is_a_norm(tmp_path):
    check_config(toy_config(tmp_path, "SOLVER.CLIP_GRADIENTS.NORM_TYPE", float("inf")))


def test_numbers_that_are_not_finite_do_not_get_in():
    with pytest.raises(ConfigError, match="SOLVER.EPOCHS must be finite, got inf"):
        load_config("", ["SOLVER.EPOCHS", "1e999"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_QUERIES", 0, "MODEL.ISTR.NUM_QUERIES must be at least 1, got 0"),
        ("NUM_STEPS", 0, "MODEL.ISTR.NUM_STEPS must be at least 1, got 0"),
        ("NUM_HEADS", 5, r"ISTR.HIDDEN_DIM \(32\) must be a multiple of .*ISTR.NUM_HEADS \(5\)"),
        ("BOX_WEIGHT", -1.0, "MODEL.ISTR.BOX_WEIGHT must be at least 0"),
        ("EMBEDDING_COST", -1.0, "MODEL.ISTR.EMBEDDING_COST must be at least 0"),
        ("MASK_THRESHOLD", 2.0, "MODEL.ISTR.MASK_THRESHOLD must be between 0 and 1"),
        ("EMBEDDING_DIM", 785, r"EMBEDDING_DIM \(785\) must not exceed the pixels .*\(28\)"),
    ],
)
def test_wrong_values_of_istr(tmp_path, key, value, message):
    check_config(toy_config(tmp_path, *ISTR))
    with pytest.raises(ConfigError, match=message):
        check_config(toy_config(tmp_path, *ISTR, f"MODEL.ISTR.{key}", value))
    check_config(toy_config(tmp_path, f"MODEL.ISTR.{key}", value))  # ISDA does not read it


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("GRID_SIZES", [8, 4], r"GRID_SIZES must be 5 values, each at least 1, got \[8, 4\]"),
        ("GRID_SIZES", [8, 6, 4, 2, 0], "GRID_SIZES must be 5 values, each at least 1"),
        ("SCALE_RANGES", [[9, 1]] * 5, r"SCALE_RANGES must be 5 values, each \[smallest, largest"),
        ("SCALE_RANGES", [[9]] * 5, r"SCALE_RANGES must be 5 values, each \[smallest, largest"),
        ("HEAD_DIM", 100, "HEAD_DIM must be a positive multiple of 32, for group normalisation"),
        ("NUM_CONVS", 0, "NUM_CONVS must be at least 1"),
        ("MASK_STRIDE", 8, "MASK_STRIDE must be one of 2, 4, got 8"),
        ("NMS_KERNEL", "soft", "NMS_KERNEL must be one of gaussian, linear, got 'soft'"),
        ("PRE_NMS_TOPK_TEST", 0, "PRE_NMS_TOPK_TEST must be at least 1"),
        ("FINAL_THRESH_TEST", 1.5, "FINAL_THRESH_TEST must be between 0 and 1"),
    ],
)
@pytest.mark.parametrize("node", ["SOLO", "SOLOV2"])
def test_wrong_values_of_solo(tmp_path, node, key, value, message):
    solo = {"SOLO": SOLO, "SOLOV2": SOLOV2}[node]
    check_config(toy_config(tmp_path, *solo))
    with pytest.raises(ConfigError, match=rf"MODEL\.{node}\.{message}"):
        check_config(toy_config(tmp_path, *solo, f"MODEL.{node}.{key}", value))
    check_config(toy_config(tmp_path, f"MODEL.{node}.{key}", value))  # ISDA does not read it


def test_flags_of_the_command_line_are_parsed():
    flags = ["MODEL.ISTR.IMAGE_FEATURE", "False", "MODEL.ISTR.MASK_NOISE", "True"]
    istr = load_config(opts=flags).MODEL.ISTR
    assert istr.IMAGE_FEATURE is False
    assert istr.MASK_NOISE is True


def test_classes_of_solo_come_from_the_data(tmp_path):
    toy_data(tmp_path)
    args = arguments(toy_config(tmp_path / "out", *SOLOV2, "MODEL.SOLOV2.NUM_CLASSES", 0), tmp_path)
    assert setup(args).MODEL.SOLOV2.NUM_CLASSES == 2


def test_classes_of_istr_come_from_the_data(tmp_path):
    toy_data(tmp_path)
    args = arguments(toy_config(tmp_path / "out", *ISTR, "MODEL.ISTR.NUM_CLASSES", 0), tmp_path)
    assert setup(args).MODEL.ISTR.NUM_CLASSES == 2
    args = arguments(toy_config(tmp_path / "out", *ISTR, "MODEL.ISTR.NUM_CLASSES", 80), tmp_path)
    with pytest.raises(ValueError, match=r"MODEL\.ISTR\.NUM_CLASSES"):
        setup(args)


def test_steps_outside_the_schedule(tmp_path):
    toy_data(tmp_path)
    for steps in ((12.0, 4.0), (4.0, 12.0)):
        cfg = toy_config(tmp_path, "SOLVER.EPOCHS", 12.0, "SOLVER.STEP_EPOCHS", steps)
        with pytest.raises(ConfigError, match=r"STEP_EPOCHS must increase and stay below .*\(12\)"):
            check_config(cfg)


def test_values_that_only_isda_reads_do_not_matter_to_others(tmp_path):
    toy_data(tmp_path)
    overrides = ("MODEL.ISDA.MASK_STRIDE", 3, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    check_config(toy_config(tmp_path, *overrides))


def schedule(num_images, *overrides):
    cfg = toy_config("", "SOLVER.EPOCHS", 42.0, "SOLVER.STEP_EPOCHS", (27.0,), *overrides)
    cfg.TEST.EVAL_EPOCHS, cfg.SOLVER.CHECKPOINT_EPOCHS = 3.0, 0.5
    cfg.SOLVER.BASE_LR, cfg.SOLVER.REFERENCE_BATCH = 1.25e-4, 8
    resolve_schedule(cfg, num_images)
    return cfg


def test_schedule_in_epochs():
    # COCO train2017 without its 1,021 images without usable annotations.
    cfg = schedule(117_266, "SOLVER.IMS_PER_BATCH", 8)
    assert pytest.approx(42 * 117_266 / 8, abs=1) == cfg.SOLVER.MAX_ITER
    assert (pytest.approx(27 * 117_266 / 8, abs=1),) == cfg.SOLVER.STEPS
    assert pytest.approx(3 * 117_266 / 8, abs=1) == cfg.TEST.EVAL_PERIOD
    assert pytest.approx(117_266 / 16, abs=1) == cfg.SOLVER.CHECKPOINT_PERIOD
    assert cfg.SOLVER.BASE_LR == 1.25e-4


def test_one_gpu_changes_one_number():
    cfg = schedule(8_000, "SOLVER.IMS_PER_BATCH", 2)
    assert cfg.SOLVER.MAX_ITER == 42 * 4_000
    assert pytest.approx(1.25e-4 / 4) == cfg.SOLVER.BASE_LR


def test_resolving_twice_changes_nothing():
    cfg = schedule(1000, "SOLVER.IMS_PER_BATCH", 2)
    again = cfg.clone()
    resolve_schedule(again, 1000)
    assert again.dump() == cfg.dump()


def test_warm_up_ends_before_training_does(caplog):
    cfg = schedule(1, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 100)
    assert cfg.SOLVER.MAX_ITER == 21
    assert cfg.SOLVER.WARMUP_ITERS == 20
    assert "WARMUP_ITERS shortened" in caplog.text


def test_iterations_stand_where_no_epochs_are_given():
    cfg = toy_config("", "SOLVER.MAX_ITER", 77, "SOLVER.STEPS", (50,))
    resolve_schedule(cfg, 1000)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (77, (50,))


def arguments(cfg, folder, resume=False):
    file = folder / "toy.yaml"
    file.write_text(cfg.dump())
    return argparse.Namespace(
        config_file=str(file), opts=[], num_gpus=1, resume=resume, eval_only=False
    )


def test_setup_fills_in_classes_seed_and_device(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(configuration.logger, "warning", warnings.append)
    toy_data(tmp_path)
    overrides = ("MODEL.ISDA.NUM_CLASSES", 0, "SEED", -1, "MODEL.DEVICE", "cuda")
    args = arguments(toy_config(tmp_path / "out", *overrides), tmp_path)
    cfg = setup(args)
    assert cfg.MODEL.ISDA.NUM_CLASSES == 2
    assert cfg.SEED >= 0
    if not torch.cuda.is_available():
        assert cfg.MODEL.DEVICE == "cpu"
        assert warnings == ["MODEL.DEVICE is cpu: no CUDA device can be used"]
    args.resume = True
    assert setup(args).SEED == cfg.SEED  # from OUTPUT_DIR/config.yaml


def test_a_head_that_disagrees_with_the_data(tmp_path):
    toy_data(tmp_path)
    args = arguments(toy_config(tmp_path / "out", "MODEL.ISDA.NUM_CLASSES", 80), tmp_path)
    with pytest.raises(ValueError, match="MODEL.ISDA.NUM_CLASSES"):
        setup(args)
    overrides = ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    args = arguments(toy_config(tmp_path / "out", *overrides), tmp_path)
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.NUM_CLASSES"):
        setup(args)


def test_annotations_are_checked_before_training(tmp_path):
    toy_data(tmp_path, file_names=["image_0.png", "image_1.png"])
    (tmp_path / "image_1.png").unlink()
    with pytest.raises(ValueError, match="image_1.png"):
        setup(arguments(toy_config(tmp_path / "out"), tmp_path))


def test_an_unknown_data_set(tmp_path):
    toy_data(tmp_path)
    args = arguments(toy_config(tmp_path / "out", "DATASETS.TEST", ("toyy",)), tmp_path)
    with pytest.raises(ValueError, match="'toyy'.*did you mean toy"):
        setup(args)


def test_old_names_of_keys_are_accepted_with_a_notice(tmp_path, caplog):
    old, new = "MODEL.ISDA.LARGEST_PART", "MODEL.ISDA.KEEP_LARGEST_COMPONENT"
    file = tmp_path / "old.yaml"
    file.write_text("MODEL: {ISDA: {LARGEST_PART: True}}\n")
    for _ in range(2):
        assert load_config(str(file)).MODEL.ISDA.KEEP_LARGEST_COMPONENT
    assert caplog.messages == [f"{old} in {file} is now called {new}"]
    cfg = load_config(str(file), [old, "False"])
    assert not cfg.MODEL.ISDA.KEEP_LARGEST_COMPONENT
    assert "LARGEST_PART" not in cfg.MODEL.ISDA
    assert given_keys(str(file), [old, "False"]) == [new]
    assert read_flat(file.read_text()) == {new: True}
