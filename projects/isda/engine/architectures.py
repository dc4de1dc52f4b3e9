"""Properties of meta-architectures: where their classes are, and what they predict."""

import difflib

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from isda.errors import ConfigError
from isda.meta_arch import METHODS
from isda.requirements import Requirement

__all__ = [
    "architecture",
    "check_node",
    "check_trainable",
    "has_masks",
    "most_instances",
    "node_requirements",
    "node_with_classes",
]

# Ours, and whoever's, declare the node of their classes by the attribute config_node. These are
# Detectron2's, which cannot; None for those without a number of instance classes.
_NODES = {
    "GeneralizedRCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
    "ProposalNetwork": None,
    "SemanticSegmentor": None,
    "PanopticDeepLab": None,
}
_SEMANTIC = "is trained on semantic segmentation, and the data sets of this project hold instances"
_REFUSED = {
    "PanopticFPN": _SEMANTIC,
    "SemanticSegmentor": _SEMANTIC,
    "PanopticDeepLab": _SEMANTIC,
    "ProposalNetwork": "predicts boxes without classes, which no evaluator here can judge",
    "FCOS": "has no config keys in Detectron2, which builds it in Python only",
}


def architecture(cfg: CfgNode) -> str:
    """``MODEL.META_ARCHITECTURE`` or, of a variant, the class that it is derived from.

    Raises:
        ConfigError: no meta-architecture has this name.
    """
    bases = _registered(cfg.MODEL.META_ARCHITECTURE).__mro__
    known = (base for base in bases if base in METHODS or base.__name__ in _NODES)
    return next(known, bases[0]).__name__


def _registered(name: str) -> type:
    if name in META_ARCH_REGISTRY:
        return META_ARCH_REGISTRY.get(name)
    _refuse(name, name)
    known = [known for known, _ in META_ARCH_REGISTRY]
    similar = difflib.get_close_matches(name, known, n=1) or [", ".join(known[:-1]), known[-1]]
    raise ConfigError(
        f"MODEL.META_ARCHITECTURE {name!r} is not registered; did you mean "
        f"{' or '.join(similar)}? The module of one of your own has to be imported before"
    )


def node_with_classes(cfg: CfgNode) -> str | None:
    """Name of the node below ``MODEL`` that holds the meta-architecture's NUM_CLASSES.

    A meta-architecture declares it by its attribute ``config_node``; None: it has no such number.

    Raises:
        ConfigError: it declares nothing, or is not registered.
    """
    known = architecture(cfg)
    name = cfg.MODEL.META_ARCHITECTURE
    node = getattr(_registered(name), "config_node", _NODES.get(known, ""))
    if node is not None and "NUM_CLASSES" not in cfg.MODEL.get(node, {}):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {name} does not declare where its number of classes is "
            f"(config_node is {node!r}): give the class the attribute config_node, such as "
            f'config_node = "ISDA" for MODEL.ISDA.NUM_CLASSES, or None if it has no such number'
        )
    return node


def node_requirements(cfg: CfgNode) -> dict[str, Requirement]:
    """What the meta-architecture declares that its keys must fulfil, by their full names."""
    model_class = _registered(cfg.MODEL.META_ARCHITECTURE)
    node, requirements = (
        getattr(model_class, name, {}) for name in ("config_node", "requirements")
    )
    return {f"MODEL.{node}.{key}": requirement for key, requirement in requirements.items()}


def check_node(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: keys of the meta-architecture contradict each other.
    """
    model_class = _registered(cfg.MODEL.META_ARCHITECTURE)
    if hasattr(model_class, "conflict"):
        conflict = model_class.conflict(cfg.MODEL[model_class.config_node])
        if conflict:
            raise ConfigError(conflict)


def has_masks(cfg: CfgNode) -> bool:
    """Whether the model predicts masks, and not boxes only."""
    known = architecture(cfg)
    return cfg.MODEL.MASK_ON if known == "GeneralizedRCNN" else known != "RetinaNet"


def most_instances(cfg: CfgNode) -> int:
    """How many instances the model finds in an image at most."""
    node = node_with_classes(cfg)
    queries = cfg.MODEL[node].get("NUM_QUERIES") if node else None
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    return min(limit, queries) if queries else limit


def check_trainable(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: the meta-architecture can be neither trained nor evaluated here, or says too
            little about itself.
    """
    _refuse(cfg.MODEL.META_ARCHITECTURE, architecture(cfg))
    node_with_classes(cfg)


def _refuse(name: str, known: str) -> None:
    if known in _REFUSED:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {name} {_REFUSED[known]}: take GeneralizedRCNN, RetinaNet, "
            f"or {', '.join(method.__name__ for method in METHODS)}"
        )
