"""Classes of data sets, compared with a model's head."""

import difflib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from isda.console import printable
from isda.data.changes import Changes
from isda.data.coco_json import read_coco_json
from isda.data.errors import DatasetError
from isda.wording import plural

__all__ = [
    "check_categories",
    "check_num_classes",
    "class_names_of",
    "classes_of",
    "distinct_names",
    "drop_placeholders",
    "num_classes_of",
    "registered_metadata",
]

logger = logging.getLogger(__name__)


def registered_metadata(name: str) -> Metadata:
    """The metadata of a registered data set.

    Raises:
        DatasetError: no data set has this name; the message proposes similar ones.
    """
    if name not in DatasetCatalog:
        similar = difflib.get_close_matches(name, DatasetCatalog.list(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(similar)}? " if similar else ""
        raise DatasetError(
            f"no data set '{name}' is registered: {hint}Give the folder of your own by "
            "isda train --dataset, or register it by isda.data.register_coco_json before "
            "training (datasets/README.md)"
        )
    return MetadataCatalog.get(name)


def class_names_of(dataset_name: str) -> list[str]:
    """Names of the classes of a registered data set, in the order of the model's outputs.

    From the metadata, else from the categories of the annotation file.

    Raises:
        DatasetError: the data set is not registered, says nothing of classes, or its annotation
            file cannot be used.
    """
    metadata = registered_metadata(dataset_name)
    names = metadata.get("thing_classes")
    if names is not None:
        return [printable(name) for name in names]
    if metadata.get("json_file") is None:
        raise DatasetError(
            f"data set '{dataset_name}' does not say which classes it has: set "
            f"MetadataCatalog.get('{dataset_name}').thing_classes to the list of their names"
        )
    content = read_coco_json(metadata.json_file, needs_annotations=False)
    return [category["name"] for category in _by_id(content["categories"])]


def classes_of(dataset_name: str) -> dict[str, list]:
    """What a checkpoint says of its classes; raises as :func:`class_names_of`.

    Returns:
        ``names`` in the order of the model's outputs, and in the same order ``ids``, those of the
        annotation file's categories. Where the metadata has none they count from 1, as LVIS's do.
    """
    names = class_names_of(dataset_name)
    id_map = registered_metadata(dataset_name).get("thing_dataset_id_to_contiguous_id")
    id_map = id_map or {number: index for index, number in enumerate(range(1, len(names) + 1))}
    return {"names": names, "ids": sorted(id_map, key=id_map.get)}


def num_classes_of(dataset_name: str) -> int:
    """Number of classes of a registered data set; raises as :func:`class_names_of`."""
    return len(class_names_of(dataset_name))


def check_num_classes(configured: int, dataset_names: Iterable[str], key: str) -> None:
    """Compares the number of classes of a model with those of its data sets.

    Warns where the numbers agree but the names do not, as between train and test.

    Args:
        configured: number of classes of the model.
        dataset_names: registered data sets that it is trained or evaluated on.
        key: the configuration's key that ``configured`` comes from, for the message.

    Raises:
        DatasetError: a data set has another number.
    """
    first_name, first_classes = "", None
    for name in dataset_names:
        classes = class_names_of(name)
        if len(classes) != configured:
            shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            raise DatasetError(
                f"{key} is {configured} but data set '{name}' has "
                f"{plural(len(classes), 'class')} ({shown}): set {key} {len(classes)}"
            )
        if first_classes is None:
            first_name, first_classes = name, classes
        elif classes != first_classes:
            ours, theirs = next((a, b) for a, b in zip(first_classes, classes) if a != b)
            logger.warning(
                f"data sets '{first_name}' and '{name}' name their classes differently, first "
                f"'{ours}' and '{theirs}': a prediction of the one counts as the other"
            )


def check_categories(dataset_name: str, categories: list[dict]) -> None:
    """Compares ``categories`` of a data set's annotation file with its metadata.

    They differ where a file was put in the place of another data set's, or where ids were set by
    hand: what the model predicts is then evaluated as other categories than those annotated.

    Raises:
        DatasetError: ids or names differ.
    """
    metadata = registered_metadata(dataset_name)
    id_map = metadata.get("thing_dataset_id_to_contiguous_id")
    names = metadata.get("thing_classes")
    categories = _by_id(categories)
    ids = [category["id"] for category in categories]
    remedy = (
        f"register {metadata.json_file} under a name of its own by isda.data.register_coco_json, "
        "which takes ids and names from the file"
    )
    if id_map is not None and not set(ids) & set(id_map):
        raise DatasetError(
            f"data set '{dataset_name}': predictions would have the category ids "
            f"{_shown(id_map)}, but annotated are {_shown(ids)}, so that nothing can match: "
            f"{remedy}"
        )
    if id_map is not None and {i: n for n, i in enumerate(ids)} != id_map:
        raise DatasetError(
            f"data set '{dataset_name}': its metadata has the category ids {_shown(id_map)}, its "
            f"annotation file {_shown(ids)}: {remedy}"
        )
    shown = [printable(category["name"]) for category in categories]
    if names is not None and shown != [printable(name) for name in names]:
        raise DatasetError(
            f"data set '{dataset_name}': its metadata has the classes {_shown(names)}, its "
            f"annotation file {_shown(c['name'] for c in categories)}: {remedy}"
        )


def drop_placeholders(contents: Sequence[dict]) -> dict[int, str]:
    """Takes the category away, in place, that Roboflow writes before the classes.

    It has no instances and only names the group of all others, or of the only one.

    Args:
        contents: of the annotation files of one data set, with categories in order.

    Returns:
        Ids and names of what was dropped.
    """
    used = {a["category_id"] for content in contents for a in content["annotations"]}
    dropped = {}
    for content in contents:
        categories = content["categories"]
        for candidate in [c for c in categories if c["id"] not in used]:
            others = [c for c in categories if c is not candidate]
            if others and all(c.get("supercategory") == candidate["name"] for c in others):
                content["categories"] = others
                dropped[candidate["id"]] = candidate["name"]
    return dropped


def distinct_names(categories: Sequence[dict], changes: Changes) -> list[dict]:
    """The categories with the id behind names that several have, as AP is told by name."""
    counts = Counter(category["name"] for category in categories)
    result = []
    for category in categories:
        name = category["name"]
        if counts[name] > 1:
            category = category | {"name": f"{name} ({category['id']})"}
            what = "categories share their name with another one, so the id was put behind it"
            changes.mend(what, category["name"])
        result.append(category)
    return result


def _by_id(categories: list[dict]) -> list[dict]:
    return sorted(categories, key=lambda category: category["id"])


def _shown(values: Iterable) -> str:
    values = list(map(str, values))
    return ", ".join(values[:5]) + (f", ... ({len(values)} in all)" if len(values) > 5 else "")
