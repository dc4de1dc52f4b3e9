"""Every layout that a user's folder may have, and what is read where it has none."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from isda.data.errors import DatasetError
from isda.data.layouts import annotation_format, find_dataset

CATEGORIES = [{"id": 1, "name": "nut"}]


def annotate(file: Path, images: Path, names=("a.png", "b.png"), prefix="") -> None:
    """A file of annotations, and its images in the folder ``images``."""
    records = []
    for number, name in enumerate(names, start=1):
        images.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(images / name)
        records.append({"id": number, "file_name": prefix + name, "height": 6, "width": 8})
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": records, "annotations": [], "categories": CATEGORIES}
    file.write_text(json.dumps(content))


def found(path: Path) -> dict[str, tuple[str, str]]:
    return {
        split.name: (
            str(split.json_file.relative_to(path)),
            str(split.image_root.relative_to(path)),
        )
        for split in find_dataset(path)
    }


def test_coco(tmp_path):
    for split in ("train2017", "val2017"):
        annotate(tmp_path / f"annotations/instances_{split}.json", tmp_path / split)
        (tmp_path / f"annotations/captions_{split}.json").write_text('{"images": []}')
        (tmp_path / f"annotations/person_keypoints_{split}.json").write_text('{"images": []}')
    (tmp_path / "annotations/image_info_test2017.json").write_text('{"images": []}')
    assert found(tmp_path) == {
        "train": ("annotations/instances_train2017.json", "train2017"),
        "val": ("annotations/instances_val2017.json", "val2017"),
    }
    (split,) = find_dataset(tmp_path / "annotations" / "instances_val2017.json")
    assert split.name == "all"
    assert split.image_root.samefile(tmp_path / "val2017")


def test_roboflow(tmp_path):
    for split in ("train", "valid", "test"):
        annotate(tmp_path / split / "_annotations.coco.json", tmp_path / split)
    (tmp_path / "README.roboflow.txt").write_text("exported")
    assert found(tmp_path) == {
        "train": ("train/_annotations.coco.json", "train"),
        "val": ("valid/_annotations.coco.json", "valid"),
        "test": ("test/_annotations.coco.json", "test"),
    }


@pytest.mark.parametrize("images", ["images", ".", "img"])
@pytest.mark.parametrize("prefix", ["", "instances_", "nuts_"])
def test_named_files_beside_one_folder_of_images(tmp_path, images, prefix):
    for split in ("train", "val"):
        annotate(tmp_path / f"{prefix}{split}.json", tmp_path / images, [f"{split}.png"])
    annotate(tmp_path / f"{prefix}all.json", tmp_path / images)  # of no split, so not asked for
    expected = {split: (f"{prefix}{split}.json", images) for split in ("train", "val")}
    assert found(tmp_path) == expected


def test_images_of_each_split_apart(tmp_path):
    annotate(tmp_path / "annotations/training.json", tmp_path / "images" / "Training")
    annotate(tmp_path / "annotations/validation.json", tmp_path / "images" / "Validation")
    assert found(tmp_path) == {
        "train": ("annotations/training.json", "images/Training"),
        "val": ("annotations/validation.json", "images/Validation"),
    }


def test_file_names_with_folders(tmp_path):
    annotate(tmp_path / "train.json", tmp_path / "images", prefix="images/")
    assert found(tmp_path) == {"train": ("train.json", ".")}


def test_one_file_of_any_name(tmp_path):
    annotate(tmp_path / "result.json", tmp_path / "images", prefix="images/")
    (tmp_path / "notes.json").write_text('{"version": 1}')
    assert found(tmp_path) == {"all": ("result.json", ".")}
    (split,) = find_dataset(str(tmp_path / "result.json"))
    assert split == ("all", tmp_path / "result.json", tmp_path, tmp_path)


def test_the_exact_name_goes_before_others(tmp_path):
    for name in ("train", "train_small", "trainval"):
        annotate(tmp_path / f"{name}.json", tmp_path)
    assert found(tmp_path) == {"train": ("train.json", ".")}


def test_labelme_files_beside_an_export_do_not_matter(tmp_path):
    annotate(tmp_path / "trainval.json", tmp_path)
    (tmp_path / "a.json").write_text('{"shapes": [], "imagePath": "a.png"}')
    assert found(tmp_path) == {"train": ("trainval.json", ".")}


def test_a_file_that_is_no_json_is_left_to_those_who_read_it(tmp_path):
    (tmp_path / "train.json").write_text('{"images": [')
    assert found(tmp_path) == {"train": ("train.json", ".")}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"images": [], "categories": []}', "coco"),
        ('{"shapes": [], "imageData": null}', "labelme"),
        ('{"a.png12": {"filename": "a.png", "regions": []}}', "via"),
        ('{"_via_img_metadata": {"a": {"regions": []}}, "_via_settings": {}}', "via"),
        ('[{"image_id": 1, "score": 0.5}]', "results"),
        ("[1, 2]", "other"),
        ("{}", "other"),
        ("{", "broken"),
    ],
)
def test_formats(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content)
    assert annotation_format(tmp_path / "a.json") == expected


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


LABELME = '{"shapes": [], "imagePath": "a.png"}'
VIA = '{"a.png1": {"filename": "a.png", "regions": {}}}'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no annotations in COCO's format: looked for annotations/instances_train.*"
             "Roboflow.*found an empty folder"),
        ({"a.png": "", "b.jpg": "", "notes.md": "", "masks/a.png": ""},
         "found 2 images, masks/, notes.md; of other tools, isda convert dataset"),
        ({"a.png": "", "a.json": LABELME, "b.json": LABELME},
         "a.json: is an annotation of labelme: isda convert dataset turns it into COCO's"),
        ({"train/a.json": LABELME, "train/b.json": LABELME}, "train/a.json: is .* of labelme"),
        ({"images/a.json": LABELME}, "images/a.json: is an annotation of labelme"),
        ({"train/via_region_data.json": VIA, "val/via_region_data.json": VIA},
         "train/via_region_data.json: is a project or an export of VIA: isda convert dataset"),
        ({"train.json": '[{"image_id": 1, "score": 1}]'}, r"train.json: holds predictions"),
        ({"images/train/a.jpg": "", "labels/train/a.txt": ""}, "looks like YOLO's format, but"),
        ({"data.yaml": ""}, "looks like YOLO's format"),
        ({"a.jpg": "", "a.xml": ""}, "found 1 images, a.xml; of other tools"),
    ],
)  # fmt: skip
def test_nothing_to_train_on(tmp_path, files, message):
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(DatasetError, match=message):
        find_dataset(tmp_path)


def test_the_folder_above_the_data_set(tmp_path):
    annotate(tmp_path / "nuts" / "train.json", tmp_path / "nuts")
    with pytest.raises(DatasetError, match=r"found nuts/: did you mean .*/nuts\?"):
        find_dataset(tmp_path)


def test_what_is_not_clear(tmp_path):
    for name in ("instances_train2014", "instances_train2017"):
        annotate(tmp_path / f"annotations/{name}.json", tmp_path / "images")
    message = (
        "not clear which annotation file is for 'train', there are "
        "annotations/instances_train2014.json, annotations/instances_train2017.json: move"
    )
    with pytest.raises(DatasetError, match=message):
        find_dataset(tmp_path)


def test_several_files_without_a_split(tmp_path):
    for name in ("first", "second"):
        annotate(tmp_path / f"{name}.json", tmp_path)
    with pytest.raises(DatasetError, match="several annotation files, first.json, second.json"):
        find_dataset(tmp_path)


def test_a_validation_split_alone(tmp_path):
    annotate(tmp_path / "val.json", tmp_path)
    with pytest.raises(DatasetError, match="has val.json, but no annotations to train on; looked"):
        find_dataset(tmp_path)
    annotate(tmp_path / "mine.json", tmp_path)
    with pytest.raises(DatasetError, match="if mine.json is to be trained on, name it train.json"):
        find_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "gone: no such file or folder"),
        ("nuts.zip", "nuts.zip: is neither a folder nor a .json file: unpack it"),
        ("a.png", "a.png: is neither a folder nor a .json file: give the folder"),
    ],
)
def test_no_data_set_at_all(tmp_path, name, message):
    if name != "gone":
        write(tmp_path / name)
    with pytest.raises(DatasetError, match=message):
        find_dataset(tmp_path / name)


def test_images_that_are_nowhere(tmp_path):
    annotate(tmp_path / "data/train.json", tmp_path / "elsewhere")
    with pytest.raises(
        DatasetError, match=r"train.json: none of its images is there, first 'a.png'"
    ):
        find_dataset(tmp_path / "data")


def test_file_names_of_another_machine(tmp_path):
    """Found by their names alone, if these are there once."""
    annotate(tmp_path / "train.json", tmp_path / "images", prefix="C:\\data\\")
    (split,) = find_dataset(tmp_path)
    assert split.image_root == tmp_path
    for name in ("a.png", "b.png"):
        write(tmp_path / "copies" / name)
    message = r"file_name is 'C:.*a.png', but the image lies at .*images/a.png: take the folders"
    with pytest.raises(DatasetError, match=message):
        find_dataset(tmp_path)


@pytest.mark.parametrize("kind", ["circle", "dead", "pipe", "folder"])
def test_only_regular_files_are_opened(tmp_path, kind):
    annotate(tmp_path / "train.json", tmp_path / "images")
    path = tmp_path / "val.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "circle" else tmp_path / "gone.json")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    assert found(tmp_path) == {"train": ("train.json", "images")}
    with pytest.raises(DatasetError, match="val.json"):
        find_dataset(path)


def test_copies_of_jupyter_are_none_of_the_users_files(tmp_path):
    annotate(tmp_path / "train.json", tmp_path / "images")
    annotate(tmp_path / ".ipynb_checkpoints" / "train-checkpoint.json", tmp_path / "images")
    annotate(tmp_path / "train" / ".ipynb_checkpoints" / "train.json", tmp_path / "images")
    assert found(tmp_path) == {"train": ("train.json", "images")}
