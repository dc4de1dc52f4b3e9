"""Pictures of instances, and curves of a training: what the demo and the tools draw with.

Images are ``(H, W, 3)`` uint8 in RGB throughout; masks are as Detectron2's ``Visualizer`` takes
them: ``(G, H, W)`` bool, ``BitMasks``, ``PolygonMasks``, or a list of polygons or RLE.
"""

import bisect
import colorsys
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from isda.console import printable
from isda.files import replacing, write_bytes
from isda.structures import RLEMasks

__all__ = [
    "add_title",
    "brighten",
    "class_labels",
    "contact_sheet",
    "draw_annotations",
    "draw_instances",
    "draw_predictions",
    "instance_colors",
    "legible",
    "plot_curves",
    "read_metrics",
    "side_by_side",
    "training_minutes",
    "write_figure",
    "write_image",
]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_GAP = 6  # pixels between panels
_TITLE_HEIGHT = 24  # pixels
_WHITE = 255
_BRIGHT = 200  # what brighten() wants the brightest pixels to be
_LARGE_PIXELS = 2**22  # of an image that Matplotlib is spared
_LARGEST_SIDES = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}  # pixels that codecs take
_LINE, _FONT = 1500, 2500  # pixels of an image's longer side per unit of thickness and font size
# Turning the hue by the golden ratio keeps any number of neighbours in the list apart.
_GOLDEN_RATIO = 0.618034


def instance_colors(count: int) -> list[tuple[float, float, float]]:
    """``count`` bright colors as RGB in [0, 1]; the same at every call."""
    hues = [(0.05 + index * _GOLDEN_RATIO) % 1 for index in range(count)]
    return [colorsys.hsv_to_rgb(hue, 0.85, 1.0) for hue in hues]


def class_labels(
    classes: Sequence[int], names: Sequence[str] | None, scores: Sequence[float] | None = None
) -> list[str]:
    """One label per instance: its class name (its number where there is none) and its score."""
    known = dict(enumerate(names or ()))
    labels = [known.get(index, f"class {index}") for index in classes]
    if scores is None:
        return labels
    return [f"{label} {score:.0%}" for label, score in zip(labels, scores)]


def legible(text: str) -> str:
    """Somebody's text for Matplotlib, which would take $...$ for a formula.

    What is invisible is escaped, as :func:`isda.console.printable` does it for OpenCV's texts.
    """
    return printable(text).replace("$", r"\$")


def draw_instances(
    image: np.ndarray,
    masks,
    *,
    boxes=None,
    labels: Sequence[str] | None = None,
    colors: Sequence[tuple[float, float, float]] | None = None,
    scale: float = 1.0,
    alpha: float = 0.5,
) -> np.ndarray:
    """Paints every instance in a color of its own over the image.

    Args:
        image: ``(H, W, 3)`` RGB.
        masks: G masks, or None to draw the boxes alone.
        boxes: ``Boxes`` or ``(G, 4)``, XYXY in pixels; None draws none.
        labels: G texts; None draws none, which suits images full of small instances.
        colors: G colors as RGB in [0, 1]; None takes :func:`instance_colors`.
        scale: of the output relative to the image.
        alpha: opacity of the masks.

    Returns:
        ``(scale * H, scale * W, 3)``, with at least one pixel per side.
    """
    masks = None if masks is None or len(masks) == 0 else masks
    boxes = None if boxes is None or len(boxes) == 0 else boxes
    if min(image.shape[:2]) * scale < 1:  # a canvas that Matplotlib does not have
        full = draw_instances(image, masks, boxes=boxes, labels=labels, colors=colors, alpha=alpha)
        sides = [max(round(side * scale), 1) for side in image.shape[1::-1]]
        return cv2.resize(full, sides, interpolation=cv2.INTER_AREA)
    if image.shape[1] == 2 and isinstance(masks, Tensor | np.ndarray | BitMasks):
        # Detectron2 would take masks of two columns for lists of points, and fail.
        masks = [mask_util.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    from detectron2.utils.visualizer import Visualizer  # Matplotlib: a second, for drawing alone

    visualizer = Visualizer(image, scale=scale)
    # The image sets the limits; a patch would be measured to widen them, a quarter of all the time.
    visualizer.output.ax.add_patch = visualizer.output.ax.add_artist
    if masks is not None or boxes is not None:
        count = len(boxes if masks is None else masks)
        visualizer.overlay_instances(
            masks=masks,
            boxes=boxes,
            labels=None if labels is None else [legible(label) for label in labels],
            assigned_colors=instance_colors(count) if colors is None else list(colors),
            alpha=alpha,
        )
    return visualizer.get_output().get_image()


def draw_predictions(
    image: np.ndarray,
    instances: Instances,
    names: Sequence[str] | None = None,
    *,
    with_labels: bool = True,
    colors: Sequence[tuple[float, float, float]] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """The image under the ``Instances`` that a model returned for it.

    Args:
        image: ``(H, W, 3)`` RGB, of the size of the predicted masks.
        instances: with ``pred_masks`` or ``pred_boxes``, ``pred_classes`` and ``scores``.
        names: of the classes.
        with_labels: False leaves names, scores and boxes out.
        colors: as of :func:`draw_instances`.
        scale: of the output relative to the image.
    """
    instances = instances.to("cpu")
    masks = instances.pred_masks if instances.has("pred_masks") else None
    labels = boxes = None
    if with_labels:
        scores = instances.scores.tolist()
        labels = class_labels(instances.pred_classes.tolist(), names, scores)
    if masks is None:
        boxes = instances.pred_boxes
    elif isinstance(masks, RLEMasks) or image[..., 0].size > _LARGE_PIXELS:
        return _paint(image, masks, labels, colors or instance_colors(len(masks)), scale)
    return draw_instances(image, masks, boxes=boxes, labels=labels, colors=colors, scale=scale)


def _paint(
    image: np.ndarray,
    masks: Tensor | RLEMasks,
    labels: Sequence[str] | None,
    colors: Sequence[tuple[float, float, float]],
    scale: float,
) -> np.ndarray:
    """As :func:`draw_instances`, mask by mask: of a large image Matplotlib makes gigabytes."""
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    canvas = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    areas = masks.areas() if isinstance(masks, RLEMasks) else masks.flatten(1).sum(dim=1)
    order = areas.argsort(descending=True, stable=True).tolist()
    centres = {i: _paint_mask(canvas, masks[i].numpy().astype(np.uint8), colors[i]) for i in order}
    for index, centre in centres.items():
        if labels is not None and centre is not None:
            _write_label(canvas, labels[index], centre)
    return canvas


def _paint_mask(
    canvas: np.ndarray, mask: np.ndarray, color: tuple[float, float, float]
) -> tuple[int, int] | None:
    """Paints a ``(H, W)`` uint8 mask half transparent; returns the (x, y) amid its box."""
    if mask.shape != canvas.shape[:2]:
        mask = cv2.resize(mask, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return None
    (top, bottom), (left, right) = ((line[0], line[-1] + 1) for line in (rows, columns))
    window, part = (
        np.ascontiguousarray(mask[top:bottom, left:right]),
        canvas[top:bottom, left:right],
    )
    rgb = 255 * np.array(color)
    blends = ((np.arange(256)[:, None] + rgb) / 2).astype(np.uint8)[None]  # (1, 256, 3)
    np.copyto(part, cv2.LUT(np.ascontiguousarray(part), blends), where=window[..., None] > 0)
    contours, _ = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    thickness = max(round(max(canvas.shape) / _LINE), 1)
    cv2.drawContours(canvas, contours, -1, rgb.tolist(), thickness, offset=(int(left), int(top)))
    return int(left + right) // 2, int(top + bottom) // 2


def _write_label(canvas: np.ndarray, text: str, centre: tuple[int, int]) -> None:
    """White on black, moved into the canvas where it would leave it."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, max(max(canvas.shape) / _FONT, 0.4)
    text = printable(text)
    thickness = max(round(size), 1)
    (width, height), below = cv2.getTextSize(text, font, size, thickness)
    x = max(min(centre[0] - width // 2, canvas.shape[1] - width), 0)
    y = max(min(centre[1] + height // 2, canvas.shape[0] - below), height)
    cv2.rectangle(canvas, (x, y - height), (x + width, y + below), (0, 0, 0), cv2.FILLED)
    cv2.putText(canvas, text, (x, y), font, size, (255, 255, 255), thickness, cv2.LINE_AA)


def draw_annotations(
    image: np.ndarray,
    annotations: Sequence[Mapping],
    names: Sequence[str] | None = None,
    *,
    with_labels: bool = True,
    scale: float = 1.0,
) -> np.ndarray:
    """The image under its ground truth, ``annotations`` of Detectron2's standard data set dict.

    An annotation without a segmentation is left out; a crowd is labelled as such.
    """
    shown = [annotation for annotation in annotations if annotation.get("segmentation")]
    labels = None
    if with_labels:
        labels = class_labels([annotation["category_id"] for annotation in shown], names)
        crowds = [annotation.get("iscrowd", 0) for annotation in shown]
        labels = [f"{label} (crowd)" if crowd else label for label, crowd in zip(labels, crowds)]
    masks = [annotation["segmentation"] for annotation in shown]
    return draw_instances(image, masks, labels=labels, scale=scale)


def brighten(image: np.ndarray) -> np.ndarray:
    """A dark image scaled such that its brightest pixels are bright; others as they are.

    Photographs through a fluorescence microscope often use a tenth of the range, which a screen
    shows as black.
    """
    brightest = float(np.percentile(image, 99.8))
    if brightest >= _BRIGHT or brightest == 0:
        return image
    return (image * (_BRIGHT / brightest)).clip(0, 255).astype(np.uint8)


def add_title(image: np.ndarray, title: str) -> np.ndarray:
    """The image under a white strip with ``title``, which shrinks until it fits."""
    strip = np.full((_TITLE_HEIGHT, image.shape[1], 3), _WHITE, np.uint8)
    title = printable(title)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    (width, _), _ = cv2.getTextSize(title, font, size, 1)
    size *= min(1.0, max(image.shape[1] - 4, 1) / max(width, 1))
    cv2.putText(strip, title, (2, _TITLE_HEIGHT - 8), font, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, image])


def side_by_side(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """One row of titled panels, ``{title: image}``, white between them and below shorter ones."""
    return contact_sheet([add_title(image, title) for title, image in panels.items()], len(panels))


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """All images in rows of ``columns``, unscaled, each at the top left of its cell.

    Returns:
        RGB. A row is as high as its highest image, a column as wide as its widest, and white
        gaps are between and around them.

    Raises:
        ValueError: no image, or fewer than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"cannot lay out {len(images)} images in {columns} columns")
    heights = [max(i.shape[0] for i in row) for row in _rows(images, columns)]
    widths = [max(i.shape[1] for i in images[c::columns]) for c in range(min(columns, len(images)))]
    tops, lefts = _starts(heights), _starts(widths)
    sheet = np.full((tops[-1], lefts[-1], 3), _WHITE, np.uint8)
    for index, image in enumerate(images):
        y, x = tops[index // columns], lefts[index % columns]
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def _rows(images: Sequence[np.ndarray], columns: int) -> list[Sequence[np.ndarray]]:
    return [images[start : start + columns] for start in range(0, len(images), columns)]


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each cell begins, and at last the length of the whole sheet."""
    return [_GAP + sum(lengths[:index]) + index * _GAP for index in range(len(lengths) + 1)]


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes an RGB image; the suffix of ``path`` decides the format.

    Raises:
        OSError: the file cannot be written, or OpenCV does not know the suffix.
    """
    path = Path(path)
    limit = _LARGEST_SIDES.get(path.suffix.lower())
    if limit and max(image.shape[:2]) > limit:
        raise OSError(
            f"cannot write {path}: {path.suffix} holds sides of at most {limit} pixels, and the "
            f"picture has {image.shape[1]}x{image.shape[0]} (width x height); use .png"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise OSError(
            f"cannot write {path}: '{path.suffix}' is no image format; use .png or .jpg"
        ) from error
    if not encoded:
        raise OSError(f"cannot write {path}: OpenCV cannot encode this image as '{path.suffix}'")
    write_bytes(path, content)


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The records of a ``metrics.json``, one per iteration, in order.

    A run that was killed may have left half a line: it is skipped with a warning. After a resume,
    or a restart in the same folder, records appear again; the later ones count, and what the
    earlier run wrote from that iteration on is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no record at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no metrics at {path}: give the metrics.json of a training's OUTPUT_DIR"
        )
    records: list[dict] = []
    broken = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        record = _parse_record(line)
        if record is None:
            broken += bool(line.strip())
            continue
        if "total_loss" in record:
            while records and records[-1]["iteration"] > record["iteration"]:
                records.pop()
        # An evaluation is written after the losses of the next iterations.
        place = bisect.bisect_left(records, record["iteration"], key=itemgetter("iteration"))
        if place < len(records) and records[place]["iteration"] == record["iteration"]:
            records[place] |= record
        else:
            records.insert(place, record)
    if broken:
        logger.warning("%s: skipped %d unreadable line(s)", path, broken)
    if not records:
        raise ValueError(f"{path} holds no record yet: has the training written its first line?")
    return records


def _parse_record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
        return None
    # JSON has no NaN: it is written as null.
    return {key: math.nan if value is None else value for key, value in record.items()}


def training_minutes(records: Sequence[Mapping]) -> list[float]:
    """Minutes in training steps up to each record; evaluations and interruptions are left out.

    A record of losses states the seconds of a step (``time``), which count for all steps since the
    one before; other records lie between two of these.

    Raises:
        ValueError: no record states the time of a step.
    """
    iterations, minutes = [-1], [0.0]
    for record in records:
        if "time" in record:
            steps = record["iteration"] - iterations[-1]
            iterations.append(record["iteration"])
            minutes.append(minutes[-1] + steps * record["time"] / 60)
    if len(iterations) == 1:
        raise ValueError("no record states the time of a step")
    return np.interp([record["iteration"] for record in records], iterations, minutes).tolist()


def _series(
    records: Sequence[Mapping], positions: Sequence[float], key: str
) -> tuple[list[float], list[float]]:
    """Positions and values of the records that have ``key``."""
    paired = zip(positions, records, strict=True)
    pairs = [(x, record[key]) for x, record in paired if key in record]
    return [x for x, _ in pairs], [value for _, value in pairs]


def plot_curves(
    runs: Mapping[str, Sequence[Mapping]],
    path: str | os.PathLike,
    *,
    loss: str = "total_loss",
    metrics: Sequence[str] = ("segm/AP", "bbox/AP"),
    over: str = "iteration",
) -> None:
    """Writes one picture: the loss on the left, AP on the right, a color per run.

    Args:
        runs: ``{name: records}``, records as ``read_metrics`` returns them.
        path: of the picture; matplotlib knows .png, .svg and .pdf.
        loss: key of the left curve. Losses of different models have different terms, so only
            their course is comparable, not their values.
        metrics: keys of the right curves, told apart by line style.
        over: "iteration", or "time" for :func:`training_minutes`.

    Raises:
        ValueError: no run has any of the keys, or there are more than four metrics, or ``over`` is
            neither.
    """
    from matplotlib.figure import Figure  # not pyplot: needs no display and keeps no state

    styles = ("-", "--", ":", "-.")
    if len(metrics) > len(styles):
        raise ValueError(f"at most {len(styles)} metrics fit into a picture, got {len(metrics)}")
    if over not in ("iteration", "time"):
        raise ValueError(f"curves are drawn over iteration or time, got {over!r}")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, records) in enumerate(runs.items()):
        positions = _positions(records, over)
        _plot(left, *_series(records, positions, loss), name, f"C{index % 10}", "-")
        for key, style in zip(metrics, styles):
            series = _series(records, positions, key)
            _plot(right, *series, f"{name} {key}", f"C{index % 10}", style, marker="o")
    if not left.lines and not right.lines:
        raise ValueError(f"none of {', '.join((loss, *metrics))} is recorded in {', '.join(runs)}")
    label = "minutes of training" if over == "time" else over
    left.set(xlabel=label, ylabel=loss, yscale="log")
    right.set(xlabel=label, ylabel="AP", ylim=(0, None))
    for axes in (left, right):
        if over == "time":
            axes.set_xlim(0, None)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    write_figure(path, figure)


def write_figure(path: str | os.PathLike, figure: "Figure") -> None:
    """Writes a figure of matplotlib, which knows .png, .jpg, .svg and .pdf.

    Raises:
        OSError: the file cannot be written.
        ValueError: its suffix is of another format.
    """
    path = Path(path) if Path(path).suffix else Path(f"{path}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix[1:])


def _positions(records: Sequence[Mapping], over: str) -> list[float]:
    if over == "time" and records:
        return training_minutes(records)
    return [record["iteration"] for record in records]


def _plot(axes, positions, values, label: str, color: str, style: str, marker: str = "") -> None:
    if positions:
        marker = "o" if len(positions) == 1 else marker  # a line needs two points to be seen
        look = {"color": color, "marker": marker, "markersize": 3}
        axes.plot(positions, values, style, label=legible(label), **look)
