"""Pictures of what a model looked at: sampling locations, attention, features, ellipses, boxes.

Images are ``(H, W, 3)`` uint8 in RGB, of the size that the trace's predictor was given.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from detectron2.structures import Instances
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure  # not pyplot: needs no display and keeps no state
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from isda.inspection.traces import ISDATrace, ISTRTrace
from isda.visualization import (
    class_labels,
    draw_instances,
    instance_colors,
    legible,
    write_figure,
)

__all__ = [
    "attention_figure",
    "ellipse_figure",
    "features_figure",
    "principal_colors",
    "sampling_figure",
    "steps_figure",
    "write_figure",
]

_PANEL = 3.4  # inches, the longer side of an image
_MAX_COLUMNS = 4
_SMALLEST_SIDE = 512  # pixels to which small images are enlarged, so that outlines stay thin
_MARKERS = ("o", "s", "^", "D", "v", "P")  # one per level
_QUERY_COLOR = "#00c853"
_FAINT = "#9e9e9e"
_WEIGHTS = "turbo"
_MARGIN = 0.12  # around an image, in its longer sides, to show samples outside
_CLIPPED = 2.0  # percent of the mask features at either end that become the full color
_LOGITS = "RdBu_r"  # white where a logit is zero
_MANY_BOXES = 100  # of more, only those that count are drawn clearly
_ORDER = "cool"  # from the first box of a query to its last


def sampling_figure(
    image: np.ndarray,
    trace: ISDATrace,
    query: int,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> Figure:
    """Where a query looks, decoder layer by layer, colored by attention weight.

    The first panel shows all reference points over the instances with a score of at least
    ``threshold``; the others every point that the query samples (Deformable DETR,
    arXiv 2010.04159, figure 6), the box that it looks around, if the model has boxes, and the
    mask that it predicts after that layer.

    Raises:
        ValueError: the model has no such query.
    """
    trace.check_query(query)
    figure, axes = _panels(image, 1 + len(trace.samples))
    overview, *layers = axes
    _draw_reference_points(overview, image, trace, query, threshold)
    colors = Normalize(0, max(float(s.weights[query].max()) for s in trace.samples))
    for layer, panel in enumerate(layers):
        _show(panel, _faded(image), image, margin=_MARGIN)
        _draw_samples(panel, trace, query, layer, colors)
        instance = trace.instance_of(query, layer)
        _outline(panel, instance)
        outside = trace.attention_outside(layer)[query]
        panel.set_title(
            f"decoder layer {layer + 1}: {_label(instance, names)}\n"
            f"{outside:.0%} of the attention goes outside the image",
            fontsize="small",
        )
    figure.colorbar(
        ScalarMappable(colors, _WEIGHTS), ax=axes, label="attention weight", shrink=0.8, pad=0.01
    )
    figure.legend(handles=_level_legend(trace), loc="outside lower center", ncols=8, fontsize=8)
    return figure


def _draw_reference_points(
    axes: Axes, image: np.ndarray, trace: ISDATrace, query: int, threshold: float
) -> None:
    found = trace.instances[trace.instances.scores >= threshold]
    _show(axes, _painted(image, found.pred_masks), image, margin=_MARGIN)
    points = trace.reference_points_in_pixels().cpu().numpy()
    what = "centres of the first boxes" if trace.has_boxes else "reference points"
    axes.scatter(*points.T, s=8, color="white", edgecolors="black", linewidths=0.5)
    for color, number in zip(instance_colors(len(found)), found.queries.tolist()):
        axes.scatter(*points[number], s=36, color=color, edgecolors="black", linewidths=1)
    _mark(axes, points[query])
    title = f"{what} of {len(points)} queries,\nthat of query {query} marked"
    axes.set_title(title, fontsize="small")


def _draw_samples(axes: Axes, trace: ISDATrace, query: int, layer: int, colors: Normalize) -> None:
    locations = trace.locations_in_pixels(layer)[query].cpu()  # (heads, levels, points, 2)
    weights = trace.samples[layer].weights[query].cpu()  # (heads, levels, points)
    for level in range(locations.shape[1]):
        values, order = weights[:, level].flatten().sort()  # the heaviest on top
        points = locations[:, level].flatten(0, 1)[order]
        axes.scatter(
            *points.T.numpy(),
            c=values.numpy(),
            norm=colors,
            cmap=_WEIGHTS,
            s=22,
            marker=_MARKERS[level % len(_MARKERS)],
            edgecolors="black",
            linewidths=0.4,
        )
    if trace.has_boxes:
        _draw_box(axes, trace.reference_boxes_in_pixels(layer)[query], "black")
    _mark(axes, trace.reference_points_in_pixels(layer)[query].cpu().numpy())


def _mark(axes: Axes, point: np.ndarray) -> None:
    """A cross with a white rim, visible on every ground."""
    for color, width in (("white", 4.5), ("black", 2.5)):
        axes.scatter(*point, s=90, marker="x", color=color, linewidths=width)
    axes.scatter(*point, s=70, marker="x", color=_QUERY_COLOR, linewidths=1.5)


def _level_legend(trace: ISDATrace) -> list[Line2D]:
    style = {"linestyle": "none", "markeredgecolor": "black", "markersize": 6}
    handles = [
        Line2D([], [], marker=marker, color="white", label=f"level of stride {stride}", **style)
        for marker, stride in zip(_MARKERS * len(trace.strides), trace.strides)
    ]
    style |= {"markeredgecolor": _QUERY_COLOR, "markeredgewidth": 2}
    place = "the centre of its box" if trace.has_boxes else "the query's reference point"
    handles.append(Line2D([], [], marker="x", label=place, **style))
    if trace.has_boxes:
        handles.append(Line2D([], [], color="black", label="the box that the query looks around"))
    return [*handles, Line2D([], [], color=_QUERY_COLOR, label="its mask")]


def attention_figure(trace: ISDATrace, query: int) -> Figure:
    """Bars: how much of its attention each head gives to each level, decoder layer by layer.

    Raises:
        ValueError: the model has no such query.
    """
    trace.check_query(query)
    num_layers = len(trace.samples)
    figure = Figure(figsize=(1.2 + 2.6 * num_layers, 3.2), layout="constrained")
    for layer, axes in enumerate(np.atleast_1d(figure.subplots(1, num_layers, sharey=True))):
        shares = trace.attention_per_level(layer)[query].cpu()  # (heads, levels)
        shares = torch.cat([shares, shares.mean(dim=0, keepdim=True)]).numpy()
        heads = [str(head + 1) for head in range(len(shares) - 1)] + ["mean"]
        bottom = np.zeros(len(shares))
        for level, stride in enumerate(trace.strides):
            axes.bar(heads, shares[:, level], bottom=bottom, label=f"stride {stride}")
            bottom += shares[:, level]
        axes.set(title=f"decoder layer {layer + 1}", xlabel="head", ylim=(0, 1))
        axes.margins(x=0.02)
    figure.axes[0].set_ylabel("share of the attention")
    figure.suptitle(f"Attention of query {query} by level", fontsize="medium")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    return figure


def features_figure(
    image: np.ndarray,
    trace: ISDATrace,
    query: int,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> Figure:
    """Mask features, the mask that a query reads out of them, and how scores come about.

    Panels: the photograph under the instances with a score of at least ``threshold``; the first
    three principal components of the mask features as red, green and blue; the query's mask
    probabilities; class probability, maskness and their product of the ten best instances.

    Raises:
        ValueError: the model has no such query.
    """
    trace.check_query(query)
    figure, (photograph, features, probs, scores) = _panels(image, 4)
    found = trace.instances[trace.instances.scores >= threshold]
    _show(photograph, _painted(image, found.pred_masks), image)
    photograph.set_title(f"{len(found)} instances from {threshold:.0%} on", fontsize="small")
    _show_padded(features, image, trace, principal_colors(trace.learned_features()))
    features.set_title("mask features, principal components", fontsize="small")
    heat = trace.mask_probs(query).cpu().numpy()
    shown = _show_padded(probs, image, trace, heat, vmin=0, vmax=1, cmap="magma")
    _outline(probs, trace.instance_of(query))
    figure.colorbar(shown, ax=probs, shrink=0.8).ax.tick_params(labelsize=7)
    label = _label(trace.instance_of(query), names)
    probs.set_title(f"mask probability of query {query}: {label}", fontsize="small")
    _draw_scores(scores, trace, names)
    return figure


def principal_colors(features: Tensor) -> np.ndarray:
    """``(C, h, w)`` → ``(h, w, 3)`` in [0, 1]: the three directions in which features vary most.

    Signs are chosen so that each component's largest loading is positive, so that the same
    features always give the same picture.
    """
    channels, height, width = features.shape
    cells = features.detach().double().cpu().flatten(1).T  # (h·w, C)
    cells = cells - cells.mean(dim=0)
    _, directions = torch.linalg.eigh(cells.T @ cells)  # ascending
    directions = directions.flip(1)[:, :3]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    values = (cells @ (directions * largest.sign())).numpy()
    values = np.pad(values, ((0, 0), (0, 3 - min(channels, 3))))
    low, high = np.percentile(values, (_CLIPPED, 100 - _CLIPPED), axis=0)
    scaled = (values - low) / np.maximum(high - low, np.finfo(float).tiny)
    return scaled.clip(0, 1).reshape(height, width, 3)


def _draw_scores(axes: Axes, trace: ISDATrace, names: Sequence[str] | None) -> None:
    best = slice(None, 10)
    scores = trace.instances.scores[best].numpy()
    classes = trace.class_probs()[best].numpy()
    queries = trace.instances.queries[best].tolist()
    labels = map(legible, class_labels(trace.instances.pred_classes[best].tolist(), names))
    rows = np.arange(len(scores))
    series = {
        "class probability": classes,
        "maskness": scores / np.maximum(classes, np.finfo(np.float32).tiny),
        "score: their product": scores,
    }
    for index, (name, values) in enumerate(series.items()):
        axes.barh(rows + 0.27 * (index - 1), values, height=0.27, label=name)
    ticks = [f"{label}, query {query}" for label, query in zip(labels, queries)]
    axes.set_yticks(rows, ticks, fontsize=7)
    axes.set(xlim=(0, 1), ylim=(max(len(rows), 1) - 0.5, -0.5))
    axes.set_axis_on()
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title("how scores come about", fontsize="small")
    axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.4, -0.05), ncols=3)


def ellipse_figure(
    image: np.ndarray,
    trace: ISDATrace,
    query: int,
    *,
    names: Sequence[str] | None = None,
) -> Figure:
    """How a kernel makes a mask: what it reads out of the features, plus an ellipse.

    Panels: the query's box from the first to the last; the logits that the features give, the
    same for all that looks alike; those of the ellipse with its level sets, zero in bold; their
    sum, whose zero is the mask's outline.

    Raises:
        ValueError: the model has no such query, or its kernels draw no ellipses.
    """
    trace.check_query(query)
    if not trace.ellipse:
        raise ValueError("this model's kernels draw no ellipses: MODEL.ISDA.ELLIPSE is off")
    figure, (photograph, *panels) = _panels(image, 4)
    _show(photograph, image, image)
    _draw_boxes_of(photograph, trace, query)
    features, ellipse = (part.cpu().numpy() for part in trace.mask_logits(query))
    limit = max(float(ellipse.max()), float(np.percentile(np.abs(features), 100 - _CLIPPED)), 1.0)
    instance = trace.instance_of(query)
    shown = {
        "kernel · features": features,
        "ellipse around the last box": ellipse,
        f"their sum: {_label(instance, names)}": features + ellipse,
    }
    style = {"cmap": _LOGITS, "vmin": -limit, "vmax": limit, "alpha": 0.7}
    for panel, (title, values) in zip(panels, shown.items(), strict=True):
        _show(panel, _faded(image), image)
        _show_padded(panel, image, trace, values, **style)
        panel.set_title(title, fontsize="small")
    _draw_level_sets(panels[1], trace, ellipse)
    _outline(panels[2], instance)
    scale = ScalarMappable(Normalize(-limit, limit), _LOGITS)
    bar = figure.colorbar(scale, ax=panels, label="logit of the mask", shrink=0.8, extend="both")
    bar.ax.tick_params(labelsize=7)
    return figure


def _draw_boxes_of(axes: Axes, trace: ISDATrace, query: int) -> None:
    """One query's boxes, from the first to the last."""
    colors = matplotlib.colormaps[_ORDER](np.linspace(0, 1, trace.num_steps + 1))
    names = [_first_boxes(trace), *(f"layer {step}" for step in range(1, trace.num_steps + 1))]
    for step, (color, name) in enumerate(zip(colors, names, strict=True)):
        _draw_box(axes, trace.boxes_in_pixels(step)[query], color, label=name)
    axes.set_title(f"boxes of query {query}", fontsize="small")
    axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)


def _first_boxes(trace: ISDATrace | ISTRTrace) -> str:
    return "from the encoder" if isinstance(trace, ISDATrace) and trace.chosen else "learned"


def _draw_level_sets(axes: Axes, trace: ISDATrace, ellipse: np.ndarray) -> None:
    """The ellipse, in bold where its logit is 0, and those of 2, 4, 8, 16 and 32 times its size."""
    height, width = trace.padded_extent()
    x, y = (
        (np.arange(cells) + 0.5) * extent / cells
        for cells, extent in zip(ellipse.shape[::-1], (width, height), strict=True)
    )
    top = ellipse.max()
    if top <= 0:
        return
    levels = [top * (1 - 4.0**power) for power in range(5, 0, -1)]
    axes.contour(x, y, ellipse, levels=levels, colors="black", linewidths=0.6, linestyles="solid")
    axes.contour(x, y, ellipse, levels=[0], colors="black", linewidths=1.8)


def steps_figure(
    image: np.ndarray,
    trace: ISDATrace | ISTRTrace,
    queries: Sequence[int],
    *,
    names: Sequence[str] | None = None,
) -> Figure:
    """Boxes from the first to those of the last layer or step, with the masks predicted there.

    Args:
        trace: of an ISTR, or of an ISDA with boxes.
        queries: those to color; the boxes of all others are grey.

    Raises:
        ValueError: the model has no such query, or no boxes.
    """
    if isinstance(trace, ISDATrace) and not trace.has_boxes:
        raise ValueError(
            "this ISDA predicts no boxes: only ISTR, and ISDA with MODEL.ISDA.BOXES, do"
        )
    for query in queries:
        trace.check_query(query)
    figure, axes = _panels(image, trace.num_steps + 1)
    unit = "decoder layer" if isinstance(trace, ISDATrace) else "step"
    colors = dict(zip(queries, instance_colors(len(queries))))
    for step, panel in enumerate(axes):
        found = {q: trace.instance_after(q, step) for q in queries} if step else {}
        found = {query: instance for query, instance in found.items() if len(instance)}
        masks = [instance.pred_masks[0].numpy() for instance in found.values()]
        _show(panel, _painted(image, masks, [colors[query] for query in found]), image)
        _draw_boxes(panel, trace.boxes_in_pixels(step), colors)
        title = f"{unit} {step}" if step else f"boxes: {_first_boxes(trace)}"
        if found:
            title += f", mean score {np.mean([float(i.scores[0]) for i in found.values()]):.0%}"
        panel.set_title(title, fontsize="small")
    _label_boxes(axes[-1], trace, colors, names)
    return figure


def _draw_boxes(axes: Axes, boxes: Tensor, colors: dict[int, tuple[float, float, float]]) -> None:
    order = sorted(range(len(boxes)), key=lambda query: query in colors)  # the colored on top
    thin = 0.9 if len(boxes) <= _MANY_BOXES else 0.3
    for query in order:
        width = 1.8 if query in colors else thin
        _draw_box(axes, boxes[query], colors.get(query, _FAINT), linewidth=width)


def _draw_box(axes: Axes, box: Tensor, color, linewidth: float = 1.5, **style) -> None:
    """A box ``(4,)``, XYXY in pixels."""
    left, top, right, bottom = box.tolist()
    style |= {"edgecolor": color, "linewidth": linewidth, "fill": False}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))


def _label_boxes(
    axes: Axes,
    trace: ISDATrace | ISTRTrace,
    colors: dict[int, tuple[float, float, float]],
    names: Sequence[str] | None,
) -> None:
    last = trace.num_steps
    for query, color in colors.items():
        left, top = trace.boxes_in_pixels(last)[query, :2].clamp(min=0).tolist()
        text = _label(trace.instance_after(query, last), names)
        box = {"facecolor": "black", "alpha": 0.7, "pad": 1, "edgecolor": color}
        above = top > 0.05 * axes.get_ylim()[0]  # else there is no room in the image
        style = {"fontsize": 7, "va": "bottom" if above else "top", "clip_on": True}
        axes.text(left, top, text, color="white", bbox=box, **style)


def _panels(image: np.ndarray, count: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of the image's shape, without axes' lines, in rows."""
    columns = min(count, _MAX_COLUMNS)
    rows = -(-count // columns)
    height, width = (_PANEL * side / max(image.shape[:2]) for side in image.shape[:2])
    # Titles of narrow panels need some room as well.
    size = (columns * max(width, 0.7 * _PANEL) + 0.8, rows * (height + 0.5) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel in panels:
        panel.set_axis_off()
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def _show(axes: Axes, picture: np.ndarray, image: np.ndarray, margin: float = 0.0) -> None:
    """A picture of the image, of any resolution, in the image's pixels.

    Pixel (0, 0) covers [0, 1) × [0, 1), as boxes count.
    """
    height, width = image.shape[:2]
    margin *= max(height, width)
    axes.imshow(picture, extent=(0, width, height, 0))
    axes.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin))


def _show_padded(axes: Axes, image: np.ndarray, trace: ISDATrace, values: np.ndarray, **options):
    """Values over the network's padded input, cut to the image; returns what a color bar needs."""
    height, width = trace.padded_extent()
    shown = axes.imshow(values, extent=(0, width, height, 0), **options)
    axes.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    return shown


def _faded(image: np.ndarray) -> np.ndarray:
    """Grey and pale, so that colors on it stand out."""
    grey = 0.5 * image.mean(axis=2, keepdims=True) + 0.5 * 255
    return grey.repeat(3, axis=2).astype(np.uint8)


def _painted(image: np.ndarray, masks, colors=None) -> np.ndarray:
    """Masks over the image, small ones enlarged: outlines have a width in pixels."""
    scale = max(1.0, _SMALLEST_SIDE / max(image.shape[:2]))
    return draw_instances(image, masks, scale=scale, colors=colors)


def _outline(axes: Axes, instance: Instances) -> None:
    """The contour of the mask of at most one instance."""
    for mask in instance.pred_masks.numpy():
        height, width = mask.shape
        padded = np.pad(mask.astype(float), 1)  # closes contours at the image's border
        x, y = np.arange(-0.5, width + 1), np.arange(-0.5, height + 1)
        axes.contour(x, y, padded, levels=[0.5], colors=_QUERY_COLOR, linewidths=1.5)


def _label(instance: Instances, names: Sequence[str] | None) -> str:
    """Class and score of at most one instance."""
    if not len(instance):
        return "no mask"
    (label,) = class_labels(instance.pred_classes.tolist(), names, instance.scores.tolist())
    return legible(label)
