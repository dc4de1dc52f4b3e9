"""Pascal VOC's pair of folders: palettes and colours, a label map or VOC's own classes."""

import numpy as np
import pytest
from known_truth import CLASSES, NAMES, SIZE, compare, instances, write_images
from PIL import Image

from isda.data.formats import Report, detect_format, read_annotations


def colour(number: int) -> tuple[int, int, int]:
    """Of VOC's development kit, channel by channel and bit by bit."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= ((number >> (3 * place + channel)) & 1) << (7 - place)
    return tuple(channels)


def test_colours():
    assert [colour(n) for n in (1, 2, 3, 15, 255)] == [
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (192, 128, 128),
        (224, 224, 192),
    ]


def save(path, numbers, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "palette":
        image = Image.fromarray(numbers.astype(np.uint8), "P")
        image.putpalette([value for n in range(256) for value in colour(n)])
    else:
        image = Image.fromarray(np.array([colour(n) for n in range(256)], np.uint8)[numbers])
    image.save(path)


def write(folder, kind, with_map=True, numbers=(1, 2, 3, 4, 5)):
    write_images(folder / "JPEGImages")
    for number, name in enumerate(NAMES):
        objects, classes = np.zeros(SIZE, int), np.zeros(SIZE, int)
        for index, (label, mask) in enumerate(instances(number), start=1):
            objects[mask], classes[mask] = index, numbers[CLASSES.index(label)]
        objects[0], classes[0] = 255, 255  # a border that belongs to nobody
        save(folder / "SegmentationObject" / name, objects, kind)
        save(folder / "SegmentationClass" / name, classes, kind)
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    for split, part in (("train", NAMES[:4]), ("val", NAMES[4:])):
        text = "\n".join(name.removesuffix(".png") for name in part)
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text(text)
    if with_map:
        lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        lines += [f"{n}:{','.join(map(str, colour(i)))}::" for n, i in zip(CLASSES, numbers)]
        (folder / "labelmap.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("kind", ["palette", "colours"])
def test_the_truth(tmp_path, kind):
    folder = write(tmp_path, kind)
    report = Report()
    assert detect_format(folder).name == "voc"
    images = read_annotations(folder, report)
    compare(images)
    assert (report.skipped, report.refused) == ([], []) and report.classes == list(CLASSES)
    assert [image.split for image in images] == ["train"] * 4 + ["val"] * 2


def test_the_classes_of_voc(tmp_path):
    folder = write(tmp_path, "palette", with_map=False, numbers=(1, 8, 12, 15, 20))
    images = read_annotations(folder, Report())
    labels = {instance.label for image in images for instance in image.instances}
    assert labels == {"aeroplane", "cat", "dog", "person", "tvmonitor"}


def test_objects_without_a_class_and_files_that_lack(tmp_path):
    folder = write(tmp_path, "palette")
    save(folder / "SegmentationClass/im0.png", np.zeros(SIZE, int), "palette")
    (folder / "SegmentationClass/im1.png").unlink()
    save(folder / "SegmentationObject/im2.png", np.zeros((60, 80), int), "palette")
    (folder / "JPEGImages/im3.png").unlink()
    report = Report()
    images = read_annotations(folder, report)
    assert report.reasons() == {"without a class in SegmentationClass": 6}
    assert [image.name for image in images] == ["im0.png", "im4.png", "im5.png"]
    one, two, three = report.refused
    assert "im1.png: the mask cannot be read" in one and "80x60 pixels" in two
    assert "its image im3 is not in" in three
