"""Apply a source's table to a state dict, and account for every name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from isda.conversion.sources import SOURCES
from isda.conversion.table import Rule, Source
from isda.wording import listed

__all__ = ["Conversion", "convert"]

_LISTED = 4  # names of a kind that needs no attention

# Where the model has a backbone: a plain one, or the one below a feature pyramid.
_BACKBONE, _BELOW_PYRAMID = "backbone.", "backbone.bottom_up."


class WrongShape(NamedTuple):
    """A tensor that the model has in another shape."""

    theirs: tuple[str, ...]
    ours: str
    found: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass
class Conversion:
    """Converted weights, and what became of all other names, theirs and ours.

    Each name of the file is in one of ``consumed``, ``left_over``, ``unplaced`` and
    ``wrong_shapes``, each name of the model in one of ``weights``, ``missing``, ``fresh`` and
    ``wrong_shapes`` (batch norm's counters aside, which inference does not read).
    """

    title: str = ""
    weights: dict[str, Tensor] = field(default_factory=dict)  # by our names
    consumed: dict[str, str] = field(default_factory=dict)  # their name: ours
    left_over: dict[str, str] = field(default_factory=dict)  # their name: why the model has none
    unplaced: dict[str, str] = field(default_factory=dict)  # their name: what is wrong
    missing: list[str] = field(default_factory=list)  # our names that the file should have
    fresh: dict[str, str] = field(default_factory=dict)  # our name: why no such file has it
    wrong_shapes: list[WrongShape] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every name, theirs and ours, is where it belongs."""
        return not (self.missing or self.unplaced or self.wrong_shapes)

    def __str__(self) -> str:
        lines = [
            f"{self.title}: {len(self.consumed)} tensors of the file are "
            f"{len(self.weights)} of the model"
        ]
        lines += [f"  {note}" for note in self.notes]
        lines += _grouped("left over on purpose", self.left_over)
        lines += _grouped("of the model start fresh", self.fresh)
        shapes = [
            f"{', '.join(w.theirs)}: {list(w.found)}, but {list(w.expected)} as {w.ours}"
            for w in self.wrong_shapes
        ]
        unplaced = [f"{name}: {reason}" for name, reason in self.unplaced.items()]
        lines += _listed("of the file without a place in the model", unplaced)
        lines += _listed("of the model missing from the file", self.missing)
        lines += _listed("of another shape than the model's", shapes)
        return "\n".join(lines)


class _Piece(NamedTuple):
    theirs: str
    tensor: Tensor
    rule: Rule


def convert(
    weights: Mapping[str, Tensor], source: str, expected: Mapping[str, Tensor]
) -> Conversion:
    """Bring the tensors of a foreign state dict under the names of a model.

    Args:
        weights: a state dict in the names of ``source``.
        source: one of :data:`SOURCES`.
        expected: the state dict of the model that is to load the result.

    Returns:
        The tensors whose name and shape the model has, and what became of all others.
    """
    table = SOURCES[source].of(weights)
    result = Conversion(table.title)
    pieces = _pieces(weights, table, expected, result)
    for ours, found in pieces.items():
        _place(ours, _without_copies(found, result), expected, result)
    for ours in expected:
        placed = ours in pieces or ours in result.weights
        if placed or ours.endswith("num_batches_tracked"):
            continue
        reason = table.why_fresh(ours, weights)
        if reason:
            result.fresh[ours] = reason
        else:
            result.missing.append(ours)
    return result


def _pieces(
    weights: Mapping[str, Tensor],
    table: Source,
    expected: Mapping[str, Tensor],
    result: Conversion,
) -> dict[str, list[_Piece]]:
    """By our names, the tensors that they are made of; all others are put down in ``result``."""
    pieces: dict[str, list[_Piece]] = {}
    for theirs, tensor in weights.items():
        rule, name = table.rule(theirs)
        ours = _in_model(name, expected)
        if rule is None:
            result.unplaced[theirs] = "no such name is known"
        elif not name:
            (result.left_over if rule.on_purpose else result.unplaced)[theirs] = rule.reason
        elif ours is None:
            result.unplaced[theirs] = f"would be {name}, which the model does not have"
        else:
            pieces.setdefault(ours, []).append(_Piece(theirs, tensor, rule))
    return pieces


def _in_model(name: str, expected: Mapping[str, Tensor]) -> str | None:
    below = name.replace(_BACKBONE, _BELOW_PYRAMID, 1) if name.startswith(_BACKBONE) else name
    return next((candidate for candidate in (name, below) if candidate in expected), None)


def _without_copies(pieces: list[_Piece], result: Conversion) -> list[_Piece]:
    """The pieces in the order of their parts, copies of one part together.

    A module that layers share is stored once per layer; what differs from the last is put down.
    """
    parts = {piece.rule.part: piece for piece in pieces}  # the last of each
    for piece in pieces:
        kept = parts[piece.rule.part]
        if torch.equal(piece.tensor, kept.tensor):
            continue
        result.unplaced[piece.theirs] = (
            f"differs from {kept.theirs}: the file has one per layer, the model one for all layers"
        )
    return [
        piece
        for part in sorted(parts)
        for piece in pieces
        if piece.rule.part == part and piece.theirs not in result.unplaced
    ]


def _place(
    ours: str, pieces: list[_Piece], expected: Mapping[str, Tensor], result: Conversion
) -> None:
    tensor = _joined(pieces)
    adapt = pieces[0].rule.adapt
    if adapt:
        tensor, what = adapt(tensor, expected[ours].shape)
        result.notes += [f"{ours} is {what}"] if what else []
    names = tuple(piece.theirs for piece in pieces)
    if tensor.shape != expected[ours].shape:
        shapes = tuple(tensor.shape), tuple(expected[ours].shape)
        result.wrong_shapes.append(WrongShape(names, ours, *shapes))
        return
    result.weights[ours] = tensor
    result.consumed |= dict.fromkeys(names, ours)
    for kind, number in pieces[0].rule.beside:
        name = f"{ours.rpartition('.')[0]}.{kind}"
        if name in expected:
            result.weights[name] = torch.full_like(tensor, number)


def _joined(pieces: list[_Piece]) -> Tensor:
    tensors = list({piece.rule.part: piece.tensor for piece in pieces}.values())
    # Parts that cannot be joined are told of as a wrong shape, that of the first.
    joinable = all(tensor.shape[1:] == tensors[0].shape[1:] for tensor in tensors)
    # Numbers count as vectors of one.
    parts = [torch.atleast_1d(tensor) for tensor in tensors]
    return torch.cat(parts) if len(tensors) > 1 and joinable else tensors[0]


def _grouped(what: str, reasons: dict[str, str]) -> list[str]:
    lines = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, other in reasons.items() if other == reason]
        lines.append(f"  {len(names)} {what} ({reason}): {listed(names, _LISTED)}")
    return lines


def _listed(what: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [f"  {len(names)} {what}:", *(f"    {name}" for name in names)] if names else []
