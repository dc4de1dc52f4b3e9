"""Photo, ground truth and prediction side by side, outlines colored by what became of them."""

import base64
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
import pycocotools.mask as mask_util

from isda.data.images import DEFAULT_OPTIONS, ImageOptions, read_image
from isda.data.masks import compressed_rle
from isda.report.markup import Html, tag
from isda.report.outcomes import ImageOutcome
from isda.visualization import brighten

__all__ = ["triptych"]

_LONGEST_SIDE = 640  # pixels that a photo is reduced to
_JPEG_QUALITY = 85


def triptych(
    file_name: str,
    annotations: Iterable[Mapping],
    predictions: Sequence[Mapping],
    outcome: ImageOutcome,
    class_names: Mapping[int, str],
    anchor: str,
    options: ImageOptions = DEFAULT_OPTIONS,
) -> Html:
    """Three panels of an image.

    Args:
        file_name: of the image.
        annotations: its instances with ``segmentation``; crowds are left out.
        predictions: of all images; ``outcome`` says which of them are shown.
        class_names: by category id.
        anchor: unique on the page.
        options: how the image is read.

    Raises:
        ImageError: the image cannot be read.
    """
    image = read_image(file_name, "RGB", options)
    size = height, width = image.shape[:2]
    scale = min(1.0, _LONGEST_SIDE / max(size))
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))
    photo = brighten(cv2.resize(image, shown, interpolation=cv2.INTER_AREA))
    truth = [
        _outline(a["segmentation"], size, shown, outcome.instances[a["id"]], _named(a, class_names))
        for a in annotations
        if a["id"] in outcome.instances
    ]
    found = [
        _outline(
            predictions[index]["segmentation"],
            size,
            shown,
            kind,
            f"{_named(predictions[index], class_names)} {predictions[index]['score']:.0%}",
            outcome.ious[index],
        )
        for index, kind in outcome.predictions.items()
    ]
    source = _data_uri(photo)
    whole = {"width": shown[0], "height": shown[1]}
    photograph = tag("image", href=source, id=anchor, **whole)
    again = tag("use", href=f"#{anchor}")  # the photo is in the file once
    return tag(
        "div",
        _panel("Photo", shown, [photograph]),
        _panel(f"Annotated: {len(truth)}", shown, [again, *truth]),
        _panel(f"Predicted: {len(found)}", shown, [again, *found]),
        class_="triptych",
    )


def _panel(title: str, size: tuple[int, int], parts: Sequence[Html]) -> Html:
    drawing = tag("svg", *parts, viewBox=f"0 0 {size[0]} {size[1]}", role="img", aria_label=title)
    return tag("figure", drawing, tag("figcaption", title))


def _named(instance: Mapping, class_names: Mapping[int, str]) -> str:
    return class_names.get(instance["category_id"], f"class {instance['category_id']}")


def _outline(
    segmentation: list | Mapping,
    size: tuple[int, int],
    shown: tuple[int, int],
    kind: str,
    label: str,
    iou: float | None = None,
) -> Html:
    """A mask's outline in the colors of its kind; pointing at it tells what it is."""
    mask = mask_util.decode(compressed_rle(segmentation, size))
    if mask.shape != (shown[1], shown[0]):
        mask = cv2.resize(mask, shown, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    overlap = "" if iou is None else f", IoU {iou:.2f}"
    title = tag("title", f"{label}: {kind}{overlap}")
    # A contour runs through the centres of the outermost pixels.
    return tag(
        "path",
        title,
        d="".join(_path(contour[:, 0]) for contour in contours),
        class_=f"mask {kind}",
        transform="translate(.5 .5)",
    )


def _path(points: np.ndarray) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points.tolist()) + "Z"


def _data_uri(image: np.ndarray) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
