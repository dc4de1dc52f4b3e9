"""Sources of foreign weights: rules for their names, and what a model needs for them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import Size, Tensor

__all__ = ["Adaptation", "Fresh", "Rule", "Source", "drops", "moves", "refuses"]

#: Our name as a template of the match's groups, or made of the match.
Name = str | Callable[[re.Match], str]
#: From a tensor of theirs and its shape in the model to what the model has of it, and what that is
#: in words ("" for all of it).
Adaptation = Callable[[Tensor, Size], tuple[Tensor, str]]


@dataclass(frozen=True)
class Rule:
    """What becomes of the names that a regular expression matches as a whole.

    They get a name of ours, or there is a reason why they have none. Several names may become
    one: tensors of different parts are joined, those of one part have to be copies.
    """

    pattern: str
    name: Name = ""
    part: int = 0  # place among the tensors that are joined along their first axis
    adapt: Adaptation | None = None  # None: the model has all of the tensor
    # Last parts of names beside ours in the model, and the number that these tensors consist of.
    beside: tuple[tuple[str, float], ...] = ()
    reason: str = ""
    on_purpose: bool = True  # what is left over: by design, or since the model is of another kind


def moves(
    pattern: str,
    name: Name,
    *,
    part: int = 0,
    adapt: Adaptation | None = None,
    beside: Mapping[str, float] = MappingProxyType({}),
) -> Rule:
    """A rule for tensors that the model has."""
    return Rule(pattern, name, part, adapt, tuple(beside.items()))


def drops(pattern: str, reason: str) -> Rule:
    """A rule for tensors that the model does without."""
    return Rule(pattern, reason=reason)


def refuses(pattern: str, reason: str) -> Rule:
    """A rule for tensors of a variant that the model cannot stand for."""
    return Rule(pattern, reason=reason, on_purpose=False)


@dataclass(frozen=True)
class Fresh:
    """Tensors of the model that no file of a source has."""

    pattern: str  # of our names
    reason: str
    unless: str = ""  # their name: files that have it are expected to have the others too


def _nothing(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Source:
    """A kind of foreign checkpoint."""

    title: str
    config: str  # of the model that takes it by default; below configs/
    mark: str  # pattern of a name by which such a file is told from others
    rules: tuple[Rule, ...]
    fresh: tuple[Fresh, ...] = ()
    # Config keys and the values that a model needs to compute with these weights what they mean.
    settings: Callable[[Mapping[str, Tensor]], dict[str, Any]] = _nothing
    # The table for the variant that a file has; None where a source has no variants.
    variant: Callable[["Source", Mapping[str, Tensor]], "Source"] | None = None

    def of(self, weights: Mapping[str, Tensor]) -> "Source":
        """The source as it is for this file."""
        return self.variant(self, weights) if self.variant else self

    def rule(self, name: str) -> tuple[Rule | None, str]:
        """The first rule for a name of theirs, and our name ("" for none)."""
        for rule in self.rules:
            match = _compiled(rule.pattern).fullmatch(name)
            if match:
                ours = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
                return rule, ours
        return None, ""

    def why_fresh(self, name: str, weights: Mapping[str, Tensor]) -> str:
        """Why files as this one lack a tensor of the model; "" if they should have it."""
        for fresh in self.fresh:
            if _compiled(fresh.pattern).fullmatch(name) and fresh.unless not in weights:
                return fresh.reason
        return ""


@cache
def _compiled(pattern: str) -> re.Pattern:
    return re.compile(pattern)
