"""From other tools' annotations to a folder that can be trained on."""

import json
from pathlib import Path

import pytest
from examples_of_formats import labelme, photo, polygon_region, shape, via_content

from isda import cli
from isda.data.analysis import examine
from isda.data.coco_json import read_coco_json
from isda.data.layouts import find_dataset


def convert(*arguments) -> int:
    return cli.main(["convert", "dataset", *map(str, arguments)])


def nuts(folder: Path, number: int = 10) -> Path:
    for index in range(number):
        labelme(folder / f"{index}.json", [shape("nut"), shape("fig" if index % 2 else "date")])
    return folder


def written(folder: Path) -> dict[str, dict]:
    return {split.name: read_coco_json(split.json_file) for split in find_dataset(folder)}


def test_labelme_becomes_a_data_set_without_faults(tmp_path, capsys):
    folder = nuts(tmp_path / "files")
    assert convert(folder, "--output", tmp_path / "mine") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        "train: 8 images, 16 instances: 4 date, 4 fig, 8 nut",
        "val: 2 images, 4 instances: 1 date, 1 fig, 2 nut",
    ]
    assert printed[-2:] == [
        f"isda check {tmp_path / 'mine'}",
        f"isda train --config-file finetune/isda_mobilenet_v2.yaml --dataset {tmp_path / 'mine'}",
    ]
    analysis = examine(find_dataset(tmp_path / "mine"))
    # both shapes of an image are the same square
    assert {finding.text.partition(":")[0] for finding in analysis.findings} <= {
        "8 objects annotated with two classes (masks nearly equal)",
        "2 objects annotated with two classes (masks nearly equal)",
        "only 8 images to train on",
    }
    assert analysis.will_train
    names = {
        image["file_name"]
        for part in written(tmp_path / "mine").values()
        for image in part["images"]
    }
    assert names == {f"{index}.jpg" for index in range(10)}


def test_the_same_input_gives_the_same_files(tmp_path):
    folder = nuts(tmp_path / "files")
    for output in ("first", "second"):
        assert convert(folder, "--output", tmp_path / output, "--val-share", "0.3") == 0
    first, second = (
        {p.relative_to(tmp_path / o): p.read_bytes() for p in (tmp_path / o).rglob("*.*g*")}
        for o in ("first", "second")
    )
    assert first == second and len(first) == 10
    assert written(tmp_path / "first") == written(tmp_path / "second")
    assert len(written(tmp_path / "first")["val"]["images"]) == 3


def test_classes_in_an_order_and_some_left_out(tmp_path, capsys):
    folder = nuts(tmp_path / "files")
    assert convert(folder, "--output", tmp_path / "mine", "--classes", "nut", "date") == 0
    assert "classes left out: fig" in capsys.readouterr().out
    train = written(tmp_path / "mine")["train"]
    assert train["categories"] == [{"id": 1, "name": "nut"}, {"id": 2, "name": "date"}]
    assert {a["category_id"] for a in train["annotations"]} == {1, 2}


def test_annotations_for_validation_of_their_own(tmp_path):
    train, val = nuts(tmp_path / "train", 3), nuts(tmp_path / "val", 2)
    assert convert(train, "--val", val, "--output", tmp_path / "mine") == 0
    parts = written(tmp_path / "mine")
    assert [len(parts[split]["images"]) for split in ("train", "val")] == [3, 2]


def test_via_and_masks(tmp_path):
    regions = {f"{name}.jpg": [polygon_region(kind="nut")] for name in "abc"}
    for name in regions:
        photo(tmp_path / "photos" / name)
    (tmp_path / "via.json").write_text(json.dumps(via_content(regions)))
    options = ("--images", tmp_path / "photos", "--class-attribute", "kind")
    assert convert(tmp_path / "via.json", *options, "--output", tmp_path / "via") == 0
    assert written(tmp_path / "via")["train"]["categories"] == [{"id": 1, "name": "nut"}]
    for name in "abc":
        photo(tmp_path / f"cells/{name}/images/{name}.png")
        photo(tmp_path / f"cells/{name}/masks/1.png")
    options = ("--class-name", "cell", "--output", tmp_path / "masks")
    assert convert(tmp_path / "cells", *options) == 0
    assert written(tmp_path / "masks")["train"]["categories"] == [{"id": 1, "name": "cell"}]


def test_what_is_left_out_is_listed(tmp_path, capsys):
    folder = nuts(tmp_path / "files")
    labelme(
        folder / "x.json", [shape(), *[shape(kind="point", points=[[1, 1]])] * 12, shape("Nut")]
    )
    assert convert(folder, "--output", tmp_path / "mine") == 0
    printed = capsys.readouterr().out
    assert "12 shapes left out: 12 of type point, which has no area\n" in printed
    assert f"  shape 2 of {folder / 'x.json'}: of type point" in printed
    assert "  ... and 2 more" in printed
    assert "warning: Nut and nut are different classes: were they meant as one?" in printed


def test_bad_files_stop_everything_unless_told_otherwise(tmp_path, capsys):
    folder = nuts(tmp_path / "files")
    (folder / "3.jpg").unlink()
    (folder / "4.json").write_text("{")
    assert convert(folder, "--output", tmp_path / "mine") == 1
    streams = capsys.readouterr()
    assert "cannot be used: " in streams.out and "4.json: not valid JSON" in streams.out
    assert streams.err == (
        "error: 2 images cannot be used: correct them, or leave them out by --skip-bad-files; "
        "nothing has been written\n"
    )
    assert not (tmp_path / "mine").exists()
    assert convert(folder, "--output", tmp_path / "mine", "--skip-bad-files") == 0
    assert sum(len(part["images"]) for part in written(tmp_path / "mine").values()) == 8


def prepared(folder, kind):
    """A command that cannot work."""
    files = nuts(folder / "files", 3)
    if kind == "output":
        (folder / "mine").mkdir()
        (folder / "mine/here.txt").write_text("")
    if kind == "nothing":
        for path in files.glob("*.json"):
            labelme(path, [shape(kind="line", points=[[1, 1], [2, 2]])])
    options = {
        "class": ["--classes", "nut", "plum"],
        "option": ["--class-attribute", "kind"],
        "name": ["--class-name", "nut"],
    }
    return [folder / "none" if kind == "path" else files, *options.get(kind, [])]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("path", "none: there is no such file or folder"),
        ("output", "mine: is there already: name a new folder by --output"),
        ("nothing", "files: has no usable instance, so there is nothing to train on"),
        ("class", "--classes: no instance is a plum; there are date, fig, nut"),
        (
            "option",
            "is a folder of labelme's JSON files, for which --class-attribute means nothing",
        ),
        ("name", "for which --class-name means nothing: leave it out"),
    ],
)
def test_commands_that_cannot_work(tmp_path, capsys, kind, message):
    assert convert(*prepared(tmp_path, kind), "--output", tmp_path / "mine") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("share", ["0", "1", "-1", "x"])
def test_shares_that_are_none(tmp_path, capsys, share):
    with pytest.raises(SystemExit) as raised:
        convert(tmp_path, "--output", tmp_path / "mine", "--val-share", share)
    assert raised.value.code == 2
    assert f"'{share}' is not a number between 0 and 1" in capsys.readouterr().err


def coco(folder: Path, **keys) -> Path:
    """One image for each split, an instance in each, whatever ``keys`` of it are."""
    for split in ("train", "val"):
        photo(folder / split / f"{split}.png")
        image = {"id": 1, "file_name": f"/home/somebody/{split}.png", "height": 40, "width": 60}
        instance = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 5, 20, 20], "area": 400}
        instance |= {"segmentation": [[10, 5, 30, 5, 30, 25, 10, 25]], "iscrowd": 1} | keys
        categories = [{"id": 5, "name": "nut"}, {"id": 3, "name": "fig"}]
        content = {"images": [image], "annotations": [instance], "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_coco_is_read_to_be_mended(tmp_path, capsys):
    folder = coco(tmp_path / "files", bbox=[10, 5, 30, 25])
    options = ("--crowds-are-instances", "--output", tmp_path / "mine")
    assert convert(folder, *options) == 0
    printed = capsys.readouterr().out
    assert "train: 1 images, 1 instances: 0 fig, 1 nut\n" in printed
    assert "1 crowds (iscrowd 1) taken as instances" in printed
    for split, part in written(tmp_path / "mine").items():
        (instance,) = part["annotations"]
        assert (instance["iscrowd"], instance["bbox"]) == (0, [10, 5, 20, 20])
        assert [image["file_name"] for image in part["images"]] == [f"{split}/{split}.png"]
        assert part["categories"] == [{"id": 1, "name": "fig"}, {"id": 2, "name": "nut"}]


def test_crowds_stay_crowds_without_the_option(tmp_path, capsys):
    assert convert(coco(tmp_path / "files"), "--output", tmp_path / "mine") == 0
    assert "add --crowds-are-instances" in capsys.readouterr().out
    assert written(tmp_path / "mine")["train"]["annotations"][0]["iscrowd"] == 1


def test_a_format_is_named_where_several_fit(tmp_path, capsys):
    folder = nuts(tmp_path / "files")
    (folder / "via.json").write_text(json.dumps(via_content({"0.jpg": [polygon_region(k="a")]})))
    assert convert(folder, "--output", tmp_path / "mine") == 1
    assert "is in several formats, labelme and via: name one by --format" in capsys.readouterr().err
    options = ("--format", "labelme", "--skip-bad-files", "--output", tmp_path / "mine")
    assert convert(folder, *options) == 0
    with pytest.raises(SystemExit) as raised:
        convert(folder, "--format", "x", "--output", tmp_path / "other")
    assert raised.value.code == 2
    assert "--format x: there are cellpose, coco, cvat" in capsys.readouterr().err
