"""Splitting annotated images, and writing them as a folder in COCO's layout."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pycocotools.mask as mask_util

from isda import strict_json
from isda.data.errors import DatasetError
from isda.data.formats.annotated import AnnotatedImage
from isda.data.masks import compressed_rle
from isda.files import copy_file, write_bytes, write_text
from isda.wording import plural

__all__ = ["class_names", "coco_content", "split_images", "write_coco"]


def class_names(images: Sequence[AnnotatedImage], known: Sequence[str] = ()) -> list[str]:
    """The names of all instances' classes: first the ``known`` ones, others by the alphabet."""
    found = {instance.label for image in images for instance in image.instances}
    return [*known, *sorted(found.difference(known))] if found else []


def split_images(
    images: Sequence[AnnotatedImage], val_share: float
) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
    """Training and validation images, such that each class is in both by its share.

    Iterative stratification (Sechidis et al., ECML PKDD 2011) by the classes that an image shows,
    from the rarest class on; a class in more than one image is in both splits. Names alone decide
    what is left to chance, so that the same images are always split alike.

    Args:
        images: at least two.
        val_share: of the validation images among all, between 0 and 1.

    Raises:
        DatasetError: there are fewer than two images.
    """
    if len(images) < 2:
        raise DatasetError(
            f"{plural(len(images), 'image')} cannot be split into training and "
            "validation: annotate more, or name annotations for validation by --val"
        )
    kinds = {image.name: _kinds(image) for image in images}
    counts = Counter(kind for of_image in kinds.values() for kind in of_image)
    wanted_val = {kind: _val_count(count, val_share) for kind, count in counts.items()}
    # Places, and images of each kind, that training and validation still lack.
    num_val = min(max(round(val_share * len(images)), 1), len(images) - 1)
    places = [len(images) - num_val, num_val]
    wanted = [{kind: counts[kind] - wanted_val[kind] for kind in counts}, wanted_val]
    splits: tuple[list, list] = ([], [])
    rest = sorted(images, key=lambda image: hashlib.sha1(image.name.encode()).hexdigest())
    while rest:
        left = Counter(kind for image in rest for kind in kinds[image.name])
        rarest = min(left, key=lambda kind: (left[kind], kind))
        for image in [image for image in rest if rarest in kinds[image.name]]:
            split = max(
                (s for s in (0, 1) if places[s]), key=lambda s: (wanted[s][rarest], places[s])
            )
            splits[split].append(image)
            places[split] -= 1
            for kind in kinds[image.name]:
                wanted[split][kind] -= 1
        rest = [image for image in rest if rarest not in kinds[image.name]]
    return splits


def _kinds(image: AnnotatedImage) -> set[str]:
    """The classes in an image; those without any are a kind of their own."""
    return {instance.label for instance in image.instances} or {""}


def _val_count(count: int, val_share: float) -> int:
    return min(max(round(val_share * count), 1), count - 1)


def write_coco(
    folder: Path, split: str, images: Sequence[AnnotatedImage], classes: Sequence[str]
) -> Path:
    """Writes ``annotations/instances_SPLIT.json`` and copies the images into ``SPLIT/``.

    Args:
        folder: of the data set; made where it is not there.
        split: name of the part, such as ``"train"``.
        images: of this part.
        classes: of all instances, in the order of their ids, from 1.

    Returns:
        The path of the annotation file.
    """
    images = sorted(images, key=lambda image: image.name)
    for image in images:
        target = folder / split / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image.source, Path):
            copy_file(image.source, target)
        else:
            write_bytes(target, image.source.read_bytes())
    content = coco_content(images, [image.name for image in images], classes)
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, strict_json.dumps(content, ensure_ascii=False))
    return path


def coco_content(
    images: Sequence[AnnotatedImage], file_names: Sequence[str], classes: Sequence[str]
) -> dict:
    """The content of a file of annotations.

    Args:
        images: with their instances.
        file_names: of the same images.
        classes: of all instances, in the order of their ids, from 1.
    """
    category_ids = {name: index + 1 for index, name in enumerate(classes)}
    records, annotations = [], []
    for image, file_name in zip(images, file_names, strict=True):
        height, width = image.size
        record = {"id": len(records) + 1, "file_name": file_name}
        records.append(record | {"height": height, "width": width})
        for instance in image.instances:
            ids = {"id": len(annotations) + 1, "image_id": record["id"]}
            ids["category_id"] = category_ids[instance.label]
            measured = _measured(instance.segmentation, image.size)
            annotations.append(ids | measured | {"iscrowd": int(instance.is_crowd)})
    return {
        "images": records,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for name, index in category_ids.items()],
    }


def _measured(segmentation: list | dict, size: tuple[int, int]) -> dict:
    """The segmentation with the area and the tight box of its pixels."""
    rle = compressed_rle(segmentation, size)
    return {
        "segmentation": segmentation,
        "area": int(mask_util.area(rle)),
        "bbox": mask_util.toBbox(rle).tolist(),
    }
