"""Exports of VIA, whole and broken."""

import json
import math

import pytest
from examples_of_formats import (
    SIZE,
    SQUARE,
    drawn,
    grid,
    iou,
    photo,
    polygon_region,
    via_content,
    via_csv,
)

from isda.data.errors import DatasetError
from isda.data.formats import Report
from isda.data.formats.via import read_via


def region(name, **keys):
    attributes = keys.pop("attributes", {"kind": "nut"})
    return {"shape_attributes": {"name": name} | keys, "region_attributes": attributes}


def write(folder, regions, file="via.json"):
    for name in regions:
        photo(folder / name)
    if file.endswith(".csv"):
        return via_csv(folder / file, regions)
    (folder / file).write_text(json.dumps(via_content(regions)))
    return folder / file


def read(path, **options):
    report = Report()
    return read_via(path, report, **options), report


SHAPES = [
    polygon_region(kind="nut"),
    region("rect", x=10, y=5, width=20, height=20),
    region("circle", cx=30, cy=20, r=10),
    region("ellipse", cx=30, cy=20, rx=20, ry=8),
    region("ellipse", cx=30, cy=20, rx=20, ry=8, theta=0.5),
    polygon_region([*SQUARE, SQUARE[0]], name="polyline", kind="nut"),
]


@pytest.mark.parametrize("file", ["via.json", "via.csv"])
def test_every_shape_that_has_an_area(tmp_path, file):
    path = write(tmp_path, {"a.jpg": SHAPES, "sub/b.jpg": []}, file)
    images, report = read(path)
    assert report == Report()
    assert [(image.name, image.size) for image in images] == [("a.jpg", SIZE), ("sub/b.jpg", SIZE)]
    assert images[1].instances == []
    assert {instance.label for instance in images[0].instances} == {"nut"}
    masks = [drawn(instance.segmentation) for instance in images[0].instances]
    xs, ys = grid()
    square = (xs > 10) & (xs < 30) & (ys > 5) & (ys < 25)
    for index in (0, 1, 5):
        assert (masks[index] == square).all()
    xs, ys = xs - 30, ys - 20
    along = xs * math.cos(0.5) + ys * math.sin(0.5)
    across = ys * math.cos(0.5) - xs * math.sin(0.5)
    assert iou(masks[2], xs**2 + ys**2 <= 100) > 0.95
    assert iou(masks[3], (xs / 20) ** 2 + (ys / 8) ** 2 <= 1) > 0.95
    assert iou(masks[4], (along / 20) ** 2 + (across / 8) ** 2 <= 1) > 0.95


def test_projects_and_version_1(tmp_path):
    path = write(tmp_path, {"a.jpg": [polygon_region(kind="nut")]})
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": content}))
    (image,), _ = read(path)
    assert len(image.instances) == 1
    for record in content.values():
        record["regions"] = {str(i): r for i, r in enumerate(record["regions"])}
    path.write_text(json.dumps(content))
    (image,), _ = read(path)
    assert len(image.instances) == 1


def test_a_csv_of_an_older_version(tmp_path):
    path = write(tmp_path, {"a.jpg": [polygon_region(kind="nut")]}, "via.csv")
    path.write_text("\ufeff#" + path.read_text(), encoding="utf-8")
    (image,), report = read(path)
    assert len(image.instances) == 1 and report == Report()


def test_which_attribute_names_the_class(tmp_path):
    both = {"kind": "fig", "quality": "good"}
    path = write(tmp_path, {"a.jpg": [polygon_region(**both), polygon_region(kind="nut")]})
    with pytest.raises(
        DatasetError, match="several: choose .* --class-attribute.*There are: kind "
    ):
        read(path)
    with pytest.raises(DatasetError, match=r"no region has the attribute size.*kind \(fig, nut\);"):
        read(path, class_attribute="size")
    (image,), _ = read(path, class_attribute="kind")
    assert [instance.label for instance in image.instances] == ["fig", "nut"]
    (image,), report = read(path, class_attribute="quality")
    assert [instance.label for instance in image.instances] == ["good"]
    assert report.skipped == [("region 2 of a.jpg", "without a value of quality")]
    (image,), _ = read(path, class_name="food")
    assert [instance.label for instance in image.instances] == ["food", "food"]


def test_no_attribute_at_all(tmp_path):
    path = write(tmp_path, {"a.jpg": [polygon_region()]})
    with pytest.raises(
        DatasetError, match="no region has an attribute.*name the one .*--class-name"
    ):
        read(path)
    (image,), _ = read(path, class_name="nut")
    assert [instance.label for instance in image.instances] == ["nut"]


def test_checkboxes(tmp_path):
    ticked = [{"fig": True}, {"fig": False, "nut": True}, {"fig": True, "nut": True}, {}]
    path = write(tmp_path, {"a.jpg": [polygon_region(kind=value) for value in ticked]})
    (image,), report = read(path)
    assert [instance.label for instance in image.instances] == ["fig", "nut"]
    assert report.skipped == [
        ("region 3 of a.jpg", "with several values of kind"),
        ("region 4 of a.jpg", "without a value of kind"),
    ]


UNUSABLE = {
    "point": (region("point", cx=3, cy=4), "of type point, which has no area"),
    "open line": (
        polygon_region(name="polyline", kind="nut"),
        "of type polyline that is not closed, so without area",
    ),
    "unknown": (region("cuboid"), "of the unknown type 'cuboid'"),
    "two points": (polygon_region(SQUARE[:2], kind="nut"), "with fewer than 3 points"),
    "lengths": (
        region("polygon", all_points_x=[1, 2, 3], all_points_y=[1, 2]),
        "malformed",
    ),
    "no x": (region("rect", y=1, width=3, height=3), "malformed"),
    "text": (region("rect", x="1", y=1, width=3, height=3), "malformed"),
    "flat": (region("rect", x=1, y=1, width=0, height=3), "of zero area"),
    "no radius": (region("circle", cx=9, cy=9, r=0), "of zero area"),
    "outside": (region("circle", cx=99, cy=9, r=5), "outside the image"),
    "no shape": ({"region_attributes": {"kind": "nut"}}, "malformed"),
    "no class": (polygon_region(kind=" "), "without a value of kind"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_regions_are_counted_and_named(tmp_path, case):
    spoilt, reason = UNUSABLE[case]
    path = write(tmp_path, {"a.jpg": [polygon_region(kind="nut"), spoilt]})
    (image,), report = read(path)
    assert len(image.instances) == 1
    assert report.skipped == [("region 2 of a.jpg", reason)]


def test_images_that_cannot_be_used_are_refused(tmp_path):
    path = write(tmp_path, {name: [polygon_region(kind="nut")] for name in ("a.jpg", "b.jpg")})
    content = json.loads(path.read_text())
    content |= via_content({"https://example.org/c.jpg": [], "d.jpg": []})
    path.write_text(json.dumps(content))
    (tmp_path / "b.jpg").write_bytes(b"")
    images, report = read(path)
    assert [image.name for image in images] == ["a.jpg"]
    empty, address, missing = report.refused
    assert "b.jpg: the image file is empty" in empty
    assert "c.jpg is an address: fetch the image into" in address
    assert f"its image d.jpg is not in {tmp_path}" in missing and "--images" in missing


def test_two_names_of_one_image(tmp_path):
    photo(tmp_path / "1.jpg")
    regions = {f"{name}/1.jpg": [polygon_region(kind="nut")] for name in ("left", "right")}
    (tmp_path / "via.json").write_text(json.dumps(via_content(regions)))
    (image,), report = read(tmp_path / "via.json")
    assert image.name == "1.jpg"
    assert "right/1.jpg is the image 1.jpg, as another name is: put the" in report.refused[0]


def test_images_in_another_folder(tmp_path):
    path = write(tmp_path / "photos", {"a.jpg": [polygon_region(kind="nut")]})
    path = path.rename(tmp_path / "via.json")
    (image,), report = read(path, images=tmp_path / "photos")
    assert image.source == tmp_path / "photos/a.jpg" and report == Report()
    with pytest.raises(DatasetError, match="none: no such folder: correct --images"):
        read(path, images=tmp_path / "none")


BROKEN = {
    "cut off": ("via.json", '{"a": ', "not valid JSON at line 1"),
    "coco": ("via.json", '{"images": [], "annotations": []}', "is in COCO's format already"),
    "version 3": ("via.json", '{"project": {}, "metadata": {}}', "a project of VIA 3, which"),
    "empty": ("via.json", "{}", "is no export of VIA: it has no images with a list 'regions'"),
    "list": ("via.json", "[]", "is no export of VIA"),
    "no name": ("via.json", '{"a": {"regions": []}}', "an image has no filename"),
    "number": ("via.json", '{"a": {"filename": "a.jpg", "regions": 5}}', "regions of a.jpg are no"),
    "twice": (
        "via.json",
        '{"a": {"filename": "a.jpg", "regions": []}, "b": {"filename": "a.jpg", "regions": []}}',
        "has the image a.jpg twice",
    ),
    "other columns": ("via.csv", "a,b\n1,2\n", "has no column filename and no region_count"),
    "binary": ("via.csv", b"\xff\xfe\x00", "not a text file in UTF-8"),
    "spreadsheet": (
        "via.csv",
        "filename,region_count,region_shape_attributes,region_attributes\na.jpg,1,{name:x},{}\n",
        "line 2: the column region_shape_attributes is no JSON .*spreadsheet",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_exports(tmp_path, case):
    name, text, message = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=message) as raised:
        read(path, class_name="nut")
    assert str(path) in str(raised.value)
