"""Regions of interest as ImageJ's ROI manager opens them: a zip with a file per instance."""

import io
import os
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from isda.files import write_bytes
from isda.prediction.errors import needed
from isda.prediction.results.outlines import Polygon, masks_of, polygons_of

if TYPE_CHECKING:
    from isda.prediction.prediction import Prediction

__all__ = ["write"]

_LARGEST_SIDE = 32767  # ImageJ keeps the corners of a region in 16 bits
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0  # segments of a composite region
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def write(prediction: "Prediction", path: str | os.PathLike, _) -> None:
    """A region per instance, named by number, class and score; an empty mask has none.

    Corners are those of pixels, as ImageJ has them, so that a region covers exactly the pixels of
    its mask. What has holes or several parts is a composite region.

    Raises:
        OSError: it cannot be written, or the image is larger than ImageJ's regions can be.
        MissingPackageError: roifile is not installed.
    """
    roifile = needed("roifile", path)
    if max(prediction.image_size) > _LARGEST_SIDE:
        raise OSError(
            f"cannot write {path}: regions of ImageJ end at {_LARGEST_SIDE} pixels, and the image "
            f"has {prediction.image_size[1]}x{prediction.image_size[0]} (width x height): use "
            ".geojson"
        )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        found = zip(masks_of(prediction), prediction.names, prediction.scores.tolist())
        for number, (mask, name, score) in enumerate(found, 1):
            if polygons := polygons_of(mask):
                title = f"{number:04d} {_file_name(name)} {score:.2f}"
                region = _region(roifile, polygons, title)
                archive.writestr(zipfile.ZipInfo(f"{title}.roi", _NO_DATE), region.tobytes())
    write_bytes(path, content.getbuffer())


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in " -_." else "_" for letter in name)


def _region(roifile, polygons: list[Polygon], name: str):
    rings = [ring for polygon in polygons for ring in (polygon.outline, *polygon.holes)]
    corners = np.concatenate(rings)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    if len(rings) == 1:
        region = roifile.ImagejRoi.frompoints(rings[0].astype(np.int32), name=name)
        region.roitype = roifile.ROI_TYPE.POLYGON
        region.right, region.bottom = right, bottom  # and no pixel more
        return region
    segments = np.concatenate([_segments(ring) for ring in rings]).astype(np.float32)
    region = roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        shape_roi_size=len(segments),
        multi_coordinates=segments,
    )
    region.name = name
    return region


def _segments(ring: np.ndarray) -> np.ndarray:
    kinds = np.full((len(ring), 1), _LINE)
    kinds[0] = _MOVE
    return np.append(np.hstack([kinds, ring]).ravel(), _CLOSE)
