"""Files that the tools themselves wrote: ``files/SOURCE.md`` says by which versions."""

import shutil
from pathlib import Path

import pytest
from examples_of_formats import drawn, iou
from known_truth import NAMES, SIZE, compare, instances, write_images

from isda.data.formats import Report, detect_format, read_annotations

FILES = Path(__file__).parent / "files"


def copied(folder: Path, kind: str, images: str) -> Path:
    shutil.copytree(FILES / kind, folder / kind)
    write_images(folder / kind / images)
    return folder / kind


@pytest.mark.parametrize(
    ("kind", "name", "images"),
    [
        ("datumaro", "datumaro", "images"),
        ("voc", "voc", "JPEGImages"),
        ("cvat", "cvat", "images"),
        ("label_studio", "label-studio", "media"),
    ],
)
def test_the_truth_as_the_tool_wrote_it(tmp_path, kind, name, images):
    folder = copied(tmp_path, kind, images)
    report = Report()
    assert detect_format(folder).name == name
    compare(read_annotations(folder, report))
    assert (report.skipped, report.refused) == ([], [])


def test_what_supervision_loses_in_yolo(tmp_path):
    """Half a pixel all round, and which parts belong together; docs/FORMATS.md says so."""
    images = read_annotations(copied(tmp_path, "yolo", "images"), Report())
    assert [len(image.instances) for image in images] == [7] * 6  # the pair is two
    for image in images:
        masks = [drawn(i.segmentation, SIZE) for i in image.instances if i.label == "dot"]
        (expected,) = (m for n, m in instances(NAMES.index(image.source.name)) if n == "dot")
        assert [mask.sum() for mask in masks] == [4] and iou(masks[0], expected) == 4 / 9
