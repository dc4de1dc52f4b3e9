"""Trained models as graphs that run without this package: ``torch.export`` and ONNX.

A graph takes one image and does everything that depends on the weights, padding, normalisation and
the choice of instances included; what it leaves out is resizing the image, which every library does
in its own way. Deformable attention becomes ``grid_sample``.
"""

import contextlib
import copy
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.layers.mask_ops import _do_paste_mask
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

from isda import strict_json
from isda.errors import UserError
from isda.files import replacing, write_bytes
from isda.meta_arch import ISTR, methods_with
from isda.meta_arch.base import InstanceSegmentor
from isda.meta_arch.declarations import DeclarationError, declared
from isda.modeling.connected_components import largest_components_in_graph
from isda.modeling.postprocessing import best_pairs, maskness
from isda.modeling.refinement import LearnedQueries
from isda.prediction.predictor import Predictor
from isda.structures import SIZE_DIVISIBILITY

__all__ = [
    "OUTPUTS",
    "ExportError",
    "check_target",
    "description",
    "export_program",
    "exportable",
    "save",
]

OUTPUTS = ("scores", "classes", "boxes", "masks")
OPSET = 20
SUFFIXES = (".pt2", ".onnx")
# Below it, levels of one cell would need graphs of their own.
_SMALLEST_SIDE = 3 * SIZE_DIVISIBILITY
_LARGEST_SIDE = 128 * SIZE_DIVISIBILITY
# Sides that nothing divides.
_EXAMPLE_SIZE = (7 * SIZE_DIVISIBILITY - 5, 9 * SIZE_DIVISIBILITY - 11)


class ExportError(UserError, ValueError):
    """A model that cannot be exported; the message says why and what to do."""


class _ExportableModel(nn.Module):
    """An image in, instances out; subclasses are of one meta-architecture each.

    ``forward`` takes ``(H, W, 3)`` uint8, RGB, and returns, with n fixed (smaller only where a
    model chooses queries from an image with fewer tokens than it has queries):

    - scores ``(n,)``, descending; 0 where there is no instance;
    - classes ``(n,)`` int64;
    - boxes ``(n, 4)`` XYXY in pixels of the image, zeros where there is no instance;
    - masks ``(n, H, W)``, probabilities: a pixel is in a mask above the model's threshold.
    """

    def __init__(self, model: nn.Module, image_format: str):
        super().__init__()
        self.model = model
        self.flips_channels = image_format == "BGR"
        self.divisor = math.lcm(SIZE_DIVISIBILITY, max(model.backbone.size_divisibility, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        height, width = image.shape[:2]
        prediction = self.model.predict(self._preprocess(image))[-1]
        return self._select(prediction, height, width)

    def _preprocess(self, image: Tensor) -> ImageList:
        height, width = image.shape[:2]
        channels = image.permute(2, 0, 1).float()
        if self.flips_channels:
            channels = channels.flip(0)
        normalised = (channels - self.model.pixel_mean) / self.model.pixel_std
        # In this form the exporter sees that the strides divide the sides.
        rows, columns = (self._cells(side) * self.divisor for side in (height, width))
        padded = F.pad(normalised, (0, columns - width, 0, rows - height))
        return ImageList(padded[None], [(height, width)])

    def _cells(self, side: int) -> int:
        return (side + self.divisor - 1) // self.divisor


class ExportableISDA(_ExportableModel):
    """ISDA (arXiv 2202.12251)."""

    def _select(self, prediction, height: int, width: int) -> tuple[Tensor, ...]:
        """As :func:`isda.modeling.postprocessing.select_instances`, in a graph's fixed shapes."""
        model = self.model
        scores, queries, classes = best_pairs(prediction.class_logits[0], model.max_instances)
        kernels, features = prediction.kernels[0, queries], prediction.mask_features[0]
        probs = torch.einsum("nc,chw->nhw", kernels, features).sigmoid()
        stride = model.mask_feature_head.mask_stride
        sides = [(side + stride - 1) // stride for side in (height, width)]
        valid = _valid(probs, *sides)
        scores = scores * maskness(probs * valid, model.mask_threshold)
        if model.keep_largest_component:
            probs = largest_components_in_graph(probs, model.mask_threshold, valid)
        scores, order = scores.sort(descending=True)
        padded = F.interpolate(
            probs[order][None], scale_factor=float(stride), mode="bilinear", align_corners=False
        )[0]
        masks = _cropped(padded, height, width)
        inside = masks > model.mask_threshold
        scores = scores * inside.flatten(1).any(dim=1)
        return scores, classes[order], _boxes(inside), masks


# Slices would do, but whether they are contiguous depends on the size of the image, and the
# exporter would decide it once for all.
def _valid(masks: Tensor, height: int, width: int) -> Tensor:
    """``(h, w)``, 1 on the first ``height`` rows and ``width`` columns of ``(n, h, w)``."""
    rows, columns = (torch.arange(side, device=masks.device) for side in masks.shape[1:])
    return ((rows < height)[:, None] & (columns < width)).to(masks.dtype)


def _cropped(masks: Tensor, height: int, width: int) -> Tensor:
    """The first ``height`` rows and ``width`` columns of ``(n, h, w)``."""
    rows, columns = (torch.arange(side, device=masks.device) for side in (height, width))
    return masks.index_select(1, rows).index_select(2, columns)


def _boxes(masks: Tensor) -> Tensor:
    """Tight XYXY boxes of ``(n, H, W)`` bool masks; zeros of an empty one."""
    sides = []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns, rows
        positions = torch.arange(occupied.shape[1], device=masks.device)
        # Beyond the last for those that are empty, so that start and end become 0.
        start = torch.where(occupied, positions, occupied.shape[1]).amin(dim=1)
        end = torch.where(occupied, positions + 1, 0).amax(dim=1)
        sides.append((torch.minimum(start, end), end))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float()


class ExportableISTR(_ExportableModel):
    """ISTR (arXiv 2105.00637)."""

    def __init__(self, model: ISTR, image_format: str):
        super().__init__(model, image_format)
        model.queries = _CroppingQueries(model.queries, len(model.in_features))
        model.refinement.pooler = _DensePooler(model.refinement.pooler)

    def _select(self, prediction, height: int, width: int) -> tuple[Tensor, ...]:
        model = self.model
        scores, queries, classes = best_pairs(prediction.class_logits[0], model.max_instances)
        extents = torch.stack([scores.new_full((), side) for side in (width, height)] * 2)
        boxes = torch.minimum(prediction.boxes[0, queries].clamp(min=0), extents)
        visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        probs = model.mask_embedding.decode(prediction.embeddings[0, queries])
        masks, _ = _do_paste_mask(probs[:, None], boxes, height, width, skip_empty=False)
        masks = torch.where(visible[:, None, None], masks, 0)
        return scores * visible, classes, boxes * visible[:, None], masks


class _CroppingQueries(nn.Module):
    """LearnedQueries of levels without padding, which it then need not slice off."""

    def __init__(self, queries: LearnedQueries, num_levels: int):
        super().__init__()
        self.queries = queries
        self.strides = [4 * 2**index for index in range(num_levels)]

    def forward(
        self, levels: list[Tensor], image_sizes: list[tuple[int, int]], extents: Tensor
    ) -> tuple[Tensor, Tensor]:
        (size,) = image_sizes
        cropped = [
            _cropped(level[0], *((side + stride - 1) // stride for side in size))[None]
            for level, stride in zip(levels, self.strides, strict=True)
        ]
        return self.queries(cropped, image_sizes, extents)


class _DensePooler(nn.Module):
    """Detectron2's ROIPooler, but every level is read, so that no shape depends on the boxes."""

    def __init__(self, pooler: ROIPooler):
        super().__init__()
        self.pooler = pooler

    def forward(self, levels: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """One image's levels ``(1, C, h, w)`` and N boxes → ``(N, C, P, P)``."""
        pooler, (of_image,) = self.pooler, boxes
        numbered = F.pad(of_image.tensor, (1, 0))  # the image's number before the corners
        chosen = assign_boxes_to_levels(
            boxes,
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        regions = 0
        for index, (level, align) in enumerate(zip(levels, pooler.level_poolers, strict=True)):
            regions = regions + align(level, numbered) * (chosen == index)[:, None, None, None]
        return regions


def exportable(model: nn.Module, image_format: str) -> nn.Module:
    """A copy of ``model`` on the CPU, from an image of any size to n instances.

    Args:
        model: of a method that can be exported, in evaluation mode.
        image_format: its channel order, "RGB" or "BGR".

    Raises:
        ExportError: it is of another kind, or needs images of one size.
    """
    if not isinstance(model, InstanceSegmentor):
        raise ExportError(
            f"{type(model).__name__} cannot be exported by this tool, only "
            f"{methods_with('exporter')} can; for R-CNNs take "
            "Detectron2's own tools/deploy/export_model.py"
        )
    try:
        wrapper = declared(type(model), "exporter")
    except DeclarationError as error:
        raise ExportError(str(error)) from error
    if model.backbone.padding_constraints.get("square_size", 0):
        raise ExportError(
            f"the backbone {type(model.backbone).__name__} needs square images of one size, which "
            "cannot be exported yet: take a ResNet, a Swin or a network of torchvision"
        )
    copied = copy.deepcopy(model).cpu().eval()
    vars(copied).pop("predict", None)  # a compiled one, which the exporter does not look into
    return wrapper(copied, image_format).requires_grad_(False)


def export_program(module: nn.Module) -> torch.export.ExportedProgram:
    """``torch.export`` of what :func:`exportable` gives, for images of any size from 96 pixels on.

    Raises:
        ExportError: the sizes of the image cannot be left open.
    """
    example = torch.zeros(*_EXAMPLE_SIZE, 3, dtype=torch.uint8)
    sides = {
        axis: torch.export.Dim(name, min=_SMALLEST_SIDE, max=_LARGEST_SIDE)
        for axis, name in enumerate(("height", "width"))
    }
    with torch.no_grad(), _plain_attention():
        return torch.export.export(
            module,
            (example,),
            dynamic_shapes={"image": sides},
            # That ceil(H / 32) * 32 is not below H and the like is beyond its solver.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """PyTorch's fused multi-head attention is one operator, which ONNX does not have."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def description(predictor: Predictor) -> dict:
    """What whoever runs the graph has to know; it travels in the file as JSON."""
    return {
        "meta_architecture": type(predictor.model).__name__,
        "names": list(predictor.class_names or ()),
        "min_size": predictor.resize.short_edge_length[0],
        "max_size": predictor.resize.max_size,
        "mask_threshold": predictor.model.mask_threshold,
        "intensity": predictor.image_options.intensity,
    }


def check_target(path: Path) -> None:
    """What can be known before a model is exported, which takes its time.

    Raises:
        ExportError: the file's suffix is none of the formats', a folder has its name, or packages
            for ONNX are missing.
    """
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise ExportError(f"{path} is a folder, and the graph is written into a file")
    needed = ("onnx", "onnxscript") if path.suffix == ".onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{path}: writing ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def save(program: torch.export.ExportedProgram, path: Path, info: dict) -> None:
    """Write the graph with its :func:`description`.

    Args:
        path: its suffix decides the format: ``.pt2`` or ``.onnx``.

    Raises:
        ExportError: as :func:`check_target`.
    """
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _save_onnx if path.suffix == ".onnx" else _save_program
    write(program, path, strict_json.dumps(info))


def _save_program(program: torch.export.ExportedProgram, path: Path, info: str) -> None:
    with replacing(path) as file:
        torch.export.save(program, file, extra_files={"isda.json": info})


def _save_onnx(program: torch.export.ExportedProgram, path: Path, info: str) -> None:
    converted = torch.onnx.export(
        program,
        input_names=["image"],
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        verbose=False,
    )
    height, width, _ = converted.model.graph.inputs[0].shape
    converted.rename_axes({height: "height", width: "width"})
    converted.model.metadata_props["isda"] = info
    write_bytes(path, converted.model_proto.SerializeToString())
