import contextlib
import copy
import io
import logging
import sys
import types
from collections import namedtuple
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools.coco import COCO

from isda import add_isda_config
from isda.data.augmentation import Rotation90Transform
from isda.data.dataset_mapper import InstanceDatasetMapper, build_mapper
from isda.data.errors import DatasetError, ImageError
from isda.data.masks import parse_segmentation

HEIGHT, WIDTH = 60, 90


@pytest.fixture
def file_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def mapper(*augmentations, mask_format="bitmask"):
    return InstanceDatasetMapper(
        is_train=True, augmentations=augmentations, mask_format=mask_format
    )


def dataset_dict(file_name, segmentations, **common):
    annotations = [
        {"segmentation": s, "category_id": i, "bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYWH_ABS}
        for i, s in enumerate(segmentations)
    ]
    annotations = [{**a, **common} for a in annotations]
    return {
        "file_name": file_name,
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 7,
        "annotations": annotations,
    }


def random_polygons(number, seed=0, low=-10):
    """Stars around random centres, some of them partly outside the image."""
    generator = np.random.default_rng(seed)
    polygons = []
    for _ in range(number):
        angles = np.linspace(0, 2 * np.pi, 11, endpoint=False)
        radii = generator.uniform(3, 15, size=11)
        centre = generator.uniform([low, low], [WIDTH - low, HEIGHT - low])
        points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        polygons.append([points.reshape(-1).tolist()])
    return polygons


def draw(polygons, height=HEIGHT, width=WIDTH):
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))).astype(
        bool
    )


def random_bitmaps(number, seed=0):
    return [draw(p) for p in random_polygons(number, seed, low=10)]


def compressed(bitmap):
    return mask_util.encode(np.asfortranarray(bitmap, dtype=np.uint8))


def as_json(bitmap):
    rle = compressed(bitmap)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(bitmap):
    pixels = bitmap.T.reshape(-1)
    changes = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *changes, len(pixels)]).tolist()
    return {"size": list(bitmap.shape), "counts": [0, *runs] if pixels[0] else runs}


def as_bool(bitmap):
    return bitmap


FORMATS = [compressed, as_json, uncompressed, as_bool]


def masks_of(result):
    return result["instances"].gt_masks.tensor.numpy()


def tight_box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


# --- masks


@pytest.mark.parametrize("encode", FORMATS)
@pytest.mark.parametrize("number", [1, 8, 9, 21])
def test_bitmaps_of_every_format_arrive_as_they_are(file_name, encode, number):
    bitmaps = random_bitmaps(number)
    bitmaps[0][:, :] = True  # touches every border
    result = mapper()(dataset_dict(file_name, [encode(b) for b in bitmaps]))
    np.testing.assert_array_equal(masks_of(result), bitmaps)
    assert masks_of(result).dtype == bool


def test_polygons_arrive_as_coco_draws_them(file_name):
    polygons = random_polygons(40)
    two_parts = polygons[0] + polygons[1]
    result = mapper()(dataset_dict(file_name, [*polygons, two_parts]))
    drawn = [draw(p) for p in [*polygons, two_parts]]
    visible = [i for i, mask in enumerate(drawn) if mask.any()]
    np.testing.assert_array_equal(masks_of(result), [drawn[i] for i in visible])
    assert result["instances"].gt_classes.tolist() == visible


def test_formats_mix_and_keep_their_order(file_name):
    bitmaps, polygons = random_bitmaps(4), random_polygons(3, low=15)
    segmentations = [
        polygons[0],
        compressed(bitmaps[0]),
        polygons[1],
        uncompressed(bitmaps[1]),
        as_json(bitmaps[2]),
        polygons[2],
        bitmaps[3],
    ]
    result = mapper()(dataset_dict(file_name, segmentations))
    expected = [s if isinstance(s, list) else None for s in segmentations]
    expected = [draw(s) if s else None for s in expected]
    for index, bitmap in zip((1, 3, 4, 6), bitmaps, strict=True):
        expected[index] = bitmap
    np.testing.assert_array_equal(masks_of(result), expected)
    assert result["instances"].gt_classes.tolist() == list(range(7))
    np.testing.assert_array_equal(
        result["instances"].gt_boxes.tensor, [tight_box(mask) for mask in expected]
    )


@pytest.mark.parametrize("encode", FORMATS)
def test_a_crop_is_a_slice(file_name, encode):
    bitmaps = random_bitmaps(30)
    crop = T.CropTransform(30, 10, 40, 25)
    sample = mapper(crop)
    result = sample(dataset_dict(file_name, [encode(b) for b in bitmaps]))
    slices = [b[10:35, 30:70] for b in bitmaps]
    visible = [i for i, s in enumerate(slices) if s.any()]
    assert 0 < len(visible) < len(bitmaps)
    np.testing.assert_array_equal(masks_of(result), [slices[i] for i in visible])
    assert result["instances"].gt_classes.tolist() == visible
    np.testing.assert_array_equal(
        result["instances"].gt_boxes.tensor, [tight_box(slices[i]) for i in visible]
    )
    lost = len(bitmaps) - len(visible)
    assert sample.left_out == {"without a pixel after augmentation": lost}
    image = np.asarray(Image.open(file_name))[10:35, 30:70]
    np.testing.assert_array_equal(result["image"].permute(1, 2, 0), image)


def test_a_crop_of_polygons_is_a_slice(file_name):
    polygons = random_polygons(30)
    result = mapper(T.CropTransform(30, 10, 40, 25))(dataset_dict(file_name, polygons))
    slices = [draw(p)[10:35, 30:70] for p in polygons]
    # Shifted vertices may round the other way at the borders: at most a few pixels.
    for index, mask, box in zip(
        result["instances"].gt_classes,
        masks_of(result),
        result["instances"].gt_boxes.tensor,
        strict=True,
    ):
        assert (mask != slices[index]).sum() <= 3
        assert box.tolist() == tight_box(mask)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # in Detectron2
@pytest.mark.parametrize("encode", [compressed, None])
def test_flip_and_resize_agree_with_detectron2(file_name, encode):
    augmentations = [T.RandomFlip(), T.ResizeShortestEdge((40, 110), 160, "range")]
    segmentations = random_polygons(20, low=15)
    if encode:
        segmentations = [encode(draw(p)) for p in segmentations]
    theirs = DatasetMapper(
        True,
        augmentations=augmentations,
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    ours = mapper(*augmentations)
    for seed in range(6):
        np.random.seed(seed)
        expected = theirs(dataset_dict(file_name, segmentations))
        np.random.seed(seed)
        result = ours(dataset_dict(file_name, segmentations))
        torch.testing.assert_close(result["image"], expected["image"], rtol=0, atol=0)
        np.testing.assert_array_equal(masks_of(result), masks_of(expected))
        for field in ("gt_boxes", "gt_classes"):
            a, b = (getattr(r["instances"], field) for r in (result, expected))
            assert torch.equal(getattr(a, "tensor", a), getattr(b, "tensor", b))
        assert result["instances"].image_size == tuple(result["image"].shape[1:])


@pytest.mark.parametrize(
    "transform",
    [
        T.HFlipTransform(WIDTH),
        T.VFlipTransform(HEIGHT),
        Rotation90Transform(HEIGHT, WIDTH, 1),
        Rotation90Transform(HEIGHT, WIDTH, 3),
        T.ResizeTransform(HEIGHT, WIDTH, 131, 170),
        T.TransformList([T.HFlipTransform(WIDTH), T.ResizeTransform(HEIGHT, WIDTH, 111, 166)]),
    ],
    ids=["hflip", "vflip", "turn", "three turns", "resize", "flip and resize"],
)
def test_polygons_and_bitmaps_of_one_object_stay_one_object(file_name, transform):
    """Each against the other: vertices moved and drawn, and pixels moved."""
    triangle = [[20.0, 10.0, 75.0, 30.0, 35.0, 50.0]]  # no symmetry that could hide a wrong turn
    result = mapper(transform)(dataset_dict(file_name, [triangle, compressed(draw(triangle))]))
    polygon, bitmap = masks_of(result)
    assert (polygon & bitmap).sum() / (polygon | bitmap).sum() > 0.95
    image = np.asarray(Image.open(file_name))
    np.testing.assert_array_equal(
        result["image"].permute(1, 2, 0), np.ascontiguousarray(transform.apply_image(image))
    )


def test_padding_is_background_of_masks(file_name):
    """Detectron2's own padding value of segmentations is 255."""
    bitmaps = random_bitmaps(9)
    augmentation = T.FixedSizeCrop((100, 120))
    result = mapper(augmentation)(dataset_dict(file_name, bitmaps))
    assert result["image"].shape == (3, 100, 120)
    np.testing.assert_array_equal(masks_of(result)[:, :HEIGHT, :WIDTH], bitmaps)
    assert masks_of(result).sum() == np.sum(bitmaps)


def test_500_instances_agree_with_decoding_each(file_name):
    polygons = random_polygons(250, low=10)
    bitmaps = random_bitmaps(250, seed=1)
    resize = T.ResizeTransform(HEIGHT, WIDTH, 200, 300)
    result = mapper(resize)(dataset_dict(file_name, polygons + [compressed(b) for b in bitmaps]))
    scaled = [[(np.array(p) * (300 / WIDTH)).tolist() for p in parts] for parts in polygons]
    expected = [draw(p, 200, 300) for p in scaled]
    expected += [
        np.asarray(Image.fromarray(b).resize((300, 200), Image.Resampling.NEAREST)) for b in bitmaps
    ]
    assert len(result["instances"]) == 500
    # 300 / WIDTH is not the scale that the transform multiplies with, bit for bit.
    assert (masks_of(result) != expected).sum() <= 5


def test_real_annotations_arrive_as_pycocotools_reads_them():
    nuclei = Path(__file__).parents[2] / "datasets/nuclei_mini"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(nuclei / "instances_val.json")
    for record in load_coco_json(str(nuclei / "instances_val.json"), str(nuclei / "images"))[:8]:
        annotations = coco.imgToAnns[record["image_id"]]
        expected = [coco.annToMask(a) for a in annotations if not a["iscrowd"]]
        np.testing.assert_array_equal(masks_of(mapper()(record)), expected)


def test_polygon_format_keeps_polygons(file_name):
    polygons = random_polygons(5, low=15)
    result = mapper(T.HFlipTransform(WIDTH), mask_format="polygon")(
        dataset_dict(file_name, polygons)
    )
    masks = result["instances"].gt_masks
    assert isinstance(masks, PolygonMasks)
    for polygon, (flipped,) in zip(polygons, masks.polygons, strict=True):
        expected = np.array(polygon[0]).reshape(-1, 2)
        expected[:, 0] = WIDTH - expected[:, 0]
        np.testing.assert_allclose(flipped.reshape(-1, 2), expected)
    boxes = [tight_box(draw(parts)) for parts in masks.polygons]
    assert result["instances"].gt_boxes.tensor.tolist() == boxes


@pytest.mark.parametrize("encode", FORMATS)
def test_polygon_format_refuses_bitmaps(file_name, encode):
    segmentations = [random_polygons(1)[0], encode(random_bitmaps(1)[0])]
    with pytest.raises(DatasetError, match="set INPUT.MASK_FORMAT bitmask") as error:
        mapper(mask_format="polygon")(dataset_dict(file_name, segmentations))
    assert file_name in str(error.value)


# --- what is left out

NAN, INFINITE = float("nan"), float("inf")
GOOD = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0]]
FULL = np.ones((HEIGHT, WIDTH), bool)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[10.0, 10.0, NAN, 10.0, 30.0, 30.0]], "malformed"),
        ([[10.0, 10.0, INFINITE, 10.0, 30.0, 30.0]], "malformed"),
        ([[10.0, 10.0, 5000.0, 10.0, 30.0, 30.0]], "malformed"),
        ([[-5000.0, 10.0, 50.0, 10.0, 30.0, 30.0]], "malformed"),
        ([None], "malformed"),
        ([[None] * 6], "malformed"),
        ([10.0, 10.0, 30.0, 10.0, 30.0, 30.0], "malformed"),  # a list too few
        ([[[10.0, 10.0], [30.0, 10.0], [30.0, 30.0]]], "malformed"),  # a list too many
        ([[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 5.0]], "malformed"),
        ("polygon", "malformed"),
        ({"size": [HEIGHT, WIDTH]}, "malformed"),
        ({"size": None, "counts": "abc"}, "malformed"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "malformed"),
        ({"size": [HEIGHT, WIDTH], "counts": "€"}, "malformed"),
        ({"size": [HEIGHT, WIDTH], "counts": "PP"}, "malformed"),
        ({"size": [HEIGHT, WIDTH], "counts": "P" * 40}, "malformed"),
        ({"size": [HEIGHT, WIDTH], "counts": as_json(FULL)["counts"][:-1]}, "malformed"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 10]}, "malformed"),  # ends too early
        ({"size": [HEIGHT, WIDTH], "counts": [5, HEIGHT * WIDTH]}, "malformed"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}, "malformed"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**70]}, "malformed"),
        (None, "without segmentation"),
        ([], "of zero area"),
        ([[10.0, 10.0, 20.0, 20.0]], "of zero area"),
        ([[10.0, 10.0, 20.0, 10.0, 30.0, 10.0]], "of zero area"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "of zero area"),
        (~FULL, "of zero area"),
        ([[-30.0, 10.0, -10.0, 10.0, -10.0, 30.0]], "outside the image"),
        ([[10.0, 70.0, 30.0, 70.0, 30.0, 90.0]], "outside the image"),
        ([[10.0, 10.0, 10.1, 10.0, 10.1, 10.1]], "without a pixel after augmentation"),
    ],
)
@pytest.mark.usefixtures("careful_pycocotools")
def test_what_cannot_be_trained_on_is_left_out_and_counted(file_name, segmentation, reason):
    sample = mapper()
    result = sample(dataset_dict(file_name, [segmentation, GOOD]))
    assert result["instances"].gt_classes.tolist() == [1]
    np.testing.assert_array_equal(masks_of(result), [draw(GOOD)])
    assert +sample.left_out == {reason: 1}


def test_a_missing_segmentation_key_is_as_none(file_name):
    record = dataset_dict(file_name, [GOOD])
    del record["annotations"][0]["segmentation"]
    sample = mapper()
    assert len(sample(record)["instances"]) == 0
    assert +sample.left_out == {"without segmentation": 1}


def test_short_parts_beside_good_ones_do_no_harm(file_name):
    result = mapper()(dataset_dict(file_name, [[[1.0, 2.0, 3.0, 4.0], *GOOD]]))
    np.testing.assert_array_equal(masks_of(result), [draw(GOOD)])


def test_partly_outside_is_clipped(file_name):
    square = [[-40.0, -40.0, 20.0, -40.0, 20.0, 20.0, -40.0, 20.0]]
    result = mapper()(dataset_dict(file_name, [square]))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:20, :20] = True
    np.testing.assert_array_equal(masks_of(result), [expected])
    assert result["instances"].gt_boxes.tensor.tolist() == [[0, 0, 20, 20]]


@pytest.mark.parametrize("wrong", [(WIDTH, HEIGHT), (HEIGHT + 1, WIDTH)])
@pytest.mark.parametrize("encode", FORMATS)
def test_a_mask_of_another_size_than_the_image_is_an_error(file_name, wrong, encode):
    with pytest.raises(DatasetError, match="encode the masks at the size of the image") as error:
        mapper()(dataset_dict(file_name, [encode(np.ones(wrong, bool))]))
    assert file_name in str(error.value)
    assert str(list(wrong)) in str(error.value)


def test_crowds_are_left_out_and_not_counted(file_name):
    record = dataset_dict(file_name, [GOOD, compressed(FULL), GOOD])
    record["annotations"][1]["iscrowd"] = 1
    record["annotations"][2]["iscrowd"] = 0
    sample = mapper()
    assert sample(record)["instances"].gt_classes.tolist() == [0, 2]
    assert +sample.left_out == {}


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("segmentations", [[], [None]])
def test_nothing_left_is_an_empty_image(file_name, mask_format, segmentations):
    result = mapper(mask_format=mask_format)(dataset_dict(file_name, segmentations))
    instances = result["instances"]
    assert len(instances.gt_boxes) == len(instances.gt_classes) == len(instances.gt_masks) == 0
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_boxes.tensor.shape == (0, 4)
    if mask_format == "bitmask":
        assert isinstance(instances.gt_masks, BitMasks)
        assert instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)


def test_counts_are_logged_at_powers_of_ten_only(file_name, caplog):
    record = dataset_dict(file_name, [None, None, None])
    sample = mapper()
    with caplog.at_level(logging.INFO, logger="isda"):
        for _ in range(40):
            sample(record)
    lines = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert [int(line.split()[0]) for line in lines] == [3, 12, 102]
    assert all("without segmentation" in line and file_name in line for line in lines)


def test_compressed_runs_are_those_that_were_compressed():
    """The string format has differences, signs and several characters a number."""
    generator = np.random.default_rng(0)
    for density in (0.0001, 0.01, 0.5, 0.99):
        bitmap = generator.random((301, 407)) < density
        bitmap[3, 5] = True
        runs = parse_segmentation(compressed(bitmap), bitmap.shape)
        assert runs.tolist() == uncompressed(bitmap)["counts"]


# --- the dict


def test_training_without_annotations_says_so(file_name):
    record = dataset_dict(file_name, [])
    del record["annotations"]
    with pytest.raises(DatasetError, match="no 'annotations'") as error:
        mapper()(record)
    assert file_name in str(error.value)


def test_an_annotation_without_category_says_so(file_name):
    record = dataset_dict(file_name, [GOOD])
    del record["annotations"][0]["category_id"]
    with pytest.raises(DatasetError, match="without category_id") as error:
        mapper()(record)
    assert file_name in str(error.value)


def test_an_image_that_shrinks_to_nothing_says_so(tmp_path):
    Image.fromarray(np.zeros((1, 3000, 3), np.uint8)).save(tmp_path / "line.png")
    record = {"file_name": str(tmp_path / "line.png"), "annotations": []}
    with pytest.raises(DatasetError, match="3000x1.*change the sizes in INPUT") as error:
        mapper(T.ResizeShortestEdge(800, 1333))(record)
    assert "line.png" in str(error.value)


def test_the_dict_stays_as_it_is_and_its_extras_pass(file_name):
    record = dataset_dict(file_name, [GOOD, random_polygons(1)[0]])
    record["neg_category_ids"] = [3, 4]  # as LVIS has them
    before = copy.deepcopy(record)
    result = mapper(T.CropTransform(5, 5, 30, 30), T.Resize((50, 70)))(record)
    assert record == before
    assert result["neg_category_ids"] == [3, 4]
    assert result["image_id"] == 7
    assert (result["height"], result["width"]) == (HEIGHT, WIDTH)
    assert "annotations" not in result


def config(name="isda"):
    cfg = get_cfg()
    add_isda_config(cfg)
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (40, 50, 60), 100
    cfg.INPUT.IMAGE_SIZE = 64
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 30, 60
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute_range"
    cfg.INPUT.CROP.SIZE = [20, 50]
    cfg.INPUT.CROP.RESIZE_BEFORE = (40, 50)
    cfg.INPUT.COLOR_AUG = cfg.INPUT.RANDOM_ROTATE90 = True
    return cfg


@pytest.mark.parametrize("name", ["isda", "isda_lsj", "fixed"])
def test_built_from_config_and_the_same_for_the_same_seed(file_name, name):
    record = dataset_dict(file_name, random_polygons(9) + random_bitmaps(9))
    sample = build_mapper(config(name))
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        results.append([sample(record) for _ in range(5)])
    sizes = [[tuple(r["image"].shape) for r in run] for run in results]
    assert sizes[0] == sizes[1] != sizes[2]
    for a, b in zip(*results[:2], strict=True):
        assert torch.equal(a["image"], b["image"])
        np.testing.assert_array_equal(masks_of(a), masks_of(b))
    for result in results[0] + results[2]:
        boxes = [tight_box(mask) for mask in masks_of(result)]
        assert result["instances"].gt_boxes.tensor.tolist() == boxes


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_boxes_are_tight_again_after_the_crop_of_istr(file_name, mask_format):
    # Or a mask would not fill its box, as those do that the mask dictionary was fitted to.
    cfg = config()
    cfg.INPUT.COLOR_AUG = cfg.INPUT.RANDOM_ROTATE90 = False
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.CROP.PROBABILITY, cfg.INPUT.CROP.TYPE = 1.0, "relative"
    cfg.INPUT.CROP.SIZE = [0.7, 0.7]
    sample, cut = build_mapper(cfg), 0
    np.random.seed(0)
    for _ in range(5):
        result = sample(dataset_dict(file_name, random_polygons(20)))
        instances, size = result["instances"], result["image"].shape[1:]
        masks = instances.gt_masks
        if mask_format == "polygon":
            masks = BitMasks.from_polygon_masks(masks, *size)
        boxes = instances.gt_boxes.tensor
        assert boxes.tolist() == [tight_box(mask) for mask in masks.tensor.numpy()]
        cut += int((boxes[:, :2] == 0).any() or (boxes[:, 2:] == torch.tensor(size[::-1])).any())
    assert cut == 5


def test_inference_resizes_and_drops_annotations(file_name):
    result = build_mapper(config(), is_train=False)(dataset_dict(file_name, [GOOD]))
    assert result["image"].shape == (3, 30, 45)
    assert (result["height"], result["width"]) == (HEIGHT, WIDTH)
    assert "annotations" not in result
    assert "instances" not in result


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("DATASET_MAPPER_NAME", "coco", ["coco", "isda, isda_lsj, fixed"]),
        ("MASK_FORMAT", "rle", ["bitmask", "polygon", "rle"]),
    ],
)
def test_a_wrong_config_value_is_named(key, value, words):
    cfg = config()
    cfg.INPUT[key] = value
    for is_train in (True, False):
        with pytest.raises(ValueError, match=key) as error:
            build_mapper(cfg, is_train)
        assert all(word in str(error.value) for word in words)


def test_missing_sizes_are_filled_in(file_name):
    record = {"file_name": file_name, "annotations": []}
    result = mapper(T.Resize((20, 30)))(record)
    assert (result["height"], result["width"]) == (HEIGHT, WIDTH)


def test_other_size_than_annotated_names_both(file_name):
    record = dataset_dict(file_name, [])
    record["width"] = 91
    with pytest.raises(ImageError, match="90x60.*91x60.*correct width and height") as error:
        mapper()(record)
    assert file_name in str(error.value)


class OneImage(torch.utils.data.Dataset):
    def __init__(self, record):
        self.record, self.mapper = record, mapper()

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.mapper(self.record)


@pytest.mark.parametrize("change", [{"file_name": "nowhere.png"}, {"width": 91}])
def test_the_sentence_survives_a_loader_process(file_name, change):
    record = dataset_dict(file_name, []) | change
    with pytest.raises(ImageError) as here:
        mapper()(record)
    with pytest.raises(ImageError) as there:
        list(torch.utils.data.DataLoader(OneImage(record), num_workers=1, collate_fn=list))
    assert str(here.value) in str(there.value)
    assert here.value.sentence == there.value.sentence == str(here.value)
    assert record["file_name"] in there.value.sentence


@pytest.mark.parametrize("to_polygons", [False, True])
def test_cityscapes_dicts_of_detectron2(tmp_path, monkeypatch, to_polygons):
    """Its loader for the label images, with a stand-in for the table of cityscapesScripts."""
    from detectron2.data.datasets.cityscapes import _cityscapes_files_to_dict

    Label = namedtuple("Label", "id hasInstances ignoreInEval")
    table = types.ModuleType("labels")
    table.id2label = {24: Label(24, True, False), 26: Label(26, True, False)}
    table.name2label = {}
    for name in ("cityscapesscripts", "cityscapesscripts.helpers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", table)
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[5:20, 10:40] = 24001
    ids[30:50, 50:80] = 26000
    ids[52:58, 5:80] = 26  # a crowd
    Image.fromarray(ids).save(tmp_path / "ids.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "image.png")
    files = (str(tmp_path / "image.png"), str(tmp_path / "ids.png"), None, None)
    record = _cityscapes_files_to_dict(files, from_json=False, to_polygons=to_polygons)
    assert len(record["annotations"]) == 3

    result = mapper(T.HFlipTransform(WIDTH))(record)
    assert result["instances"].gt_classes.tolist() == [24, 26]
    for mask, label in zip(masks_of(result), (24001, 26000), strict=True):
        expected = (ids == label)[:, ::-1]
        overlap = (mask & expected).sum() / (mask | expected).sum()
        # OpenCV's contours run through the centres of the border pixels.
        assert overlap == 1 if not to_polygons else overlap > 0.85
