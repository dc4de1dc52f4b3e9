"""The tool's figures, tables and messages."""

import json
import re
import shlex
from pathlib import Path

import pytest

from isda import cli
from isda.benchmarking import measuring

ROOT = Path(__file__).resolve().parents[2]
MODELS = ["isda_tiny", "mask_rcnn_tiny", "istr_tiny"]
SMALL = [
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32"),
]


def rounds_of(*seconds):
    """One call per round, half of it in each of two parts."""
    return [[{"backbone": s / 2, "heads": s / 2}] for s in seconds]


def test_summaries_compare_round_by_round():
    # A round is slow for both; only the pairs tell that one takes half as long again.
    results = measuring.summaries(
        {"first": rounds_of(2.0, 2.0, 20.0), "second": rounds_of(3.0, 3.2, 30.0)}
    )
    assert results["first"]["ratio"] == {"low": 1.0, "median": 1.0, "high": 1.0}
    second = results["second"]
    assert second["ratio"] == pytest.approx({"low": 1.5, "median": 1.5, "high": 1.55})
    assert (second["median"], second["calls"]) == (3.2, 3)
    assert second["p95"] == pytest.approx(3.2 + 0.9 * (30.0 - 3.2))
    assert second["components"] == pytest.approx({"backbone": 1.6, "heads": 1.6})
    assert second["rounds"] == [[3.0], [3.2], [30.0]]


def test_a_round_of_one_model_is_not_compared_with_another_round():
    results = measuring.summaries(
        {"first": rounds_of(2.0, 4.0, 8.0), "second": rounds_of(9.0, 4.0, 2.0)}
    )
    expected = {"low": (0.25 + 1) / 2, "median": 1.0, "high": (1 + 4.5) / 2}
    assert results["second"]["ratio"] == pytest.approx(expected)


def test_several_calls_of_a_round_count_as_their_median():
    calls = [[{"a": 1.0}, {"a": 2.0}, {"a": 9.0}], [{"a": 4.0}]]
    results = measuring.summaries({"first": rounds_of(1.0, 2.0), "second": calls})
    assert results["second"]["ratio"]["median"] == 2.0
    assert (results["second"]["median"], results["second"]["calls"]) == (3.0, 4)


def test_components_are_shares_of_all_calls():
    calls = [{"a": 1.0, "b": 3.0}, {"a": 3.0, "b": 1.0, "c": 2.0}]
    shares = measuring.shares_of(4.0, calls)
    assert shares == pytest.approx({"a": 1.6, "b": 1.6, "c": 0.8})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """All tasks on three tiny models: the folder of the results."""
    folder = tmp_path_factory.mktemp("benchmark")
    metrics = [{"iteration": 9, "segm/AP": 12.5}, {"iteration": 19, "segm/AP": 34.56}]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, metrics)))
    arguments = [a for name in MODELS for a in ("--config-file", f"shapes/{name}")]
    arguments += ["--size", "64", "96", "--batch", "2", "--train-batch", "2", "--rounds", "2"]
    arguments += ["--floor", "0", "--device", "cpu", "--threads", "1", "--instances", "3"]
    arguments += ["--ap", f"isda_tiny={folder}", "--ap", "istr_tiny=40"]
    assert cli.main(["benchmark", *arguments, "--output", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def rows(measured):
    report = json.loads((measured / "benchmark.json").read_text())
    assert (report["size"], report["train_size"], report["rounds"]) == ([64, 96], [64, 96], 2)
    return {row["name"]: row for row in report["rows"]}


@pytest.mark.slow
def test_every_model_is_measured(rows):
    assert list(rows) == MODELS
    for row in rows.values():
        for key in ("parameters", "flops", "latency", "throughput", "training"):
            components = row[key]["components"]
            whole = row[key]["total"] if key in ("parameters", "flops") else row[key]["median"]
            assert sum(components.values()) == pytest.approx(whole)
            assert min(components.values()) >= 0
        for key in ("latency", "throughput", "training"):
            result = row[key]
            assert result["calls"] == 2
            assert 0 < result["median"] <= result["p95"]
            assert result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
            assert result["peak_bytes"] is None or 2**20 < result["peak_bytes"] < 2**33
        assert row["throughput"]["images_per_second"] == 2 / row["throughput"]["median"]
    assert rows["isda_tiny"]["latency"]["ratio"]["median"] == 1.0
    assert [row["latency"]["instances"] for row in rows.values()] == [30] * 3  # all they may return
    assert {name: row.get("ap") for name, row in rows.items()} == {
        "isda_tiny": 34.56,
        "mask_rcnn_tiny": None,
        "istr_tiny": 40.0,
    }


@pytest.mark.slow
def test_each_model_has_the_components_that_it_consists_of(rows):
    everywhere = {"backbone", "neck", "heads", "postprocessing", "other"}
    for name, row in rows.items():
        expected = everywhere | ({"transformer"} if name != "mask_rcnn_tiny" else set())
        assert set(row["latency"]["components"]) == expected
        phases = {"forward", "backward", "optimiser"}
        expected = phases | ({"criterion"} if name != "mask_rcnn_tiny" else set())
        assert set(row["training"]["components"]) == expected
        assert row["flops"]["components"]["backbone"] > 1e6


def number(cell):
    """Seconds, or the plain number, of a table's cell."""
    value, unit = re.match(r"([\d.]+) ?(\w*)", cell).groups()
    return float(value) * {"ms": 1e-3, "M": 1e6, "G": 1e9, "MB": 2**20}.get(unit, 1)


def table(text, title):
    """The cells of every model, by its name and the column's title."""
    lines = text.split(f"{title}\n\n")[1].split("\n\n")[0].strip().splitlines()
    titles, _, *cells = [line[1:-1].split("|") for line in lines]
    return {line[0]: dict(zip(titles, line, strict=True)) for line in cells}


@pytest.mark.slow
def test_the_tables_say_what_the_file_says(measured, rows):
    text = (measured / "benchmark.md").read_text()
    assert text.startswith("Synthetic images, untrained weights; device ")
    assert "ratios are to isda_tiny" in text
    inference = table(text, "Size and inference, 64×96:")
    training = table(text, "Training steps, 64×96, batch 2, 3 instances in each image:")
    assert list(inference) == list(training) == MODELS
    for name, row in rows.items():
        result = row["training"]
        for cells, values in (
            (
                inference[name],
                {
                    "Parameters": row["parameters"]["total"],
                    "Multiply-adds": row["flops"]["total"],
                    "Latency": row["latency"]["median"],
                    "95 %": row["latency"]["p95"],
                    "Ratio": row["latency"]["ratio"]["median"],
                    "Images/s, batch 2": row["throughput"]["images_per_second"],
                },
            ),
            (training[name], {"Step": result["median"], "Ratio": result["ratio"]["median"]}),
        ):
            for title, value in values.items():
                rounding = 0.0051 if title == "Ratio" else 0.0
                assert number(cells[title]) == pytest.approx(value, rel=0.01, abs=rounding)
        if result["peak_bytes"] is not None:
            assert number(training[name]["Memory"]) == pytest.approx(result["peak_bytes"], rel=0.01)
        assert inference[name]["AP"] == ("" if "ap" not in row else f"{row['ap']:.1f}")


@pytest.mark.slow
def test_breakdowns_and_pictures_are_written(measured, rows):
    text = (measured / "benchmark.md").read_text()
    cells = table(text, "Latency, by component:")["mask_rcnn_tiny"]
    components = ["backbone", "neck", "transformer", "heads", "postprocessing", "other"]
    assert list(cells) == ["Model", *components]
    assert cells["transformer"] == ""
    seconds = rows["mask_rcnn_tiny"]["latency"]["components"]["heads"]
    assert number(cells["heads"]) == pytest.approx(seconds, rel=0.01)
    shares = [int(share) for share in re.findall(r"\((\d+) %\)", " ".join(cells.values()))]
    assert 97 <= sum(shares) <= 103
    for name in ("components.png", "ap_over_latency.png"):
        assert (measured / name).stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "nothing"], "error: no config nothing: give a YAML file"),
        (["--config-file", "shapes/isda_tiny"] * 2, "error: several models have one name"),
        (
            ["--config-file", "shapes/isda_tiny", "--ap", "isda=3"],
            "error: --ap isda=3: must be NAME=RESULT, with one of the names isda_tiny",
        ),
        (
            ["--config-file", "shapes/isda_tiny", "--opts", "MODEL.ISDA.QUERIES", "3"],
            "error: unknown config key MODEL.ISDA.QUERIES",
        ),
        (
            [
                "--config-file",
                "detectron2/Base-RetinaNet",
                "--opts",
                "MODEL.RETINANET.CLASSES",
                "3",
            ],
            "error: unknown config key MODEL.RETINANET.CLASSES",
        ),
        (
            ["--config-file", "shapes/isda_tiny", "--ap", "isda_tiny=nothing.json"],
            "error: no metrics at nothing.json",
        ),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, message):
    assert cli.main(["benchmark", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_training_without_evaluation_has_no_ap(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "total_loss": 3.0}')
    arguments = ["--config-file", "shapes/isda_tiny", "--ap", f"isda_tiny={tmp_path}"]
    assert cli.main(["benchmark", *arguments]) == 1
    assert "records no segm/AP: has the training evaluated yet?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be positive, got 0"),
        (["--names", "a", "b"], "--names wants 1 names, one per config, got 2"),
        (["--cpu-time", "--threads", "2"], "--cpu-time adds threads up"),
    ],
)
def test_arguments_that_make_no_sense(capsys, arguments, message):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--config-file", "shapes/isda_tiny", "--device", "cpu", *arguments])
    assert message in capsys.readouterr().err


def test_configs_of_one_name_are_told_apart_by_their_folder():
    args = cli.parser_of("benchmark").parse_args(
        ["--config-file", "shapes/isda_tiny", "--config-file", "nuclei/isda_tiny.yaml"]
    )
    assert list(measuring.load_configs(args)) == ["shapes/isda_tiny", "nuclei/isda_tiny"]


def test_a_model_that_learns_from_more_than_masks_is_named(capsys):
    config = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"
    small = [*SMALL, "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)"]
    arguments = ["--config-file", config, "--tasks", "training", "--size", "64", "64"]
    assert cli.main(["benchmark", *arguments, "--device", "cpu", "--opts", *small]) == 1
    error = capsys.readouterr().err
    assert "keypoint_rcnn_R_50_FPN_1x cannot be trained on images with masks alone" in error
    assert "--tasks size latency throughput" in error


def test_models_of_detectron2_are_measured(tmp_path):
    arguments = ["--config-file", "COCO-Detection/retinanet_R_50_FPN_1x", "--names", "RetinaNet"]
    arguments += ["--size", "64", "64", "--rounds", "1", "--floor", "0", "--device", "cpu"]
    arguments += ["--tasks", "size", "latency", "training", "--output", str(tmp_path)]
    assert cli.main(["benchmark", *arguments, "--opts", *SMALL]) == 0
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert row["latency"]["instances"] == 100
    assert row["flops"]["components"]["heads"] > row["flops"]["components"]["neck"] > 0
    assert set(row["training"]["components"]) == {"forward", "backward", "optimiser"}


@pytest.mark.parametrize("page", ["docs/BENCHMARK.md", "docs/GETTING_STARTED.md"])
def test_commands_of_the_pages_name_what_there_is(page):
    text = (ROOT / page).read_text().replace("\\\n", " ")
    commands = re.findall(r"^python tools/benchmark.py (.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        args = cli.parser_of("benchmark").parse_args(shlex.split(command))
        names = list(measuring.load_configs(args))
        assert {pair.partition("=")[0] for pair in args.ap} <= set(names)
