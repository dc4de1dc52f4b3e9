import functools
import json
from collections import Counter

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from annotation_files import ASSETS, NUCLEI, SIZE, annotation, box_polygon, compressed, write
from detectron2.structures import BitMasks
from torchvision.ops import roi_align

from isda.data.errors import DatasetError
from isda.mask_dictionary import target_masks
from isda.mask_dictionary.target_masks import AnnotationFile, Chunk, crop_chunk, map_chunks
from isda.modeling.mask_embedding import crop_masks


def crop(path: str, side: int = 28):
    (chunk,) = AnnotationFile(path).chunks()
    return crop_chunk(chunk, side)


def disc(y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    return (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 < radius**2


# --- which annotations, and what they look like


def test_polygons_rle_and_bitmaps_of_one_shape_look_alike(tmp_path):
    mask = disc(20, 30, 14)
    box = mask_util.toBbox(mask_util.encode(np.asfortranarray(mask, np.uint8))).tolist()
    angles = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    circle = np.stack([30 + 14 * np.cos(angles), 20 + 14 * np.sin(angles)], axis=1)
    runs = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(runs)) + 1
    counts = np.diff([0, *edges, len(runs)]).tolist()
    path = write(
        tmp_path / "a.json",
        [
            annotation([circle.reshape(-1).tolist()], box),
            annotation(compressed(mask), box),
            annotation({"size": list(SIZE), "counts": counts}, box),
        ],
    )
    first, second, third = crop(path).masks
    np.testing.assert_array_equal(second, third)
    assert (first & second).sum() / (first | second).sum() > 0.94
    rows, columns = np.ogrid[:28, :28]
    exact = (rows - 13.5) ** 2 + (columns - 13.5) ** 2 < 14**2
    for mask in (first, second):
        assert (mask & exact).sum() / (mask | exact).sum() > 0.94


def test_polygons_are_drawn_as_in_training():
    chunk = next(AnnotationFile(ASSETS / "coco_masks.json").chunks())
    for mask, record in zip(crop_chunk(chunk, 28).masks, chunk.annotations):
        x, y, width, height = record["bbox"]
        # As a corner minus the other: pycocotools rounds vertices, and the last bit can tip one.
        scale = 28 / np.array([x + width - x, y + height - y])
        moved = [(np.reshape(p, (-1, 2)) - (x, y)) * scale for p in record["segmentation"]]
        rles = mask_util.frPyObjects([p.reshape(-1).tolist() for p in moved], 28, 28)
        np.testing.assert_array_equal(mask, mask_util.decode(mask_util.merge(rles)) > 0)


def test_bitmaps_are_averaged_as_in_training(monkeypatch):
    """Against ROIAlign on whole images in float64; windows round otherwise, so halves can tip."""
    monkeypatch.setattr(target_masks, "_CANVAS_PIXELS", 1 << 13)  # several canvases
    chunk = next(AnnotationFile(NUCLEI / "instances_val.json").chunks())
    some = Chunk(chunk.json_file, chunk.annotations[::9], chunk.sizes)
    found = crop_chunk(some, 28).masks
    assert len(found) == len(some.annotations)
    clear = 0
    for mask, record in zip(found, some.annotations):
        x, y, width, height = record["bbox"]
        box = torch.tensor([[0, x, y, x + width, y + height]], dtype=torch.float64)
        bitmap = torch.from_numpy(mask_util.decode(record["segmentation"])).double()
        means = roi_align(bitmap[None, None], box, 28, aligned=True)[0, 0].numpy()
        is_clear = np.abs(means - 0.5) > 1e-4
        np.testing.assert_array_equal(mask[is_clear], means[is_clear] > 0.5)
        clear += is_clear.sum()
    assert clear > 0.99 * found.size


def test_a_bitmap_at_the_border_of_its_image(tmp_path):
    mask = np.ones(SIZE, bool)
    mask[10:30, 10:50] = False
    path = write(tmp_path / "a.json", [annotation(compressed(mask), [0, 0, 60, 40])])
    expected = crop_masks(BitMasks(mask[None]), torch.tensor([[0.0, 0, 60, 40]]), 28)
    np.testing.assert_array_equal(crop(path).masks, expected.numpy())


def test_missing_boxes_are_tight_ones(tmp_path):
    mask, polygon = disc(18, 25, 9.0), [box_polygon(5, 6, 20, 10), box_polygon(30, 2, 4, 4)]
    x, y, width, height = mask_util.toBbox(mask_util.encode(np.asfortranarray(mask, np.uint8)))
    with_boxes = [
        annotation(compressed(mask), [x, y, width, height]),
        annotation(polygon, [5, 2, 29, 14]),
    ]
    without = [annotation(a["segmentation"], None) for a in with_boxes]
    np.testing.assert_array_equal(
        crop(write(tmp_path / "a.json", with_boxes)).masks,
        crop(write(tmp_path / "b.json", without)).masks,
    )


@pytest.mark.usefixtures("careful_pycocotools")
def test_what_is_left_out_is_counted(tmp_path):
    good = [box_polygon(5, 6, 20, 10)]
    runs = {"size": list(SIZE), "counts": [5, 10]}  # does not add up
    path = write(
        tmp_path / "a.json",
        [
            annotation(good),
            annotation(good, iscrowd=1),
            annotation(None),
            annotation([]),
            annotation([[1, 2, 3, 4]]),
            annotation([[1, 2, float("nan"), 4, 5, 6]]),
            annotation([[1, 2, 5000, 4, 5, 6]]),
            annotation(runs),
            annotation({"size": list(SIZE), "counts": "o`@"}),
            annotation({"size": list(SIZE), "counts": [2400]}),
            annotation([box_polygon(100, 6, 20, 10)]),
            annotation(good, [5, 6, 0, 10]),
            annotation(good, [5, 6, 10]),
            annotation(good, ["a", 6, 10, 10]),
            annotation(good, [40, 30, 5, 5]),  # beside its mask
            annotation(compressed(disc(10, 10, 4)), [40, 30, 5, 5]),
            annotation(compressed(disc(10, 10, 4)), [-50, -40, 5, 5]),  # outside the image
            annotation(compressed(disc(10, 10, 4)), [0, 0, 1e7, 1e7]),  # larger than any image
            annotation(good, [5, 6, 1e-6, 1e-6]),  # a corner that is far from the others
        ],
    )
    file = AnnotationFile(path)
    (chunk,) = file.chunks()
    targets = crop_chunk(chunk, 28)
    assert len(targets.masks) == 2 and targets.masks[0].all()
    assert file.crowds() == Counter(crowds=1)
    assert targets.left_out == {
        "without segmentation": 2,
        "malformed": 4,
        "of zero area": 2,
        "outside the image": 1,
        "without a box of positive size": 3,
        "with a box far beyond the image": 1,
        "empty as target masks": 3,
    }


def test_areas_are_the_annotations_or_estimated(tmp_path):
    triangle = [[10, 10, 40, 10, 10, 34]]
    records = [annotation(triangle, [10, 10, 30, 24], area=a) for a in (7.5, None)]
    stated, estimated = crop(write(tmp_path / "a.json", records)).areas
    assert stated == 7.5
    assert estimated == pytest.approx(30 * 24 / 2, rel=0.05)


# --- files that cannot be used


def test_only_crowds(tmp_path):
    path = write(tmp_path / "a.json", [annotation([box_polygon(5, 6, 20, 10)], iscrowd=1)] * 3)
    with pytest.raises(DatasetError) as failure:
        AnnotationFile(path)
    assert str(failure.value) == (
        f"{path}: has no mask (3 crowds do not count): name a file with annotated instances, such "
        "as that of a training set"
    )


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda content: content.update(annotations=[]), r"has no mask \(0 crowds"),
        (lambda content: content.pop("annotations"), "has no list 'annotations'"),
        (lambda content: content["annotations"][0].update(image_id=9), "have an image_id that no"),
    ],
)
def test_unusable_file(tmp_path, change, sentence):
    path = tmp_path / "a.json"
    write(path, [annotation([box_polygon(5, 6, 20, 10)])])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=sentence):
        AnnotationFile(path)


def test_rle_of_another_size_names_its_annotation(tmp_path):
    path = write(tmp_path / "a.json", [annotation(compressed(np.ones((3, 4))))])
    with pytest.raises(
        DatasetError, match=r"a\.json: annotation 1: a mask has size \[3, 4\], its image \[40, 60\]"
    ):
        crop(path)


# --- chunks and processes


def test_chunks_hold_every_annotation_once_and_so_do_shards(monkeypatch):
    monkeypatch.setattr(target_masks, "CHUNK_SIZE", 100)
    file = AnnotationFile(ASSETS / "coco_masks.json")
    ids = [a["id"] for a in file.annotations]
    assert [a["id"] for chunk in file.chunks() for a in chunk.annotations] == ids
    assert [len(chunk) for chunk in file.chunks()] == [100] * 6 + [44]
    shards = [a["id"] for i in range(3) for chunk in file.chunks(i, 3) for a in chunk.annotations]
    assert sorted(shards) == sorted(ids)
    assert list(file.chunks(9, 10)) == []


def ids_of(chunk: Chunk) -> list[int]:
    return [a["id"] for a in chunk.annotations]


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_same_in_the_same_order(workers, monkeypatch):
    monkeypatch.setattr(target_masks, "CHUNK_SIZE", 90)
    file, done = AnnotationFile(ASSETS / "coco_masks.json"), []
    results = list(map_chunks(ids_of, file.chunks(), workers, done.append))
    assert sum(results, []) == [a["id"] for a in file.annotations]
    assert done == [90] * 7 + [14]


def test_an_error_leaves_the_process_as_it_is(tmp_path):
    path = write(tmp_path / "a.json", [annotation(compressed(np.ones((3, 4))))])
    function = functools.partial(crop_chunk, side=28)
    with pytest.raises(DatasetError, match="annotation 1: a mask has size"):
        list(map_chunks(function, AnnotationFile(path).chunks(), 2, lambda number: None))
