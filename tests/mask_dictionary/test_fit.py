"""Dictionaries against principal components worked out in another way."""

import logging

import numpy as np
import pytest
import torch
from annotation_files import ASSETS, annotation, box_polygon, random_polygons, write

from isda.data.errors import DatasetError
from isda.mask_dictionary import fit, target_masks
from isda.mask_dictionary.fit import fit_dictionary, fit_to_moments, measure, sum_masks
from isda.mask_dictionary.incremental import IncrementalFit
from isda.mask_dictionary.moments import NOISE_VARIANCE, MaskMoments, symmetric_copies
from isda.mask_dictionary.partial_sums import PartialSums
from isda.mask_dictionary.reconstruction import reconstruct
from isda.mask_dictionary.target_masks import AnnotationFile, crop_chunk
from isda.modeling.mask_dictionary import AMPLITUDE, DictionaryError, MaskDictionary
from isda.modeling.mask_embedding import MaskEmbedding


@pytest.fixture(scope="module")
def coco() -> np.ndarray:
    (chunk,) = AnnotationFile(ASSETS / "coco_masks.json").chunks()
    return crop_chunk(chunk, 28).masks


def ious(dictionary: MaskDictionary, masks: np.ndarray) -> np.ndarray:
    found = reconstruct(dictionary, masks)
    return (found & masks).sum(axis=(1, 2)) / (found | masks).sum(axis=(1, 2))


def is_orthonormal(dictionary: MaskDictionary) -> bool:
    components = dictionary.components.astype(np.float64)
    return np.abs(components @ components.T - np.eye(len(components))).max() < 1e-6


def principal_components(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of logits, by a singular value decomposition in float64: directions, variances, mean."""
    logits = np.where(masks, AMPLITUDE, -AMPLITUDE).reshape(len(masks), -1)
    mean = logits.mean(axis=0)
    _, values, directions = np.linalg.svd(logits - mean, full_matrices=False)
    return directions, values**2 / (len(masks) - 1), mean


# --- exact moments


def test_exact_fit_is_pca_of_logits(coco):
    directions, variances, mean = principal_components(coco)
    dictionary = MaskMoments.of(coco).dictionary(60)
    assert is_orthonormal(dictionary)
    np.testing.assert_allclose(dictionary.mean, mean, atol=1e-6)
    np.testing.assert_allclose(
        dictionary.explained_variance, variances[:60] + NOISE_VARIANCE, rtol=1e-6
    )
    np.testing.assert_allclose(
        dictionary.explained_variance_ratio, variances[:60] / variances.sum(), rtol=1e-5
    )
    cosines = np.abs((dictionary.components * directions[:60]).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    assert dictionary.num_masks == len(coco)
    leading = np.abs(dictionary.components).argmax(axis=1)
    assert (dictionary.components[np.arange(60), leading] > 0).all()


def test_addend_is_the_variance_of_the_authors_noise():
    """Integrated over U, which decides rho = max(0.01, 0.05 U)."""
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    logits = np.log(1 / np.maximum(0.01, 0.05 * u) - 1)
    assert logits.mean() == pytest.approx(AMPLITUDE, abs=1e-4)
    assert logits.var() == pytest.approx(NOISE_VARIANCE, abs=1e-4)


def test_variances_are_those_of_a_fit_to_noisy_logits(coco):
    """The first ones, which the noise of 28² pixels does not mix up."""
    rng = np.random.default_rng(0)
    noisy = np.concatenate([coco] * 4).reshape(-1, 784)
    rho = np.maximum(0.01, 0.05 * rng.random(noisy.shape))
    logits = np.where(noisy, 1, -1) * np.log(1 / rho - 1)
    dictionary = MaskMoments.of(np.concatenate([coco] * 4)).dictionary(60)
    along = (logits - logits.mean(axis=0)) @ dictionary.components.T.astype(np.float64)
    np.testing.assert_allclose(along.var(axis=0, ddof=1), dictionary.explained_variance, rtol=0.03)


def test_embeddings_of_the_fitted_masks_have_about_unit_variance(coco):
    dictionary = MaskMoments.of(coco).dictionary(60)
    embedding = MaskEmbedding.of(dictionary)
    encoded = embedding.encode(torch.from_numpy(coco))
    expected = 1 - NOISE_VARIANCE / dictionary.explained_variance
    np.testing.assert_allclose(encoded.var(dim=0).numpy(), expected, rtol=1e-4)
    assert encoded.mean(dim=0).abs().max() < 1e-4


def test_moments_do_not_depend_on_order_or_batches(coco):
    whole = MaskMoments.of(coco)
    order = np.random.default_rng(0).permutation(len(coco))
    parts = [MaskMoments.of(coco[some]) for some in np.array_split(order, 5)]
    total = sum(parts, MaskMoments.zeros(28))
    assert total.count == whole.count == len(coco)
    np.testing.assert_array_equal(total.sums, whole.sums)
    np.testing.assert_array_equal(total.products, whole.products)
    flat = coco.reshape(-1, 784).astype(np.float64)  # exact, and faster than integers
    np.testing.assert_array_equal(whole.products, flat.T @ flat)
    np.testing.assert_array_equal(whole.sums, flat.sum(axis=0))


@pytest.mark.parametrize("symmetry, number", [("none", 1), ("mirror", 2), ("all", 8)])
def test_symmetric_moments_are_those_of_the_copies(coco, symmetry, number):
    copies = [copy(coco[:50]) for copy in symmetric_copies(symmetry)]
    assert len(copies) == number
    assert len({copy[3].tobytes() for copy in copies}) == number  # no two alike
    drawn = MaskMoments.of(np.concatenate(copies))
    derived = MaskMoments.of(coco[:50]).symmetrised(symmetry)
    assert derived.count == drawn.count
    np.testing.assert_array_equal(derived.sums, drawn.sums)
    np.testing.assert_array_equal(derived.products, drawn.products)


def test_symmetry_helps_where_masks_are_few(coco):
    few, others = MaskMoments.of(coco[::2]), coco[1::2]
    plain, symmetric = few.dictionary(60), few.symmetrised("all").dictionary(60)
    assert ious(symmetric, others).mean() > ious(plain, others).mean() + 0.01


def test_more_components_reconstruct_better(coco):
    dictionary = MaskMoments.of(coco[::2]).symmetrised("all").dictionary(100)
    means = [ious(dictionary.first(dim), coco[1::2]).mean() for dim in (20, 40, 60, 80, 100)]
    assert means == sorted(means) and means[0] < 0.89 and means[-1] > 0.95


def test_first_components_are_the_smaller_fit(coco):
    moments = MaskMoments.of(coco)
    large, small = moments.dictionary(100).first(60), moments.dictionary(60)
    np.testing.assert_allclose(large.components, small.components, atol=1e-6)
    np.testing.assert_array_equal(large.explained_variance, small.explained_variance)


# --- incremental


@pytest.mark.parametrize("batch", [200, 97])
def test_incremental_and_exact_fits_agree(coco, batch):
    exact, increments = MaskMoments.of(coco[::2]).dictionary(40), IncrementalFit(28, 40)
    for start in range(0, len(coco[::2]), batch):
        increments.add(coco[::2][start : start + batch])
    found = increments.dictionary()
    assert is_orthonormal(found)
    assert found.num_masks == exact.num_masks
    np.testing.assert_allclose(found.mean, exact.mean, atol=1e-5)
    np.testing.assert_allclose(found.explained_variance, exact.explained_variance, rtol=0.03)
    total = exact.explained_variance_ratio.sum()
    assert found.explained_variance_ratio.sum() == pytest.approx(total, rel=0.005)
    others = coco[1::2]
    assert ious(found, others).mean() == pytest.approx(ious(exact, others).mean(), abs=1e-3)


def test_incremental_fit_of_one_batch_is_exact(coco):
    exact, increments = MaskMoments.of(coco).dictionary(30), IncrementalFit(28, 30)
    increments.add(coco)
    increments.add(coco[:0])
    found = increments.dictionary()
    np.testing.assert_allclose(found.components, exact.components, atol=1e-4)
    np.testing.assert_allclose(found.explained_variance, exact.explained_variance, rtol=1e-5)
    np.testing.assert_allclose(
        found.explained_variance_ratio, exact.explained_variance_ratio, rtol=1e-4
    )


def test_large_masks_are_fitted_incrementally(tmp_path, monkeypatch):
    """As 112×112 are, with a lower bound; also with copies, and few batches."""
    path = write(tmp_path / "a.json", random_polygons(300))
    exact, _ = fit_dictionary([AnnotationFile(path)], 12, 10, symmetry="mirror")
    monkeypatch.setattr(fit, "_MOST_EXACT_PIXELS", 100)
    monkeypatch.setattr(target_masks, "CHUNK_SIZE", 70)
    found, left_out = fit_dictionary([AnnotationFile(path)], 12, 10, symmetry="mirror")
    assert left_out == {}
    assert found.num_masks == exact.num_masks == 600
    assert found.sources == exact.sources
    np.testing.assert_allclose(found.explained_variance, exact.explained_variance, rtol=0.02)
    file = AnnotationFile(path)
    (ours,), (theirs,) = (measure(d, file, [10]).summary() for d in (found, exact))
    assert ours["mean"] == pytest.approx(theirs["mean"], abs=1e-3)


def test_sides_beyond_64_have_no_matrix_of_products(tmp_path):
    """It would take gigabytes; so there are no sums to merge, either."""
    file = AnnotationFile(write(tmp_path / "a.json", random_polygons(6)))
    dictionary, _ = fit_dictionary([file], 112, 4)
    assert dictionary.components.shape == (4, 12544)
    assert is_orthonormal(dictionary)
    with pytest.raises(DictionaryError, match="masks of 112×112 are too large for sums that can"):
        sum_masks([file], 112)


# --- few and degenerate masks


@pytest.mark.parametrize("method", ["exact", "incremental"])
@pytest.mark.parametrize("kind", ["ten", "two", "identical"])
def test_too_few_masks_give_finite_numbers_and_a_warning(coco, method, kind, caplog):
    masks = {"ten": coco[:10], "two": coco[:2], "identical": coco[:1].repeat(10, axis=0)}[kind]
    rank = {"ten": 9, "two": 1, "identical": 0}[kind]
    with caplog.at_level(logging.WARNING, "isda"):
        if method == "exact":
            dictionary = MaskMoments.of(masks).dictionary(60)
        else:
            increments = IncrementalFit(28, 60)
            increments.add(masks[:6])
            increments.add(masks[6:])
            dictionary = increments.dictionary()
    assert caplog.messages == [
        f"{len(masks)} masks vary in {rank} directions only, asked for are 60 components: the "
        "others say nothing; fit to more masks"
    ]
    assert dictionary.dim == 60 and is_orthonormal(dictionary)
    for array in (dictionary.mean, dictionary.explained_variance):
        assert np.isfinite(array).all()
    np.testing.assert_allclose(dictionary.explained_variance[rank:], NOISE_VARIANCE, rtol=1e-5)
    assert dictionary.explained_variance_ratio.sum() == pytest.approx(min(rank, 1))
    # What it was fitted to, it knows.
    np.testing.assert_array_equal(reconstruct(dictionary, masks), masks)


@pytest.mark.parametrize("side", [28, 80])
@pytest.mark.parametrize("usable", [0, 1])
def test_no_dictionary_without_two_masks(tmp_path, side, usable):
    records = [annotation([box_polygon(5, 6, 20, 10)])] * usable
    records += [annotation(None), annotation([box_polygon(5, 6, 20, 10)], iscrowd=1)]
    path = write(tmp_path / "few.json", records)
    with pytest.raises(DatasetError) as failure:
        fit_dictionary([AnnotationFile(path)], side, 4)
    message = str(failure.value)
    assert message.startswith(f"few.json: {usable} usable masks, which no dictionary can be fitted")
    assert "1 crowds" in message and "1 without segmentation" in message


@pytest.mark.parametrize("side", [4, 80])
def test_more_components_than_pixels(tmp_path, side):
    path = write(tmp_path / "a.json", random_polygons(5))
    with pytest.raises(
        DictionaryError, match=f"{side}×{side} masks have from 1 to {side**2} components"
    ):
        fit_dictionary([AnnotationFile(path)], side, side**2 + 1)


# --- parts


@pytest.mark.parametrize("num_shards", [2, 3])
def test_merged_shards_are_one_pass_bit_for_bit(tmp_path, monkeypatch, num_shards):
    file = AnnotationFile(ASSETS / "coco_masks.json")
    once, left_out = fit_dictionary([file], 14, 40)
    monkeypatch.setattr(target_masks, "CHUNK_SIZE", 100)
    for shard in range(num_shards):
        part = sum_masks([file], 14, shard=shard, num_shards=num_shards)
        part.save(tmp_path / f"{shard}.npz")
        assert part.moments.count < 400
    parts = [PartialSums.load(tmp_path / f"{shard}.npz") for shard in reversed(range(num_shards))]
    merged = fit_to_moments(PartialSums.merged(parts), 40, "none")
    once.save(tmp_path / "once.npz")
    merged.save(tmp_path / "merged.npz")
    assert (tmp_path / "once.npz").read_bytes() == (tmp_path / "merged.npz").read_bytes()
    assert merged.num_masks == 644 and left_out == {"crowds": 8}
    assert merged.sources == {"coco_masks.json": file.sha256}


def test_what_was_left_out_adds_up(tmp_path):
    records = [annotation(None), annotation([box_polygon(5, 6, 20, 10)], iscrowd=1)]
    file = AnnotationFile(write(tmp_path / "a.json", records + random_polygons(3)))
    parts = [sum_masks([file], 8, shard=shard, num_shards=2) for shard in range(2)]
    merged = PartialSums.merged(parts)
    assert merged.left_out == {"crowds": 1, "without segmentation": 1}
    assert merged.moments.count == 3


@pytest.mark.parametrize(
    "shards, sentence",
    [
        ([(0, 2)], r"^a\.json: 1 of 2 shards are missing, first 2/2: name all parts$"),
        ([(0, 2), (1, 2), (0, 2)], r"^a\.json: shard 1/2 is there more than once"),
        ([(0, 1), (0, 2)], r"^a\.json was split into 1 shards and into 2"),
    ],
)
def test_masks_never_count_twice_or_not_at_all(tmp_path, shards, sentence):
    file = AnnotationFile(write(tmp_path / "a.json", random_polygons(3)))
    parts = [sum_masks([file], 8, shard=i, num_shards=number) for i, number in shards]
    with pytest.raises(DictionaryError, match=sentence):
        PartialSums.merged(parts)


def test_file_that_is_named_twice(tmp_path):
    file = AnnotationFile(write(tmp_path / "a.json", random_polygons(3)))
    with pytest.raises(DictionaryError, match=r"a\.json: shard 1/1 is there more than once"):
        fit_dictionary([file, file], 8, 2)


def test_parts_of_different_sides(tmp_path):
    file = AnnotationFile(write(tmp_path / "a.json", random_polygons(3)))
    with pytest.raises(DictionaryError, match="the parts have masks of 8×8 and 9×9: fit them with"):
        PartialSums.merged([sum_masks([file], 9), sum_masks([file], 8)])


def test_a_dictionary_is_no_part(tmp_path, coco):
    MaskMoments.of(coco[:20]).dictionary(2).save(tmp_path / "d.npz")
    with pytest.raises(DictionaryError, match=r"d\.npz: holds no partial sums: name what isda"):
        PartialSums.load(tmp_path / "d.npz")
