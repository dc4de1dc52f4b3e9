"""Splits, and the folder that is written."""

import json
from collections import Counter

import numpy as np
import pytest
from examples_of_formats import (
    SIZE,
    SQUARE,
    drawn,
    labelme,
    photo,
    polygon_region,
    shape,
    via_csv,
)

from isda.data.changes import Changes
from isda.data.cleaning import clean_annotations
from isda.data.coco_json import read_coco_json
from isda.data.errors import DatasetError
from isda.data.formats import (
    AnnotatedImage,
    Embedded,
    Instance,
    detect_format,
    split_images,
    write_coco,
)
from isda.data.layouts import find_dataset


def format_of(path) -> str:
    return detect_format(path).name


def images_of(*labels: str) -> list[AnnotatedImage]:
    """One image per text, an instance for each of its letters."""
    return [
        AnnotatedImage(f"{index}.jpg", None, SIZE, [Instance(label, []) for label in text])
        for index, text in enumerate(labels)
    ]


def shown(images) -> Counter:
    """Images that show each class."""
    return Counter(kind for image in images for kind in {i.label for i in image.instances} or {""})


def test_the_split_has_the_share_and_depends_on_names_alone():
    images = images_of(*["ab"] * 30, *["b"] * 50, *[""] * 20)
    train, val = split_images(images, 0.2)
    assert (len(train), len(val)) == (80, 20)
    assert shown(val) == {"a": 6, "b": 16, "": 4}
    again = split_images(images[::-1], 0.2)
    assert [{i.name for i in part} for part in again] == [{i.name for i in p} for p in (train, val)]


@pytest.mark.parametrize("seed", range(5))
def test_a_class_in_two_images_is_in_both_splits(seed):
    generator = np.random.default_rng(seed)
    texts = ["".join(generator.choice(list("cdefg"), 2)) for _ in range(20)]
    texts[3] += "a"
    texts[11] += "a"
    texts[5] += "z"
    train, val = split_images(images_of(*texts), 0.2)
    assert shown(train)["a"] == shown(val)["a"] == 1
    assert shown(train)["z"] == 1  # what is there once must be learnt
    assert len(val) == 4


@pytest.mark.parametrize(("number", "share", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (9, 0.2, 2)])
def test_neither_split_is_empty(number, share, expected):
    train, val = split_images(images_of(*["a"] * number), share)
    assert len(val) == expected and len(train) == number - expected


def test_one_image_cannot_be_split():
    with pytest.raises(DatasetError, match="1 image cannot be split .* --val"):
        split_images(images_of("a"), 0.2)


def test_what_is_written_is_found_and_free_of_faults(tmp_path):
    rle_mask = np.zeros(SIZE, dtype=bool)
    rle_mask[3:9, 4:20] = True
    from isda.data.formats.annotated import encode

    source = photo(tmp_path / "source/sub/a.jpg")
    labelme(tmp_path / "b.json", [shape()], imageData="aGVsbG8=")
    square = [float(value) for point in SQUARE for value in point]
    images = [
        AnnotatedImage("sub/a.jpg", source, SIZE, [Instance("b", [square])]),
        AnnotatedImage("b.png", Embedded(tmp_path / "b.json"), SIZE, []),
    ]
    val = AnnotatedImage(
        "v.jpg", photo(tmp_path / "v.jpg"), SIZE, [Instance("a", encode(rle_mask))]
    )
    for split, part in (("train", images), ("val", [val])):
        write_coco(tmp_path / "out", split, part, ["b", "a"])
    splits = {split.name: split for split in find_dataset(tmp_path / "out")}
    assert list(splits) == ["train", "val"]
    content = read_coco_json(splits["train"].json_file)
    changes = Changes()
    assert clean_annotations(content, "", changes) == content["annotations"] and not changes
    assert content["categories"] == [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}]
    assert [image["file_name"] for image in content["images"]] == ["b.png", "sub/a.jpg"]
    assert (splits["train"].image_root / "sub/a.jpg").read_bytes() == source.read_bytes()
    assert (splits["train"].image_root / "b.png").read_bytes() == b"hello"
    (annotation,) = content["annotations"]
    assert annotation["bbox"] == [10, 5, 20, 20] and annotation["area"] == 400
    assert annotation["category_id"] == 1 and annotation["image_id"] == 2
    (annotation,) = read_coco_json(splits["val"].json_file)["annotations"]
    assert annotation["bbox"] == [4, 3, 16, 6] and annotation["area"] == 96
    assert (drawn(annotation["segmentation"]) == rle_mask).all()


def test_formats_are_told_apart(tmp_path):
    labelme(tmp_path / "labelme/deep/a.json", [shape()])
    assert format_of(tmp_path / "labelme") == "labelme"
    photo(tmp_path / "dsb/abc/images/abc.png")
    (tmp_path / "dsb/abc/masks").mkdir()
    assert format_of(tmp_path / "dsb") == "mask-folders"
    photo(tmp_path / "numbers/images/a.png")
    photo(tmp_path / "numbers/labels/a.png")
    assert format_of(tmp_path / "numbers") == "label-images"
    (tmp_path / "via").mkdir()
    via_csv(tmp_path / "via/via.csv", {"a.png": [polygon_region(kind="nut")]})
    (tmp_path / "via/via.json").write_text('{"a": {"filename": "a", "regions": []}}')
    for name in ("via.csv", "via.json"):
        assert format_of(tmp_path / "via" / name) == "via"


def test_what_is_none_of_them(tmp_path):
    with pytest.raises(DatasetError, match="none: there is no such file or folder"):
        format_of(tmp_path / "none")
    with pytest.raises(DatasetError, match="in no format that can be read; there are .*labelme: a"):
        format_of(tmp_path)
    path = tmp_path / "a.json"
    path.write_text('{"images": [], "annotations": []}')
    assert format_of(tmp_path) == format_of(path) == "coco"
    path.write_text(json.dumps({"a": {"filename": "a", "regions": []}}))
    assert format_of(tmp_path) == "via"
    path.write_text("{")
    with pytest.raises(DatasetError, match="a.json: not valid JSON"):
        format_of(tmp_path)
    labelme(tmp_path / "b.json", [shape()])
    (tmp_path / "c.json").write_text(json.dumps({"a": {"filename": "a", "regions": []}}))
    with pytest.raises(DatasetError, match="in several formats, labelme and via: name one by"):
        format_of(tmp_path)
