"""Typed values between the parts of a model: predictions, targets, encoded masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor, nn

__all__ = [
    "DensePrediction",
    "DenseTargets",
    "EmbeddedPrediction",
    "EmbeddedTarget",
    "CellMasks",
    "DecoupledCellMasks",
    "RLEMasks",
    "SIZE_DIVISIBILITY",
    "GridPrediction",
    "GridTarget",
    "Locations",
    "NoisedQueries",
    "SetPrediction",
    "SetTarget",
]

SIZE_DIVISIBILITY = 32  # in pixels; the sides of padded images are multiples of it


@dataclass
class SetPrediction:
    """N instances per image, as one decoder layer predicts them.

    Masks are kept factored: the logits of instance n are ``kernels[:, n] · mask_features``, a
    1×1 convolution. Whoever needs masks multiplies the few kernels that count.
    """

    class_logits: Tensor  # (B, N, K)
    kernels: Tensor | None  # (B, N, C); None for proposals, which have boxes only
    # (B, C, h, w), at the mask stride; shared by all layers. For a criterion, of each image the
    # cells that count, (C, P), will do: SetTarget.columns.
    mask_features: Tensor | list[Tensor] | None
    # (B, N, 4) as (centre x, centre y, width, height) relative to the image's valid extent,
    # float32; None in the paper's form.
    boxes: Tensor | None = None

    def queries(self, start: int | None, stop: int | None) -> "SetPrediction":
        """The prediction of some queries: those from ``start`` up to ``stop``."""
        chosen = slice(start, stop)
        return SetPrediction(
            self.class_logits[:, chosen],
            None if self.kernels is None else self.kernels[:, chosen],
            self.mask_features,
            None if self.boxes is None else self.boxes[:, chosen],
        )


@dataclass
class SetTarget:
    """G ground-truth instances of one image.

    Masks over a grid end with the image's valid extent in cells, so they also tell how much of a
    padded prediction counts. Masks at P sampled cells come with the cells' coordinates and with
    weights that make a weighted sum over the cells an estimate of the sum over the grid.
    """

    classes: Tensor  # (G,) int64
    masks: Tensor  # (G, valid h, valid w) or (G, P), in [0, 1], at the mask stride
    boxes: Tensor | None = None  # (G, 4), as those of SetPrediction
    cells: Tensor | None = None  # (2, P) int64: rows, columns
    weights: Tensor | None = None  # (P,) float32

    def columns(self, mask_features: Tensor) -> Tensor:
        """The mask features of one image at the cells that count: ``(C, P)``.

        Args:
            mask_features: ``(C, h, w)``, or ``(C, P)``, which is the result itself.
        """
        if mask_features.dim() == 2:
            return mask_features
        if self.cells is None:
            height, width = self.masks.shape[-2:]
            return mask_features[:, :height, :width].flatten(1)
        rows, columns = self.cells
        cells = rows * mask_features.shape[-1] + columns
        # The derivative of an embedding is fast; that of an index into columns is not.
        return nn.functional.embedding(cells, mask_features.flatten(1).T).T


@dataclass
class NoisedQueries:
    """D queries per image that start from noised ground truths (denoising, training only)."""

    content: Tensor  # (B, D, C)
    boxes: Tensor  # (B, D, 4), as those of SetPrediction
    targets: Tensor  # (B, D) int64: the ground truth that each was made from; -1 on padding
    attention_mask: Tensor  # (B, D + N, D + N) bool, True where a row must not see a column


@dataclass
class EmbeddedPrediction:
    """N instances per image, as one refinement step predicts them: a mask is a short vector.

    The vector describes the mask inside the box; whoever needs masks decodes the few that count.
    """

    class_logits: Tensor  # (B, N, K)
    boxes: Tensor  # (B, N, 4) XYXY in pixels of the padded image, never empty; float32
    embeddings: Tensor  # (B, N, d)


@dataclass
class EmbeddedTarget:
    """G ground-truth instances of one image, each mask cropped to its box and encoded, once."""

    classes: Tensor  # (G,) int64
    boxes: Tensor  # (G, 4) XYXY in pixels
    masks: Tensor  # (G, S, S) bool, inside the box
    embeddings: Tensor  # (G, d)
    image_size: tuple[int, int]  # (height, width) without padding


@dataclass
class CellMasks:
    """The masks of a level's S·S cells, kept factored: kernel · features, as of ``SetPrediction``.

    Whoever needs masks names the few cells that count. Enlarging the finished logits is cheaper
    than enlarging the features, and equal to it: a product with a kernel is a 1×1 convolution.
    """

    kernels: Tensor  # (B, S·S, C); cell i·S + j is in row i and column j
    features: Tensor  # (B, C, h, w)
    biases: Tensor | None = None  # (S·S,)
    scale: int = 1  # the logits are enlarged by it, bilinearly

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the masks."""
        height, width = self.features.shape[-2:]
        return height * self.scale, width * self.scale

    def probs(self, image: int, cells: Tensor) -> Tensor:
        """Mask probabilities of ``(n,)`` cells of an image: ``(n, h·scale, w·scale)``.

        In float32 at least.
        """
        features = _precise(self.features[image])
        # The derivative of an embedding is fast; that of an index is not.
        kernels = _precise(F.embedding(cells, self.kernels[image]))
        logits = kernels @ features.flatten(1)
        if self.biases is not None:
            logits = logits + _precise(self.biases[cells])[:, None]
        logits = logits.view(len(cells), *features.shape[1:])
        if self.scale > 1:
            size = {"scale_factor": float(self.scale), "mode": "bilinear", "align_corners": False}
            logits = F.interpolate(logits[:, None], **size)[:, 0]
        return logits.sigmoid()


@dataclass
class DecoupledCellMasks:
    """The masks of a level's S·S cells as products: of a map of the column and one of the row."""

    columns: Tensor  # (B, S, h, w) logits
    rows: Tensor  # (B, S, h, w) logits

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the masks."""
        return tuple(self.columns.shape[-2:])

    def probs(self, image: int, cells: Tensor) -> Tensor:
        """As of :class:`CellMasks`."""
        side = self.rows.shape[1]
        rows = torch.div(cells, side, rounding_mode="floor")
        factors = [
            _precise(F.embedding(chosen, maps[image].flatten(1))).sigmoid()
            for chosen, maps in ((cells % side, self.columns), (rows, self.rows))
        ]
        return (factors[0] * factors[1]).view(len(cells), *self.size)


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


@dataclass
class GridPrediction:
    """An instance per cell of each level's grid (SOLO), or none, as its class scores tell."""

    class_logits: list[Tensor]  # per level (B, K, S, S)
    masks: list[CellMasks] | list[DecoupledCellMasks]  # per level


@dataclass
class GridTarget:
    """What the n positive cells of a level's grid should predict in one image."""

    cells: Tensor  # (n,) int64: i·S + j, each once
    classes: Tensor  # (n,) int64
    instances: Tensor  # (n,) int64: which of the masks is the cell's
    masks: Tensor  # (m, h, w) bool, over the padded image at the stride of the level's masks


@dataclass
class Locations:
    """The L cells of a feature pyramid, level after level, each row by row (FCOS, 1904.01355)."""

    sizes: list[tuple[int, int]]  # (height, width) of each level, in cells
    strides: list[int]  # of each level, in pixels
    cells: Tensor  # (L, 3) int64: level, row, column

    @classmethod
    def of(
        cls, sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
    ) -> "Locations":
        """Those of levels of these sizes and strides."""
        cells = []
        for level, size in enumerate(sizes):
            sides = [torch.arange(length, device=device) for length in size]
            cells.append(F.pad(torch.cartesian_prod(*sides), (1, 0), value=level))
        return cls([tuple(size) for size in sizes], list(strides), torch.cat(cells))

    @property
    def starts(self) -> list[int]:
        """The number of each level's first location."""
        counts = [height * width for height, width in self.sizes]
        return [sum(counts[:level]) for level in range(len(counts))]

    def strides_of(self, chosen: Tensor) -> Tensor:
        """The strides of some locations: ``(n,)`` int64 numbers → ``(n,)`` float32, pixels."""
        strides = torch.tensor(self.strides, dtype=torch.float32, device=chosen.device)
        return strides[self.cells[chosen, 0]]

    def points(self, chosen: Tensor) -> Tensor:
        """The centres of some locations: ``(n,)`` → ``(n, 2)`` float32 as (x, y), pixels."""
        return (self.cells[chosen][:, [2, 1]] + 0.5) * self.strides_of(chosen)[:, None]


@dataclass
class DensePrediction:
    """What FCOS's head says of every location; what else is asked of few of them is left open."""

    locations: Locations
    class_logits: Tensor  # (B, L, K)
    distances: Tensor  # (B, L, 4) to the box's left, top, right, bottom in strides, at least 0
    centreness: Tensor  # (B, L) logits
    tower: list[Tensor]  # of the boxes: (B, C, h, w) per level, of which one may ask more


@dataclass
class DenseTargets:
    """The P locations that answer for a ground truth, image by image; all others are background."""

    images: Tensor  # (P,) int64
    locations: Tensor  # (P,) int64
    instances: Tensor  # (P,) int64: the ground truth, counted in its own image
    classes: Tensor  # (P,) int64
    distances: Tensor  # (P, 4) above 0, as those of DensePrediction
    centreness: Tensor  # (P,) in (0, 1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Tensor) -> "DenseTargets":
        """Those that a tensor of numbers or of bools chooses."""
        return DenseTargets(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


class RLEMasks:
    """Masks of one image as COCO's run-length code, where ``(n, H, W)`` bool would be too large.

    It stands in the place of that tensor: ``masks[3]`` and iteration give single masks, ``(H, W)``
    bool on the CPU, decoded when they are asked for; a slice, a list or a tensor of indices or of
    bools selects. The code lies in the computer's memory, whatever device a model is on.
    """

    def __init__(self, rles: Sequence[dict], image_size: tuple[int, int]):
        """
        Args:
            rles: n dicts with ``size`` and compressed ``counts`` (a str), as in COCO's files.
            image_size: ``(H, W)``.
        """
        self.rles = list(rles)
        self.image_size = (int(image_size[0]), int(image_size[1]))

    @classmethod
    def encode(cls, masks: Tensor) -> "RLEMasks":
        """The code of ``(n, H, W)`` bool masks."""
        rles = []
        for mask in masks:
            rows, columns = (mask.any(dim=axis).nonzero()[:, 0].tolist() for axis in (1, 0))
            top, left = (edges[0] if edges else 0 for edges in (rows, columns))
            window = mask[top : rows[-1] + 1, left : columns[-1] + 1] if rows else mask[:0, :0]
            rles.append(encode_window(window, (top, left), mask.shape))
        return cls(rles, masks.shape[1:])

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(n, H, W)``, as of the tensor."""
        return (len(self), *self.image_size)

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, item) -> "Tensor | RLEMasks":
        if isinstance(item, int):
            return torch.from_numpy(coco_mask.decode(self.rles[item])).bool()
        item = item.cpu() if isinstance(item, Tensor) else item
        chosen = torch.arange(len(self))[item].tolist()
        return RLEMasks([self.rles[index] for index in chosen], self.image_size)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"RLEMasks(shape={self.shape})"

    def to(self, *args, **kwargs) -> "RLEMasks":
        """Itself: for ``Instances.to``."""
        return self

    def dense(self) -> Tensor:
        """``(n, H, W)`` bool on the CPU: n·H·W bytes."""
        masks = torch.zeros(self.shape, dtype=torch.bool)
        for mask, decoded in zip(masks, self):
            mask.copy_(decoded)
        return masks

    def areas(self) -> Tensor:
        """``(n,)`` int64, pixels."""
        return torch.from_numpy(np.asarray(coco_mask.area(self.rles), np.int64).reshape(-1))

    def boxes(self) -> Tensor:
        """``(n, 4)`` float32 XYXY, tight, pixel edges included; zeros of an empty mask."""
        boxes = np.asarray(coco_mask.toBbox(self.rles), np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return torch.from_numpy(boxes)

    @staticmethod
    def cat(parts: "list[RLEMasks]") -> "RLEMasks":
        """All masks of the parts, in order; for ``Instances.cat``."""
        return RLEMasks([rle for part in parts for rle in part.rles], parts[0].image_size)


def encode_window(window: Tensor, corner: tuple[int, int], image_size: tuple[int, int]) -> dict:
    """COCO's code of a mask that is empty outside a window, without ever making the whole mask.

    Args:
        window: ``(h, w)`` bool.
        corner: ``(top, left)`` of the window in the image.
        image_size: ``(H, W)``.
    """
    (top, left), (height, width) = corner, image_size
    columns = window.T.cpu().numpy().astype(np.int8)  # runs go down the columns
    edges = np.diff(np.pad(columns, ((0, 0), (1, 1))), axis=1)
    starts, ends = (
        (left + column) * height + top + row
        for column, row in (np.nonzero(edges == 1), np.nonzero(edges == -1))
    )
    # What reaches from the last row of a column to the first of the next is one run.
    apart = np.flatnonzero(starts[1:] != ends[:-1])
    if len(starts):
        starts, ends = starts[np.r_[0, apart + 1]], ends[np.r_[apart, len(ends) - 1]]
    bounds = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [height * width]])
    counts = np.diff(bounds).tolist()
    if counts[-1] == 0 and len(counts) > 1:
        counts.pop()
    size = [int(height), int(width)]
    rle = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
    return {"size": size, "counts": rle["counts"].decode()}
