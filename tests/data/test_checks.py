"""Every way in which a COCO data set can be wrong, and what the user then reads."""

import copy
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from isda.data import (
    DatasetError,
    check_coco_json,
    check_datasets,
    check_num_classes,
    load_coco_json_checked,
    num_classes_of,
    register_coco_json,
)

SIZE = (40, 60)  # height, width


def compressed(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def uncompressed(mask: np.ndarray) -> dict:
    pixels = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *edges, len(pixels)]).tolist()
    return {"size": list(mask.shape), "counts": runs if pixels[0] == 0 else [0, *runs]}


def box_mask(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def box_polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def annotation(id: int, image_id: int, category_id: int, box: tuple, segmentation, iscrowd=0):
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": iscrowd,
        "segmentation": segmentation,
    }


def correct_content() -> dict:
    """Polygon, both RLEs and a crowd, gappy category ids, an image without annotations."""
    boxes = [(5, 6, 20, 10), (10, 10, 30, 20), (0, 0, 8, 8), (30, 20, 25, 15)]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]}
            for i in (10, 20, 30)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in (3, 7, 90)],
        "annotations": [
            annotation(1, 10, 3, boxes[0], [box_polygon(*boxes[0])]),
            annotation(2, 10, 90, boxes[1], compressed(box_mask(*boxes[1]))),
            annotation(3, 20, 7, boxes[2], uncompressed(box_mask(*boxes[2]))),
            annotation(4, 20, 7, boxes[3], uncompressed(box_mask(*boxes[3])), iscrowd=1),
        ],
    }


def write(folder: Path, content: dict) -> Path:
    """Writes annotations and images; returns the path of the annotation file."""
    folder.mkdir(exist_ok=True)
    for image in copy.deepcopy(content.get("images", [])):
        path = folder / str(image.get("file_name"))
        Image.new("RGB", (SIZE[1], SIZE[0])).save(path)
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def content():
    return correct_content()


@pytest.fixture
def names():
    """Names of data sets that the catalogs forget after the test."""
    used = ["test_checks_a", "test_checks_b"]
    yield used
    for name in used:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


def check(folder, content, evaluated=False):
    check_coco_json(write(folder, content), folder, evaluated)


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("isda")]


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_correct_set_passes_in_silence(tmp_path, content, caplog, evaluated):
    check(tmp_path, content, evaluated)
    assert logged(caplog) == []


def test_the_checked_loader_agrees_with_detectron2_on_a_correct_set(tmp_path, content, names):
    path = write(tmp_path, content)
    ours = load_coco_json_checked(path, tmp_path, names[0])
    theirs = load_coco_json(str(path), str(tmp_path), names[1])
    assert ours == theirs
    assert [len(record["annotations"]) for record in ours] == [2, 2, 0]
    # gappy ids become 0, 1, 2 in their order
    assert [a["category_id"] for r in ours for a in r["annotations"]] == [0, 2, 1, 1]
    assert [a["iscrowd"] for r in ours for a in r["annotations"]] == [0, 0, 0, 1]


# What cannot be trusted: (what is done to a correct file, what the message must say)
FATAL = {
    "no list": (lambda c: c.pop("annotations"), "no list 'annotations'.*COCO's format"),
    "no categories": (lambda c: c.update(categories=[]), "'categories' is empty"),
    "missing key": (
        lambda c: c["images"][1].pop("width"),
        r"images\[1\] \(id 20, '20.png'\) has no width: each needs",
    ),
    "no image_id": (
        lambda c: c["annotations"][2].pop("image_id"),
        r"annotations\[2\] \(id 3\) has no image_id",
    ),
    "not a record": (lambda c: c["images"].append(5), r"images\[3\] has no id and no file_name"),
    "image twice": (
        lambda c: c["images"].append(c["images"][0]),
        "1 ids are there more than once in 'images', 10: number them anew",
    ),
    "annotation twice": (
        lambda c: c["annotations"][1].update(id=1),
        "1 ids are there more than once in 'annotations', 1: number",
    ),
    "category twice": (lambda c: c["categories"][1].update(id=3), "more than once in 'categories'"),
    "id of text": (
        lambda c: c["annotations"][0].update(id="a"),
        "'annotations' has the id 'a': ids must be whole numbers",
    ),
    "absent image": (
        lambda c: c["annotations"][0].update(image_id=11),
        "1 annotations, first 1, have an image_id that no record of 'images' has: 11 .*add it, or",
    ),
    "absent category": (
        lambda c: [a.update(category_id=1) for a in c["annotations"]],
        r"4 annotations, first 1, have an category_id .* 1 \(there are 3, 7, 90\)",
    ),
    "no file_name": (lambda c: c["images"][0].update(file_name=None), "image 10 has the file_name"),
    "no height": (
        lambda c: c["images"][0].update(height=0),
        r"image 10 \(10.png\) has height 0 and width 60",
    ),
    "odd iscrowd": (lambda c: c["annotations"][3].update(iscrowd=2), "annotation 4 has iscrowd 2"),
    "ignore": (lambda c: c["annotations"][3].update(ignore=1), "annotation 4 .*iscrowd to 1"),
    "RLE of another size": (
        lambda c: c["annotations"][1].update(segmentation=compressed(np.ones((60, 40)))),
        r"annotation 2 of 10.png: a mask has size \[60, 40\], its image \[40, 60\]",
    ),
}


@pytest.mark.parametrize("case", FATAL)
@pytest.mark.parametrize("check", [check_coco_json, load_coco_json_checked])
def test_what_cannot_be_trusted_stops_with_culprit_and_remedy(tmp_path, content, case, check):
    spoil, message = FATAL[case]
    path = write(tmp_path, content)
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message) as raised:
        check(path, tmp_path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "images": [1, 2\n}', "not valid JSON at line 3, column 1 .*is the file whole"),
        ("", "not valid JSON at line 1, column 1"),
        ("[]", "a JSON list instead of an object .*file of results"),
    ],
)
def test_broken_json(tmp_path, text, message):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        check_coco_json(path, tmp_path)


def test_a_binary_file_is_no_json(tmp_path):
    path = tmp_path / "instances.json"
    path.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(DatasetError, match="not a text file in UTF-8"):
        check_coco_json(path, tmp_path)


def test_missing_files(tmp_path, content):
    with pytest.raises(DatasetError, match="none.json: no such annotation file: correct the path"):
        check_coco_json(tmp_path / "none.json", tmp_path)
    path = write(tmp_path, content)
    with pytest.raises(DatasetError, match="nowhere: no such folder, but .* has 3 images"):
        check_coco_json(path, tmp_path / "nowhere")
    (tmp_path / "20.png").unlink()
    with pytest.raises(DatasetError, match="1 of the 3 images in .* are missing, 20.png: fetch"):
        check_coco_json(path, tmp_path)
    for image in content["images"]:
        image["file_name"] = "gone/" + image["file_name"]
    content["images"] += [{**content["images"][0], "id": 40, "file_name": "gone/40.png"}]
    path.write_text(json.dumps(content))
    message = "4 of the 4 images .* missing, first gone/10.png, gone/20.png, gone/30.png: fetch"
    with pytest.raises(DatasetError, match=message):
        check_coco_json(path, tmp_path)


# No segmentation of these tests may get to pycocotools itself unless it is whole.
pytestmark = pytest.mark.usefixtures("careful_pycocotools")

SQUARE = box_polygon(5, 6, 20, 10)
FAR = [5, 6, 5000, 6, 5000, 16, 5, 16]
# Degenerate segmentations: (segmentation, reason, when COCO's own code has no use for it)
DEGENERATE = {
    "null": (None, "without segmentation", "evaluation"),
    "empty list": ([], "without segmentation", "evaluation"),
    "empty object": ({}, "without segmentation", "evaluation"),
    "null polygon": ([None], "malformed", "always"),
    "null beside a polygon": ([SQUARE, None], "malformed", "always"),
    "flat polygon": (SQUARE, "malformed", "always"),
    "empty polygon": ([[]], "of zero area", "evaluation"),
    "four numbers": ([[1, 1, 9, 9]], "of zero area", "evaluation"),
    "odd count": ([SQUARE + [3]], "malformed", "always"),
    "infinite": ([[*SQUARE[:-1], float("inf")]], "malformed", "always"),
    "not a number": ([[*SQUARE[:-1], float("nan")]], "malformed", "always"),
    "absurdly far": ([FAR], "malformed", "always"),
    "text": ("abc", "malformed", "always"),
    "a line": ([[5, 5, 20, 5, 9, 5]], "of zero area", ""),
    "outside": ([box_polygon(100, 100, 20, 20)], "outside the image", ""),
    "left of the image": ([box_polygon(-30, 5, 20, 20)], "outside the image", ""),
    "empty RLE": (compressed(np.zeros(SIZE)), "of zero area", ""),
    "empty uncompressed RLE": ({"size": list(SIZE), "counts": [2400]}, "of zero area", ""),
    "short runs": ({"size": list(SIZE), "counts": [5, 10]}, "malformed", "always"),
    "negative runs": ({"size": list(SIZE), "counts": [2405, -10, 5]}, "malformed", "always"),
    "fractional runs": ({"size": list(SIZE), "counts": [1.5, 2398.5]}, "malformed", "always"),
    "no counts": ({"size": list(SIZE)}, "malformed", "always"),
    "size of text": ({"size": ["40", "60"], "counts": [5, 2395]}, "malformed", "always"),
    "not RLE": ({"size": list(SIZE), "counts": "\x01\x02"}, "malformed", "always"),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_annotations_are_left_out_and_counted(tmp_path, content, names, caplog, case):
    segmentation, reason, _ = DEGENERATE[case]
    content["annotations"][0]["segmentation"] = segmentation
    register_coco_json(names[0], write(tmp_path, content), tmp_path)
    records = DatasetCatalog.get(names[0])
    assert [len(record["annotations"]) for record in records] == [1, 2, 0]
    (warning,) = logged(caplog)
    assert f"1 annotations left out, {reason}: annotation 1 of 10.png" in warning
    # What evaluation reads is as clean.
    with redirect_stdout(io.StringIO()):
        coco = COCO(MetadataCatalog.get(names[0]).json_file)
    assert sorted(coco.anns) == [2, 3, 4]
    for annotation in coco.anns.values():
        coco.annToMask(annotation)
    DatasetCatalog.get(names[0])
    assert len(logged(caplog)) == 1  # said once


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("case", DEGENERATE)
def test_for_detectron2_they_are_fatal_where_coco_code_cannot_use_them(
    tmp_path, content, caplog, case, evaluated
):
    segmentation, reason, when = DEGENERATE[case]
    content["annotations"][0]["segmentation"] = segmentation
    if when == "always" or when == "evaluation" and evaluated:
        with pytest.raises(DatasetError, match="annotation 1 of 10.png.*register_coco_json"):
            check(tmp_path, content, evaluated)
    else:
        check(tmp_path, content, evaluated)
        assert any(f"1 {reason}" in line for line in logged(caplog))


def test_good_parts_of_a_polygon_are_kept(tmp_path, content, names):
    content["annotations"][0]["segmentation"] = [[1, 1, 2, 2], SQUARE]
    register_coco_json(names[0], write(tmp_path, content), tmp_path)
    (first, *_) = DatasetCatalog.get(names[0])
    assert first["annotations"][0]["segmentation"] == [SQUARE]


def test_what_evaluation_needs_is_filled_in(tmp_path, content, names, caplog):
    for annotation in content["annotations"]:
        for key in ("bbox", "area", "iscrowd"):
            annotation.pop(key, None)
    content["annotations"][3]["iscrowd"] = 1
    content["annotations"][0]["id"] = 0
    path = write(tmp_path, content)
    register_coco_json(names[0], path, tmp_path)
    with redirect_stdout(io.StringIO()):
        coco = COCO(MetadataCatalog.get(names[0]).json_file)
    expected = {a["bbox"][0]: a for a in correct_content()["annotations"]}
    assert len(coco.anns) == 4
    for annotation in coco.anns.values():
        original = expected[annotation["bbox"][0]]
        assert annotation["bbox"] == original["bbox"]
        assert annotation["area"] == original["area"]
        assert annotation["iscrowd"] == original["iscrowd"]
        assert annotation["id"] > 0  # 0 means "not matched" to COCO's evaluation
    listed = logged(caplog)[0].split("filled in: ")[1].split(", ")
    assert sorted(listed) == ["1 id", "3 iscrowd", "4 area", "4 bbox"]


@pytest.mark.parametrize("key", ["bbox", "area", "iscrowd"])
def test_evaluation_by_detectron2_needs_them_in_the_file(tmp_path, content, key):
    del content["annotations"][1][key]
    check(tmp_path, content, evaluated=False)
    with pytest.raises(DatasetError, match=f"annotation 2 of 10.png is without {key}"):
        check(tmp_path, content, evaluated=True)


def test_a_box_that_is_none(tmp_path, content):
    content["annotations"][1]["bbox"] = [5, 5, 0, 3]
    with pytest.raises(
        DatasetError, match=r"annotation 2 .* has a bbox that is not \[x, y, width, height\]"
    ):
        check(tmp_path, content, evaluated=True)


def test_an_annotation_with_id_0_is_warned_of_before_evaluation(tmp_path, content, caplog):
    content["annotations"][1]["id"] = 0
    check(tmp_path, content, evaluated=True)
    assert "id 0, which COCO's evaluation takes for missed" in logged(caplog)[0]


def test_a_set_of_crowds_or_of_nothing_cannot_be_trained_on(tmp_path, content):
    content["annotations"] = content["annotations"][3:]
    with pytest.raises(DatasetError, match="no annotation to train on .crowds do not count."):
        check(tmp_path, content)
    check(tmp_path, content, evaluated=True)
    del content["annotations"]
    check(tmp_path, content, evaluated=True)  # as COCO's test sets are
    with pytest.raises(DatasetError, match=r"no list 'annotations'.*\[\] if there are none"):
        check(tmp_path, content)


def test_ground_truth_of_a_repaired_set_scores_100(tmp_path, content, names):
    """What Detectron2's own registration passes on as it is."""
    content["annotations"][0]["segmentation"] = [FAR]
    content["annotations"][1]["id"] = 0
    del content["annotations"][1]["area"]
    register_coco_json(names[0], write(tmp_path, content), tmp_path)
    evaluator = COCOEvaluator(names[0], tasks=("segm",), distributed=False)
    evaluator.reset()
    for record in DatasetCatalog.get(names[0]):
        annotations = [a for a in record["annotations"] if not a["iscrowd"]]
        instances = Instances((record["height"], record["width"]))
        masks = [mask_util.decode(a["segmentation"]) for a in annotations]
        instances.pred_masks = torch.tensor(np.array(masks).reshape(-1, *SIZE), dtype=torch.bool)
        instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
        instances.scores = torch.ones(len(masks))
        instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
        evaluator.process([record], [{"instances": instances}])
    with redirect_stdout(io.StringIO()):
        assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)


def test_registering_a_name_twice(tmp_path, content, names):
    path = write(tmp_path, content)
    register_coco_json(names[0], path, tmp_path)
    with pytest.raises(DatasetError, match=f"'{names[0]}' is registered already: choose another"):
        register_coco_json(names[0], path, tmp_path)


def test_a_corrected_file_is_checked_again(tmp_path, content, names):
    path = write(tmp_path, content)
    register_coco_json(names[0], path, tmp_path)
    assert len(DatasetCatalog.get(names[0])) == 3
    path.write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        DatasetCatalog.get(names[0])
    path.write_text(json.dumps(content))
    assert len(DatasetCatalog.get(names[0])) == 3


def test_number_of_classes_comes_from_metadata_or_file(tmp_path, content, names):
    assert num_classes_of("coco_2017_val") == 80  # without its files
    register_coco_json(names[0], write(tmp_path, content), tmp_path)
    assert num_classes_of(names[0]) == 3
    with pytest.raises(DatasetError, match="no data set 'shapes_vall' .* did you mean shapes_val"):
        num_classes_of("shapes_vall")
    DatasetCatalog.register(names[1], list)
    with pytest.raises(DatasetError, match=f"does not say which classes.*'{names[1]}'.*thing_cl"):
        num_classes_of(names[1])


def test_a_head_of_another_size_is_told_which_key_to_set(caplog):
    key = "MODEL.ISDA.NUM_CLASSES"
    check_num_classes(3, ["shapes_train", "shapes_val"], key)
    message = (
        "MODEL.ISDA.NUM_CLASSES is 80 but data set 'shapes_val' has 3 classes "
        "(circle, square, triangle): set MODEL.ISDA.NUM_CLASSES 3"
    )
    with pytest.raises(DatasetError, match=re.escape(message)):
        check_num_classes(80, ["shapes_val"], key)
    with pytest.raises(DatasetError, match=r"'nuclei_mini_val' has 1 class \(nucleus\)"):
        check_num_classes(3, ["shapes_train", "nuclei_mini_val"], key)
    assert logged(caplog) == []


def test_other_names_for_as_many_classes_are_warned_of(tmp_path, content, names, caplog):
    register_coco_json(names[0], write(tmp_path, content), tmp_path)
    check_num_classes(3, ["shapes_train", names[0]], "MODEL.ISDA.NUM_CLASSES")
    assert "first 'circle' and 'class 3'" in logged(caplog)[0]


def test_metadata_and_file_must_have_the_same_categories(tmp_path, content, names):
    path = write(tmp_path, content)
    id_map = {3: 0, 7: 1, 90: 2}
    cases = [
        ({"thing_dataset_id_to_contiguous_id": {1: 0, 2: 1, 4: 2}}, "1, 2, 4, but .* 3, 7, 90.*no"),
        ({"thing_dataset_id_to_contiguous_id": {3: 0, 7: 1}}, "category ids 3, 7, its ann"),
        ({"thing_classes": ["a", "b", "c"]}, "classes a, b, c, its annotation file class 3"),
        ({"thing_dataset_id_to_contiguous_id": id_map, "thing_classes": ["class 3"]}, "class 7"),
    ]
    for metadata, message in cases:
        register_coco_instances(names[0], metadata, str(path), str(tmp_path))
        with pytest.raises(DatasetError, match=f"{message}.*register_coco_json"):
            check_datasets([], [names[0]])
        DatasetCatalog.remove(names[0])
        MetadataCatalog.remove(names[0])
    register_coco_instances(names[0], {}, str(path), str(tmp_path))
    check_datasets([names[0]], [names[0]])


def test_data_sets_of_a_configuration(tmp_path, content, names):
    with pytest.raises(DatasetError, match="no data set 'nuclei_mini_vall' is registered: did you"):
        check_datasets(["nuclei_mini_train"], ["nuclei_mini_vall"])
    with pytest.raises(DatasetError, match="no such annotation file"):
        check_datasets(["coco_2014_train"], [])
    check_datasets(["lvis_v1_train", "cityscapes_fine_instance_seg_train"], [])  # Detectron2's own
    content["annotations"][1]["segmentation"] = None
    register_coco_instances(names[0], {}, str(write(tmp_path, content)), str(tmp_path))
    check_datasets([names[0]], [])
    with pytest.raises(DatasetError, match="annotation 2 of 10.png is without segmentation"):
        check_datasets([names[0]], [names[0]])
    register_coco_json(names[1], tmp_path / "instances.json", tmp_path)
    check_datasets([names[1]], [names[1]])
