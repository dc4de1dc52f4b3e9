import numpy as np
import pytest
from annotation_files import ASSETS, annotation, box_polygon, random_polygons, write

from isda.data.errors import DatasetError
from isda.mask_dictionary import target_masks
from isda.mask_dictionary.fit import measure
from isda.mask_dictionary.moments import MaskMoments
from isda.mask_dictionary.reconstruction import Reconstruction, reconstruct
from isda.mask_dictionary.target_masks import AnnotationFile, crop_chunk
from isda.modeling.mask_dictionary import MaskDictionary


def constant_dictionary(mean: np.ndarray) -> MaskDictionary:
    """Answers ``mean`` whatever it is asked: its only component is that of one corner pixel."""
    components = np.zeros((1, mean.size), np.float32)
    components[0, 0] = 1
    one = np.ones(1, np.float32)
    return MaskDictionary(components, mean.reshape(-1).astype(np.float32), one, one)


def test_summary_of_known_overlaps(tmp_path):
    """Whole boxes against a dictionary that always says: the upper half."""
    mean = np.full((8, 8), -5.0)
    mean[:4] = 5
    areas = (10, 1023, 1024, 9216)
    path = write(
        tmp_path / "a.json", [annotation([box_polygon(5, 6, 20, 10)], area=a) for a in areas]
    )
    (row,) = measure(constant_dictionary(mean), AnnotationFile(path), [1]).summary()
    assert row == pytest.approx(
        {
            "mean": 0.5,
            "median": 0.5,
            "5th percentile": 0.5,
            "small": 0.5,
            "medium": 0.5,
            "large": 0.5,
            "pooled": 0.25,  # nothing of the background is right: there is none
        }
    )


def test_sizes_and_percentiles_are_of_their_own_masks():
    ious = np.concatenate([np.full(5, 0.2), np.full(10, 0.6), np.full(85, 1.0)])[:, None]
    areas = np.concatenate([np.full(5, 1023.0), np.full(10, 9215.0), np.full(85, 9216.0)])
    result = Reconstruction((1,), ious, areas, np.array([[30, 40, 10, 20]]))
    (row,) = result.summary()
    assert (row["small"], row["medium"], row["large"]) == pytest.approx((0.2, 0.6, 1.0))
    assert row["mean"] == pytest.approx(0.01 + 0.06 + 0.85)
    assert row["median"] == 1
    assert row["5th percentile"] == pytest.approx(np.percentile(ious, 5))
    assert row["pooled"] == pytest.approx((0.75 + 0.5) / 2)
    (row,) = Reconstruction((1,), ious[:5], areas[:5], np.array([[1, 1, 1, 1]])).summary()
    assert np.isnan(row["medium"]) and np.isnan(row["large"])


@pytest.mark.parametrize("workers", [1, 2])
def test_figures_are_those_of_all_masks_whatever_the_chunks(workers, monkeypatch):
    file = AnnotationFile(ASSETS / "coco_masks.json")
    (chunk,) = file.chunks()
    targets = crop_chunk(chunk, 28)
    masks, areas = targets.masks, targets.areas
    dictionary = MaskMoments.of(masks).dictionary(30)
    monkeypatch.setattr(target_masks, "CHUNK_SIZE", 100)
    done = []
    result = measure(dictionary, file, (10, 30), workers=workers, advance=done.append)
    assert result.left_out == {"crowds": 8}
    assert sum(done) == 644
    for dim, row in zip((10, 30), result.summary(), strict=True):
        found = reconstruct(dictionary, masks, dim)
        inside = (found & masks).sum(axis=(1, 2)) / (found | masks).sum(axis=(1, 2))
        pooled = (found & masks).sum() / (found | masks).sum()
        outside = (~found & ~masks).sum() / (~found | ~masks).sum()
        assert row["mean"] == pytest.approx(inside.mean())
        assert row["median"] == pytest.approx(np.median(inside))
        assert row["pooled"] == pytest.approx((pooled + outside) / 2)
        medium = (areas >= 1024) & (areas < 9216)
        assert row["medium"] == pytest.approx(inside[medium].mean())
    assert result.summary()[1]["mean"] > result.summary()[0]["mean"] + 0.05


def test_nothing_to_measure(tmp_path):
    path = write(tmp_path / "a.json", [annotation(None)])
    with pytest.raises(DatasetError, match=r"a\.json: 0 usable masks.*1 without segmentation"):
        measure(constant_dictionary(np.ones((4, 4))), AnnotationFile(path), [1])


def test_chunks_without_a_usable_mask_count_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(target_masks, "CHUNK_SIZE", 2)
    records = [annotation(None), annotation(None), *random_polygons(3)]
    file = AnnotationFile(write(tmp_path / "a.json", records))
    result = measure(constant_dictionary(np.ones((4, 4))), file, [1])
    assert len(result.ious) == 3 and result.left_out == {"without segmentation": 2}
