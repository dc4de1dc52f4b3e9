"""Declarations of a method for the tools around it, and how they ask for them.

A method is a meta-architecture of this package. Beside its model it declares, as class attributes,

- ``config_node``: the node below ``MODEL`` that holds its keys, ``NUM_CLASSES`` among them;
- ``requirements``: what the values of these keys must fulfil, by key;
- ``conflict(node)``: what is wrong with a combination of them, in words; "" without any;
- ``exporter``: the class that makes a graph of the model (:mod:`isda.prediction.export`);
- ``compilation``: what is done to a model before ``torch.compile``
  (:mod:`isda.prediction.compilation`);
- ``tracer``: the function that records how a prediction comes about (:mod:`isda.inspection`).

The last three are ``"module:name"``, as those modules know the methods, or :class:`Unavailable`.
"""

import pkgutil
from typing import Any

from detectron2.config import CfgNode

from isda.errors import UserError

__all__ = ["DECLARED", "DeclarationError", "Unavailable", "declared", "undivided_heads"]

DECLARED = ("config_node", "requirements", "conflict", "exporter", "compilation", "tracer")


class Unavailable(str):
    """Why a method lacks something: a sentence for the user, which says what to do instead."""


class DeclarationError(UserError, ValueError):
    """A model lacks what was asked for; the message says why."""


def declared(model_class: type, what: str) -> Any:
    """The class or function that ``model_class`` names by its attribute ``what``.

    Raises:
        DeclarationError: it has none, or does not declare any.
    """
    named = getattr(model_class, what, None)
    if named is None:
        raise DeclarationError(f"{model_class.__name__} does not declare its {what}")
    if isinstance(named, Unavailable):
        raise DeclarationError(named)
    return pkgutil.resolve_name(named)


def undivided_heads(name: str, node: CfgNode) -> str:
    """The conflict of a width that the heads of an attention cannot share; "" if they can."""
    if node.HIDDEN_DIM % node.NUM_HEADS == 0:
        return ""
    return (
        f"MODEL.{name}.HIDDEN_DIM ({node.HIDDEN_DIM}) must be a multiple of "
        f"MODEL.{name}.NUM_HEADS ({node.NUM_HEADS})"
    )
