"""Large images, of which a model sees one window after the other."""

import logging
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn
from tqdm import tqdm

from isda.data.window_reading import ArrayReader, WindowReader
from isda.engine.architectures import has_masks
from isda.engine.scaled_inference import ScaledInference
from isda.modeling.postprocessing import fits_in_memory
from isda.tiles.errors import TilesError
from isda.tiles.grid import Grid
from isda.tiles.merging import merge_windows
from isda.tiles.plan import TilePlan

__all__ = ["TiledInference", "TiledModel", "check_has_masks"]

logger = logging.getLogger(__name__)


class TiledInference:
    """Instances of an image that is cut into windows.

    What is in the memory is a window, its masks, those of the row of windows above it, and COCO's
    code of all others.
    """

    def __init__(self, inference: ScaledInference, plan: TilePlan, *, threshold: float = 0.0):
        """
        Args:
            threshold: lowest score of what is merged.
        """
        self.inference, self.plan, self.threshold = inference, plan, threshold
        self._told: set[str] = set()

    def __call__(self, reader: WindowReader, grid: Grid, *, progress: bool = True) -> Instances:
        """
        Args:
            reader: of pixels with the channels of ``INPUT.FORMAT``.
            grid: what ``plan`` made of the image's size.
            progress: show a bar, where the output is a terminal.

        Returns:
            On the CPU, the best first: ``pred_masks`` (bool, or :class:`isda.structures.RLEMasks`
            where that would take more than 256 MB), ``pred_boxes``, ``scores``, ``pred_classes``.
        """
        self._tell(reader.shape, grid)
        windows = (reader.read(*window) for window in grid)
        # disable=None: no bar where it would fill a file.
        windows = tqdm(
            windows, "windows", len(grid), unit="window", disable=None if progress else True
        )
        size = self.plan.seen_size(grid.window_size)
        found = merge_windows(grid, self._found(windows, size), reader.shape, self.plan.margin)
        if fits_in_memory(len(found), reader.shape):
            found.pred_masks = found.pred_masks.dense()
        return found

    def _found(self, windows: Iterable[np.ndarray], size: tuple[int, int]) -> Iterator[Instances]:
        for instances in self.inference.scaled(windows, size):
            yield instances[instances.scores >= self.threshold] if self.threshold else instances

    def _tell(self, size: tuple[int, int], grid: Grid) -> None:
        line = (
            f"an image of {size[0]} x {size[1]} pixels (height x width) is seen in {grid}, scaled "
            f"by {self.plan.scale:g}; as a whole it would be seen {self.plan.shrinkage(size):.1f} "
            "times smaller than it should"
        )
        if line not in self._told:  # once for all images of a size
            self._told.add(line)
            logger.info("%s", line)


class TiledModel(nn.Module):
    """A model for Detectron2's evaluation, which takes images unscaled and cuts the large ones."""

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Raises:
            TilesError: the model has no masks.
        """
        super().__init__()
        check_has_masks(cfg)
        self.model = model
        self.plan = TilePlan.from_config(cfg)
        self.inference = ScaledInference(cfg, model)
        self.tiled = TiledInference(self.inference, self.plan)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's dicts with ``image`` ``(C, H, W)`` as it was read → ``instances``."""
        return [{"instances": self._instances(inputs)} for inputs in batched_inputs]

    def _instances(self, inputs: dict) -> Instances:
        image = inputs["image"].permute(1, 2, 0).numpy()
        grid = self.plan.grid(image.shape[:2])
        if grid is None:
            return self.inference.whole([image])[0]
        return self.tiled(ArrayReader(image), grid, progress=False)


def check_has_masks(cfg: CfgNode) -> None:
    """
    Raises:
        TilesError: the model predicts boxes only, of which it is not known what borders cut.
    """
    if not has_masks(cfg):
        raise TilesError(
            f"windows are merged by masks, and MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} predicts boxes only: set TEST.TILES.MODE off"
        )
