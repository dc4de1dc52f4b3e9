"""Data sets as other tools write them: the checker and training say the same, and AP is right."""

import copy
import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from isda import cli
from isda.data.analysis import ERROR, NOTE, WARNING, examine
from isda.data.cleaning import clean_annotations
from isda.data.custom_data import forget_folders, register_folder
from isda.data.errors import DatasetError
from isda.data.layouts import find_dataset

SIZE = (120, 160)  # height, width
NAMES = ("block", "disc", "dot", "pair", "ring")


def truth() -> list[tuple[str, np.ndarray]]:
    """Six instances of an image: two blocks that touch, a disc, a dot, a pair, a ring."""
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = [(name, np.zeros(SIZE, bool)) for name in ("block", "block", "dot", "pair")]
    masks[0][1][10:40, 10:40] = masks[1][1][10:40, 40:70] = True
    masks[2][1][100:103, 20:23] = True
    masks[3][1][50:70, 100:110] = masks[3][1][50:70, 120:135] = True
    distance = np.hypot(xs - 45, ys - 75)
    masks.append(("disc", distance <= 18))
    distance = np.hypot(xs - 120, ys - 25)
    masks.append(("ring", (distance <= 18) & (distance >= 8)))
    return masks


def rle(mask: np.ndarray) -> dict:
    encoded = mask_util.encode(np.asfortranarray(mask, np.uint8))
    return encoded | {"counts": encoded["counts"].decode()}


def outline(mask: np.ndarray) -> list[list[float]]:
    """The box of each part: what the tests need of polygons is no more."""
    columns = np.flatnonzero(mask.any(axis=0))
    starts = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    polygons = []
    for part in starts:
        rows = np.flatnonzero(mask[:, part].any(axis=1))
        x0, x1, y0, y1 = part[0], part[-1] + 1, rows[0], rows[-1] + 1
        polygons.append([float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)])
    return polygons


def content(first: int, images: int = 3, segmentation=rle) -> dict:
    annotations = []
    for image_id in range(first, first + images):
        for name, mask in truth():
            encoded = segmentation(mask)
            drawn = encoded
            if isinstance(encoded, list):
                drawn = mask_util.merge(mask_util.frPyObjects(encoded, *SIZE))
            annotations.append(
                {
                    "id": 100 * image_id + len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": NAMES.index(name) + 1,
                    "segmentation": encoded,
                    "bbox": mask_util.toBbox(drawn).tolist(),
                    "area": int(mask_util.area(drawn)),
                    "iscrowd": 0,
                }
            )
    records = [
        {"id": i, "file_name": f"img{i}.png", "height": SIZE[0], "width": SIZE[1]}
        for i in range(first, first + images)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    return {"images": records, "annotations": annotations, "categories": categories}


def write(folder: Path, change=lambda part: None, segmentation=rle) -> Path:
    """The folder with ``train.json`` and ``val.json``, changed; its images are in order."""
    for split, first in (("train", 1), ("val", 4)):
        part = content(first, segmentation=segmentation)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for image in part["images"]:
            pixels = np.random.default_rng(image["id"]).integers(0, 255, (*SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / image["file_name"])
        change(part)
        (folder / f"{split}.json").write_text(json.dumps(part))
    return folder


@pytest.fixture(autouse=True)
def catalogs_as_before():
    yield
    forget_folders()


def texts(folder: Path, level=None, **options) -> list[str]:
    analysis = examine(find_dataset(folder), **options)
    return [f.text for f in analysis.findings if level in (None, f.level)]


def perfect_ap(name: str, kind: str, segmentation=rle) -> float:
    """AP of predictions that are the truth, on a registered validation split."""
    with redirect_stdout(io.StringIO()):
        coco = COCO(MetadataCatalog.get(name).json_file)
        ids = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
        by_name = dict(zip(MetadataCatalog.get(name).thing_classes, ids))
        results = []
        for image_id in coco.getImgIds():
            for label, mask in truth():
                encoded = segmentation(mask)
                if isinstance(encoded, list):
                    encoded = mask_util.merge(mask_util.frPyObjects(encoded, *SIZE))
                result = {"image_id": image_id, "category_id": by_name[label], "score": 1.0}
                box = mask_util.toBbox(encoded).tolist()
                results.append(result | {"segmentation": encoded, "bbox": box})
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]


def test_the_truth_itself(tmp_path):
    folder = write(tmp_path)
    assert texts(folder) == ["only 3 images to train on", *texts(folder, WARNING)[1:]]
    names = register_folder(folder).names
    assert perfect_ap(names["val"], "segm") == perfect_ap(names["val"], "bbox") == 100


# Crowds that are none


def crowds(which):
    def change(part):
        for a in part["annotations"]:
            a["iscrowd"] = int(NAMES[a["category_id"] - 1] in which)

    return change


def test_crowds_are_counted_and_named(tmp_path):
    folder = write(tmp_path, crowds(("pair", "ring")))
    expected = (
        "6 of 18 annotations (33%) are crowds (iscrowd 1), of pair and ring, which neither "
        "training nor AP takes for instances; pair and ring have only crowds: CVAT, Datumaro and "
        "supervision set iscrowd for every RLE; if these are single objects, add "
        "--crowds-are-instances"
    )
    assert expected in texts(folder, WARNING)
    notes = register_folder(folder).notes
    assert f"{folder / 'train.json'}: {expected}" in notes
    data = register_folder(folder, crowds_are_instances=True)
    assert data.instances["train"] == [6, 6, 6]
    assert perfect_ap(data.names["val"], "segm") == 100
    assert not any("only crowds" in text for text in texts(folder, crowds_are_instances=True))
    (note,) = [n for n in data.notes if "train.json" in n]
    assert note.endswith("6 crowds (iscrowd 1) taken as instances: annotation 104 and 5 more")


def test_where_all_are_crowds_it_is_not_said_to_annotate_more(tmp_path):
    folder = write(tmp_path, crowds(NAMES))
    (folder / "val.json").unlink()
    (error,) = texts(folder, ERROR)
    assert "18 of 18 annotations are crowds" in error and "--crowds-are-instances" in error
    with pytest.raises(DatasetError, match="--crowds-are-instances") as raised:
        register_folder(folder)
    assert "annotate more" not in str(raised.value)


def test_a_few_crowds_are_what_coco_has(tmp_path):
    def change(part):
        part["annotations"] += [
            copy.deepcopy(a) | {"id": 1000 + a["id"] * 10 + n, "segmentation": rle(block(n))}
            for a in part["annotations"][:2]
            for n in range(20)
        ]
        part["annotations"][-1]["iscrowd"] = 1

    def block(n):
        mask = np.zeros(SIZE, bool)
        mask[80 + n : 110, 60 + 2 * n : 150] = True
        return mask

    assert not any("iscrowd" in text for text in texts(write(tmp_path, change)))


def test_the_option_of_the_commands(tmp_path, capsys):
    folder = write(tmp_path, crowds(NAMES))
    assert cli.main(["check", str(folder), "--quick"]) == 1
    capsys.readouterr()
    assert cli.main(["check", str(folder), "--quick", "--crowds-are-instances"]) == 0
    assert "18 instances\n" in capsys.readouterr().out


# Names of images


@pytest.mark.parametrize(
    ("name", "on_disk"),
    [
        ("/home/somebody/data/img{}.png", "img{}.png"),
        ("../media/upload/1/img{}.png", "img{}.png"),
        ("/data/upload/1/0a1b2c3d-img{}.png", "img{}.png"),
        ("/data/local-files/?d=my%20photos/img{}.png", "img{}.png"),
        ("images\\img{}.png", "img{}.png"),
        ("C:\\data\\img{}.png", "img{}.png"),
        ("my%20photo{}.png", "my photo{}.png"),
        ("https://bucket.example/a/img{}.png?token=x", "img{}.png"),
        ("elsewhere/img{}.png", "img{}.png"),
    ],
)
def test_images_are_found_by_their_names(tmp_path, name, on_disk):
    def change(part):
        for image in part["images"]:
            image["file_name"] = name.format(image["id"])

    folder = write(tmp_path, change)
    for path in folder.glob("*/*.png"):
        path.rename(path.with_name(on_disk.format(path.stem.removeprefix("img"))))
    notes = register_folder(folder).notes
    (note,) = [note for note in notes if "train.json: 3 images are not where" in note]
    assert note.count("\n") == 0
    (note, _) = [text for text in texts(folder, NOTE) if "3 images are not where" in text]
    assert texts(folder, ERROR) == []
    records = DatasetCatalog.get(register_folder(folder).names["train"])
    assert [Path(record["file_name"]).resolve() for record in records] == [
        folder.resolve() / "train" / on_disk.format(i) for i in (1, 2, 3)
    ]


def test_a_name_that_is_there_twice_is_not_guessed(tmp_path):
    def change(part):
        for image in part["images"]:
            image["file_name"] = f"/home/somebody/{image['file_name']}"

    folder = write(tmp_path, change)
    (folder / "copy").mkdir()
    (folder / "copy/img1.png").write_bytes((folder / "train/img1.png").read_bytes())
    with pytest.raises(DatasetError, match="1 of the 3 images in .*train.json are missing"):
        register_folder(folder)


def test_two_records_do_not_share_an_image(tmp_path):
    def change(part):
        for image in part["images"]:
            image["file_name"] = f"{image['id']}/img1.png"

    with pytest.raises(DatasetError, match="missing"):
        register_folder(write(tmp_path, change))


# Categories, and keys of others


def test_the_placeholder_of_a_project_of_one_class(tmp_path):
    def change(part):
        part["categories"] = [
            {"id": 0, "name": "dog", "supercategory": "none"},
            {"id": 1, "name": "dog", "supercategory": "dog"},
        ]
        for annotation in part["annotations"]:
            annotation["category_id"] = 1

    folder = write(tmp_path, change)
    assert register_folder(folder).classes == ["dog"]
    assert not any("class" in text or "categor" in text for text in texts(folder))


def test_two_classes_of_one_name_have_an_ap_each(tmp_path):
    folder = write(tmp_path, lambda part: part["categories"][1].update(name="block"))
    data = register_folder(folder)
    assert data.classes == ["block (1)", "block (2)", "dot", "pair", "ring"]
    assert any("2 categories share their name" in text for text in texts(folder, WARNING))


def keys_of_others(part):
    for annotation in part["annotations"]:
        annotation["keypoints"] = [[1, 2, 2], [3, 4, 2]]
        annotation["attributes"] = {"occluded": False}
    part["categories"][0]["name"] = 7
    for image in part["images"]:
        image |= {"height": float(image["height"]), "width": float(image["width"])}
        image["license"] = [None]
    part["images"][0]["id"] = float(part["images"][0]["id"])


def test_what_the_checker_passes_loads(tmp_path):
    folder = write(tmp_path, keys_of_others)
    assert texts(folder, ERROR) == []
    data = register_folder(folder)
    assert data.classes[0] == "7"
    records = DatasetCatalog.get(data.names["train"])
    assert [len(record["annotations"]) for record in records] == [6, 6, 6]
    assert (records[0]["height"], records[0]["width"]) == SIZE
    assert any("lists of keypoints that are not" in note for note in data.notes)


def test_a_name_that_is_none(tmp_path):
    folder = write(tmp_path, lambda part: part["categories"][2].update(name=None))
    assert any("category 3 has the name None: it must be text" in t for t in texts(folder, ERROR))


def test_a_byte_order_mark(tmp_path):
    folder = write(tmp_path)
    for path in folder.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    data = register_folder(folder)
    assert not any("json:" in note for note in data.notes)
    assert perfect_ap(data.names["val"], "segm") == 100
    assert texts(folder, ERROR) == []


# Masks without a pixel


def normalised(part):
    for annotation in part["annotations"]:
        annotation["segmentation"] = [
            (np.array(p).reshape(-1, 2) / SIZE[::-1]).reshape(-1).tolist()
            for p in annotation["segmentation"]
        ]


def test_normalised_coordinates_are_named_and_read(tmp_path):
    folder = write(tmp_path, normalised, outline)
    (first, _) = [text for text in texts(folder) if "normalised coordinates (0 to 1)" in text]
    assert first.startswith("18 annotations in normalised coordinates")
    data = register_folder(folder)
    assert data.instances["train"] == [6, 6, 6]
    for kind in ("segm", "bbox"):
        assert perfect_ap(data.names["val"], kind, outline) == pytest.approx(100)


def test_what_draws_no_pixel_is_no_instance_anywhere(tmp_path):
    def change(part):
        part["annotations"][2]["segmentation"] = [[20.6, 100.6, 20.9, 100.6, 20.9, 100.9]]

    folder = write(tmp_path, change, outline)
    (text, _) = [text for text in texts(folder, WARNING) if "smaller than a pixel" in text]
    assert text.startswith("1 annotation smaller than a pixel, which training leaves out")
    data = register_folder(folder)
    assert data.instances["train"] == [5, 6, 6] and data.instances["val"] == [5, 6, 6]
    with redirect_stdout(io.StringIO()):
        coco = COCO(MetadataCatalog.get(data.names["val"]).json_file)
    assert len(coco.anns) == 17
    assert all(coco.annToMask(annotation).any() for annotation in coco.anns.values())


# Boxes that are not those of the masks


def corners(box):
    x, y, w, h = box
    return [x, y, x + w, y + h]


@pytest.mark.parametrize(
    "change",
    [
        corners,
        lambda box: [box[1], box[0], box[3], box[2]],
        lambda box: [box[0] - 500, box[1], box[2], box[3]],
        lambda box: [0, 0, 5000, 5000],
        lambda box: [v / 160 for v in box],
        lambda box: None,
        lambda box: [float("nan")] * 4,
        lambda box: box[:3],
        lambda box: [str(v) for v in box],
        lambda box: [box[0], box[1], -box[2], box[3]],
        lambda box: [box[0], box[1], 0, box[3]],
    ],
)
def test_box_ap_is_that_of_the_masks(tmp_path, change):
    def spoil(part):
        for annotation in part["annotations"]:
            annotation["bbox"] = change(annotation["bbox"])

    folder = write(tmp_path, spoil)
    data = register_folder(folder)
    assert perfect_ap(data.names["val"], "bbox") == pytest.approx(100)
    (note,) = [n for n in data.notes if "train.json" in n and "boxes" in n]
    assert "made anew" in note and ": annotation 10" in note
    assert any("made anew" in text for text in texts(folder, WARNING))


def test_boxes_by_other_conventions_stay(tmp_path):
    """Ends that count the last pixel or not, halves of pixels."""

    def change(part):
        for annotation in part["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x + 0.5, y + 0.5, w - 1, h - 1]

    folder = write(tmp_path, change)
    assert not any("boxes" in text for text in texts(folder))


# Repairs are said, one line per kind


def test_each_kind_of_repair_is_one_line(tmp_path):
    def change(part):
        first, second, third, fourth, fifth, sixth = part["annotations"][:6]
        first["bbox"], second["bbox"] = None, [1, 2]
        third["area"] = "9"
        fourth["segmentation"] = [list(map(str, p)) for p in fourth["segmentation"]]
        part["annotations"].append(copy.deepcopy(fifth) | {"id": 999})
        part["annotations"].append(copy.deepcopy(fifth) | {"id": 998})
        part["images"].append(part["images"][0] | {"id": 50})

    folder = write(tmp_path, change, outline)
    data = register_folder(folder)
    notes = [note for note in data.notes if "train.json: " in note]
    for line in (
        "2 annotations left out, the same class and outline as another one of the image: "
        "annotation 999 of img1.png and 1 more",
        "2 boxes that are none (four finite numbers, width and height above 0), made anew: "
        "annotation 101 of img1.png has None and 1 more",
        "1 areas that are no finite number, made anew: annotation 103 of img1.png has '9'",
        "1 annotations with polygons written as text, read: annotation 104 of img1.png",
        "1 images are listed more than once: img1.png",
    ):
        assert [note for note in notes if note.endswith(line)], (line, notes)
    assert len(notes) == 5
    assert perfect_ap(data.names["val"], "segm", outline) > 99
    records = DatasetCatalog.get(data.names["train"])
    assert all(isinstance(v, float) for v in records[0]["annotations"][3]["segmentation"][0])


def test_validation_images_that_are_trained_on(tmp_path):
    folder = write(tmp_path)
    (folder / "val.json").write_text((folder / "train.json").read_text())
    (note,) = [n for n in register_folder(folder).notes if "more than one split" in n]
    assert note.startswith("3 images are in more than one split (train, val), which makes AP too")


# One message with a number


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: [i.pop("height") for i in p["images"]],
            r"images[0] (id 1, 'img1.png') has no height: each needs id, file_name, height, width "
            "(2 more likewise)",
        ),
        (
            lambda p: [a.pop("category_id") for a in p["annotations"]],
            "annotations[0] (id 101, image_id 1) has no category_id: each needs id, image_id, "
            "category_id (17 more likewise)",
        ),
        (
            lambda p: [i.update(width=-1) for i in p["images"]],
            "image 1 (img1.png) has height 120 and width -1: they must be its pixels "
            "(2 more likewise)",
        ),
        (
            lambda p: [a.update(iscrowd=3) for a in p["annotations"]],
            "annotation 101 has iscrowd 3: it must be 0 or 1 (17 more likewise)",
        ),
        (
            lambda p: [a.update(segmentation=rle(np.ones((7, 9)))) for a in p["annotations"]],
            "annotation 101 of img1.png: a mask has size [7, 9], its image [120, 160] (height, "
            "width): encode the masks at the size of the image (17 more likewise)",
        ),
    ],
)
def test_one_message_for_all_records_of_a_kind(tmp_path, change, message):
    folder = write(tmp_path, lambda part: change(part) if part["images"][0]["id"] == 1 else None)
    analysis = examine(find_dataset(folder))
    (error,) = [finding.text for finding in analysis.findings if finding.level == ERROR]
    assert error == f"{folder / 'train.json'}: {message}"
    assert not any(
        "only 0 images" in f.text or "no record names" in f.text for f in analysis.findings
    )
    with pytest.raises(DatasetError) as raised:
        register_folder(folder)
    assert error.startswith(str(raised.value))


def test_broken_images_of_a_kind_are_one_message(tmp_path):
    folder = write(tmp_path)
    for i in (1, 2, 3):
        Image.new("RGB", (50 + i, 60)).save(folder / f"train/img{i}.png")
    errors = texts(folder, ERROR)
    assert len(errors) == 1 and errors[0].endswith("(2 more likewise)")


# Files that are none


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
            "is a pointer of Git LFS: fetch the file by `git lfs pull`",
        ),
        (b"[" * 200_000, "is nested too deeply"),
    ],
)
def test_json_that_is_none(tmp_path, data, message):
    folder = write(tmp_path)
    (folder / "train.json").write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        register_folder(folder)
    assert any(message in text for text in texts(folder, ERROR))


def test_pointers_in_the_place_of_images(tmp_path):
    folder = write(tmp_path)
    for path in folder.glob("train/*.png"):
        path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{path.stem}\n")
    (error,) = texts(folder, ERROR)
    assert "img1.png: is a pointer of Git LFS: fetch the images by `git lfs pull`" in error
    assert error.endswith("(2 more likewise)")


@pytest.mark.parametrize("kind", ["folder", "circle", "pipe"])
def test_something_else_in_the_place_of_an_image(tmp_path, kind):
    folder = write(tmp_path)
    path = folder / "train/img1.png"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path)
    else:
        os.mkfifo(path)
    with pytest.raises(DatasetError, match="1 of the 3 images in .*train.json are missing"):
        register_folder(folder)
    (error,) = texts(folder, ERROR)
    assert "img1.png" in error


def test_classes_that_have_only_crowds_in_a_file_without_splits(tmp_path):
    folder = write(tmp_path, crowds(("ring",)))
    (folder / "val.json").unlink()
    (folder / "train.json").rename(folder / "mine.json")
    (text,) = [text for text in texts(folder, WARNING) if "without instances" in text]
    assert text == "1 class without instances, so they cannot be learnt: ring"


# Polygons through the centres of pixels


def through_centres(mask: np.ndarray) -> list[list[float]]:
    """As ``cv2.findContours`` writes the boxes of the parts."""
    return [
        [x0, y0, x1 - 1, y0, x1 - 1, y1 - 1, x0, y1 - 1]
        for x0, y0, x1, _, _, y1, _, _ in outline(mask)
    ]


def test_polygons_through_the_centres_of_pixels_are_told_by_the_area(tmp_path):
    def change(part):
        for annotation, exact in zip(part["annotations"], content(1, 3, outline)["annotations"]):
            annotation["area"] = exact["area"]

    folder = write(tmp_path, change, through_centres)
    (text, _) = [text for text in texts(folder, WARNING) if "half a pixel" in text]
    assert text.startswith("100% of the polygons are smaller than the area that is stated beside")
    assert "(annotation 101: 841 of 900 pixels)" in text
    assert any("half a pixel" in note for note in register_folder(folder).notes)
    exact = write(tmp_path / "exact", segmentation=outline)
    assert not any("half a pixel" in text for text in texts(exact))


def test_cleaning_leaves_what_is_in_order(tmp_path):
    from isda.data.changes import Changes

    for segmentation in (rle, outline):
        part, changes = content(1, segmentation=segmentation), Changes()
        assert clean_annotations(part, "", changes) == part["annotations"]
        assert not changes and list(changes.lines()) == []
