"""GeoJSON as QuPath reads and writes it: a feature per instance."""

import os
from typing import TYPE_CHECKING

from isda import strict_json
from isda.files import write_text
from isda.prediction.results.outlines import Polygon, masks_of, polygons_of

if TYPE_CHECKING:
    from isda.prediction.prediction import Prediction

__all__ = ["features_of", "write"]


def features_of(prediction: "Prediction") -> dict:
    """A FeatureCollection (RFC 7946) in pixels of the image, along the edges of pixels.

    Each feature is a detection of QuPath's, with its class and its score as a measurement. An
    empty mask has none.
    """
    features = []
    found = zip(masks_of(prediction), prediction.names, prediction.scores.tolist())
    for mask, name, score in found:
        parts = [_rings(polygon) for polygon in polygons_of(mask)]
        if not parts:
            continue
        geometry = {"type": "Polygon", "coordinates": parts[0]}
        if len(parts) > 1:
            geometry = {"type": "MultiPolygon", "coordinates": parts}
        properties = {
            "objectType": "detection",
            "classification": {"name": name},
            "measurements": {"score": score},
        }
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def _rings(polygon: Polygon) -> list[list[list[int]]]:
    """Closed: the first point comes again at the end."""
    rings = (polygon.outline, *polygon.holes)
    return [[*ring.tolist(), ring[0].tolist()] for ring in rings]


def write(prediction: "Prediction", path: str | os.PathLike, _) -> None:
    """
    Raises:
        OSError: it cannot be written.
    """
    write_text(path, strict_json.dumps(features_of(prediction)))
