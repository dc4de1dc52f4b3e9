"""CVAT for images 1.1: the truth, its options, and what is no such file."""

import numpy as np
import pytest
from examples_of_formats import drawn, grid, iou
from known_truth import CLASSES, NAMES, SIZE, compare, instances, parts_and_holes, write_images

from isda.data.errors import DatasetError
from isda.data.formats import Report, detect_format, read_annotations


def runs(mask) -> list[int]:
    """Lengths along the rows, background first."""
    lengths, current, value = [], 0, False
    for pixel in mask.ravel().tolist():
        if pixel != value:
            lengths.append(current)
            current, value = 0, pixel
        current += 1
    return [*lengths, current]


def mask_element(label, mask) -> str:
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    rle = ", ".join(map(str, runs(mask[top:bottom, left:right])))
    return (
        f'<mask label="{label}" source="manual" occluded="0" rle="{rle}" left="{left}" top="{top}" '
        f'width="{right - left}" height="{bottom - top}" z_order="0"></mask>'
    )


def polygon_element(label, path, group=0) -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in path)
    of_group = f' group_id="{group}"' if group else ""
    return (
        f'<polygon label="{label}" occluded="0" points="{points}" z_order="0"{of_group}></polygon>'
    )


def shapes(number: int) -> list[str]:
    """Masks for the ring and the disc, polygons for the others, a group of two for the pair."""
    elements = []
    for label, mask in instances(number):
        outer, holes = parts_and_holes(mask)
        if holes or label == "disc":
            elements.append(mask_element(label, mask))
        else:
            group = 7 if len(outer) > 1 else 0
            elements += [polygon_element(label, path, group) for path in outer]
    return elements


def write(folder, elements=shapes, subset=lambda number: ""):
    write_images(folder / "images")
    images = "".join(
        f'<image id="{n}" name="{name}" subset="{subset(n)}" width="{SIZE[1]}" height="{SIZE[0]}">'
        f"{''.join(elements(n))}</image>"
        for n, name in enumerate(NAMES)
    )
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    text = f'<?xml version="1.0"?><annotations><version>1.1</version>{meta}{images}</annotations>'
    (folder / "annotations.xml").write_text(text)
    return folder


def test_the_truth(tmp_path):
    folder = write(tmp_path, subset=lambda n: "Validation" if n > 3 else "Train")
    report = Report()
    assert detect_format(folder).name == "cvat"
    images = read_annotations(folder, report)
    compare(images)
    assert (report.skipped, report.refused) == ([], []) and report.classes == list(CLASSES)
    assert [image.split for image in images] == ["train"] * 4 + ["val"] * 2
    assert detect_format(folder / "annotations.xml").name == "cvat"
    compare(read_annotations(folder / "annotations.xml", Report()))


def test_shapes_that_are_not_drawn_by_corners(tmp_path):
    elements = [
        '<box label="block" xtl="10" ytl="20" xbr="40" ybr="30"></box>',
        '<box label="block" xtl="10" ytl="20" xbr="40" ybr="30" rotation="90"></box>',
        '<ellipse label="disc" cx="80.0" cy="60.0" rx="30.0" ry="12.0" rotation="30"></ellipse>',
        '<points label="dot" points="3.00,4.00"></points>',
        '<tag label="dot"></tag>',
    ]
    report = Report()
    image, *_ = read_annotations(write(tmp_path, lambda n: elements), report)
    flat, upright, turned = (drawn(i.segmentation, SIZE) for i in image.instances)
    assert flat.sum() == upright.sum() == 300
    assert flat[20:30, 10:40].all() and upright[10:40, 20:30].all()
    xs, ys = grid(SIZE)
    angle = np.radians(30)
    x = (xs - 80) * np.cos(angle) + (ys - 60) * np.sin(angle)
    y = -(xs - 80) * np.sin(angle) + (ys - 60) * np.cos(angle)
    assert iou(turned, (x / 30) ** 2 + (y / 12) ** 2 <= 1) > 0.97
    assert report.reasons() == {"of type points, which has no mask": 6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations><meta></meta><image ", "not valid XML"),
        ("<annotations><meta/><track id='0'></track></annotations>", "is CVAT for video"),
    ],
)
def test_what_cannot_be_read(tmp_path, text, message):
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_annotations(tmp_path, Report())


def test_damaged_masks_are_skipped(tmp_path):
    def elements(number):
        return [mask_element("disc", instances(number)[2][1]).replace('rle="', 'rle="5, ')]

    report = Report()
    images = read_annotations(write(tmp_path, elements), report)
    assert report.reasons() == {"malformed": 6} and not any(i.instances for i in images)


def test_pascal_vocs_boxes_are_not_taken_for_it(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation><object><bndbox></bndbox></object></annotation>")
    with pytest.raises(DatasetError, match=r"has Pascal VOC's boxes \(a.xml\), which are no masks"):
        detect_format(tmp_path)
