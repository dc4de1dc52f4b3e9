"""The generator against loops over pixels and textbook areas."""

import dataclasses
import itertools
import json
import math
import multiprocessing
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from isda.data import shapes
from isda.data.shapes import SHAPE_NAMES, ShapesParameters, draw_shapes, ensure_shapes, write_shapes

ALL = ShapesParameters(classes=SHAPE_NAMES, crowd_share=0.3, empty_share=0.1, seed=5)
# Of the unit circle's inscribed shapes, from their vertices.
AREAS = {
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 5
    * math.sin(math.radians(36))
    * math.cos(math.radians(72))
    / math.cos(math.radians(36)),
    "ring": 0.7 * math.pi,
}


def polygon_of(name, center, radius, angle):
    """Corners of a straight-edged shape, (n, 2) in pixels; independent of the generator."""
    corners = {"square": 4, "triangle": 3, "star": 10}[name]
    directions = angle + np.arange(corners) * 2 * np.pi / corners
    radii = np.full(corners, radius)
    if name == "square":
        directions += np.pi / 4
    if name == "triangle":
        directions += np.pi / 3
    if name == "star":
        radii[1::2] *= math.cos(math.radians(72)) / math.cos(math.radians(36))
    points = np.stack([np.cos(directions), np.sin(directions)], axis=1) * radii[:, None]
    return points + center


def contains(shape, name):
    """Whether pixel centres are inside by more than rounding: True, False, or None (border)."""
    if name in ("circle", "ring"):
        bounds = [1.0] if name == "circle" else [1.0, math.sqrt(0.3)]

        def of_circle(x, y):
            distance = math.dist((x, y), shape.center) / shape.radius
            if min(abs(distance - bound) for bound in bounds) < 1e-9:
                return None
            return distance < 1 and (name == "circle" or distance > math.sqrt(0.3))

        return of_circle
    corners = polygon_of(name, shape.center, shape.radius, shape.angle).astype(np.float32)

    def of_polygon(x, y):
        distance = cv2.pointPolygonTest(corners, (float(x), float(y)), True)
        return None if abs(distance) < 1e-4 else distance > 0

    return of_polygon


@pytest.mark.parametrize("index", range(6))
def test_masks_are_what_the_painter_leaves_visible(index):
    height, width = 40, 53
    parameters = dataclasses.replace(ALL, size=(height, width), crowd_share=0.5, empty_share=0)
    drawn = draw_shapes(index, parameters)
    top = np.full((height, width), -1)
    unsure = np.zeros(top.shape, dtype=bool)
    for shape in drawn.shapes:  # in painting order
        inside = contains(shape, SHAPE_NAMES[shape.class_index])
        (x, y), reach = shape.center, math.ceil(shape.radius) + 1
        for row in range(max(y - reach, 0), min(y + reach + 1, height)):
            for column in range(max(x - reach, 0), min(x + reach + 1, width)):
                verdict = inside(column, row)
                unsure[row, column] |= verdict is None
                if verdict:
                    top[row, column] = shape.instance
    assert unsure.mean() < 0.01
    assert (top >= 0).any()
    for instance, mask in enumerate(drawn.masks):
        assert ((mask == (top == instance)) | unsure).all()
    assert ((drawn.masks.any(axis=0) == (top >= 0)) | unsure).all()


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_an_uncovered_shape_has_its_textbook_area(name):
    parameters = ShapesParameters(
        (200, 200), (name,), (1, 1), (0.4, 0.6), crowd_share=0, empty_share=0
    )
    compared = 0
    for index in range(40):
        drawn = draw_shapes(index, parameters)
        if not drawn.shapes:  # no room was found, as most of it must be in the image
            continue
        (shape,), (mask,) = drawn.shapes, drawn.masks
        if min(*shape.center, *(199 - c for c in shape.center)) > shape.radius:
            area = AREAS[name] * shape.radius**2
            assert mask.sum() == pytest.approx(area, rel=0.01)
            compared += 1
    assert compared >= 3


def test_instances_are_visible_and_disjoint_and_differ_from_the_background():
    for index in range(40):
        drawn = draw_shapes(index, ALL)
        assert drawn.masks.sum(axis=0).max(initial=0) <= 1
        assert len(drawn.masks) == len(drawn.class_indices) == len(drawn.is_crowd)
        for instance, (mask, is_crowd) in enumerate(zip(drawn.masks, drawn.is_crowd)):
            (shape, *others) = [s for s in drawn.shapes if s.instance == instance]
            assert is_crowd == bool(others)
            if not is_crowd:
                whole = AREAS[SHAPE_NAMES[shape.class_index]] * shape.radius**2
                # 0.6 in the image, of which 0.4 visible, up to rasterisation
                assert mask.sum() > 0.6 * 0.4 * whole - 2 * math.pi * shape.radius


def test_shapes_overlap_touch_and_repeat():
    parameters = ShapesParameters(seed=11)
    overlapping = touching = identical = total = 0
    for index in range(50):
        drawn = draw_shapes(index, parameters)
        kinds = [(s.class_index, s.radius, s.angle) for s in drawn.shapes]
        identical += len(kinds) - len(set(kinds))
        total += len(drawn.masks)
        for shape in drawn.shapes:
            near = cv2.dilate(drawn.masks[shape.instance].astype(np.uint8), np.ones((3, 3))) > 0
            others = np.delete(drawn.masks, shape.instance, axis=0).any(axis=0)
            touching += bool((near & others).any())
            overlapping += any(
                math.dist(shape.center, other.center) < 0.8 * shape.radius
                for other in drawn.shapes
                if other is not shape
            )
    assert touching > 0.4 * total
    assert overlapping > 0.1 * total
    assert identical > 0.1 * total


def test_touching_circles_are_as_far_apart_as_their_radii():
    parameters = ShapesParameters(classes=("circle",), seed=4, crowd_share=0)
    tangent = total = 0
    for index in range(50):
        placed = draw_shapes(index, parameters).shapes
        total += len(placed)
        for first, second in itertools.combinations(placed, 2):
            gap = math.dist(first.center, second.center) - first.radius - second.radius
            tangent += -1.5 < gap < 1.5
    assert tangent > 0.2 * total


def test_copies_agree_to_the_pixel():
    compared = 0
    for index in range(40):
        drawn = draw_shapes(index, ShapesParameters(seed=2, crowd_share=0, empty_share=0))
        for first in drawn.shapes:
            for second in drawn.shapes[first.instance + 1 :]:
                if (first.radius, first.angle) != (second.radius, second.angle):
                    continue
                shift = np.subtract(second.center, first.center)
                ys, xs = np.nonzero(drawn.masks[first.instance])
                there = (ys + shift[1], xs + shift[0])
                valid = (np.array(there) >= 0).all(axis=0) & (np.array(there) < 128).all(axis=0)
                ys, xs, there = ys[valid], xs[valid], tuple(np.array(there)[:, valid])
                both = drawn.masks[second.instance][there]
                ours, theirs = drawn.image[ys, xs][both], drawn.image[there][both]
                np.testing.assert_array_equal(ours, theirs)
                compared += both.sum()
    assert compared > 1000


def test_shares_of_crowds_and_empty_images():
    parameters = ShapesParameters(
        (32, 32), instances=(1, 2), diameters=(0.14, 0.3), crowd_share=0.2, empty_share=0.1
    )
    drawn = [draw_shapes(index, parameters) for index in range(200)]
    assert 8 <= sum(len(d.masks) == 0 for d in drawn) <= 35
    crowds = [d for d in drawn if any(d.is_crowd)]
    assert 22 <= len(crowds) <= 60
    assert all(len([s for s in d.shapes if s.instance == 0]) > 5 for d in crowds)
    plain = dataclasses.replace(parameters, crowd_share=0, empty_share=0)
    drawn = [draw_shapes(index, plain) for index in range(100)]
    assert all(len(d.masks) and not any(d.is_crowd) for d in drawn)


def test_an_image_depends_on_seed_index_and_parameters_only(tmp_path):
    for folder, number in (("short", 3), ("long", 6)):
        write_shapes(tmp_path / folder, number, ALL)
    for index in range(3):
        name = f"images/{index:06d}.png"
        assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()
    short, long = (
        json.loads((tmp_path / folder / "instances.json").read_text())["annotations"]
        for folder in ("short", "long")
    )
    assert short == long[: len(short)]
    assert len(short) > 3
    other = draw_shapes(0, dataclasses.replace(ALL, seed=6))
    assert (other.image != draw_shapes(0, ALL).image).any()


def test_files_give_back_what_was_drawn(tmp_path):
    parameters = dataclasses.replace(ALL, size=(40, 90))
    write_shapes(tmp_path, 12, parameters)
    coco = COCO(str(tmp_path / "instances.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(SHAPE_NAMES)
    for index in range(12):
        drawn = draw_shapes(index, parameters)
        (record,) = coco.loadImgs(index + 1)
        image = cv2.imread(str(tmp_path / record["file_name"]))
        np.testing.assert_array_equal(image, drawn.image)
        annotations = coco.imgToAnns[index + 1]
        assert len(annotations) == len(drawn.masks)
        for annotation, mask, class_index, is_crowd in zip(
            annotations, drawn.masks, drawn.class_indices, drawn.is_crowd
        ):
            np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert annotation["category_id"] == class_index + 1
            assert annotation["iscrowd"] == is_crowd
            assert annotation["area"] == mask.sum()
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["bbox"] == box


def test_what_is_there_is_kept_and_what_is_outdated_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "some" / "shapes"
    json_file = ensure_shapes(folder, 2, ALL)
    written = json_file.stat().st_mtime_ns
    assert ensure_shapes(folder, 2, ALL).stat().st_mtime_ns == written
    ensure_shapes(folder, 3, ALL)
    assert len(json.loads(json_file.read_text())["images"]) == 3
    monkeypatch.setattr(shapes, "GENERATOR_VERSION", shapes.GENERATOR_VERSION + 1)
    written = json_file.stat().st_mtime_ns
    assert ensure_shapes(folder, 3, ALL).stat().st_mtime_ns > written
    left = sorted(p.name for p in folder.parent.iterdir())
    assert left == ["shapes", "shapes.lock"]


def test_an_interrupted_generation_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    def fail(index, parameters):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_shapes", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_shapes(tmp_path / "shapes", 2, ALL)
    assert not (tmp_path / "shapes").exists()
    monkeypatch.undo()
    assert ensure_shapes(tmp_path / "shapes", 2, ALL).is_file()


def _generate(folder: Path, barrier, queue):
    barrier.wait()
    json_file = ensure_shapes(folder, 20, ALL)
    content = json.loads(json_file.read_text())
    present = all((folder / image["file_name"]).is_file() for image in content["images"])
    queue.put((present, json_file.stat().st_ino))


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_processes_that_start_at_once_generate_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    arguments = (tmp_path / "shapes", barrier, queue)
    processes = [context.Process(target=_generate, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(present for present, _ in results)
    assert len({inode for _, inode in results}) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ("circle", "hexagon")}, "circle, square, triangle, star, ring"),
        ({"classes": ("circle", "circle")}, "different names"),
        ({"classes": ()}, "got none"),
        ({"size": (16, 128)}, "at least 32 x 32 pixels, got"),
        ({"instances": (5, 2)}, "fewest <= most"),
        ({"diameters": (0.0, 0.5)}, "smallest <= largest <= 1 of the shorter side, and 3 pixels"),
        ({"crowd_share": 0.7, "empty_share": 0.5}, "add up to"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_wrong_parameters_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        ShapesParameters(**values)


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        write_shapes(tmp_path, 0, ALL)


def test_a_thousand_images_take_less_than_a_minute():
    start = time.process_time()
    for index in range(20):
        draw_shapes(index, ShapesParameters(seed=1))
    assert (time.process_time() - start) / 20 < 0.06  # 0.003 on an idle machine
