"""Every fault of a data set, and what is said of it."""

import json
import re
import shutil

import numpy as np
import pytest
import tifffile
from examples_of_datasets import SIZE, annotation, box, content, write
from PIL import Image

from isda.data.analysis import ERROR, NOTE, WARNING, examine, recommended_settings, summarise
from isda.data.images import ImageOptions
from isda.data.layouts import Split, find_dataset


def analysis_of(folder, **options):
    return examine(find_dataset(folder), **options)


def of_level(analysis, level):
    return [
        f"{finding.split}: {finding.text}"
        for finding in analysis.findings
        if finding.level == level
    ]


def test_a_set_in_order_has_no_findings(tmp_path):
    analysis = analysis_of(write(tmp_path))
    assert analysis.findings == [] and analysis.will_train
    train, val = analysis.splits
    assert (train.name, val.name) == ("train", "val") and train.class_names == ["fig", "nut"]
    summary = summarise(train)
    assert (summary.num_images, summary.num_empty, summary.num_crowds) == (10, 0, 0)
    assert summary.by_class == {"fig": 10, "nut": 10}
    assert summary.by_area == {"small": 20, "medium": 0, "large": 0}
    assert summary.instances.tolist() == [2] * 10
    assert set(summary.heights) == {40} and set(summary.widths) == {60}


def test_coco_bounds():
    """32² and 96² belong to the larger group, as in pycocotools without its shared ends."""
    from isda.data.analysis.summary import AREA_BOUNDS

    assert AREA_BOUNDS["small"][1] == 1024 == AREA_BOUNDS["medium"][0]
    assert AREA_BOUNDS["medium"][1] == 9216 == AREA_BOUNDS["large"][0]


def spoilt(change):
    part = content(1)
    change(part)
    return part


RLE = {"size": [60, 40], "counts": [5, 2395]}
# (what is done to the training annotations, level, split, what is said)
FINDINGS = {
    "no list": (lambda c: c.pop("categories"), ERROR, "no list 'categories'"),
    "no key": (
        lambda c: c["images"][3].pop("width"),
        ERROR,
        r"images\[3\] \(id 4, '4.png'\) has no width",
    ),
    "id of text": (lambda c: c["annotations"][0].update(id="a"), ERROR, "has the id 'a'"),
    "id of list": (lambda c: c["annotations"][0].update(id=[1]), ERROR, r"has the id \[1\]"),
    "id twice": (lambda c: c["annotations"][1].update(id=3), ERROR, "1 ids are there more than"),
    "no such image": (
        lambda c: c["annotations"][0].update(image_id=77),
        ERROR,
        "1 annotations, first 3, have an image_id that no record",
    ),
    "no such class": (
        lambda c: [a.update(category_id=a["category_id"] - 1) for a in c["annotations"]],
        ERROR,
        "10 annotations, first 3, have an category_id that no record of 'categories' has: 0",
    ),
    "no height": (lambda c: c["images"][0].update(height=0), ERROR, "has height 0 and width 60"),
    "RLE of another size": (
        lambda c: c["annotations"][0].update(segmentation=RLE),
        ERROR,
        r"annotation 3 of 1.png: a mask has size \[60, 40\], its image \[40, 60\]",
    ),
    "nothing": (lambda c: c.update(annotations=[]), ERROR, "has no annotation that can be used"),
    "no image file": (
        lambda c: c["images"].append({**c["images"][0], "id": 99, "file_name": "sub/x.png"}),
        ERROR,
        "sub/x.png",
    ),
    "bad RLE": (
        lambda c: c["annotations"][0].update(segmentation={"size": list(SIZE), "counts": [5, 9]}),
        WARNING,
        "1 annotation malformed, which training leaves out: annotation 3 of 1.png",
    ),
    "degenerate": (
        lambda c: [a.update(segmentation=[[1, 1, 5, 5]]) for a in c["annotations"][:5]],
        WARNING,
        "5 annotations of zero area, which training leaves out: .*of 2.png and 2 more",
    ),
    "outside": (
        lambda c: c["annotations"][0].update(segmentation=box(90, 90, 5, 5)),
        WARNING,
        "1 annotation outside the image",
    ),
    "image listed twice": (
        lambda c: c["images"].append({**c["images"][0], "id": 99}),
        WARNING,
        "1 image listed more than once: 1.png",
    ),
    "annotated twice": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 999}),
        WARNING,
        "1 annotation the same class and outline as another one of the image, which training "
        "leaves out: annotation 999 of 1.png",
    ),
    "annotated nearly alike": (
        lambda c: c["annotations"].append(annotation(999, 1, 1, box(10.3, 5, 8, 21))),
        WARNING,
        r"1 object annotated twice .*one class.*: annotations 3 and 999 of 1.png",
    ),
    "annotated as two": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 999, "category_id": 2}),
        WARNING,
        "1 object annotated with two classes",
    ),
    "tiny": (
        lambda c: c["annotations"].append(annotation(999, 1, 1, box(50, 30, 3, 8))),
        WARNING,
        "1 instance narrower than 4 pixels.*annotations 999 of 1.png",
    ),
    "box of corners": (
        lambda c: [a.update(bbox=[45, 25, 55, 45]) for a in c["annotations"][:2]],
        WARNING,
        r"2 boxes that are not \[x, y, width, height\] of the mask, made anew from it: "
        "annotation 3 of 1.png, annotation 4 of 1.png",
    ),
    "class not there": (
        lambda c: c["categories"].append({"id": 3, "name": "date"}),
        WARNING,
        "1 class without instances, so they cannot be learnt: date",
    ),
    "one name": (
        lambda c: c["categories"][1].update(name="fig"),
        WARNING,
        r"2 categories share their name with another one, .* behind it: fig \(1\), fig \(2\)",
    ),
    "few": (
        lambda c: [c["images"].pop(), [c["annotations"].pop() for _ in range(2)]],
        WARNING,
        "only 9 images to train on",
    ),
    "gaps": (
        lambda c: (
            [r.update(id=r["id"] * 7) for r in c["categories"]]
            + [a.update(category_id=a["category_id"] * 7) for a in c["annotations"]]
        ),
        NOTE,
        "the 2 category ids go from 7 to 14",
    ),
    "empty image": (
        lambda c: [c["annotations"].pop(), c["annotations"].pop()],
        NOTE,
        "1 image without instances: 10.png",
    ),
}


@pytest.mark.usefixtures("careful_pycocotools")
@pytest.mark.parametrize("case", FINDINGS)
def test_what_is_said_of_faulty_annotations(tmp_path, case):
    change, level, message = FINDINGS[case]
    folder = write(tmp_path)
    path = folder / "annotations/instances_train.json"
    path.write_text(json.dumps(spoilt(change)))
    analysis = analysis_of(folder)
    found = of_level(analysis, level)
    assert any(re.search(f"^train: .*{message}", text) for text in found), analysis.findings
    assert analysis.will_train is (level != ERROR)
    assert of_level(analysis, ERROR) == [] or level == ERROR


def test_all_errors_are_said_at_once(tmp_path):
    def change(part):
        part["annotations"][0].update(image_id=77)
        part["annotations"][1].update(category_id=9)
        part["images"][4].update(width=0)
        part["annotations"][5].update(segmentation=RLE)

    folder = write(tmp_path)
    (folder / "annotations/instances_train.json").write_text(json.dumps(spoilt(change)))
    (folder / "train/7.png").write_bytes(b"")
    (folder / "val/101.png").unlink()
    errors = of_level(analysis_of(folder), ERROR)
    assert len(errors) == 6
    assert "77" in errors[1] and "9" in errors[2] and "width 0" in errors[0]
    assert "mask has size" in errors[3] and "7.png: the image file is empty" in errors[4]
    assert "1 of the 10 images" in errors[5]


# What is done to the folder, and what is said then.
FILES = {
    "truncated": (
        lambda f: (f / "train/3.png").write_bytes((f / "train/3.png").read_bytes()[:200]),
        ERROR,
        "3.png: the image cannot be decoded",
    ),
    "another size": (
        lambda f: Image.radial_gradient("L").resize((30, 40)).save(f / "train/3.png"),
        ERROR,
        "3.png: the image has 30x40 pixels .* its annotations are for 60x40",
    ),
    "all pixels equal": (
        lambda f: Image.new("RGB", (60, 40)).save(f / "train/3.png"),
        WARNING,
        "1 image whose pixels are all equal, so that there is nothing to see: 3.png",
    ),
    "missing": (lambda f: (f / "train/3.png").unlink(), ERROR, "1 of the 10 images in .* missing"),
    "not listed": (
        lambda f: shutil.copy(f / "train/3.png", f / "train/new.png"),
        NOTE,
        "1 image in the folders that no record names, so not used: .*train/new.png",
    ),
    "same bytes": (
        lambda f: shutil.copy(f / "train/3.png", f / "train/4.png"),
        WARNING,
        "1 image there under several names: 3.png = 4.png",
    ),
    "in both splits": (
        lambda f: shutil.copy(f / "train/3.png", f / "val/104.png"),
        WARNING,
        "1 image in more than one split, which makes AP too good: 3.png",
    ),
}


def test_images_are_read_as_training_will_read_them(tmp_path):
    """Of two pages one is named; the other is black."""
    folder = write(tmp_path)
    page = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
    tifffile.imwrite(folder / "train/3.png", np.stack([page, 0 * page]), photometric="minisblack")
    (finding,) = analysis_of(folder).findings
    assert finding.level == ERROR and "3.png: has 2 pages" in finding.text
    others = [f for f in (folder / "train").iterdir() if f.name != "3.png"]
    for file in [*others, *(folder / "val").iterdir()]:
        tifffile.imwrite(file, np.stack([page, page]), photometric="minisblack")
    texts = {
        number: [f.text for f in analysis_of(folder, options=ImageOptions(page=number)).findings]
        for number in range(2)
    }
    assert not any("nothing to see" in text for text in texts[0])
    assert any("1 image whose pixels are all equal" in text for text in texts[1])


@pytest.mark.parametrize("case", FILES)
def test_what_is_said_of_faulty_images(tmp_path, case):
    change, level, message = FILES[case]
    folder = write(tmp_path)
    change(folder)
    analysis = analysis_of(folder)
    (finding,) = analysis.findings
    assert finding.level == level and re.search(message, finding.text)
    assert analysis.will_train is (level != ERROR)


def test_without_decoding_damage_is_not_seen(tmp_path):
    folder = write(tmp_path)
    FILES["truncated"][0](folder)
    calls = []
    assert analysis_of(folder, reads_images=False, advance=lambda: calls.append(1)).will_train
    assert calls == []
    assert not analysis_of(folder, advance=lambda: calls.append(1)).will_train
    assert len(calls) == 20


@pytest.mark.parametrize("orientation", [3, 6])
def test_turned_images(tmp_path, orientation):
    """Upside down is a note; on its side it has another size than its annotations say."""
    folder = write(tmp_path)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (60, 40)).save(folder / "train/3.png", exif=exif)
    analysis = analysis_of(folder)
    assert any("1 image turned by an EXIF tag" in text for text in of_level(analysis, NOTE))
    errors = of_level(analysis, ERROR)
    assert bool(errors) is (orientation == 6)
    assert all("its EXIF tag turns the image to 40x60" in text for text in errors)


def test_broken_json_and_the_other_split(tmp_path):
    folder = write(tmp_path)
    (folder / "annotations/instances_train.json").write_text("{")
    analysis = analysis_of(folder)
    assert [split.name for split in analysis.splits] == ["val"]
    assert "not valid JSON" in of_level(analysis, ERROR)[0]


def test_roboflows_placeholder_is_no_missing_class(tmp_path):
    def change(part):
        for category in part["categories"]:
            category["supercategory"] = "food"
        part["categories"].insert(0, {"id": 0, "name": "food", "supercategory": "none"})

    train, val = content(1), content(101)
    change(train)
    change(val)
    analysis = analysis_of(write(tmp_path, train, val))
    assert of_level(analysis, WARNING) == []


def test_no_validation_split(tmp_path):
    folder = write(tmp_path)
    (folder / "annotations/instances_val.json").unlink()
    shutil.rmtree(folder / "val")
    analysis = analysis_of(folder)
    assert analysis.will_train
    assert "training evaluates a fifth of the images instead" in of_level(analysis, NOTE)[0]


def test_crowds_are_counted_apart(tmp_path):
    part = content(1)
    part["annotations"][0]["iscrowd"] = 1
    train, _ = analysis_of(write(tmp_path, part)).splits
    summary = summarise(train)
    assert summary.num_crowds == 1 and len(summary.areas) == 19


def split_with(instances, size=(600, 800), side=40):
    """One image with a row of squares."""
    records = [
        {"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]} for i in (1, 2)
    ]
    annotations = [
        annotation(i + 1, 1, 1, box((i * side) % (size[1] - side), 5 + i, side, side))
        for i in range(instances)
    ]
    return {
        "images": records,
        "categories": [{"id": 1, "name": "x"}],
        "annotations": annotations,
    }


def settings(folder, part):
    folder.mkdir(exist_ok=True)
    path = folder / "a.json"
    path.write_text(json.dumps(part))
    return recommended_settings(examine([Split("all", path, folder)], reads_images=False).splits)


def test_recommended_settings(tmp_path):
    few = settings(tmp_path, split_with(12))
    assert few["MODEL.ISDA.NUM_QUERIES"] == few["TEST.DETECTIONS_PER_IMAGE"] == 50
    assert few["INPUT.MIN_SIZE_TEST"] == 608 and few["INPUT.MAX_SIZE_TEST"] == 832
    assert few["INPUT.MIN_SIZE_TRAIN"] == (480, 544, 608)
    many = settings(tmp_path, split_with(141))
    assert many["MODEL.ISDA.NUM_QUERIES"] == many["TEST.DETECTIONS_PER_IMAGE"] == 220
    # 10 pixels become 16; large photos shrink to 800, unless instances are small in them
    assert settings(tmp_path, split_with(12, side=10))["INPUT.MIN_SIZE_TEST"] == 960
    large = settings(tmp_path, split_with(12, size=(3000, 4000), side=400))
    assert (large["INPUT.MIN_SIZE_TEST"], large["INPUT.MAX_SIZE_TEST"]) == (800, 1088)
    large = settings(tmp_path, split_with(12, size=(3000, 4000), side=20))
    assert (large["INPUT.MIN_SIZE_TEST"], large["INPUT.MAX_SIZE_TEST"]) == (1024, 1376)
    thin = settings(tmp_path, split_with(1, size=(4, 40_000), side=2))
    assert thin["INPUT.MAX_SIZE_TEST"] == thin["INPUT.MAX_SIZE_TRAIN"] == 2688
    assert few["MODEL.ISDA.MASK_STRIDE"] == 4
    none = settings(tmp_path, split_with(0, size=(100, 100)))
    assert none["INPUT.MIN_SIZE_TEST"] == 256 and np.ndim(none["INPUT.MIN_SIZE_TRAIN"]) == 1


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        # 800 pixels of 3,000: 120 are 32, eight cells of stride 4.
        (120, {"MODEL.ISDA.MASK_STRIDE": 4}),
        # Of small objects 1,024 pixels: 24 are 8, and not on the grid of cells.
        (24, {"MODEL.ISDA.MASK_STRIDE": 2, "MODEL.ISDA.MASK_FEATURE_STRIDE": 4}),
        # 12 are 4: of so small a square even stride 2 blurs every pixel.
        (12, {"MODEL.ISDA.MASK_STRIDE": 1, "MODEL.ISDA.MASK_FEATURE_STRIDE": 4}),
    ],
)
def test_the_stride_follows_the_size_of_the_objects(tmp_path, side, expected):
    part = split_with(40, size=(3000, 4000), side=side)
    for index, record in enumerate(part["annotations"]):
        place = 100 + (side + 11) * index
        record["segmentation"] = box(place, place % 2900, side, side)
    found = settings(tmp_path, part)
    assert {key: value for key, value in found.items() if "STRIDE" in key} == expected
