"""ROIs of ImageJ, written by roifile where it is installed, and what is said where it is not."""

import sys
import zipfile

import numpy as np
import pytest
from examples_of_formats import drawn, grid, iou
from known_truth import SIZE, compare, instances, outlines, write_images

from isda.data.errors import DatasetError
from isda.data.formats import Options, Report, detect_format, read_annotations


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    write_images(tmp_path)
    with zipfile.ZipFile(tmp_path / "im0.zip", "w") as archive:
        archive.writestr("0001.roi", b"Iout")
    assert detect_format(tmp_path).name == "imagej"
    monkeypatch.setitem(sys.modules, "roifile", None)
    with pytest.raises(DatasetError, match="not installed: pip install roifile"):
        read_annotations(tmp_path, Report())


def rectangle(roifile, mask: np.ndarray, name: str):
    """The bounds of a mask."""
    ys, xs = mask.nonzero()
    return roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT,
        name=name,
        left=int(xs.min()),
        top=int(ys.min()),
        right=int(xs.max()) + 1,
        bottom=int(ys.max()) + 1,
    )


def rois(roifile, number: int) -> list:
    """One per instance: an outline, a rectangle, or a composite of several paths."""
    result = []
    for index, (label, mask) in enumerate(instances(number)):
        paths = outlines(mask)
        name = f"{index:04d}-{label}"
        if len(paths) > 1:
            coordinates = []
            for path in paths:
                coordinates += [0.0, *map(float, path[0])]
                for point in path[1:]:
                    coordinates += [1.0, *map(float, point)]
                coordinates.append(4.0)
            roi = rectangle(roifile, mask, name)
            roi.shape_roi_size = len(coordinates)
            roi.multi_coordinates = np.array(coordinates, dtype=">f4")
        elif label == "block":
            roi = rectangle(roifile, mask, name)
        else:
            roi = roifile.ImagejRoi.frompoints(np.array(paths[0]), name=name)
        result.append(roi)
    return result


def test_the_truth(tmp_path):
    roifile = pytest.importorskip("roifile")
    for number, path in enumerate(write_images(tmp_path)):
        roifile.roiwrite(path.with_suffix(".zip"), rois(roifile, number))
    report = Report()
    assert detect_format(tmp_path).name == "imagej"
    images = read_annotations(tmp_path, report)
    assert (report.skipped, report.refused) == ([], [])
    for image in images:  # in the order of the archive, which is that of the truth
        expected = instances(int(image.name[2]))
        assert {i.label for i in image.instances} == {"object"}
        for instance, (label, _) in zip(image.instances, expected, strict=True):
            instance.label = label
    compare(images)
    images = read_annotations(tmp_path, Report(), Options(class_name="cell"))
    assert {i.label for image in images for i in image.instances} == {"cell"}


def test_ovals_lines_and_single_files(tmp_path):
    roifile = pytest.importorskip("roifile")
    (path, *_) = write_images(tmp_path)
    types = roifile.ROI_TYPE
    oval = roifile.ImagejRoi(roitype=types.OVAL, left=20, top=30, right=80, bottom=60, name="o")
    line = roifile.ImagejRoi(roitype=types.LINE, x1=1, y1=1, x2=9, y2=9, name="l")
    roifile.roiwrite(tmp_path / "im0_rois.zip", [oval, line])
    oval.tofile(tmp_path / "im1.roi")
    (tmp_path / "im2.zip").write_bytes((tmp_path / "im0_rois.zip").read_bytes()[:-200])
    report = Report()
    images = read_annotations(tmp_path, report)
    assert [image.name for image in images] == ["im0.png", "im1.png"]
    xs, ys = grid(SIZE)
    expected = ((xs - 50) / 30) ** 2 + ((ys - 45) / 15) ** 2 <= 1
    for image in images:
        (instance,) = image.instances
        assert iou(drawn(instance.segmentation, SIZE), expected) > 0.97
    assert report.reasons() == {"of type line, which has no area": 1}
    assert path.name == "im0.png"
