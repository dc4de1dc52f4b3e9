"""QuPath's GeoJSON in the forms that its versions export."""

import gzip
import json

import pytest
from examples_of_formats import drawn
from known_truth import NAMES, SIZE, compare, instances, is_hole, outlines, write_images

from isda.data.formats import Options, Report, detect_format, read_annotations


def ring(path) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in [*path, path[0]]]


def feature(label, mask, kind="annotation") -> dict:
    paths = outlines(mask)
    holes = [ring(path) for path in paths if is_hole(path)]
    outer = [ring(path) for path in paths if not is_hole(path)]
    if len(outer) == 1:
        geometry = {"type": "Polygon", "coordinates": [outer[0], *holes]}
    else:
        geometry = {"type": "MultiPolygon", "coordinates": [[path] for path in outer]}
    classification = {"name": label, "color": [200, 0, 0]}
    properties = {"objectType": kind, "classification": classification}
    return {"type": "Feature", "id": "u", "geometry": geometry, "properties": properties}


def nested(features: list[dict]) -> list[dict]:
    """All others as children of the first, and these of each other."""
    first, second, *others = features
    second["properties"]["childObjects"] = others
    first["properties"]["childObjects"] = [second]
    return [first]


def write(folder, form):
    for number, path in enumerate(write_images(folder)):
        features = [feature(*pair) for pair in instances(number)]
        content = {
            "collection": {"type": "FeatureCollection", "features": features},
            "gzip": {"type": "FeatureCollection", "features": features},
            "list": features,
            "nested": nested(features) if form == "nested" else None,
        }[form]
        if form == "gzip":
            with gzip.open(folder / f"{path.name}.geojson.gz", "wt") as file:
                json.dump(content, file)
        else:
            name = f"{path.stem}.geojson" if form != "list" else f"{path.stem}.json"
            (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("form", ["collection", "gzip", "list", "nested"])
def test_the_truth(tmp_path, form):
    folder = write(tmp_path, form)
    report = Report()
    assert detect_format(folder).name == "qupath"
    compare(read_annotations(folder, report))
    assert (report.skipped, report.refused) == ([], [])


def test_one_file_with_images_elsewhere(tmp_path):
    folder = write(tmp_path / "a", "collection")
    write_images(tmp_path / "photos")
    for path in folder.glob("*.png"):
        path.unlink()
    file = folder / "im2.geojson"
    assert detect_format(file).name == "qupath"
    (image,) = read_annotations(file, Report(), Options(images=tmp_path / "photos"))
    assert image.name == "im2.png" and len(image.instances) == 6
    report = Report()
    assert read_annotations(file, report) == []
    assert "no image in" in report.refused[0] and "is called im2" in report.refused[0]


def test_what_has_no_mask_or_no_class(tmp_path):
    write_images(tmp_path)
    block, *_ = [feature(*pair) for pair in instances(0)]
    unclassified = json.loads(json.dumps(block))
    del unclassified["properties"]["classification"]
    point = json.loads(json.dumps(block))
    point["geometry"] = {"type": "Point", "coordinates": [1, 2]}
    derived = json.loads(json.dumps(block))
    derived["properties"]["classification"] = {"names": ["Tumor", "Positive"]}
    (tmp_path / "im0.geojson").write_text(json.dumps([block, unclassified, point, derived]))
    report = Report()
    (image,) = read_annotations(tmp_path, report)
    labels = [instance.label for instance in image.instances]
    assert labels == ["block", "object", "Tumor: Positive"]
    assert report.reasons() == {"of type Point, which has no mask": 1}
    assert (drawn(image.instances[0].segmentation, SIZE) == instances(0)[0][1]).all()
    report = Report()
    (image,) = read_annotations(tmp_path, report, Options(class_name="cell"))
    assert {instance.label for instance in image.instances} == {"cell"}
    assert NAMES[0] == image.name
