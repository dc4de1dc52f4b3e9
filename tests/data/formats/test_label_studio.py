"""Label Studio's JSON: the truth in brushes and polygons, all shapes, and odd tasks."""

import json

import numpy as np
import pytest
from examples_of_formats import drawn, grid, iou
from known_truth import NAMES, SIZE, compare, instances, parts_and_holes, write_images

from isda.data.formats import Report, detect_format, read_annotations
from isda.data.formats.label_studio import unpack_bytes


def packed(values, sizes=(3, 4, 8, 16)) -> list[int]:
    """A list of bytes as @thi.ng/rle-pack writes it, from its description."""
    bits: list[str] = [f"{len(values):032b}", f"{8 - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in sizes]
    position = 0
    values = list(map(int, values))
    while position < len(values):
        end = position
        while end < len(values) and values[end] == values[position]:
            end += 1
        is_repeated = end - position > 2
        if not is_repeated:
            while end < len(values) and (end + 1 >= len(values) or values[end] != values[end + 1]):
                end += 1
        end = min(end, position + 2 ** sizes[-1])
        count = end - position
        chosen = next(i for i, size in enumerate(sizes) if count <= 2**size)
        bits += [str(int(is_repeated)), f"{chosen:02b}", f"{count - 1:0{sizes[chosen]}b}"]
        words = values[position : position + 1] if is_repeated else values[position:end]
        bits += [f"{word:08b}" for word in words]
        position = end
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


@pytest.mark.parametrize("seed", range(4))
def test_bytes_are_unpacked(seed):
    generator = np.random.default_rng(seed)
    runs = [np.full(generator.integers(1, 400), generator.integers(0, 256)) for _ in range(40)]
    values = np.concatenate([*runs, generator.integers(0, 256, 100)]).astype(np.uint8)
    assert (unpack_bytes(packed(values)) == values).all()


def brush(mask) -> dict:
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[mask] = (255, 100, 0, 255)
    return {"format": "rle", "rle": packed(pixels.ravel())}


def percent(path) -> list[list[float]]:
    return [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in path]


def result(kind: str, label: str, value: dict, **keys) -> dict:
    value = value | {f"{kind}labels": [label]}
    record = {"id": keys.pop("id", "x"), "type": f"{kind}labels", "value": value}
    record |= {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return record | {"from_name": "label", "to_name": "image"} | keys


def results(number: int) -> list[dict]:
    shapes = []
    for index, (label, mask) in enumerate(instances(number)):
        outer, holes = parts_and_holes(mask)
        if holes or len(outer) > 1:
            shapes.append(result("brush", label, brush(mask), id=f"r{index}"))
        else:
            value = {"points": percent(outer[0]), "closed": True}
            shapes.append(result("polygon", label, value, id=f"r{index}"))
    return shapes


def task(number: int, shapes=results, image="/data/upload/3/0a1b2c3d-{}") -> dict:
    annotation = {"id": number, "was_cancelled": False, "result": shapes(number)}
    data = {"image": image.format(NAMES[number])}
    return {"id": number + 1, "data": data, "annotations": [annotation], "predictions": []}


def write(folder, tasks=None):
    write_images(folder / "images")
    tasks = [task(number) for number in range(6)] if tasks is None else tasks
    (folder / "project-1.json").write_text(json.dumps(tasks))
    return folder


@pytest.mark.parametrize(
    "image", ["/data/upload/3/0a1b2c3d-{}", "/data/local-files/?d=some%20where/{}", "s3://b/k/{}"]
)
def test_the_truth(tmp_path, image):
    folder = write(tmp_path, [task(number, image=image) for number in range(6)])
    report = Report()
    assert detect_format(folder).name == detect_format(folder / "project-1.json").name
    assert detect_format(folder).name == "label-studio"
    compare(read_annotations(folder, report))
    assert (report.skipped, report.refused, report.notes) == ([], [], [])


def test_json_min(tmp_path):
    records = []
    for number, name in enumerate(NAMES):
        shapes = []
        for shape in results(number):
            shapes.append(shape["value"] | {"original_width": SIZE[1], "original_height": SIZE[0]})
        records.append(
            {"image": f"/data/upload/1/{name}", "id": number, "annotation_id": 3, "label": shapes}
        )
    folder = write(tmp_path, records)
    assert detect_format(folder).name == "label-studio"
    compare(read_annotations(folder, Report()))


def test_rectangles_and_ellipses(tmp_path):
    def shapes(number):
        box = {"x": 25.0, "y": 25.0, "width": 25.0, "height": 10.0}
        radii = {"x": 50.0, "y": 50.0, "radiusX": 20.0, "radiusY": 10.0, "rotation": 40}
        return [
            result("rectangle", "block", box | {"rotation": 0}),
            result("rectangle", "block", box | {"rotation": 90}, id="b"),
            result("ellipse", "disc", radii, id="c"),
            result("keypoint", "dot", {"x": 3, "y": 4, "width": 1}, id="d"),
            {"id": "e", "type": "choices", "value": {"choices": ["good"]}},
        ]

    report = Report()
    image, *_ = read_annotations(write(tmp_path, [task(n, shapes) for n in range(6)]), report)
    flat, upright, turned = (drawn(i.segmentation, SIZE) for i in image.instances)
    # The corner (40, 30) stays where it is: 40 pixels to the right, or 40 pixels down.
    assert flat.sum() == upright.sum() == 480
    assert flat[30:42, 40:80].all() and upright[30:70, 28:40].all()
    xs, ys = grid(SIZE)
    angle = np.radians(40)
    x = (xs - 80) * np.cos(angle) + (ys - 60) * np.sin(angle)
    y = -(xs - 80) * np.sin(angle) + (ys - 60) * np.cos(angle)
    assert iou(turned, (x / 32) ** 2 + (y / 12) ** 2 <= 1) > 0.97
    assert report.reasons() == {"of type keypointlabels, which has no mask": 6}


def test_labels_by_a_control_of_their_own(tmp_path):
    """A polygon without labels, and the labels of the same region beside it."""

    def shapes(number):
        (outer,), _ = parts_and_holes(instances(number)[0][1])
        points = {"points": percent(outer)}
        return [
            {"id": "a", "type": "polygon", "value": points},
            {"id": "a", "type": "labels", "value": points | {"labels": ["block"]}},
        ]

    image, *_ = read_annotations(write(tmp_path, [task(n, shapes) for n in range(6)]), Report())
    (instance,) = image.instances
    assert instance.label == "block"
    assert (drawn(instance.segmentation, SIZE) == instances(0)[0][1]).all()


def test_tasks_that_are_not_annotated_or_twice(tmp_path):
    tasks = [task(number) for number in range(6)]
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"] = []
    tasks[3]["annotations"].insert(0, {"result": []})
    report = Report()
    images = read_annotations(write(tmp_path, tasks), report)
    assert [image.name for image in images] == [f"images/im{n}.png" for n in (0, 3, 4, 5)]
    assert [len(image.instances) for image in images] == [6] * 4
    assert [note.split(" of ")[0] + note[note.index(".json") + 5 :] for note in report.notes] == [
        "task 2 is not annotated: it is left out",
        "task 3 is not annotated: it is left out",
        "task 4 has 2 annotations: the last one is taken",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s["value"].update(rle=s["value"]["rle"][:40]), "malformed"),
        (lambda s: s["value"].update(rle="abc"), "malformed"),
        (lambda s: s.update(original_width=80), "with a brush of another size than its image"),
        (lambda s: s["value"].pop("brushlabels"), "without a label"),
        (lambda s: s.update(image_rotation=90), "of an image that was turned in Label Studio"),
    ],
)
def test_brushes_that_cannot_be_used(tmp_path, change, reason):
    def shapes(number):
        shape = result("brush", "ring", brush(instances(number)[5][1]))
        change(shape)
        return [shape]

    report = Report()
    read_annotations(write(tmp_path, [task(n, shapes) for n in range(6)]), report)
    assert report.reasons() == {reason: 6}
