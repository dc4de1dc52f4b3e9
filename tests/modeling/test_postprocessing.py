import itertools

import pytest
import torch
import torch.nn.functional as F

from isda.modeling import postprocessing
from isda.modeling.postprocessing import (
    encode_masks,
    mask_windows,
    maskness,
    masks_to_boxes,
    paste_masks,
    select_embedded_instances,
    select_instances,
)
from isda.structures import EmbeddedPrediction, SetPrediction


def prediction_of(class_logits, mask_logits):
    """A prediction with just these masks: one mask feature per query, one-hot kernels."""
    num_queries = class_logits.shape[1]
    kernels = torch.eye(num_queries).expand(len(class_logits), -1, -1)
    return SetPrediction(class_logits, kernels, mask_logits)


def random_prediction(num_queries=6, num_classes=4, cells=(8, 12)):
    torch.manual_seed(0)
    coarse = 4 * torch.randn(2, num_queries, 3, 4)
    mask_logits = F.interpolate(coarse, size=cells, mode="bilinear")
    return prediction_of(torch.randn(2, num_queries, num_classes), mask_logits)


SIZES = {"image_size": (29, 41), "padded_size": (32, 48), "output_size": (57, 90)}


def test_maskness_against_loops():
    torch.manual_seed(0)
    probs = torch.rand(5, 6, 7)
    probs[4] = 0.2
    for mask, found in zip(probs, maskness(probs), strict=True):
        inside = [p for p in mask.flatten().tolist() if p > 0.5]
        assert found.item() == pytest.approx(sum(inside) / (len(inside) + 1e-5), abs=1e-6)


def test_instances_against_brute_force():
    prediction = random_prediction()
    instances = select_instances(prediction, 1, max_instances=9, **SIZES)
    probs = prediction.mask_features[1].sigmoid()
    expected = []
    pairs = itertools.product(range(6), range(4))
    scored = [(prediction.class_logits[1, q, k].sigmoid().item(), q, k) for q, k in pairs]
    for class_prob, query, label in sorted(scored, reverse=True)[:9]:
        valid = probs[query, :8, :11].flatten().tolist()  # 29×41 pixels are 8×11 cells of 4
        inside = [p for p in valid if p > 0.5]
        score = class_prob * sum(inside) / (len(inside) + 1e-5)
        full = F.interpolate(probs[None, None, query], size=(32, 48), mode="bilinear")
        image = full[..., :29, :41]
        mask = F.interpolate(image, size=(57, 90), mode="bilinear")[0, 0] > 0.5
        if mask.any():
            expected.append((score, label, mask))
    expected.sort(key=lambda item: item[0], reverse=True)
    assert len(expected) > 3
    assert instances.image_size == (57, 90)
    assert instances.scores.tolist() == pytest.approx([score for score, _, _ in expected])
    assert instances.pred_classes.tolist() == [label for _, label, _ in expected]
    assert torch.equal(instances.pred_masks, torch.stack([mask for _, _, mask in expected]))
    for mask, box in zip(instances.pred_masks, instances.pred_boxes.tensor, strict=True):
        rows = [y for y in range(57) for x in range(90) if mask[y, x]]
        columns = [x for y in range(57) for x in range(90) if mask[y, x]]
        assert box.tolist() == [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


@pytest.mark.parametrize(("max_instances", "expected"), [(1, 1), (7, 7), (24, 24), (100, 24)])
def test_no_more_pairs_than_asked_for_or_than_there_are(max_instances, expected):
    prediction = random_prediction()
    prediction.mask_features.abs_()  # no mask is empty
    instances = select_instances(prediction, 0, max_instances=max_instances, **SIZES)
    assert len(instances) == expected
    assert (instances.scores.diff() <= 0).all()


def test_empty_masks_are_dropped():
    mask_logits = torch.full((1, 3, 8, 12), -5.0)
    mask_logits[0, 1, 2:5, 3:6] = 5
    mask_logits[0, 2, :, 11] = 9  # in the padding: the image ends after 11 cells
    prediction = prediction_of(torch.tensor([[[3.0], [1.0], [2.0]]]), mask_logits)
    sizes = SIZES | {"image_size": (32, 40)}
    instances = select_instances(prediction, 0, **sizes)
    assert len(instances) == 1
    class_prob = torch.tensor(1.0).sigmoid().item()
    mask_prob = torch.tensor(5.0).sigmoid().item()
    assert instances.scores.item() == pytest.approx(class_prob * mask_prob, rel=1e-4)


def test_an_image_without_any_mask():
    prediction = prediction_of(torch.zeros(1, 3, 2), torch.full((1, 3, 8, 12), -5.0))
    instances = select_instances(prediction, 0, **SIZES)
    assert len(instances) == 0
    assert instances.pred_masks.shape == (0, 57, 90)
    assert instances.pred_boxes.tensor.shape == (0, 4)


def test_the_largest_component_alone():
    mask_logits = torch.full((1, 1, 8, 12), -5.0)
    mask_logits[0, 0, 1:4, 1:4] = 5
    mask_logits[0, 0, 6, 7:9] = 1
    prediction = prediction_of(torch.zeros(1, 1, 1), mask_logits)
    both, one = (
        select_instances(prediction, 0, keep_largest_component=keep_largest_component, **SIZES)
        for keep_largest_component in (False, True)
    )
    assert torch.equal(one.scores, both.scores)
    mask_logits[0, 0, 6] = -100
    (expected,) = select_instances(prediction, 0, **SIZES).pred_masks
    assert torch.equal(one.pred_masks[0], expected)
    assert both.pred_masks.sum() > expected.sum()
    assert (one.pred_boxes.tensor[:, 2:] < both.pred_boxes.tensor[:, 2:]).all()


def test_threshold():
    mask_logits = torch.full((1, 1, 8, 12), 1.0)  # a probability of 0.73
    prediction = prediction_of(torch.zeros(1, 1, 1), mask_logits)
    assert len(select_instances(prediction, 0, threshold=0.7, **SIZES)) == 1
    assert len(select_instances(prediction, 0, threshold=0.75, **SIZES)) == 0


@pytest.mark.parametrize("output_size", [(29, 41), (58, 82), (13, 17), (1, 200)])
def test_pasting_against_the_plain_formulation(output_size, monkeypatch):
    torch.manual_seed(0)
    probs = torch.rand(5, 8, 12)
    full = F.interpolate(probs[None], size=(32, 48), mode="bilinear", align_corners=False)
    image = full[..., :29, :41]
    resized = F.interpolate(image, size=output_size, mode="bilinear", align_corners=False)
    expected = resized[0] > 0.5
    assert torch.equal(paste_masks(probs, (32, 48), (29, 41), output_size), expected)
    monkeypatch.setattr(postprocessing, "_CHUNK_PIXELS", 2 * 32 * 48)
    assert torch.equal(paste_masks(probs, (32, 48), (29, 41), output_size), expected)


@pytest.mark.parametrize("output_size", [(29, 41), (58, 82), (290, 333), (13, 17), (1, 200)])
@pytest.mark.parametrize("smooth", [True, False])
def test_encoded_masks_are_the_pasted_ones(output_size, smooth, monkeypatch):
    """Blobs away from the borders and across them, and noise, which needs every window."""
    torch.manual_seed(0)
    probs = torch.rand(9, 8, 12)
    if smooth:
        y, x = torch.arange(8.0)[None, :, None], torch.arange(12.0)[None, None]
        centres = torch.rand(9, 2, 1, 1) * torch.tensor([8.0, 12.0])[:, None, None]
        probs = torch.exp(-((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) / 4)
        probs[8] = 0.2  # no mask at all
    sizes = {"padded_size": (32, 48), "image_size": (29, 41), "output_size": output_size}
    expected = paste_masks(probs, **sizes)
    assert torch.equal(encode_masks(probs, **sizes).dense(), expected)
    monkeypatch.setattr(postprocessing, "_CHUNK_PIXELS", 500)
    assert torch.equal(encode_masks(probs, **sizes).dense(), expected)


def test_windows_are_tight_and_need_no_dividing_sizes():
    probs = torch.zeros(3, 8, 12)
    probs[0, 2:4, 5] = 0.9
    probs[1, :, 0] = 0.9
    probs[2, 7, 11] = 0.9  # beyond the image
    for padded_size in [(32, 48), (30, 50)]:
        sizes = (padded_size, (23, 40), (23, 40))
        expected = paste_masks(probs, *sizes)
        windows = mask_windows(probs, *sizes)
        assert windows[2].mask.shape == (0, 0)
        for window, mask in zip(windows[:2], expected[:2], strict=True):
            left, top, right, bottom = window.box
            assert [left, top, right, bottom] == masks_to_boxes(mask[None]).tensor[0].tolist()
            assert torch.equal(window.mask, mask[top:bottom, left:right])


def test_a_query_chosen_twice_gets_one_mask(monkeypatch):
    prediction = random_prediction(num_queries=2)
    pasted = []

    def counted(probs, *args):
        pasted.append(len(probs))
        return mask_windows(probs, *args)

    monkeypatch.setattr(postprocessing, "mask_windows", counted)
    instances = select_instances(prediction, 0, max_instances=8, **SIZES)
    assert pasted == [2]
    assert len(instances) == 8
    for query in (0, 1):
        first, *others = instances.pred_masks[instances.queries == query]
        assert len(others) == 3
        assert all(torch.equal(mask, first) for mask in others)


@pytest.mark.parametrize("kind", ["kernels", "embeddings"])
def test_instances_of_large_images_are_encoded(kind, monkeypatch):
    if kind == "kernels":
        prediction = random_prediction()
        prediction.mask_features[1, 2] = -1  # dropped, because its mask is empty

        def select():
            return select_instances(prediction, 1, max_instances=9, **SIZES)
    else:
        prediction = random_embedded()

        def select():
            return select_embedded_instances(prediction, 1, upsampling_decode, **EMBEDDED_SIZES)

    dense = select()
    monkeypatch.setattr(postprocessing, "_DENSE_PIXELS", dense.pred_masks.numel() - 1)
    encoded = select()
    assert len(dense) > 3
    assert torch.equal(encoded.pred_masks.dense(), dense.pred_masks)
    for name in ("scores", "pred_classes"):
        assert torch.equal(encoded.get(name), dense.get(name))
    assert torch.equal(encoded.pred_boxes.tensor, dense.pred_boxes.tensor)


def test_probabilities_are_upsampled_not_logits():
    # Between a certain yes and a weak no, the logits cross zero at another place.
    logits = torch.tensor([8.0, 8.0, -1.0, -1.0]).expand(1, 4, 4)
    found = paste_masks(logits.sigmoid(), (16, 16), (16, 16), (16, 16))[0, 0]
    assert int(found.sum()) == 9  # by logits it would be 10
    by_logits = F.interpolate(logits[None], size=(16, 16), mode="bilinear")[0, 0, 0] > 0
    assert int(by_logits.sum()) == 10


def test_boxes_of_single_pixels_and_full_masks():
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, 3, 5] = True
    masks[1] = True
    masks[2, 1, 2] = masks[2, 2, 4] = True
    assert masks_to_boxes(masks).tensor.tolist() == [[5, 3, 6, 4], [0, 0, 6, 4], [2, 1, 5, 3]]


# ---- boxes with embedded masks ----


def upsampling_decode(embeddings):
    """Four numbers are the quarters of a 28×28 mask."""
    return F.interpolate(embeddings.view(-1, 1, 2, 2), size=(28, 28))[:, 0].sigmoid()


def random_embedded(num_queries=6, num_classes=4):
    torch.manual_seed(0)
    corners = torch.rand(2, num_queries, 2) * torch.tensor([30.0, 18.0])
    boxes = torch.cat([corners, corners + 3 + 8 * torch.rand(2, num_queries, 2)], dim=-1)
    logits = torch.randn(2, num_queries, num_classes)
    return EmbeddedPrediction(logits, boxes, 9 * torch.randn(2, num_queries, 4))


EMBEDDED_SIZES = {"image_size": (29, 41), "output_size": (58, 123)}  # twice, and three times


def test_embedded_instances_against_brute_force():
    prediction = random_embedded()
    instances = select_embedded_instances(
        prediction, 1, upsampling_decode, max_instances=9, **EMBEDDED_SIZES
    )
    pairs = itertools.product(range(6), range(4))
    scored = [(prediction.class_logits[1, q, k].sigmoid().item(), q, k) for q, k in pairs]
    best = sorted(scored, reverse=True)[:9]
    assert instances.image_size == (58, 123)
    assert instances.scores.tolist() == pytest.approx([score for score, _, _ in best])
    assert instances.pred_classes.tolist() == [label for _, _, label in best]
    assert instances.pred_masks.dtype == torch.bool
    for (_, query, _), box, mask in zip(
        best, instances.pred_boxes.tensor, instances.pred_masks, strict=True
    ):
        x0, y0, x1, y1 = prediction.boxes[1, query].tolist()
        expected = [3 * x0, 2 * y0, min(3 * x1, 123), min(2 * y1, 58)]
        assert box.tolist() == pytest.approx(expected, abs=1e-4)
        left, top, right, bottom = expected
        quarters = prediction.embeddings[1, query].view(2, 2) > 0
        for y, x in itertools.product(range(0, 58, 3), range(1, 123, 4)):
            u, v = (x + 0.5 - left) / (right - left), (y + 0.5 - top) / (bottom - top)
            near_an_edge = min(abs(w - edge) for w in (u, v) for edge in (0, 0.5, 1)) < 0.05
            if not near_an_edge:
                inside = 0 < u < 1 and 0 < v < 1
                assert mask[y, x] == (inside and quarters[int(v > 0.5), int(u > 0.5)])


@pytest.mark.parametrize(("max_instances", "expected"), [(1, 1), (7, 7), (24, 24), (100, 24)])
def test_only_chosen_embeddings_are_decoded(max_instances, expected):
    decoded = []

    def counted(embeddings):
        decoded.append(len(embeddings))
        return upsampling_decode(embeddings)

    instances = select_embedded_instances(
        random_embedded(), 0, counted, max_instances=max_instances, **EMBEDDED_SIZES
    )
    assert decoded == [expected]
    assert len(instances) == expected
    assert (instances.scores.diff() <= 0).all()


def test_boxes_outside_the_image_are_dropped_and_others_clipped():
    prediction = random_embedded(num_queries=3, num_classes=1)
    prediction.boxes[0] = torch.tensor(
        [[-9.0, -9.0, 20.0, 20.0], [50.0, 3.0, 70.0, 9.0], [-9.0, -9.0, -1.0, 5.0]]
    )
    before = prediction.boxes.clone()
    instances = select_embedded_instances(
        prediction, 0, upsampling_decode, image_size=(29, 41), output_size=(29, 41)
    )
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 20, 20]]
    assert instances.scores.tolist() == prediction.class_logits[0, :1, 0].sigmoid().tolist()
    assert torch.equal(prediction.boxes, before)
    prediction.boxes[0] = torch.tensor([[50.0, 3.0, 70.0, 9.0]])
    none = select_embedded_instances(
        prediction, 0, upsampling_decode, image_size=(29, 41), output_size=(58, 41)
    )
    assert len(none) == 0
    assert none.pred_masks.shape == (0, 58, 41)


def test_threshold_of_embedded_masks():
    prediction = random_embedded(num_queries=1, num_classes=1)
    prediction.embeddings[:] = 1.0  # a probability of 0.73

    def area(threshold):
        (mask,) = select_embedded_instances(
            prediction, 0, upsampling_decode, threshold=threshold, **EMBEDDED_SIZES
        ).pred_masks
        return int(mask.sum())

    assert area(0.7) > 50
    assert area(0.75) == 0
