import json
import shlex

import pytest
from examples_of_reports import ENVIRONMENT, METRICS

from isda.data.errors import DatasetError
from isda.report.configuration import config_file, differences
from isda.report.training import Training, best


def write_environment(folder, /, **session):
    content = json.loads((folder / "environment.json").read_text())
    content["sessions"] = [ENVIRONMENT | session]
    (folder / "environment.json").write_text(json.dumps(content))
    return Training(folder)


def test_metrics_are_finite_and_in_order(folder):
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 60, "segm/AP": NaN, "bbox/AP": 61.0}\n')
    training = Training(folder)
    assert training.metric("segm/AP", "toy_val") == [(49, 71.25)]
    assert training.metric("bbox/AP", "toy_val") == [(49, 60.5), (60, 61.0)]
    assert training.metric("lr") == [(19, 1e-4), (39, 1e-4), (59, 1e-5)]
    assert training.iterations == 60


def test_the_best_is_the_first_of_the_highest():
    assert best([(1, 2.0), (2, 5.0), (3, 5.0), (4, 1.0)]) == (2, 5.0)
    assert best([]) is None


def test_a_session_that_was_killed_leaves_no_duration(folder):
    assert Training(folder).seconds == 65.0
    killed = {key: value for key, value in ENVIRONMENT.items() if key not in ("seconds", "ended")}
    content = json.loads((folder / "environment.json").read_text())
    content["sessions"] = [killed, ENVIRONMENT]
    (folder / "environment.json").write_text(json.dumps(content))
    assert Training(folder).seconds is None


@pytest.mark.parametrize(
    "last, iterations, state",
    [
        ("model_final.pth", 60, "finished"),
        ("model_final.pth", 40, "stopped early"),
        ("model_0000039.pth", 40, "unfinished"),
        ("model_0000059.pth", 60, "finished"),
        (None, 40, "unfinished"),
    ],
)
def test_how_it_ended(folder, last, iterations, state):
    lines = [json.dumps(r) for r in METRICS if r["iteration"] < iterations]
    (folder / "metrics.json").write_text("\n".join(lines))
    (folder / "last_checkpoint").unlink()
    if last:
        (folder / "last_checkpoint").write_text(last)
    assert Training(folder).state == state


def test_warnings_of_an_earlier_training_are_left_out(folder):
    training = Training(folder)
    assert [(w.level, w.count) for w in training.warnings()] == [("WARNING", 1), ("WARNING", 2)]
    # In the night of the new year; and without a date all of them count.
    log = "[12/31 23:59:59] a WARNING: first\n  continued\n[01/01 00:00:01] b ERROR: second\n"
    (folder / "log.txt").write_text("[12/30 10:00:00] a WARNING: old\n" + log)
    training = write_environment(folder, started="2025-12-31T23:59:30")
    messages = [(w.level, w.message) for w in training.warnings()]
    assert messages == [("WARNING", "first\n  continued"), ("ERROR", "second")]
    (folder / "environment.json").unlink()
    assert len(Training(folder).warnings()) == 3


def test_data_sets_are_read_from_where_the_training_found_them(folder, prepared):
    found = Training(folder).data("toy_val")
    assert found.image_root == prepared.parent / "data"
    assert len(found.instances) == 7 and list(found.class_names) == [3, 7]
    (folder / "environment.json").unlink()
    with pytest.raises(DatasetError, match="'toy_val': its annotation file is not where it was"):
        Training(folder).data("toy_val")
    assert len(Training(folder).data("nuclei_mini_val").content["images"]) == 39


# --- configuration


def write_configs(folder):
    (folder / "base.yaml").write_text("SOLVER: {BASE_LR: 0.02, MAX_ITER: 7}\nSEED: 3\n")
    (folder / "own.yaml").write_text('_BASE_: "base.yaml"\nSOLVER: {BASE_LR: 0.03}\n')
    config = (folder / "config.yaml").read_text()
    for key, value in {"BASE_LR": 0.03, "SEED": 3, "NUM_WORKERS": 1}.items():
        config = "\n".join(
            line.split(":")[0] + f": {value}" if line.strip().startswith(f"{key}:") else line
            for line in config.splitlines()
        )
    (folder / "config.yaml").write_text(config)


def test_differences_are_to_the_base_of_the_config_file(folder):
    write_configs(folder)
    command = "train_net.py --config-file own.yaml SOLVER.MAX_ITER 60 SOLVER.EPOCHS 6"
    training = write_environment(folder, command=command, folder=str(folder))
    found, base = differences(training)
    assert base == "base.yaml"
    assert {d.key: (d.before, d.value, d.source) for d in found} == {
        "DATALOADER.NUM_WORKERS": (4, 1, "program"),
        "DATASETS.TEST": ([], ["toy_val"], "program"),
        "SOLVER.BASE_LR": (0.02, 0.03, "config file"),
        "SOLVER.EPOCHS": (0.0, 6.0, "command line"),
        "SOLVER.MAX_ITER": (7, 60, "command line"),
    }


def test_differences_are_to_the_defaults_where_the_base_is_not_there(folder):
    write_configs(folder)
    (folder / "base.yaml").unlink()
    command = "train_net.py --config-file=own.yaml"
    training = write_environment(folder, command=command, folder=str(folder))
    found, base = differences(training)
    assert base is None
    assert {"SEED", "SOLVER.MAX_ITER", "SOLVER.BASE_LR"} <= {d.key for d in found}
    (folder / "environment.json").unlink()
    assert differences(Training(folder))[1] is None


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--config-file", "a b.yaml", "X", "1"], "a b.yaml"),
        (["--config-file=c.yaml"], "c.yaml"),
        (["--resume"], None),
        (["--config-file"], ""),
    ],
)
def test_the_config_file_is_found_in_the_command(folder, words, expected):
    training = write_environment(folder, command=shlex.join(["train_net.py", *words]))
    assert config_file(training) == expected


def test_a_recipe_of_the_package_needs_no_file(folder):
    """As where there is no checkout: ``isda train --config-file nuclei/isda_tiny.yaml``."""
    command = "isda train --config-file nuclei/isda_boxes_tiny.yaml"
    training = write_environment(folder, command=command, folder=str(folder))
    assert differences(training)[1] == "Base-ISDA-boxes.yaml"
