"""The command as a user types it: what it prints, and its exit status."""

import json
import re
from pathlib import Path

import pytest
from examples_of_datasets import content, write

from isda import cli

NUCLEI = Path(__file__).parents[2] / "datasets/nuclei_mini"


def check(capsys, *arguments) -> tuple[int, str]:
    status = cli.main(["check", *map(str, arguments)])
    streams = capsys.readouterr()
    return status, streams.out + streams.err


def test_a_set_in_order(tmp_path, capsys):
    status, printed = check(capsys, write(tmp_path))
    assert status == 0
    assert printed.endswith("\ntraining will work: 0 errors, 0 warnings\n")
    assert (
        f"train: {tmp_path}/annotations/instances_train.json, images in {tmp_path}/train" in printed
    )
    for line in (
        "10 images, 0 of them without instances",
        "sizes (width x height): 60x40",
        "20 instances",
        "instances per image: median 2, most 2",
        "32² and 96² pixels): 20 small, 0 medium, 0 large",
        "classes: 10 fig, 10 nut",
        "0.0% touch another instance, 0.0% share pixels with one",
        "true boxes that NMS would delete: 0 (0.0%) at 0.5, 0 (0.0%) at 0.7",
        "MODEL.ISDA.NUM_QUERIES 50",
        "INPUT.MIN_SIZE_TRAIN '(",
        "MODEL.ISDA.MASK_STRIDE 4",
    ):
        assert line in printed


def test_settings_can_be_pasted_behind_train_net(tmp_path, capsys):
    import shlex

    from isda.engine.setup import load_config

    _, printed = check(capsys, write(tmp_path))
    lines = re.findall(r"^  ((?:MODEL|TEST|INPUT)\..+)$", printed, re.MULTILINE)
    cfg = load_config("", [word for line in lines for word in shlex.split(line)])
    assert len(lines) == 7 and cfg.MODEL.ISDA.NUM_QUERIES == 50
    assert isinstance(cfg.INPUT.MIN_SIZE_TRAIN, tuple)


def test_what_a_perfect_model_could_reach(tmp_path, capsys):
    """Rectangles of 8 by 20 pixels on the val images, of which stride 4 loses the corners."""
    folder = write(tmp_path / "data")
    _, printed = check(capsys, folder, "--output", tmp_path / "page.html")
    sentence = re.search(r"^with these settings a perfect ISDA could reach .*$", printed, re.M)[0]
    assert sentence.startswith("with these settings a perfect ISDA could reach mask AP 9")
    assert "on val" in sentence
    assert sentence[1:] in (tmp_path / "page.html").read_text()

    path = tmp_path / "own.yaml"
    path.write_text("MODEL: {META_ARCHITECTURE: ISDA, ISDA: {MASK_STRIDE: 8}}")
    small = ("--opts", "INPUT.MIN_SIZE_TEST", "40", "TEST.DETECTIONS_PER_IMAGE", "1")
    _, printed = check(capsys, folder, "--config-file", path, *small)
    sentence = re.search(rf"^with {re.escape(str(path))} a perfect .*$", printed, re.M)[0]
    low, *better = map(int, re.findall(r"(?:mask AP|: ?)(?: |)(\d+)", sentence))
    assert low < 40 and better and all(low < ap for ap in better)
    for keys in (
        "MODEL.ISDA.MASK_STRIDE 4: ",
        "INPUT.MIN_SIZE_TEST 80 INPUT.MAX_SIZE_TEST 2666: ",
        "TEST.DETECTIONS_PER_IMAGE 10: ",
    ):
        assert keys in sentence

    _, printed = check(capsys, folder, "--opts", "MODEL.META_ARCHITECTURE", "ISTR")
    assert "what a perfect ISTR could reach is not computed" in printed


def test_the_embedded_nuclei(capsys):
    path = NUCLEI / "instances_val.json"
    status, printed = check(capsys, path, "--images", NUCLEI / "images", "--quick")
    assert status == 0
    annotated = json.loads(path.read_text())
    assert f"\n  {len(annotated['images'])} images, 0 of them without instances\n" in printed
    assert f"\n  {len(annotated['annotations']):,} instances\n" in printed
    small = sum(a["area"] < 32**2 for a in annotated["annotations"])
    assert f"{small:,} small" in printed
    assert "0.0% share pixels with one" in printed  # the masks of the source are disjoint
    touching = float(re.search(r"([\d.]+)% touch", printed)[1])
    assert 25 < touching < 45


def test_an_unusable_set(tmp_path, capsys):
    part = content(1)
    part["annotations"][0]["image_id"] = 77
    folder = write(tmp_path)
    (folder / "annotations/instances_train.json").write_text(json.dumps(part))
    status, printed = check(capsys, folder)
    assert status == 1
    assert printed.endswith("\ntraining will not work: 1 errors, 0 warnings\n")
    assert printed.count("image_id that no record") == 1  # also training itself says it


def test_what_only_training_finds(tmp_path, capsys):
    val = content(101)
    val["categories"][1]["name"] = "date"
    status, printed = check(capsys, write(tmp_path, val=val))
    assert status == 1
    assert "has other categories than" in printed and "renamed: 2 is 'nut' and 'date'" in printed


def test_one_file_with_its_images(tmp_path, capsys):
    folder = write(tmp_path)
    path = (folder / "annotations/instances_train.json").rename(tmp_path / "only.json")
    status, printed = check(capsys, path, "--images", folder / "train")
    assert status == 0 and "all: " in printed
    status, printed = check(capsys, path, "--images", folder / "val")
    assert status == 1 and "10 of the 10 images" in printed


def test_no_data_set(tmp_path, capsys):
    status, printed = check(capsys, tmp_path)
    assert status == 1 and printed.startswith("error: ") and "looked for" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: there is no such file or folder"),
        ([".", "--images", "."], "--images belongs to an annotation file"),
        (["a.json", "--images", "none"], "none: there is no such folder"),
        ([], "required: path"),
        (["a.json", "--config-file", "none.yaml"], "config file none.yaml does not exist"),
        (["a.json", "--opts", "MODEL.ISDA.MASK_STRIDES", "2"], "unknown config key"),
    ],
)
def test_wrong_commands(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SystemExit) as raised:
        cli.main(["check", *arguments])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
