"""Annotations with ``iscrowd`` 1: groups by COCO's rules, plain masks by the habit of some tools.

COCO's own files have about one crowd in a hundred annotations. CVAT, Datumaro and supervision set
the flag for every mask that they write as RLE, and by COCO's rules neither training nor AP then
knows these objects.
"""

from collections import Counter
from collections.abc import Sequence

from isda.data.changes import Changes

__all__ = ["crowds_instead", "instances_of_crowds", "suspicious_crowds"]

_OPTION = "--crowds-are-instances"
_USUAL = 0.05  # share of crowds up to which they may well be crowds
_LISTED = 5


def suspicious_crowds(annotations: Sequence[dict], categories: Sequence[dict]) -> str:
    """A sentence if so many annotations are crowds that they are probably none; else empty.

    Args:
        annotations: the usable ones of a file, with ``iscrowd``.
        categories: of the file.
    """
    crowds = Counter(a["category_id"] for a in annotations if a.get("iscrowd"))
    instances = Counter(a["category_id"] for a in annotations if not a.get("iscrowd"))
    share = crowds.total() / max(len(annotations), 1)
    names = [str(c["name"]) for c in categories if crowds[c["id"]]]
    only = [str(c["name"]) for c in categories if crowds[c["id"]] and not instances[c["id"]]]
    if share <= _USUAL and not only:
        return ""
    has = f"; {_names(only)} {'have' if len(only) > 1 else 'has'} only crowds" if only else ""
    return (
        f"{crowds.total():,} of {len(annotations):,} annotations ({share:.0%}) are crowds "
        f"(iscrowd 1), of {_names(names)}, which neither training nor AP takes for instances"
        f"{has}: CVAT, Datumaro and supervision set iscrowd for every RLE; if these are single "
        f"objects, add {_OPTION}"
    )


def crowds_instead(content: dict) -> str:
    """What to add to "has no annotation" where it has crowds; empty where it has none."""
    number, total = sum(_is_crowd(a) for a in content["annotations"]), len(content["annotations"])
    if not number:
        return ""
    return (
        f": {number:,} of {total:,} annotations are crowds (iscrowd 1), as CVAT, Datumaro and "
        f"supervision write every RLE; if they are single objects, add {_OPTION}"
    )


def _is_crowd(annotation: dict) -> bool:
    return bool(annotation.get("iscrowd"))


def instances_of_crowds(content: dict, changes: Changes) -> dict:
    """The content with ``iscrowd`` 0 in all annotations."""
    crowds = [a for a in content["annotations"] if _is_crowd(a)]
    for annotation in crowds:
        place = f"annotation {annotation['id']}"
        changes.mend("crowds (iscrowd 1) taken as instances", place, is_note=True)
    annotations = [a | {"iscrowd": 0} if _is_crowd(a) else a for a in content["annotations"]]
    return content | {"annotations": annotations}


def _names(names: Sequence[str]) -> str:
    shown = list(names[:_LISTED])
    if len(names) > _LISTED:
        return f"{', '.join(shown)} and {len(names) - _LISTED} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
