"""A user's folder in Detectron2's catalogs: splits, classes, and what is said about them."""

import base64
import copy
import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from isda.data.checks import check_datasets
from isda.data.classes import classes_of
from isda.data.custom_data import forget_folders, register_folder
from isda.data.errors import DatasetError

CATEGORIES = [{"id": 3, "name": "fig"}, {"id": 1, "name": "date"}]


def records(count: int, first: int = 0, name="{:02d}.png") -> dict:
    """``count`` images of 40×30 pixels, each with an instance of both classes."""
    images, annotations = [], []
    for number in range(first, first + count):
        images.append({"id": number, "file_name": name.format(number), "width": 40, "height": 30})
        for category in (1, 3):
            x, y = 5 * category, 4
            annotations.append(
                {
                    "id": 10 * number + category,
                    "image_id": number,
                    "category_id": category,
                    "segmentation": [[x, y, x + 8, y, x + 8, y + 9, x, y + 9]],
                    "bbox": [x, y, 8, 9],
                    "area": 72,
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": copy.deepcopy(CATEGORIES)}


def write(json_file: Path, content: dict, images: str = "images") -> None:
    folder = json_file.parent / images
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(folder / image["file_name"])
    json_file.write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def catalogs_as_before():
    yield
    forget_folders()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "my nuts"
    path.mkdir()
    return path


def file_names(dataset: str) -> list[str]:
    return [Path(record["file_name"]).name for record in DatasetCatalog.get(dataset)]


def test_splits_and_classes_of_a_folder(folder):
    for split, count, first in (("train", 3, 0), ("valid", 2, 3), ("test", 1, 5)):
        (folder / split).mkdir()
        write(folder / split / "_annotations.coco.json", records(count, first), ".")
    data = register_folder(folder)
    assert data.names == {"train": "my_nuts_train", "val": "my_nuts_val", "test": "my_nuts_test"}
    assert data.classes == ["date", "fig"]
    assert data.instances == {"train": [2, 2, 2], "val": [2, 2], "test": [2]}
    assert data.notes == []
    assert file_names("my_nuts_val") == ["03.png", "04.png"]
    assert classes_of("my_nuts_train") == {"names": ["date", "fig"], "ids": [1, 3]}
    # Nothing had to be changed, so nothing was copied.
    json_file = MetadataCatalog.get("my_nuts_val").json_file
    assert json_file == str(folder / "valid" / "_annotations.coco.json")
    check_datasets(["my_nuts_train"], ["my_nuts_val", "my_nuts_test"])
    labels = {
        a["category_id"] for r in DatasetCatalog.get("my_nuts_train") for a in r["annotations"]
    }
    assert labels == {0, 1}


def test_one_file_is_split_the_same_each_time(folder):
    write(folder / "nuts.json", records(20))
    data = register_folder(folder / "nuts.json")
    train, val = file_names(data.names["train"]), file_names(data.names["val"])
    assert (len(train), len(val)) == (16, 4)
    assert sorted(train + val) == [f"{n:02d}.png" for n in range(20)]
    (note,) = data.notes
    assert "nuts.json: there is no validation split, so 4 of the 20 images are not trained" in note
    assert ", ".join(sorted(val)) in note
    # Images that are added later do not move the others from training to validation.
    write(folder / "nuts.json", records(21))
    again = register_folder(folder / "nuts.json")
    assert len(set(val) - set(file_names(again.names["val"]))) <= 1
    assert again.names == data.names
    check_datasets([again.names["train"]], [again.names["val"]])


def test_training_images_validate_where_only_a_test_split_is_there(folder):
    write(folder / "train.json", records(10))
    write(folder / "test.json", records(4, 10))
    data = register_folder(folder)
    assert {name: len(counts) for name, counts in data.instances.items()} == {
        "train": 8,
        "val": 2,
        "test": 4,
    }
    assert not set(file_names(data.names["test"])) & set(file_names(data.names["val"]))


def test_copies_of_an_image_stay_together(folder):
    content = records(6, name="a_jpg.rf.{:02d}.png")
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"{'abc'[number // 2]}_jpg.rf.{number}.png"
    write(folder / "train.json", content)
    names = register_folder(folder).names
    train, val = ({name[0] for name in file_names(names[split])} for split in ("train", "val"))
    assert len(val) == 1
    assert not train & val


def test_images_without_instances_are_shared_out_as_well(folder):
    content = records(20)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] < 10]
    write(folder / "train.json", content)
    data = register_folder(folder)
    assert sorted(data.instances["val"]) == [0, 0, 2, 2]
    assert sorted(data.instances["train"]) == [0] * 8 + [2] * 8


def test_the_placeholder_of_roboflow_is_no_class(folder):
    for split in ("train", "val"):
        content = records(2, 2 * (split == "val"))
        for category in content["categories"]:
            category["supercategory"] = "nuts-and-fruits"
        placeholder = {"id": 0, "name": "nuts-and-fruits", "supercategory": "none"}
        content["categories"].insert(0, placeholder)
        write(folder / f"{split}.json", content)
    data = register_folder(folder)
    assert data.classes == ["date", "fig"]
    (note,) = data.notes
    assert note.startswith("category 0 'nuts-and-fruits' has no instances and is the group of all")
    check_datasets([data.names["train"]], [data.names["val"]])
    assert classes_of(data.names["val"]) == {"names": ["date", "fig"], "ids": [1, 3]}


def test_a_group_with_instances_is_a_class(folder):
    content = records(4)
    for category in content["categories"]:
        category["supercategory"] = "fig" if category["name"] == "date" else "none"
    write(folder / "train.json", content)
    assert register_folder(folder).classes == ["date", "fig"]


@pytest.mark.parametrize(
    ("categories", "difference"),
    [
        ([{"id": 1, "name": "date"}], "lacking: 3 'fig'"),
        ([*CATEGORIES, {"id": 4, "name": "hazelnut"}], "additional: 4 'hazelnut'"),
        ([{"id": 1, "name": "fig"}, {"id": 3, "name": "date"}], "1 is 'date' and 'fig'"),
        ([{"id": 0, "name": "date"}, {"id": 2, "name": "fig"}], "lacking: 1 'date', 3 'fig'; add"),
    ],
)
def test_splits_of_other_categories(folder, categories, difference):
    write(folder / "train.json", records(2))
    content = records(2)
    ids = [category["id"] for category in categories]
    content["categories"] = categories
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[0]
    write(folder / "val.json", content)
    with pytest.raises(DatasetError) as error:
        register_folder(folder)
    assert "val.json has other categories than " in str(error.value)
    assert difference in str(error.value)
    assert "write the same list 'categories', with the same ids, into both" in str(error.value)


def test_what_is_left_out_is_said(folder):
    content = records(3)
    content["annotations"][0]["segmentation"] = []
    write(folder / "train.json", content)
    write(folder / "val.json", records(2, 3))
    data = register_folder(folder)
    (note,) = data.notes
    assert "1 annotations left out, without segmentation: annotation 1 of 00.png" in note
    assert data.instances["train"] == [1, 2, 2]
    check_datasets([data.names["train"]], [data.names["val"]])


def test_a_class_without_instances_is_said(folder):
    content = records(3)
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]
    write(folder / "train.json", content)
    write(folder / "val.json", records(2, 3))
    (note,) = register_folder(folder).notes
    assert note.endswith("train.json: no instance to learn these classes from: fig")


def broken(folder: Path, kind: str) -> None:
    content = records(4)
    if kind == "missing image":
        write(folder / "train.json", content)
        (folder / "images" / "02.png").unlink()
        return
    if kind == "truncated":
        (folder / "train.json").write_text(json.dumps(content)[:-50])
        return
    if kind == "twice":
        content["annotations"][1]["id"] = content["annotations"][0]["id"]
    if kind == "stray":
        content["annotations"][0]["category_id"] = 7
    if kind == "empty":
        content["annotations"] = []
    if kind == "crowds":
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1
    if kind == "few":
        content = records(1)
    write(folder / "train.json", content)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing image", r"images: 1 of the 4 images in .*train.json are missing, 02.png"),
        ("truncated", "train.json: not valid JSON"),
        ("twice", "train.json: 1 ids are there more than once in 'annotations'"),
        ("stray", "train.json: 1 annotations, first 1, have an category_id that no record"),
        ("empty", "train.json: has no validation split, and 0 images with instances are too few"),
        ("crowds", "train.json: has no validation split, and 0 images with instances"),
        ("few", "has no validation split, and 1 images with instances are too few to make one"),
    ],
)
def test_malformed_data_has_its_message(folder, kind, message):
    broken(folder, kind)
    with pytest.raises(DatasetError, match=message):
        register_folder(folder)


def test_a_validation_split_without_instances(folder):
    write(folder / "train.json", records(2))
    write(folder / "val.json", records(2) | {"annotations": []})
    with pytest.raises(
        DatasetError, match="val.json: has no annotation to choose the best weights"
    ):
        register_folder(folder)


def test_folders_of_one_name_do_not_replace_each_other(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "data").mkdir(parents=True)
        write(tmp_path / parent / "data" / "train.json", records(5))
    first, second = (register_folder(tmp_path / parent / "data") for parent in ("a", "b"))
    assert not set(first.names.values()) & set(second.names.values())
    assert register_folder(tmp_path / "a" / "data").names == first.names


def test_a_folder_of_another_tool_is_trained_on_as_it_is(folder):
    """Labelme, whose images stay where they are; one is embedded."""
    square = [[5, 5], [25, 5], [25, 20], [5, 20]]
    for number in range(4):
        image = {"imagePath": f"{number}.png", "imageHeight": 30, "imageWidth": 40}
        shape = {"label": "nut", "points": square, "shape_type": "polygon", "group_id": None}
        content = {"version": "5.5.0", "shapes": [shape], "imageData": None} | image
        (folder / f"{number}.json").write_text(json.dumps(content))
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
    embedded = json.loads((folder / "3.json").read_text())
    embedded["imageData"] = base64.b64encode((folder / "3.png").read_bytes()).decode()
    (folder / "3.json").write_text(json.dumps(embedded))
    (folder / "3.png").unlink()
    data = register_folder(folder)
    assert data.classes == ["nut"]
    assert f"{folder}: is a folder of labelme's JSON files" in data.notes
    records = [r for name in data.names.values() for r in DatasetCatalog.get(name)]
    assert sorted(Image.open(r["file_name"]).getpixel((0, 0))[0] for r in records) == [0, 1, 2, 3]
    assert [len(record["annotations"]) for record in records] == [1, 1, 1, 1]
    assert register_folder(folder).names == data.names


def test_what_cannot_be_read_whole_is_not_trained_on(folder):
    (folder / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "gone.png"}))
    with pytest.raises(DatasetError, match="its image gone.png is neither .* --skip-bad-files"):
        register_folder(folder)
