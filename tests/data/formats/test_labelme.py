"""Folders of labelme files, whole and broken."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from examples_of_formats import SIZE, SQUARE, drawn, grid, iou, labelme, photo, png, shape

from isda.data.errors import DatasetError
from isda.data.formats import Embedded, Report
from isda.data.formats.labelme import read_labelme


def read(folder, **options):
    report = Report()
    return read_labelme(folder, report, **options), report


def read_shapes(folder, *shapes):
    labelme(folder / "a.json", list(shapes))
    (image,), report = read(folder)
    return image.instances, report


def test_every_shape_that_has_an_area(tmp_path):
    bitmap = np.zeros((6, 8), dtype=bool)
    bitmap[1:5, 2:] = True
    shapes = [
        shape("polygon"),
        shape("rectangle", [[30, 25], [10, 5]], "rectangle"),
        shape("turned", [[20, 5], [30, 15], [20, 25], [10, 15]], "oriented_rectangle"),
        shape("circle", [[30, 20], [30, 30]], "circle"),
        shape("mask", [[40, 10], [47, 15]], "mask", mask=png(bitmap)),
    ]
    instances, report = read_shapes(tmp_path, *shapes)
    assert report == Report()
    assert [instance.label for instance in instances] == [s["label"] for s in shapes]
    polygon, rectangle, turned, circle, mask = (drawn(i.segmentation) for i in instances)
    xs, ys = grid()
    square = (xs > 10) & (xs < 30) & (ys > 5) & (ys < 25)
    assert (polygon == square).all() and (rectangle == square).all()
    assert iou(turned, abs(xs - 20) + abs(ys - 15) <= 10) > 0.85
    assert iou(circle, (xs - 30) ** 2 + (ys - 20) ** 2 <= 100) > 0.95
    expected = np.zeros(SIZE, dtype=bool)
    expected[11:15, 42:48] = True
    assert (mask == expected).all()


def test_a_mask_that_reaches_beyond_the_image_is_cut(tmp_path):
    bitmap = np.random.default_rng(0).random((10, 10)) > 0.4
    ((instance,), report) = read_shapes(
        tmp_path, shape("m", [[-4, 35], [5, 44]], "mask", mask=png(bitmap))
    )
    assert report == Report()
    expected = np.zeros(SIZE, dtype=bool)
    expected[35:, :6] = bitmap[:5, 4:]
    assert (drawn(instance.segmentation) == expected).all()


def test_a_group_is_one_instance(tmp_path):
    left, right = [[2, 2], [12, 2], [12, 12], [2, 12]], [[30, 2], [42, 2], [42, 12], [30, 12]]
    bitmap = np.ones((5, 5), dtype=bool)
    instances, report = read_shapes(
        tmp_path,
        shape("nut", left, group_id=1),
        shape("nut", right, group_id=1),
        shape("nut", SQUARE),
        shape("nut", left),
        shape("fig", left, group_id=1),  # of another class, so another instance
        shape("date", left, group_id=7),
        shape("date", [[50, 30], [54, 34]], "mask", mask=png(bitmap), group_id=7),
    )
    assert [i.label for i in instances] == ["nut", "nut", "nut", "fig", "date"]
    assert len(instances[0].segmentation) == 2
    assert drawn(instances[0].segmentation).sum() == 100 + 120
    assert [drawn(i.segmentation).sum() for i in instances[1:]] == [400, 100, 100, 100 + 25]
    assert report == Report()


def test_a_hole_is_warned_of(tmp_path):
    inner = [[15, 10], [25, 10], [25, 20], [15, 20]]
    instances, report = read_shapes(
        tmp_path, shape(points=SQUARE, group_id=1), shape(points=inner, group_id=1)
    )
    (instance,) = instances
    assert drawn(instance.segmentation).sum() == 400
    (note,) = report.notes
    assert "shape 2 of" in note and "a hole cannot be expressed" in note


UNUSABLE = {
    "no label": (shape(label=""), "without a label"),
    "label of list": (shape(label=[5]), "without a label"),
    "background": (shape(label="_background_"), "labelled _background_"),
    "ignored": (shape(label=" __ignore__ "), "labelled __ignore__"),
    "line": (shape(kind="line", points=[[1, 1], [9, 9]]), "of type line, which has no area"),
    "linestrip": (shape(kind="linestrip"), "of type linestrip, which has no area"),
    "point": (shape(kind="point", points=[[1, 1]]), "of type point, which has no area"),
    "points": (shape(kind="points"), "of type points, which has no area"),
    "unknown": (shape(kind="cuboid"), "of the unknown type 'cuboid'"),
    "two points": (shape(points=[[1, 1], [9, 9]]), "with fewer than 3 points"),
    "no points": ({"label": "nut", "shape_type": "polygon"}, "malformed"),
    "text": (shape(points="abc"), "malformed"),
    "group": (shape(group_id=[1]), "malformed"),
    "no object": ("nut", "malformed"),
    "one line": (shape(points=[[5, 5], [20, 5], [9, 5]]), "of zero area"),
    "sliver": (shape(points=[[5, 5.1], [9, 5.1], [9, 5.2], [5, 5.2]]), "smaller than a pixel"),
    "flat box": (shape(kind="rectangle", points=[[5, 5], [20, 5]]), "of zero area"),
    "no radius": (shape(kind="circle", points=[[5, 5], [5, 5]]), "of zero area"),
    "outside": (shape(points=[[99, 9], [120, 9], [120, 30]]), "outside the image"),
    "far": (shape(points=[[5, 5], [5000, 5], [5000, 9]]), "malformed"),
    "mask without pixels": (
        shape(kind="mask", points=[[1, 1], [3, 2]], mask=png(np.zeros((2, 3), bool))),
        "of zero area",
    ),
    "mask of another size": (
        shape(kind="mask", points=[[1, 1], [9, 9]], mask=png(np.ones((2, 3), bool))),
        "with a mask that is smaller than its corners say",
    ),
    "no mask": (shape(kind="mask", points=[[1, 1], [9, 9]]), "malformed"),
    "mask of text": (shape(kind="mask", points=[[1, 1], [9, 9]], mask="(§)"), "malformed"),
    "mask is no image": (shape(kind="mask", points=[[1, 1], [9, 9]], mask="abcd"), "malformed"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_shapes_are_counted_and_named(tmp_path, case):
    spoilt, reason = UNUSABLE[case]
    instances, report = read_shapes(tmp_path, shape("fig"), spoilt)
    assert [instance.label for instance in instances] == ["fig"]
    assert report.skipped == [(f"shape 2 of {tmp_path / 'a.json'}", reason)]
    assert report.refused == report.notes == []


def test_where_the_image_is_found(tmp_path):
    elsewhere = tmp_path / "photos"
    folder = tmp_path / "json"
    labelme(folder / "beside.json", [shape()])
    photo(folder / "sub/renamed.png")
    labelme(folder / "sub/renamed.json", [shape()], image="before.jpg")
    photo(elsewhere / "windows.jpg")
    labelme(folder / "windows.json", [shape()], image="..\\photos\\windows.jpg")
    labelme(folder / "wrong.json", [shape()], image="C:\\nowhere\\apart.jpg")
    photo(elsewhere / "apart.jpg")
    data = base64.b64encode(photo(tmp_path / "tmp.jpg").read_bytes()).decode()
    labelme(folder / "inside.json", [shape()], image="gone.jpg", imageData=data)
    images, report = read(folder, images=elsewhere)
    assert report.refused == []
    sources = {
        image.name: image.source.resolve() if isinstance(image.source, Path) else image.source
        for image in images
    }
    assert sources == {
        "beside.jpg": folder / "beside.jpg",
        "inside.jpg": Embedded(folder / "inside.json"),
        "sub/renamed.png": folder / "sub/renamed.png",
        "windows.jpg": elsewhere / "windows.jpg",
        "apart.jpg": elsewhere / "apart.jpg",
    }
    assert {image.size for image in images} == {SIZE}


def test_version_3_states_neither_size_nor_groups(tmp_path):
    old = {"label": "fig", "line_color": None, "fill_color": None, "points": SQUARE}
    labelme(tmp_path / "a.json", [old], imageHeight=..., imageWidth=..., version="3.16.2")
    (image,), report = read(tmp_path)
    assert image.size == SIZE
    assert drawn(image.instances[0].segmentation).sum() == 400
    assert report == Report()


def test_images_without_a_file(tmp_path):
    labelme(tmp_path / "a.json", [shape()])
    photo(tmp_path / "b.jpg")
    photo(tmp_path / "c.png")
    images, report = read(tmp_path)
    assert [image.name for image in images] == ["a.jpg"]
    assert "2 images have no labelme file, such as b.jpg: they are left out" in report.notes[0]
    images, report = read(tmp_path, unannotated_are_empty=True)
    assert [(image.name, len(image.instances)) for image in images] == [
        ("a.jpg", 1),
        ("b.jpg", 0),
        ("c.png", 0),
    ]
    assert report == Report()


def spoil(path, text=None, **keys):
    path.write_text(text or json.dumps(json.loads(path.read_text()) | keys))


# What a whole file can be wrong with: (what is done to it, what is then said)
REFUSED = {
    "cut off": (lambda p: spoil(p, p.read_text()[:40]), "not valid JSON at line 1.*is the file wh"),
    "no text": (lambda p: p.write_bytes(b"\xff\xd8\xff"), "not a text file in UTF-8"),
    "other JSON": (lambda p: spoil(p, "[1]"), "has no list 'shapes', so it is no labelme file"),
    "no shapes": (lambda p: spoil(p, shapes=None), "has no list 'shapes'"),
    "no image": (
        lambda p: p.with_suffix(".jpg").unlink(),
        "its image b.jpg is neither beside it nor inside it.*--images",
    ),
    "no path": (
        lambda p: [spoil(p, imagePath=None), p.with_suffix(".jpg").unlink()],
        r"its image \(imagePath is missing\) is neither",
    ),
    "damaged image": (
        lambda p: p.with_suffix(".jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing"),
        "b.jpg: the image cannot be decoded",
    ),
    "another size": (
        lambda p: spoil(p, imageHeight=400, imageWidth=600),
        "b.jpg: the image has 60x40 pixels .* annotations are for 600x400: correct",
    ),
    "embedded text": (
        lambda p: [p.with_suffix(".jpg").unlink(), spoil(p, imageData="%%%")],
        "its imageData is not an image in base64",
    ),
    "embedded nothing": (
        lambda p: [p.with_suffix(".jpg").unlink(), spoil(p, imageData="abcd")],
        "its imageData cannot be decoded as an image",
    ),
    "image twice": (
        lambda p: spoil(p, imagePath="a.jpg"),
        "b.json: annotates a.jpg, as .*a.json does: keep one of them",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_used_are_refused_with_the_reason(tmp_path, case):
    labelme(tmp_path / "a.json", [shape()])
    path = labelme(tmp_path / "b.json", [shape()])
    spoil_file, message = REFUSED[case]
    spoil_file(path)
    # Not even then is the image of a broken file one without instances.
    images, report = read(tmp_path, unannotated_are_empty=True)
    assert [image.name for image in images] == ["a.jpg"]
    (sentence,) = report.refused
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(sentence)
    assert "\n" not in sentence


def test_an_embedded_image_of_another_size(tmp_path):
    data = base64.b64encode(photo(tmp_path / "x/a.png", (20, 30)).read_bytes()).decode()
    labelme(tmp_path / "a.json", [shape()], image="gone.jpg", imageData=data)
    images, report = read(tmp_path)
    assert images == []
    assert (
        "its imageData has 30x20 pixels (width x height), but imageWidth and imageHeight are "
        in (report.refused[0])
    )


def test_an_empty_folder(tmp_path):
    with pytest.raises(DatasetError, match="has no JSON files: name the folder that labelme"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("corners", "first_pixel", "drawn_size"),
    [
        ([[10, 5], [12, 6]], (10, 5), (2, 3)),
        ([[10.5, 5.5], [12.5, 6.5]], (10, 6), (2, 3)),  # NumPy rounds halves to even numbers
        ([[9.5, 4.5], [11.5, 5.5]], (10, 4), (2, 3)),
        ([[10.3, 5.4], [12.7, 6.6]], (10, 5), (2, 3)),  # the corners round to 4x3 pixels
        ([[-1.4, -0.6], [0.6, 0.4]], (-1, -1), (2, 3)),
        ([[10, 5], [11, 5]], (10, 5), (1, 2)),  # whole corners crop
    ],
)
def test_a_mask_that_was_dragged(tmp_path, corners, first_pixel, drawn_size):
    """As labelme 7.9.1 draws it: a bitmap of 2x3 pixels from the rounded first corner."""
    bitmap = np.array([[1, 1, 0], [0, 1, 1]], bool)
    instances, report = read_shapes(tmp_path, shape(kind="mask", points=corners, mask=png(bitmap)))
    expected = np.zeros(SIZE, bool)
    for row in range(drawn_size[0]):
        for column in range(drawn_size[1]):
            x, y = first_pixel[0] + column, first_pixel[1] + row
            if x >= 0 and y >= 0:
                expected[y, x] = bitmap[row, column]
    assert report.skipped == []
    assert (drawn(instances[0].segmentation) == expected).all()


def test_a_label_that_is_a_number(tmp_path):
    instances, _ = read_shapes(tmp_path, shape(7), shape("nut"))
    assert [instance.label for instance in instances] == ["7", "nut"]


def test_checkpoints_of_jupyter_are_no_annotations(tmp_path):
    labelme(tmp_path / "a.json", [shape()])
    labelme(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.json", [shape()])
    (image,) = read_labelme(tmp_path, Report(), unannotated_are_empty=True)
    assert image.name == "a.jpg"
