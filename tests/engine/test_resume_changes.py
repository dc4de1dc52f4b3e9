"""What changes between two starts: it takes effect, is refused in a sentence, or is reported."""

import json
import os
import shutil

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from recording import changed
from toys import call, register_toy_data, same_weights, toy_config, toy_data

from isda.checkpoint import Checkpointer, WeightsError, open_last_checkpoint
from isda.engine.config_keys import OnResume, flattened, idle_reason, on_resume
from isda.engine.hooks import tidy_metrics
from isda.engine.resuming import Resumption, find_resumption
from isda.engine.setup import _resolve_seed, load_config
from isda.engine.trainer import Trainer
from isda.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

# Five images in steps of two, with a schedule in epochs.
EPOCHS = (
    *("SOLVER.EPOCHS", 4.0, "SOLVER.STEP_EPOCHS", (3.0,), "SOLVER.CHECKPOINT_EPOCHS", 2.0),
    *("DATASETS.TEST", (), "SOLVER.WARMUP_ITERS", 2),
)


def trained(folder, *overrides, until=None):
    """A trainer after a training that may be interrupted after ``until`` steps."""
    seed_all_rng(7)
    trainer = Trainer(toy_config(folder, *EPOCHS, *overrides))
    if until is not None:
        trainer.max_iter = until
    trainer.train()
    return trainer


def resumed(folder, *overrides):
    trainer = Trainer(toy_config(folder, *EPOCHS, *overrides))
    trainer.resume_or_load(resume=True)
    return trainer


@pytest.fixture(scope="module")
def half_way(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half_way")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    toy_data(folder)
    trained(folder / "out", until=5)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def half(half_way, tmp_path):
    """A folder with the first five of ten steps of a training."""
    shutil.copytree(half_way, tmp_path, dirs_exist_ok=True)
    register_toy_data(tmp_path)
    return tmp_path / "out"


def groups_of(trainer):
    """Hyperparameters, and the shapes of the parameters, of each group."""
    groups = []
    for group in trainer.optimizer.param_groups:
        shapes = [parameter.shape for parameter in group["params"]]
        groups.append({**group, "params": shapes})
    return groups


def straight_to(iteration, folder, *overrides):
    """A new training with the schedule set to an iteration, as its hook would."""
    trainer = Trainer(toy_config(folder, *EPOCHS, *overrides))
    trainer.optimizer.zero_grad()
    for _ in range(iteration):
        trainer.optimizer.step()  # without gradients it does nothing
        trainer.scheduler.step()
    return trainer


RATES = [
    ("SOLVER.BASE_LR", 3e-4),
    ("SOLVER.BACKBONE_MULTIPLIER", 0.7),
    ("SOLVER.SAMPLING_MULTIPLIER", 0.3),
    ("SOLVER.BIAS_LR_FACTOR", 2.0),
    ("SOLVER.WEIGHT_DECAY", 0.05),
    ("SOLVER.WEIGHT_DECAY_NORM", 0.02),
    ("SOLVER.WEIGHT_DECAY_BIAS", 0.01),
    ("SOLVER.STEP_EPOCHS", (1.0,)),
    ("SOLVER.GAMMA", 0.5),
    ("SOLVER.WARMUP_ITERS", 9),
    ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
    ("SOLVER.EPOCHS", 6.0),
]


@pytest.mark.parametrize(("key", "value"), RATES, ids=[key for key, _ in RATES])
def test_rates_are_those_of_a_new_training_at_that_iteration(half, tmp_path, key, value):
    found = resumed(half, key, value)
    assert found.start_iter == 5
    assert groups_of(found) == groups_of(straight_to(5, tmp_path / "new", key, value))
    before = groups_of(straight_to(5, tmp_path / "old"))
    if key not in ("SOLVER.EPOCHS", "SOLVER.GAMMA"):  # which change the rates after this iteration
        assert groups_of(found) != before


def test_moments_follow_their_parameters_into_other_groups(half):
    """With rates of their own, biases move to other places in the optimiser."""

    def moments(trainer):
        names = {p: n for n, p in trainer.model.named_parameters()}
        return {names[p]: s["exp_avg"] for p, s in trainer.optimizer.state.items()}

    same, other = resumed(half), resumed(half, "SOLVER.BIAS_LR_FACTOR", 2.0)
    assert same._trainer._parameter_names() != other._trainer._parameter_names()
    assert same_weights(moments(same), moments(other))
    assert any(m.abs().max() > 0 for m in moments(other).values())


def test_moments_of_checkpoints_without_names_are_taken_in_their_order(half):
    path = half / "model_final.pth"
    contents = torch.load(path)
    del contents["trainer"]["_trainer"]["parameters"]
    torch.save(contents, path)
    trainer = resumed(half)
    first = trainer.optimizer.param_groups[0]["params"][0]
    saved = contents["trainer"]["_trainer"]["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(trainer.optimizer.state[first]["exp_avg"], saved)


@pytest.mark.parametrize(("batch", "done", "total"), [(1, 10, 20), (2, 5, 10), (5, 2, 4)])
def test_epochs_done_follow_the_images_seen(half, batch, done, total):
    trainer = resumed(half, "SOLVER.IMS_PER_BATCH", batch)
    assert (trainer.start_iter, trainer.max_iter) == (done, total)
    assert trainer._sampler.start == 10  # images
    trainer.train()
    state = torch.load(half / "model_final.pth")["trainer"]
    assert state["images"] == 20
    again = resumed(half, "SOLVER.IMS_PER_BATCH", batch)
    assert again.start_iter == total


def test_iterations_are_kept_where_the_length_is_stated_in_iterations(half):
    overrides = ("SOLVER.EPOCHS", 0.0, "SOLVER.MAX_ITER", 8, "SOLVER.IMS_PER_BATCH", 1)
    trainer = resumed(half, *overrides)
    assert (trainer.start_iter, trainer.max_iter) == (5, 8)


def test_metrics_are_renumbered_with_the_batch(tmp_path):
    lines = [json.dumps({"iteration": i}) + "\n" for i in (1, 3, 5)]
    (tmp_path / "metrics.json").write_text("".join(lines))
    tidy_metrics(str(tmp_path), 8, 4)  # four steps of two images became eight of one
    written = (tmp_path / "metrics.json").read_text().splitlines()
    numbers = [json.loads(line)["iteration"] for line in written]
    assert numbers == [3, 7]


def test_the_best_evaluation_is_renumbered_with_the_batch(half):
    contents = {"metric": "segm/AP", "value": 30.0, "iteration": 3, "images_per_step": 2}
    torch.save(contents | {"model": {"weight": torch.zeros(2)}}, half / "model_best.pth")
    trainer = resumed(half, "DATASETS.TEST", ("toy",), "SOLVER.IMS_PER_BATCH", 1)
    best = next(hook for hook in trainer._hooks if type(hook).__name__ == "BestCheckpointer")
    with EventStorage() as trainer.storage:
        best.before_train()
    assert best.best_iteration == 7  # the last of eight steps of one image, as of four of two


@pytest.mark.parametrize(
    "overrides",
    [
        ("SOLVER.EMA.ENABLED", True),
        ("SOLVER.AMP.ENABLED", True),
        ("SOLVER.ACCUMULATION", 2),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True),
        ("MODEL.ISDA.DROPOUT", 0.3),
        ("DATALOADER.ASPECT_RATIO_GROUPING", False),
        ("SEED", 8),
    ],
    ids=lambda overrides: overrides[0],
)
def test_switched_on_in_the_middle(half, overrides):
    trainer = resumed(half, *overrides)
    trainer.train()
    assert trainer.iter == 10
    contents = torch.load(half / "model_final.pth")
    assert all(torch.isfinite(t).all() for t in contents["model"].values())
    assert ("training_model" in contents) == (overrides[0] == "SOLVER.EMA.ENABLED")


def test_the_average_is_left_out_when_it_is_switched_off(tmp_path):
    toy_data(tmp_path)
    trained(tmp_path / "out", "SOLVER.EMA.ENABLED", True, until=5)
    saved = torch.load(tmp_path / "out" / "model_final.pth")
    trainer = resumed(tmp_path / "out")
    assert same_weights(trainer.model.state_dict(), saved["training_model"])


def saved_by(cfg, **values):
    """As if a checkpoint had been written under ``cfg`` with other values of some keys."""
    return Resumption("out/model.pth", None, flattened(cfg) | values)


FOUND = "TEST.TILES.IMAGE_SIZE"  # 0 keeps what the training found in its images


def test_a_size_that_was_found_is_kept_and_another_is_told(tmp_path):
    toy_data(tmp_path)
    resumption = saved_by(toy_config(tmp_path), **{FOUND: 48})
    assert resumption.check(toy_config(tmp_path, FOUND, 0), load_config()) == []
    (note,) = resumption.check(toy_config(tmp_path, FOUND, 300), load_config())
    assert note.endswith(f"{FOUND} 300 instead of 48")


def test_every_key_is_refused_reported_or_without_effect(tmp_path):
    toy_data(tmp_path)
    cfg, defaults = toy_config(tmp_path), load_config()
    tried = dict.fromkeys(OnResume, 0)
    for key, value in flattened(cfg).items():
        before = changed(value)
        if before == value:
            before = "something else"
        if key in ("OUTPUT_DIR", "SOLVER.REFERENCE_BATCH"):  # no news; seen in the rate
            continue
        resumption, decision = saved_by(cfg, **{key: before}), on_resume(key)
        if idle_reason(key)(cfg) or key == FOUND:
            assert resumption.check(cfg, defaults) == [], key
        elif decision is OnResume.REFUSED:
            with pytest.raises(ConfigError, match=f"cannot be continued with {key} .* instead of"):
                resumption.check(cfg, defaults)
            tried[decision] += 1
        else:
            (note,) = resumption.check(cfg, defaults)
            start = "--resume: in effect from here on: " if decision is OnResume.HOLDS else ""
            assert note.startswith(f"{start}{key} "), note
            tried[decision] += 1
    assert all(count >= 2 for count in tried.values()), tried


def test_nothing_is_said_where_nothing_has_changed(half):
    cfg = toy_config(half, *EPOCHS)
    assert find_resumption(str(half)).check(cfg, load_config()) == []
    # Nor where the complete configuration that the training has left is used.
    left = load_config(str(half / "config.yaml"))
    left.SOLVER.WARMUP_ITERS = cfg.SOLVER.WARMUP_ITERS
    assert find_resumption(str(half)).check(left, load_config()) == []


def test_a_rate_that_the_batch_scales_is_told(tmp_path):
    toy_data(tmp_path)
    before = toy_config(tmp_path, "SOLVER.REFERENCE_BATCH", 2)
    now = toy_config(tmp_path, "SOLVER.REFERENCE_BATCH", 2, "SOLVER.IMS_PER_BATCH", 1)
    (note,) = Resumption("x", None, flattened(before)).check(now, load_config())
    assert "SOLVER.BASE_LR 0.0005 instead of 0.001" in note
    assert "SOLVER.IMS_PER_BATCH 1 instead of 2" in note


def test_keys_of_later_versions_are_compared_with_their_defaults(tmp_path):
    toy_data(tmp_path)
    cfg, old = toy_config(tmp_path), flattened(toy_config(tmp_path))
    del old["MODEL.ISDA.NECK_BIAS"]
    assert Resumption("x", None, old).check(cfg, load_config()) == []
    cfg.MODEL.ISDA.NECK_BIAS = True
    with pytest.raises(ConfigError, match="NECK_BIAS True instead of False"):
        Resumption("x", None, old).check(cfg, load_config())


def renamed(folder, *names):
    """The toy data with other classes."""
    path = folder / "toy.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    path.write_text(json.dumps(content))


CLASSES = [
    (("odd", "even"), "classes even, odd, .* now odd, even.*number the categories"),
    (("even", "odd", "new"), "classes even, odd, .* now even, odd, new.*resume with the data"),
    (("even",), "classes even, odd, .* now even, so that"),
    (("even", "old"), "classes even, odd, .* now even, old"),
]


@pytest.mark.parametrize(("names", "message"), CLASSES, ids=[str(names) for names, _ in CLASSES])
def test_other_classes_are_refused_before_anything_is_written(
    tmp_path, half, train_net, names, message
):
    renamed(tmp_path, *names)
    register_toy_data(tmp_path)
    file = tmp_path / "toy.yaml"
    file.write_text(toy_config(half, *EPOCHS, "MODEL.ISDA.NUM_CLASSES", 0).dump())
    before = {p: p.read_bytes() for p in half.iterdir() if p.name != "log.txt"}
    with pytest.raises(SystemExit, match=message):
        call(train_net, "--config-file", file, "--resume", "--num-gpus", 0)
    after = {p: p.read_bytes() for p in half.iterdir() if p.name != "log.txt"}
    assert after == before
    # By the trainer alone as well.
    overrides = ("MODEL.ISDA.NUM_CLASSES", len(names))
    with pytest.raises(WeightsError, match=message):
        resumed(half, *overrides)


def test_another_model_is_refused_by_its_tensors_too(half):
    for overrides in (("MODEL.ISDA.NUM_QUERIES", 7), ("MODEL.ISDA.DECODER_LAYERS", 1)):
        with pytest.raises(WeightsError, match="--resume: the checkpoint is of another model"):
            resumed(half, *overrides, "MODEL.WEIGHTS_MIN_MATCHED", 0.0)


def test_the_seed_goes_on_after_an_evaluation_in_the_same_folder(tmp_path, train_net):
    """It is the checkpoint's, not that of config.yaml, which an evaluation replaces."""
    toy_data(tmp_path)
    out, file = tmp_path / "out", tmp_path / "toy.yaml"
    file.write_text(toy_config(out, *EPOCHS, "SEED", -1, "DATASETS.TEST", ("toy",)).dump())
    words = ("--config-file", file, "--num-gpus", 0)
    call(train_net, *words, "SOLVER.EPOCHS", 3.5)
    seed = find_resumption(str(out)).config["SEED"]
    call(train_net, *words, "--eval-only", "MODEL.WEIGHTS", out / "model_final.pth")
    call(train_net, *words, "--resume")
    assert find_resumption(str(out)).config["SEED"] == seed


def damage(path, how):
    if how == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "emptied":
        os.truncate(path, 0)
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "removed"])
def test_a_lost_checkpoint_names_the_newest_whole_one(half, train_net, how, tmp_path):
    os.utime(half / "model_0000004.pth", (1, 1))
    shutil.copyfile(half / "model_final.pth", half / "model_0000009.pth")
    damage(half / "model_final.pth", how)
    if how == "cut":  # and one more
        damage(half / "model_0000009.pth", how)
    file = tmp_path / "toy.yaml"
    file.write_text(toy_config(half, *EPOCHS).dump())
    name = "model_0000004.pth" if how == "cut" else "model_0000009.pth"
    with pytest.raises(SystemExit) as caught:
        call(train_net, "--config-file", file, "--resume", "--num-gpus", 0)
    message = str(caught.value)
    assert ("is gone" if how == "removed" else "is damaged") in message
    assert f"the newest whole one is {half / name}" in message
    assert "MODEL.WEIGHTS (empty" not in message
    os.system(message.split("`")[1])  # what it says helps
    assert resumed(half).start_iter == 5


def rewritten(path, **changes):
    """Other contents of a checkpoint; None takes one away, a name with __ is one of the trainer."""
    contents = torch.load(path)
    for name, value in changes.items():
        node = contents
        *outer, last = name.split("__")
        for key in outer:
            node = node[key]
        node.pop(last, None)
        if value is not None:
            node[last] = value
    torch.save(contents, path)


NO_TRAINING = [
    {"trainer": None},
    {"trainer": 3},
    {"trainer__images": None},
    {"trainer__iteration": "x"},
    {"trainer__random_states": None},
    {"trainer___trainer": None},
    {"trainer___trainer__optimizer": None},
    {"trainer___trainer__iteration": None},
    {"trainer__iteration": -2},
    {"trainer__images": -1},
    {"trainer__random_states": [1]},
    {"trainer__hooks": [1]},
    {"trainer___trainer__optimizer__state": {0: 3}},
    {"training_model": {"weight": torch.zeros(2)}},  # but no averaged_steps
    # As Detectron2's own trainer leaves it.
    {"classes": None, "trainer__images": None, "trainer__random_states": None},
]


@pytest.mark.parametrize("changes", NO_TRAINING, ids=lambda changes: "-".join(changes))
def test_what_is_no_training_is_not_continued(half, changes):
    """It would go on in silence, with weights alone, or end in a traceback."""
    path, older = half / "model_final.pth", half / "model_0000004.pth"
    rewritten(path, **changes)
    message = f"{path}, the last checkpoint, holds no training that could go on: "
    with pytest.raises(WeightsError) as error:
        find_resumption(str(half))
    assert f"{message}the newest whole one is {older}, after 5 iterations" in str(error.value)
    for other in half.glob("model_0*.pth"):
        other.unlink()
    with pytest.raises(WeightsError) as error:
        open_last_checkpoint(str(half))
    remedy = f"start a new training from its weights: without --resume, with MODEL.WEIGHTS {path} "
    assert f"{message}{remedy}and another OUTPUT_DIR" in str(error.value)
    assert find_resumption(str(half), to_train=False).path == str(path)  # which needs no training


def of_sgd(state):
    return {"momentum_buffer": state["exp_avg"]}


def of_another_shape(state):
    return state | {"exp_avg": torch.zeros(3, 1)}


@pytest.mark.parametrize("changed", [of_sgd, of_another_shape])
def test_moments_of_another_optimiser_are_refused(half, changed):
    """SGD would ignore AdamW's without a word, and begin with none."""
    path = half / "model_final.pth"
    contents = torch.load(path)
    states = contents["trainer"]["_trainer"]["optimizer"]["state"]
    states[0] = changed(states[0])
    torch.save(contents, path)
    with pytest.raises(
        WeightsError, match="is not the state of AdamW for this model .*exp_avg|mom"
    ):
        resumed(half)


def test_the_best_weights_are_no_training(half):
    shutil.copyfile(half / "model_final.pth", half / "model_best.pth")
    rewritten(half / "model_best.pth", trainer=None)
    (half / "last_checkpoint").write_text("model_best.pth")
    with pytest.raises(WeightsError, match="the newest whole one is .*model_final.pth"):
        resumed(half)


def test_a_last_checkpoint_of_another_kind(half):
    """Its weights are whole, so it is not called damaged."""
    path = half / "model_final.pth"
    torch.save({"model": {"w": torch.zeros(2)}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="model_final.pth, .* holds no training that could go"):
        find_resumption(str(half))


@pytest.mark.parametrize("config", ["[1, 2", "[1, 2]", "SEED: !!python/name:os.getcwd", 3, None])
def test_a_configuration_that_is_none_is_as_none_at_all(half, config):
    rewritten(half / "model_final.pth", trainer__config=config)
    assert find_resumption(str(half)).config == {}


def test_what_others_wrote_beside_the_checkpoint(half, tmp_path, train_net):
    (half / "metrics.json").write_bytes(
        b'[1]\nnull\n3\n{"iteration": "x"}\n\xff\n{"iteration": 2}\n'
    )
    tidy_metrics(str(half), 5)
    assert (half / "metrics.json").read_text() == '{"iteration": 2}\n'
    (half / "last_checkpoint").write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError, match="the last checkpoint, is gone: the newest whole one is"):
        find_resumption(str(half))
    torch.save({"model": {"w": torch.zeros(2)}, "value": "x"}, half / "model_best.pth")
    (half / "last_checkpoint").write_text("model_final.pth")
    trainer = resumed(half, "DATASETS.TEST", ("toy",))
    best = next(hook for hook in trainer._hooks if type(hook).__name__ == "BestCheckpointer")
    with pytest.raises(WeightsError, match="model_best.pth does not say in numbers which"):
        best.before_train()


@pytest.mark.parametrize("text", ["", "[1]", ": : :\n - [", "SEED: x"])
def test_a_config_that_is_none_has_no_seed(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert _resolve_seed(toy_config(tmp_path, "SEED", -1), True, None) >= 0


@pytest.mark.parametrize("name", ["log.txt", "metrics.json", "inference"])
def test_what_cannot_be_written_is_a_sentence(tmp_path, train_net, name):
    toy_data(tmp_path)
    out, file = tmp_path / "out", tmp_path / "toy.yaml"
    if name == "inference":  # a folder, where a file is
        out.mkdir()
        (out / name).write_text("")
    else:
        (out / name).mkdir(parents=True)
    tests = ("toy",) if name == "inference" else ()
    file.write_text(toy_config(out, "DATASETS.TEST", tests, "SOLVER.MAX_ITER", 1).dump())
    with pytest.raises(SystemExit, match="^error: .*out.* cannot be written [(]"):
        call(train_net, "--config-file", file, "--num-gpus", 0)


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_lost_tag_is_no_reason_to_start_anew(half, content):
    (half / "last_checkpoint").unlink()
    if content is not None:
        (half / "last_checkpoint").write_text(content)
    with pytest.raises(WeightsError, match="missing or empty: the newest whole one is .*final.pth"):
        resumed(half)


def test_where_nothing_is_whole(half):
    best = half / "model_best.pth"
    Checkpointer(torch.nn.Linear(2, 2), str(half)).write(
        "model_best.pth", {"model": {"weight": torch.zeros(2)}}
    )
    for path in half.glob("model_*.pth"):
        if path != best:
            damage(path, "cut")
    with pytest.raises(WeightsError, match=f"no other .* whole, but {best} has the best weights"):
        open_last_checkpoint(str(half))
    best.unlink()
    with pytest.raises(WeightsError, match="no other checkpoint is whole: start anew"):
        open_last_checkpoint(str(half))
    shutil.rmtree(half)
    half.mkdir()
    assert open_last_checkpoint(str(half)) is None
