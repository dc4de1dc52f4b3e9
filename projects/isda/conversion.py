"""Checkpoints of other implementations under this project's names.

A table per source says which name becomes which. Tensors themselves are taken as they are.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["SOURCES", "Conversion", "convert"]


@dataclass
class Conversion:
    """Converted weights, and what did not fit the model that they are for."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # of the model, not in the file
    left_over: list[str] = field(default_factory=list)  # of the file, not in the model
    # Name, shape in the file, shape in the model.
    wrong_shapes: list[tuple[str, tuple, tuple]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the model is there, and nothing is left over."""
        return not (self.missing or self.left_over or self.wrong_shapes)

    def __str__(self) -> str:
        lines = [f"{len(self.weights)} tensors converted"]
        shapes = [f"{n}: {list(a)} in the file, {list(b)} here" for n, a, b in self.wrong_shapes]
        for title, names in (
            ("missing from the file", self.missing),
            ("left over, which the model does not have", self.left_over),
            ("of another shape than the model's", shapes),
        ):
            if names:
                lines.append(f"{len(names)} {title}:")
                lines += [f"  {name}" for name in names]
        return "\n".join(lines)


def convert(
    weights: Mapping[str, Tensor], source: str, expected: Mapping[str, Tensor]
) -> Conversion:
    """Rename the tensors of a foreign state dict, and compare them with a model's.

    Args:
        weights: a state dict in the names of ``source``.
        source: one of :data:`SOURCES`.
        expected: the state dict of the model that is to load the result.

    Returns:
        The tensors whose name and shape the model has, and lists of all others.
    """
    rename = SOURCES[source]
    result, found = Conversion(), set()
    for theirs, tensor in weights.items():
        name = rename(theirs)
        if name not in expected:
            result.left_over.append(theirs)
        elif tensor.shape != expected[name].shape:
            found.add(name)
            shapes = tuple(tensor.shape), tuple(expected[name].shape)
            result.wrong_shapes.append((name, *shapes))
        else:
            found.add(name)
            result.weights[name] = tensor
    result.missing = [name for name in expected if name not in found]
    return result


def _renamer(*patterns: tuple[str, str]) -> Callable[[str], str]:
    """A function that applies regular expressions to a name, in this order."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in patterns]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        return name

    return rename


# The authors' release of ISTR (V1, May 2021). Backbone and FPN are Detectron2's in both.
_istr = _renamer(
    (r"^pos_embeddings\.", "queries.features."),
    (r"^init_proposal_boxes\.", "queries.boxes."),
    (r"^mask_encoding\.components$", "mask_embedding.components"),
    (r"^mask_encoding\.means$", "mask_embedding.mean"),
    (r"^mask_encoding\.explained_variances$", "mask_embedding.explained_variance"),
    (r"^head\.head_series\.", "refinement.steps."),
    (r"^(refinement\.steps\.\d+)\.inst_interact\.", r"\1.dynamic_conv."),
    (r"^(refinement\.steps\.\d+)\.cls_module\.", r"\1.class_tower."),
    (r"^(refinement\.steps\.\d+)\.reg_module\.", r"\1.box_tower."),
    (r"^(refinement\.steps\.\d+)\.mask_module\.", r"\1.mask_tower."),
    (r"^(refinement\.steps\.\d+)\.class_logits\.", r"\1.classes."),
    (r"^(refinement\.steps\.\d+)\.bboxes_delta\.", r"\1.deltas."),
    (r"^(refinement\.steps\.\d+)\.mask_logits\.", r"\1.masks."),
)

#: Source: how a name of its state dict reads here.
SOURCES: dict[str, Callable[[str], str]] = {"istr": _istr}
