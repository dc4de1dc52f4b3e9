import copy

import pytest
import torch
from gradients import backward, without_gradient
from torch import nn

LAYERS = ("", "_0")
TERMS = ("loss_cls", "loss_mask", "loss_bbox", "loss_giou")
PROPOSALS = ("loss_cls_enc", "loss_bbox_enc", "loss_giou_enc")


@pytest.mark.parametrize(
    ("sizes", "counts", "num_classes", "points"),
    [
        ([(96, 128), (128, 96)], (3, 2), 3, 0),
        ([(96, 128)], (3,), 1, 500),
        ([(97, 131), (65, 99)], (3, 2), 3, 500),
        ([(7, 200), (131, 1)], (3, 2), 3, 0),
        ([(96, 128), (128, 96)], (0, 2), 3, 500),
        ([(96, 128), (96, 128)], (500, 1), 3, 500),
    ],
)
def test_training_reaches_every_parameter(
    tiny_isda_boxes, confident, random_input, sizes, counts, num_classes, points
):
    model = confident(tiny_isda_boxes(num_classes=num_classes, num_mask_points=points))
    inputs = [
        random_input(*size, count, num_classes, seed)
        for seed, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]
    losses = backward(model, inputs)
    names = {f"{term}{layer}" for term in TERMS for layer in LAYERS}
    assert set(losses) == names | set(PROPOSALS) | {f"{term}_dn" for term in TERMS}
    assert all(loss > 0 for loss in losses.values())
    assert without_gradient(model) <= {"denoising.labels.weight"}  # labels that nobody had


@pytest.mark.parametrize(
    "switches",
    [
        {"refine": False},
        {"selection": False},
        {"relative": False},
        {"exact_extent": False},
        {"token_content": False},
        {"relation": False},
        {"ellipse": False},
        {"num_noised": 0},
        {"refine": False, "selection": False, "ellipse": False, "num_noised": 0},
        {"mask_stride": 1},
        {"mask_stride": 4},
    ],
)
def test_every_part_can_be_switched_off(tiny_isda_boxes, confident, random_input, switches):
    model = confident(tiny_isda_boxes(**switches))
    losses = backward(model, [random_input(97, 131)])
    assert without_gradient(model) <= {"denoising.labels.weight"}
    assert ("loss_cls_enc" in losses) == switches.get("selection", True)
    assert ("loss_cls_dn" in losses) == (switches.get("num_noised", 1) > 0)
    (output,) = model.eval()([random_input(97, 131)])
    assert output["instances"].pred_masks.shape[1:] == (97, 131)


@pytest.mark.parametrize("batch", [1, 2])
def test_training_without_any_instance(tiny_isda_boxes, confident, random_input, batch):
    model = confident(tiny_isda_boxes())
    losses = backward(model, [random_input(96, 128, num_instances=0)] * batch)
    for name, loss in losses.items():
        if not name.startswith("loss_cls") or name.endswith("_dn"):
            assert loss == 0, name
    assert losses["loss_cls"] > 0


def test_queries_start_with_what_their_tokens_hold(tiny_isda_boxes, confident, random_input):
    model = confident(tiny_isda_boxes(num_noised=0))
    received = []
    hook = lambda layer, args: received.append(args[0])  # noqa: E731
    model.transformer.decoder[0].register_forward_pre_hook(hook)
    _, decoded = model._decode(model.preprocess([random_input(96, 128)]))
    (content,) = received
    assert torch.equal(content, decoded.proposals.states)
    assert not content.requires_grad  # what the decoder would like to see moves no token
    head = model.transformer.query_selection.classes
    torch.testing.assert_close(head(content), decoded.proposals.class_logits)


def test_another_number_of_queries_at_inference(tiny_isda_boxes, confident, random_input):
    """Nothing is learned for each, so weights fit; the best tokens are chosen in either case."""
    many = confident(tiny_isda_boxes(num_noised=0, num_queries=14)).eval()
    few = tiny_isda_boxes(num_noised=0, num_queries=5).eval()
    few.load_state_dict(many.state_dict())
    x = random_input(96, 128)
    references = [m._decode(m.preprocess([x]))[1].references for m in (many, few)]
    # Products of fourteen rows and of five need not be rounded alike.
    torch.testing.assert_close(references[0][:, :5], references[1])


def test_relations_are_of_boxes_and_scores_before_the_layer(
    tiny_isda_boxes, confident, random_input
):
    model = confident(tiny_isda_boxes(num_noised=4))
    x = random_input(96, 128, num_instances=2)
    received = []
    for layer in model.transformer.decoder:
        hook = lambda relation, args: received.append(args)  # noqa: E731
        layer.relation.register_forward_pre_hook(hook)
    images, targets = model.preprocess([x]), model.targets([x])
    _, decoded = model.outputs(images, targets)
    assert torch.equal(received[0][0], decoded.references)
    assert torch.equal(received[1][0], decoded.boxes[0].detach())
    for _, scores in received:
        assert torch.equal(scores[:, :4], torch.zeros(1, 4))  # noised
        assert torch.equal(scores[:, 4:], decoded.proposals.class_logits.amax(dim=2))


def test_noised_queries_vanish_at_inference(tiny_isda_boxes, confident, random_input):
    x = random_input(96, 128)
    model = confident(tiny_isda_boxes()).eval()
    without = confident(tiny_isda_boxes(num_noised=0)).eval()
    state = {n: p for n, p in model.state_dict().items() if not n.startswith("denoising.")}
    without.load_state_dict(state)
    for one, two in zip(*(m.predict(m.preprocess([x])) for m in (model, without)), strict=True):
        assert torch.equal(one.class_logits, two.class_logits)
        assert torch.equal(one.kernels, two.kernels)
        assert torch.equal(one.boxes, two.boxes)


def test_noised_queries_do_not_change_the_real_ones(tiny_isda_boxes, confident, random_input):
    x = random_input(96, 128)
    model = confident(tiny_isda_boxes())
    without = copy.deepcopy(model)
    without.denoising = None
    losses, expected = model([x]), without([x])
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)


def test_groups_do_not_see_each_other(tiny_isda_boxes, confident, random_input):
    """Another content of one noised query changes its own group's states, and no others."""
    model = confident(tiny_isda_boxes(num_noised=9))
    x = random_input(96, 128, num_instances=3)
    images, targets = model.preprocess([x]), model.targets([x])
    torch.manual_seed(0)
    noised = model.denoising(targets, 10)

    def states(content):
        changed = copy.copy(noised)
        changed.content = content
        with torch.no_grad():
            return model._decode(images, lambda _: changed)[1].states[-1, 0]

    other = noised.content.clone()
    other[0, 4] += 1  # in the second of three groups
    changed = (states(noised.content) != states(other)).any(dim=1)
    assert changed.tolist() == [False] * 3 + [True] * 3 + [False] * 3 + [False] * 10


def test_gradient_checkpointing_in_the_whole_model(tiny_isda_boxes, random_input):
    results = []
    for checkpointing in (False, True):
        model = tiny_isda_boxes(gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        losses = backward(model, [random_input(96, 128)])
        results.append([*losses.values(), *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16_autocast(tiny_isda_boxes, confident, random_input):
    """Noise is drawn alike; the choice of tokens is not differentiable, so it is left out."""
    inputs = [random_input(96, 128), random_input(65, 99, seed=1)]
    build = {"selection": False, "num_mask_points": 0}
    torch.manual_seed(0)
    exact = confident(tiny_isda_boxes(**build))(inputs)
    model = confident(tiny_isda_boxes(**build))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1), name
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_autocast_leaves_boxes_and_ellipses_in_float32(tiny_isda_boxes, confident, random_input):
    model, x = confident(tiny_isda_boxes()), random_input(96, 128)
    images, targets = model.preprocess([x]), model.targets([x])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions, decoded = model.outputs(images, targets)
    assert decoded.states.dtype == torch.bfloat16  # the rest of it is not
    boxes = [decoded.boxes, decoded.references, decoded.proposals.boxes, decoded.noised.boxes]
    parts = [t for p in predictions for t in (p.boxes, p.kernels, p.mask_features)]
    logits = decoded.proposals.class_logits  # many lie close together
    assert {tensor.dtype for tensor in [*boxes, *parts, logits]} == {torch.float32}


def test_batch_equals_single_images(tiny_isda_boxes, confident, random_input):
    model = confident(tiny_isda_boxes()).eval()
    inputs = [random_input(96, 128, seed=seed) for seed in range(2)]
    together = model(inputs)
    for x, output in zip(inputs, together, strict=True):
        (alone,) = model([x])
        assert len(alone["instances"]) > 0
        # Products over a batch need not be rounded like those over one image.
        scores = alone["instances"].scores, output["instances"].scores
        torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(alone["instances"].pred_masks, output["instances"].pred_masks)


def test_boxes_are_relative_to_the_valid_extent(tiny_isda_boxes, confident, random_input):
    """Padding moves neither the ellipses nor the boxes that a token starts from."""
    model = confident(tiny_isda_boxes()).eval()
    x, larger = random_input(96, 128), random_input(128, 192)
    images = model.preprocess([x, larger])
    (prediction,) = model.predict(images)
    channels = prediction.mask_features[:, -5:]
    for image, (height, width) in enumerate(images.image_sizes):
        rows, columns = height // 2, width // 2
        valid = channels[image, :, :rows, :columns]
        assert valid[2, 0, 0].item() == pytest.approx(1 / width - 0.5)
        assert valid[2, 0, -1].item() == pytest.approx(0.5 - 1 / width)
        assert valid[3, -1, 0].item() == pytest.approx(0.5 - 1 / height)


def test_layers_refine_the_boxes_of_the_layer_before(tiny_isda_boxes, confident, random_input):
    model = confident(tiny_isda_boxes(num_noised=0, relative=False))
    x = random_input(96, 128)
    _, decoded = model._decode(model.preprocess([x]))
    first, second = decoded.boxes
    torch.testing.assert_close(decoded.references, decoded.proposals.boxes)
    shift = model.transformer.reference_boxes.head.layers(decoded.states[1])
    torch.testing.assert_close(second, (torch.logit(first.detach()) + shift).sigmoid())


@pytest.mark.slow
def test_training_learns_one_image(tiny_isda_boxes, random_input):
    model, x = tiny_isda_boxes(), random_input(64, 64, num_instances=2)
    x["image"][:] = 60
    for mask, colour in zip(x["instances"].gt_masks.tensor, (150, 250), strict=True):
        x["image"][:, mask] = colour
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    for step in range(60):
        losses = model([x])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step == 0:
            first = {name: loss.item() for name, loss in losses.items()}
    for name in ("loss_cls", "loss_mask", "loss_bbox", "loss_giou"):
        assert losses[name].item() < 0.5 * first[name], name
