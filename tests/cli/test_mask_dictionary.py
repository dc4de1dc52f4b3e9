import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import isda
from isda import cli
from isda.cli import mask_dictionary
from isda.modeling.mask_dictionary import MaskDictionary
from isda.modeling.mask_embedding import MaskEmbedding

HELD_OUT = str(Path(__file__).parents[1] / "assets" / "coco_masks.json")
NUCLEI = str(Path(__file__).parents[2] / "datasets" / "nuclei_mini" / "instances_val.json")


def run(*arguments: object) -> int:
    return cli.main(["mask-dictionary", *map(str, arguments)])


def rows(output: str) -> dict[str, dict[str, float]]:
    """The table in an output, by the first column."""
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if line[:1] == "|"]
    head, _, *body = lines
    return {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in body}


def test_fit_and_evaluate(tmp_path, capsys):
    path = tmp_path / "d.npz"
    small = ("--side", 14, "--dim", 45, "--workers", 2)
    assert run("fit", NUCLEI, HELD_OUT, "--output", path, *small, "--evaluate", HELD_OUT) == 0
    fitted = capsys.readouterr()
    assert "left out: 8 crowds" in fitted.out
    assert f"{path}: 45 components for 14×14 masks, fitted to 2,212 masks\n" in fitted.out
    assert "fitting: 2,212 of 2,212 annotations" in fitted.err
    assert run("evaluate", path, HELD_OUT, "--workers", 1) == 0
    evaluated = rows(capsys.readouterr().out)
    assert evaluated == rows(fitted.out)
    assert list(evaluated) == ["40", "45"]
    assert evaluated["45"]["mean"] > evaluated["40"]["mean"] > 0.9
    dictionary = MaskDictionary.load(path)
    assert set(dictionary.sources) == {"instances_val.json", "coco_masks.json"}
    assert dictionary.iou["coco_masks.json, d=45: 5th percentile"] == pytest.approx(
        evaluated["45"]["5th percentile"], abs=1e-4
    )
    assert MaskEmbedding.from_file(path, dim=40, side=14).is_fitted


def test_parts_are_merged_to_the_very_same_file(tmp_path, capsys):
    small = ("--dim", 20, "--symmetry", "all", "--workers", 1)
    fit = ("fit", HELD_OUT, "--side", 14, "--workers", 1)
    assert run(*fit, "--output", tmp_path / "once.npz", *small) == 0
    parts = [tmp_path / f"part{i}.npz" for i in (1, 2)]
    for i, part in enumerate(parts):
        assert run(*fit, "--shard", f"{i + 1}/2", "--output", part) == 0
    assert run("merge", *parts[::-1], "--output", tmp_path / "merged.npz", *small) == 0
    out = capsys.readouterr().out
    assert f"{parts[0]}: shard 1/2, 644 masks" in out and "shard 2/2, 0 masks" in out
    assert out.count("fitted to 5,152 masks, symmetric copies included") == 2
    assert (tmp_path / "once.npz").read_bytes() == (tmp_path / "merged.npz").read_bytes()


def test_the_shipped_dictionary_is_what_its_page_says(capsys):
    assert run("evaluate", "shipped", HELD_OUT, "--dims", 40, 60, 80, 100, "--workers", 1) == 0
    out = capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs" / "MASK_EMBEDDING.md").read_text()
    assert "644 masks" in out
    documented = rows(page)
    for dim, row in rows(out).items():
        assert documented[dim] == pytest.approx(row, abs=2e-4)
    readme = Path(isda.__file__).parent / "weights/README.md"
    pattern = r"mean IoU of ([\d.]+), ([\d.]+), ([\d.]+) and ([\d.]+) with 40, 60, 80 and 100"
    (stated,) = re.findall(pattern, readme.read_text())
    means = [row["mean"] for row in rows(out).values()]
    assert [float(number) for number in stated] == pytest.approx(means, abs=6e-4)


def test_picture(tmp_path, capsys):
    path = tmp_path / "masks.png"
    assert run("show", "shipped", HELD_OUT, "--output", path, "--masks", 3, "--dims", 5, 100) == 0
    assert f"{path}: mean, components, and 3 masks of" in capsys.readouterr().out
    picture = cv2.imread(str(path))
    assert picture.shape[0] > 400 and picture.shape[1] > 6 * 112
    hues = {tuple(color) for color in picture[::7, ::7].reshape(-1, 3) // 64}
    assert (0, 0, 3) in hues and (3, 0, 0) in hues  # positive red, negative blue, as BGR
    assert (0, 0, 0) in hues and (3, 3, 3) in hues


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["fit", "{tmp}/none.json"], "none.json: no such annotation file"),
        (["fit", "{tmp}/crowds.json"], r"crowds.json: has no mask \(1 crowds do not count\)"),
        (["fit", HELD_OUT, HELD_OUT], "coco_masks.json: shard 1/1 is there more than once"),
        (["fit", HELD_OUT, "--side", "5", "--dim", "26"], "5×5 masks have from 1 to 25 components"),
        (["fit", HELD_OUT, "--side", "80", "--shard", "1/2"], "masks of 80×80 are too large"),
        (["merge", "{tmp}/none.npz"], "none.npz: no such mask dictionary"),
        (["evaluate", "shipped", HELD_OUT, "--dims", "101"], "first 101 components of a dicti"),
        (["evaluate", "{tmp}/crowds.json", HELD_OUT], "crowds.json: is no readable .npz without"),
        (["show", "shipped", HELD_OUT, "--masks", "1"], "masks.xyz: '.xyz' is no image format"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, sentence):
    content = json.loads(Path(HELD_OUT).read_text())
    content["annotations"] = [a for a in content["annotations"] if a["iscrowd"]][:1]
    (tmp_path / "crowds.json").write_text(json.dumps(content))
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    if arguments[0] != "evaluate":
        arguments += ["--output", str(tmp_path / "masks.xyz")]
    if arguments[0] != "show":
        arguments += ["--workers", "1"]
    assert run(*arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "annotations, " not in line]
    assert len(lines) == 1
    assert re.match(f"error: .*{sentence}", lines[0]), lines[0]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--shard", "3/2"], "'3/2' is not I/N with I from 1 to N"),
        (["--shard", "0/2"], "'0/2' is not I/N"),
        (["--dim", "0"], "'0' is not a whole number above 0"),
        (["--symmetry", "some"], "invalid choice: 'some'"),
    ],
)
def test_senseless_options(capsys, options, sentence):
    with pytest.raises(SystemExit):
        run("fit", HELD_OUT, "--output", "x.npz", *options)
    assert sentence in capsys.readouterr().err


def test_progress_tells_rate_and_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(mask_dictionary.time, "monotonic", lambda: now[0])
    progress = mask_dictionary.Progress("fitting", 6000)
    for seconds in (1, 4, 1, 4):  # told every five seconds, and at the end
        now[0] += seconds
        progress(1500)
    assert capsys.readouterr().err.splitlines() == [
        "fitting: 3,000 of 6,000 annotations, 600/s, 5 s left",
        "fitting: 6,000 of 6,000 annotations, 600/s",
    ]


def test_few_masks_are_warned_about(tmp_path, capsys, caplog):
    content = json.loads(Path(HELD_OUT).read_text())
    content["annotations"] = content["annotations"][:10]
    path = tmp_path / "ten.json"
    path.write_text(json.dumps(content))
    assert run("fit", path, "--output", tmp_path / "d.npz", "--side", 14, "--workers", 1) == 0
    assert any("10 masks vary in 9 directions only" in message for message in caplog.messages)
    assert np.isfinite(MaskDictionary.load(tmp_path / "d.npz").explained_variance).all()
