"""YOLO's segmentation as Ultralytics, Roboflow, supervision, Label Studio and CVAT lay it out."""

import pytest
import yaml
from known_truth import (
    CLASSES,
    NAMES,
    SIZE,
    bridged,
    compare,
    instances,
    parts_and_holes,
    write_images,
)

from isda.data.errors import DatasetError
from isda.data.formats import Report, detect_format, read_annotations
from isda.data.formats.as_coco import find_any_dataset


def line(label: str, path) -> str:
    values = [f"{x / SIZE[1]:.6f} {y / SIZE[0]:.6f}" for x, y in path]
    return f"{CLASSES.index(label)} {' '.join(values)}"


def lines(number: int) -> list[str]:
    """As Ultralytics writes parts: joined by a bridge; here that joins holes as well."""
    result = []
    for label, mask in instances(number):
        outer, holes = parts_and_holes(mask)
        result.append(line(label, bridged(outer + holes)))
    return result


def write(folder, layout: str):
    """The truth: four images to train on, two to validate."""
    names = {"roboflow": "valid"}.get(layout, "val")
    for number, name in enumerate(NAMES):
        split = "train" if number < 4 else names
        places = {
            "ultralytics": (f"images/{split}", f"labels/{split}"),
            "roboflow": (f"{split}/images", f"{split}/labels"),
            "label studio": ("images", "labels"),
            "beside": (split, split),
        }[layout]
        labels = folder / places[1] / name.replace(".png", ".txt")
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("\n".join(lines(number)) + "\n")
        (folder / places[0]).mkdir(parents=True, exist_ok=True)
        source = write_images(folder / "drawn")[number]
        source.rename(folder / places[0] / name)
    for path in (folder / "drawn").glob("*"):
        path.unlink()
    (folder / "drawn").rmdir()
    description = {
        "ultralytics": {"path": ".", "train": "images/train", "val": "images/val"},
        "roboflow": {
            "train": "../train/images",
            "val": "../valid/images",
            "test": "../test/images",
        },
        "beside": {"train": "train", "val": "val"},
    }.get(layout)
    if description is None:
        (folder / "classes.txt").write_text("\n".join(CLASSES))
    else:
        names = dict(enumerate(CLASSES)) if layout == "ultralytics" else list(CLASSES)
        content = description | {"names": names, "nc": len(CLASSES)}
        (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "label studio", "beside"])
def test_the_truth_in_every_layout(tmp_path, layout):
    folder = write(tmp_path, layout)
    report = Report()
    assert detect_format(folder).name == "yolo"
    images = read_annotations(folder, report)
    compare(images)
    assert (report.skipped, report.refused, report.notes) == ([], [], [])
    assert report.classes == list(CLASSES)
    splits = [i.split for i in sorted(images, key=lambda i: i.source.name)]
    assert splits == ([""] * 6 if layout == "label studio" else ["train"] * 4 + ["val"] * 2)


def test_the_file_that_describes_it(tmp_path):
    folder = write(tmp_path, "roboflow")
    assert detect_format(folder / "data.yaml").name == "yolo"
    compare(read_annotations(folder / "data.yaml", Report()))


def test_training_takes_it_as_it_is(tmp_path):
    splits, notes = find_any_dataset(write(tmp_path, "ultralytics"))
    assert [split.name for split in splits] == ["train", "val"]
    assert any("YOLO's segmentation" in note for note in notes)


def test_what_no_instance_can_be_made_of(tmp_path):
    folder = write(tmp_path, "label studio")
    file = folder / "labels/im0.txt"
    file.write_text("0 0.5 0.5 0.1 0.1\n\nx 0.1 0.1 0.2 0.1 0.2 0.2\n" + lines(0)[0] + " 0.97\n")
    report = Report()
    (first, *_) = sorted(read_annotations(folder, report), key=lambda image: image.name)
    assert [instance.label for instance in first.instances] == ["block"]  # with its confidence
    assert report.skipped == [
        (f"line 1 of {file}", "a box without a mask"),
        (f"line 3 of {file}", "malformed"),
    ]
    assert report.notes[0].startswith("1 lines have five numbers, which are boxes and no masks")


def test_images_without_a_file_have_no_instances(tmp_path):
    folder = write(tmp_path, "ultralytics")
    (folder / "labels/train/im1.txt").unlink()
    images = {image.source.name: image for image in read_annotations(folder, Report())}
    assert images["im1.png"].instances == [] and len(images) == 6


def test_a_description_without_images(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: gone\n")
    with pytest.raises(DatasetError, match="no images with labels were found"):
        read_annotations(tmp_path, Report())


def test_boxes_alone_are_named(tmp_path):
    folder = write(tmp_path, "ultralytics")
    for file in folder.glob("labels/*/*.txt"):
        file.write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(
        DatasetError, match=r"nothing to train on \(left out: 6 a box without a mask"
    ):
        find_any_dataset(folder)
