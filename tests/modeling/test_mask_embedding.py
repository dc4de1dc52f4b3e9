import copy
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks

from isda.mask_dictionary.reconstruction import reconstruct_chunk
from isda.mask_dictionary.target_masks import AnnotationFile
from isda.modeling.mask_dictionary import AMPLITUDE, DictionaryError, MaskDictionary
from isda.modeling.mask_embedding import MaskEmbedding, crop_masks

HELD_OUT = Path(__file__).parents[1] / "assets" / "coco_masks.json"
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
)


def random_dictionary(side: int = 6, dim: int = 5, seed: int = 0) -> MaskDictionary:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(side * side, dim)))
    return MaskDictionary(
        components=basis.T.astype(np.float32),
        mean=rng.normal(size=side * side).astype(np.float32),
        explained_variance=np.sort(rng.uniform(0.4, 9, dim))[::-1].astype(np.float32),
        explained_variance_ratio=np.full(dim, 1 / dim, np.float32),
        num_masks=12,
        sources={"a.json": "ab12"},
        iou={"b.json, d=5: mean": 0.75},
    )


def random_masks(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, side, side)) < 0.4)


@pytest.fixture(scope="module")
def shipped() -> MaskEmbedding:
    return MaskEmbedding.from_file("shipped")


# --- the code


def test_shipped_components_are_orthonormal(shipped):
    assert (shipped.side, shipped.dim) == (28, 100)
    components = shipped.components.double()
    torch.testing.assert_close(
        components @ components.T, torch.eye(100, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_decoded_logits_are_encoded_to_the_same_embedding(shipped):
    embeddings = torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    found = shipped.project(shipped.decode_logits(embeddings))
    torch.testing.assert_close(found, embeddings, atol=1e-4, rtol=0)


def test_shipped_dictionary_reconstructs_held_out_masks_of_coco():
    dictionary, dims = MaskDictionary.load("shipped"), (40, 60, 80, 100)
    (chunk,) = AnnotationFile(HELD_OUT).chunks()
    result = reconstruct_chunk(chunk, dictionary, dims)
    means = [row["mean"] for row in result.summary()]
    assert len(result.ious) == 644
    assert means[1] >= 0.94
    assert means == sorted(means) and means[3] > means[0] + 0.03
    # What the file and its documentation say.
    noted = [dictionary.iou[f"instances_val.json, d={dim}: mean"] for dim in dims]
    assert noted == pytest.approx(means, abs=2e-4)
    assert [round(mean, 3) for mean in means] == [0.929, 0.949, 0.961, 0.971]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
def test_encoding_is_the_formula(device, dtype):
    dictionary = random_dictionary()
    masks = random_masks(7, 6)
    logits = np.where(masks.numpy(), AMPLITUDE, -AMPLITUDE).reshape(7, 36)
    centred = logits - dictionary.mean.astype(np.float64)
    expected = centred @ dictionary.components.T.astype(np.float64)
    expected /= np.sqrt(dictionary.explained_variance.astype(np.float64))
    embedding = MaskEmbedding.of(dictionary).to(device)
    found = embedding.encode(masks.to(device, dtype))
    assert found.device.type == device and found.dtype == torch.float32
    np.testing.assert_allclose(found.cpu().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_decoding_is_the_formula(device):
    dictionary = random_dictionary()
    r = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    logits = (r.astype(np.float64) * np.sqrt(dictionary.explained_variance.astype(np.float64))) @ (
        dictionary.components.astype(np.float64)
    ) + dictionary.mean
    found = MaskEmbedding.of(dictionary).to(device).decode(torch.from_numpy(r).to(device))
    assert found.shape == (4, 6, 6) and found.dtype == torch.float32
    np.testing.assert_allclose(
        found.cpu().numpy().reshape(4, 36), 1 / (1 + np.exp(-logits)), atol=1e-6
    )


def test_all_components_together_reconstruct_every_mask():
    embedding = MaskEmbedding.of(random_dictionary(side=4, dim=16))
    masks = random_masks(20, 4)
    assert torch.equal(embedding.decode(embedding.encode(masks)) >= 0.5, masks)


def test_decoding_is_differentiable():
    embedding = MaskEmbedding.of(random_dictionary()).double()
    embeddings = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(embedding.decode, embeddings)
    masks = torch.rand(3, 6, 6, requires_grad=True)
    assert not embedding.encode(masks).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_stays_outside(dtype):
    embedding = MaskEmbedding.of(random_dictionary())
    embeddings = torch.randn(3, 5).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = embedding.decode(embeddings)
        encoded = embedding.encode(decoded > 0.5)
    torch.testing.assert_close(decoded, embedding.decode(embeddings.float()), atol=0, rtol=0)
    torch.testing.assert_close(encoded, embedding.encode(decoded > 0.5), atol=0, rtol=0)


def test_no_masks():
    embedding = MaskEmbedding.of(random_dictionary())
    assert embedding.encode(torch.zeros(0, 6, 6, dtype=torch.bool)).shape == (0, 5)
    assert embedding.decode(torch.zeros(0, 5)).shape == (0, 6, 6)


def test_it_has_buffers_only_and_a_checkpoint_fills_them(tmp_path):
    fitted, empty = MaskEmbedding.of(random_dictionary()), MaskEmbedding(6, 5)
    assert list(empty.parameters()) == []
    assert set(empty.state_dict()) == {"components", "mean", "explained_variance"}
    assert fitted.is_fitted and not empty.is_fitted
    torch.save(fitted.state_dict(), tmp_path / "model.pth")
    empty.load_state_dict(torch.load(tmp_path / "model.pth"))
    assert empty.is_fitted
    masks = random_masks(3, 6)
    assert torch.equal(empty.encode(masks), fitted.encode(masks))
    assert torch.equal(empty.decode(torch.ones(2, 5)), fitted.decode(torch.ones(2, 5)))


def test_checkpoint_with_another_dictionary_is_one_sentence():
    model = torch.nn.ModuleDict({"mask_embedding": MaskEmbedding(6, 5)})
    other = torch.nn.ModuleDict({"mask_embedding": MaskEmbedding.of(random_dictionary(7, 4))})
    with pytest.raises(RuntimeError) as failure:
        model.load_state_dict(other.state_dict())
    lines = str(failure.value).strip().splitlines()
    assert len(lines) == 2  # PyTorch's own first line, and ours
    assert lines[1].strip() == (
        "mask_embedding.components is a mask dictionary of 4 components for 7×7 masks in the "
        "checkpoint, of 5 components for 6×6 masks here: build the model for 4 "
        "components and a side of 7"
    )


def test_noise_moves_an_entry_by_a_hundredth_to_a_sixth(shipped):
    """In units of one standard deviation; istr.md's measurement, for d = 60."""
    noisy = MaskEmbedding.from_file("shipped", dim=60, noise=True)
    plain = MaskEmbedding.from_file("shipped", dim=60)
    masks = random_masks(1, 28).expand(4000, -1, -1)
    torch.manual_seed(0)
    moved = noisy.encode(masks) - plain.encode(masks)
    expected = (0.3312 / plain.explained_variance).sqrt()
    torch.testing.assert_close(moved.std(dim=0), expected, rtol=0.08, atol=0)
    assert moved.mean(dim=0).abs().max() < 0.02
    assert 0.005 < expected[0] < 0.02 and 0.12 < expected[-1] < 0.2
    assert not torch.equal(noisy.encode(masks[:1]), noisy.encode(masks[:1]))
    assert torch.equal(plain.encode(masks[:1]), plain.encode(masks[:1]))


@pytest.mark.parametrize("dim", [0, 37])
def test_impossible_number_of_components(dim):
    with pytest.raises(DictionaryError, match=f"{dim} components for 6×6 masks.*from 1 to 36"):
        MaskEmbedding(6, dim)


# --- the file


def test_file_keeps_everything(tmp_path):
    dictionary = random_dictionary()
    dictionary.save(tmp_path / "d.npz")
    loaded = MaskDictionary.load(tmp_path / "d.npz")
    for name in ("components", "mean", "explained_variance", "explained_variance_ratio"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(dictionary, name))
    assert (loaded.side, loaded.dim, loaded.num_masks) == (6, 5, 12)
    assert loaded.amplitude == AMPLITUDE
    assert loaded.sources == {"a.json": "ab12"}
    assert loaded.iou == {"b.json, d=5: mean": 0.75}
    dictionary.save(tmp_path / "again.npz")
    assert (tmp_path / "d.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.npz", "d.npz"]


def test_larger_dictionary_is_cut(tmp_path):
    dictionary = random_dictionary()
    dictionary.save(tmp_path / "d.npz")
    whole = MaskEmbedding.from_file(tmp_path / "d.npz")
    part = MaskEmbedding.from_file(str(tmp_path / "d.npz"), dim=2, side=6)
    masks = random_masks(3, 6)
    torch.testing.assert_close(part.encode(masks), whole.encode(masks)[:, :2])
    assert part.components.shape == (2, 36) and part.dim == 2


def test_authors_layout(tmp_path):
    ours = random_dictionary()
    np.savez(
        tmp_path / "theirs.npz",
        components_c=ours.components[None],
        mean_c=ours.mean[None],
        explained_variance_c=ours.explained_variance,
        ratio_c=ours.explained_variance_ratio[None],
    )
    theirs, masks = MaskEmbedding.from_file(tmp_path / "theirs.npz", dim=4), random_masks(3, 6)
    torch.testing.assert_close(
        theirs.encode(masks), MaskEmbedding.of(ours.first(4)).encode(masks), atol=0, rtol=0
    )
    assert theirs.amplitude == AMPLITUDE


@pytest.mark.parametrize("asked", [{"dim": 6}, {"side": 7}, {"side": 28, "dim": 60}])
def test_dictionary_of_another_size_is_one_sentence(tmp_path, asked):
    random_dictionary().save(tmp_path / "d.npz")
    with pytest.raises(DictionaryError) as failure:
        MaskEmbedding.from_file(tmp_path / "d.npz", **asked)
    dim, side = asked.get("dim", 5), asked.get("side", 6)
    assert str(failure.value) == (
        f"{tmp_path / 'd.npz'}: is a mask dictionary of 5 components for 6×6 masks, asked for are "
        f"{dim} components for {side}×{side} masks: ask for what it has, or fit another with "
        "isda mask-dictionary fit "
        f"--side {side} --dim {dim}"
    )


def spoil(path: Path, how: str) -> None:
    dictionary = random_dictionary()
    if how == "missing":
        return
    if how == "text":
        path.write_text("no archive")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        dictionary.save(path)
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "pickled":
        np.savez(path, components=np.array([{"a": 1}], dtype=object))
    elif how == "one array":
        with open(path, "wb") as file:
            np.save(file, dictionary.components)
    elif how == "other archive":
        np.savez(path, weights=dictionary.components)
    elif how == "half of the authors'":
        np.savez(path, components_c=dictionary.components[None], mean_c=dictionary.mean[None])
    elif how == "shapes":
        dictionary.mean = dictionary.mean[:-1]
        dictionary.save(path)
    elif how == "not square":
        dictionary.components, dictionary.mean = dictionary.components[:, :35], dictionary.mean[:35]
        dictionary.save(path)
    elif how == "nan":
        dictionary.mean[3] = np.nan
        dictionary.save(path)
    elif how == "zero variance":
        dictionary.explained_variance[-1] = 0
        dictionary.save(path)


@pytest.mark.parametrize(
    "how, sentence",
    [
        ("missing", "no such mask dictionary: name one that isda mask-dictionary fit has "),
        ("text", "is no readable .npz without pickles"),
        ("empty", "is no readable .npz without pickles"),
        ("truncated", "is no readable .npz without pickles, perhaps truncated"),
        ("pickled", "is no readable .npz without pickles"),
        ("one array", "is no readable .npz without pickles"),
        ("other archive", "is no mask dictionary, it has no components, mean, explained_variance"),
        ("half of the authors'", "is no mask dictionary, it has no explained_variance, explained"),
        ("shapes", r"here are components \[5, 36\], mean \[35\]"),
        ("not square", r"here are components \[5, 35\], mean \[35\]"),
        ("nan", "has numbers that are not finite"),
        ("zero variance", "variances that are not positive"),
    ],
)
def test_unusable_file_is_one_sentence(tmp_path, how, sentence):
    path = tmp_path / "d.npz"
    spoil(path, how)
    with pytest.raises(DictionaryError, match=f"d.npz: .*{sentence}") as failure:
        MaskEmbedding.from_file(path)
    assert "\n" not in str(failure.value)


# --- target masks


def test_polygon_fills_its_box():
    # A triangle below the diagonal of its box, whatever the box's place and size.
    polygons = [[np.array([x, y, x + w, y + h, x, y + h], float)] for x, y, w, h in
                [(0, 0, 28, 28), (10.5, 3.25, 100, 37), (-5, 400, 7, 300)]]  # fmt: skip
    boxes = torch.tensor([[0, 0, 28, 28], [10.5, 3.25, 110.5, 40.25], [-5, 400, 2, 700.0]])
    masks = crop_masks(PolygonMasks(polygons), boxes, 28)
    assert masks.shape == (3, 28, 28) and masks.dtype == torch.bool
    below = torch.ones(28, 28).tril(-1).bool()
    above = torch.ones(28, 28).triu(1).bool()
    for mask in masks:
        assert mask[below].all() and not mask[above].any()


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_bitmap_is_averaged_within_its_box(device):
    """Boxes of 28 k pixels: each target pixel is the mean of k×k pixels, cut at a half."""
    rng = np.random.default_rng(0)
    bitmaps = torch.from_numpy(rng.random((3, 90, 70)) < 0.5)
    boxes = torch.tensor([[3.0, 5, 59, 61], [14, 34, 70, 90], [0, 0, 28, 28]], device=device)
    masks = crop_masks(BitMasks(bitmaps.to(device)), boxes, 28)
    assert masks.device.type == device
    shares = torch.nn.functional.avg_pool2d(bitmaps[:2, None].float(), 2, 1)[:, 0]
    assert torch.equal(masks[0].cpu(), shares[0, 5:61:2, 3:59:2] >= 0.5)
    assert torch.equal(masks[1].cpu(), shares[1, 34:90:2, 14:70:2] >= 0.5)
    assert torch.equal(masks[2].cpu(), bitmaps[2, :28, :28])


def test_bitmaps_in_chunks_are_the_same(monkeypatch):
    bitmaps = BitMasks(random_masks(7, 50))
    boxes = torch.tensor([[1.5, 2, 30, 47]]).repeat(7, 1)
    whole = crop_masks(bitmaps, boxes, 9)
    monkeypatch.setattr("isda.modeling.mask_embedding._CHUNK_PIXELS", 2 * 50 * 50)
    assert torch.equal(crop_masks(bitmaps, boxes, 9), whole)
    assert torch.equal(bitmaps.crop_and_resize(boxes, 9), whole)


@pytest.mark.parametrize("masks", [BitMasks(torch.zeros(0, 8, 8)), PolygonMasks([])])
def test_no_instances(masks):
    found = crop_masks(masks, torch.zeros(0, 4), 28)
    assert found.shape == (0, 28, 28) and found.dtype == torch.bool


def test_boxes_and_masks_are_pairs():
    with pytest.raises(ValueError, match="2 masks and 1 boxes: they must be pairs"):
        crop_masks(BitMasks(torch.zeros(2, 8, 8)), torch.zeros(1, 4), 28)


def test_one_pixel_box_and_a_polygon_far_beyond_it(monkeypatch):
    """What is drawn is closer than that: a stand-in for pycocotools sees how close."""
    drawn = []

    def draw(polygons, *size):
        drawn.extend(np.abs(polygons).max(axis=1))
        return draw_polygons(polygons, *size)

    draw_polygons = mask_util.frPyObjects
    monkeypatch.setattr(mask_util, "frPyObjects", draw)
    far = [np.array([0, 0, 2e4, 0, 2e4, 2e4, 0, 2e4])]  # times 28 pixels of the mask
    near = [np.array([0, 0, 1.0, 0, 1, 1, 0, 1])]
    polygons = PolygonMasks([far, near])
    untouched = copy.deepcopy(polygons.polygons)
    masks = crop_masks(polygons, torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 0]]), 28)
    assert masks[0].all() and masks[1].all()
    assert drawn == [2**18, 280]
    for before, after in zip(untouched, polygons.polygons):
        np.testing.assert_array_equal(before, after)
