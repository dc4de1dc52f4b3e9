"""BlendMask's blender (arXiv 2001.00309, section 3.2): bases inside a box, weighed by attention.

Letters: n instances, K bases of an image, M×M cells of an attention map, R×R of a mask.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor

__all__ = ["Blender"]


class Blender:
    """From bases, boxes and attention to mask logits inside the boxes."""

    def __init__(self, stride: int, *, attention_size: int = 14, mask_size: int = 56):
        """
        Args:
            stride: of the bases, in pixels.
            attention_size: M.
            mask_size: R.
        """
        self.attention_size, self.mask_size = attention_size, mask_size
        self._pooler = ROIPooler(
            mask_size, [1 / stride], sampling_ratio=1, pooler_type="ROIAlignV2"
        )

    def pool(self, bases: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """What the bases show in each box.

        Args:
            bases: ``(B, K, h, w)``.
            boxes: per image ``(n, 4)`` XYXY in pixels.

        Returns:
            ``(N, K, R, R)`` float32, N boxes of all images.
        """
        # ROIAlign takes boxes in the type of the bases: bfloat16 would move them by pixels.
        return self._pooler([bases.float()], [Boxes(b) for b in boxes])

    def blend(self, regions: Tensor, attention: Tensor) -> Tensor:
        """Mask logits: the bases' mean in every cell, weighed by a softmax over the bases.

        Args:
            regions: ``(n, K, R, R)``.
            attention: ``(n, K·M·M)``.

        Returns:
            ``(n, R, R)`` float32.
        """
        num_bases, size = regions.shape[1], self.attention_size
        maps = attention.float().view(-1, num_bases, size, size)
        maps = F.interpolate(maps, size=regions.shape[-2:], mode="bilinear", align_corners=False)
        return (regions * maps.softmax(dim=1)).sum(dim=1)
