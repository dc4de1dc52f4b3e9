import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from isda.engine.steps import StepTrainer, averaged_model
from isda.training.optimizer import build_gradient_clipper


class Model(nn.Module):
    """loss_fit of the mean input; a term of NaN or infinity on demand; optional dropout and BN."""

    def __init__(self, norm=False):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(3) if norm else nn.Identity()
        self.autocast_dtype = None

    def forward(self, batch):
        x = torch.stack([image["x"] for image in batch])
        y = self.linear(self.norm(x))
        self.autocast_dtype = y.dtype
        bad = sum(image.get("bad", 0.0) for image in batch)
        return {"loss_fit": (y.float() ** 2).mean(), "loss_other": y.float().mean() * 0 + bad}


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def image(number, **extra):
    generator = torch.Generator().manual_seed(number)
    return {"file_name": f"{number}.jpg", "x": torch.rand(3, generator=generator), **extra}


def trainer(model, batches, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options.setdefault("clip_gradients", build_gradient_clipper(None))
    return StepTrainer(model, batches, optimizer, **options)


def run(steps, count=1):
    with EventStorage() as storage:
        for steps.iter in range(count):
            steps.run_step()
    return storage


def weights(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def twins(**kwargs):
    torch.manual_seed(0)
    first = Model(**kwargs)
    second = Model(**kwargs)
    second.load_state_dict(first.state_dict())
    return first, second


def test_accumulation_equals_one_big_batch():
    whole, parts = twins()
    images = [image(i) for i in range(6)]
    clip = build_gradient_clipper("full_model", 0.01)
    run(trainer(whole, [images], clip_gradients=clip))
    batches = [images[0:2], images[2:4], images[4:6]]
    storage = run(trainer(parts, batches, accumulation=3, clip_gradients=clip))
    torch.testing.assert_close(weights(whole), weights(parts))
    assert storage.history("loss_fit").latest() > 0
    assert storage.history("grad_norm").latest() > 0.01  # before clipping


def test_accumulated_losses_are_means():
    model, other = twins()
    images = [image(i) for i in range(4)]
    storage = run(trainer(model, [images[:2], images[2:]], accumulation=2))
    expected = other(images)["loss_fit"].item()
    assert storage.history("loss_fit").latest() == pytest.approx(expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_and_its_image_named(bad, caplog):
    model = Model(norm=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = [image(0), image(1, bad=bad)]
    steps = trainer(model, [[image(2), image(3)], batch, [image(4), image(5)]], accumulation=2)
    with caplog.at_level(logging.WARNING):
        storage = run(steps)
    assert f"loss_other = {bad} of 1.jpg" in caplog.text
    assert "0.jpg" not in caplog.text
    assert "skipped (1 in a row, SOLVER.MAX_NONFINITE_STEPS is 5)" in caplog.text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "total_loss" not in storage.histories()


def test_looking_for_the_image_draws_no_random_numbers():
    states = []
    for bad in (0.0, float("nan")):
        torch.manual_seed(3)
        run(trainer(Model(), [[image(0, bad=bad)]]))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_several_bad_steps_in_a_row_stop_with_advice():
    good, bad = [image(0)], [image(1, bad=float("nan"))]
    steps = trainer(Model(), [bad, good, bad, bad, bad], max_nonfinite_steps=2)
    with pytest.raises(FloatingPointError, match="1.jpg.*2 in a row.*Lower SOLVER.BASE_LR"):
        run(steps, 5)
    assert steps.iter == 3  # the good step in between counts anew


def test_broken_weights_stop_at_once():
    model = Model()
    model.linear.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="weights themselves.*linear.bias"):
        run(trainer(model, [[image(0)]]))


def test_gradients_that_are_not_finite_are_skipped(caplog):
    model = Model()
    before = weights(model)
    forward = model.forward
    model.forward = lambda batch: {k: BadGradient.apply(v) for k, v in forward(batch).items()}
    run(trainer(model, [[image(0), image(1)]]))
    assert "the gradients, while the loss is finite, of 0.jpg, 1.jpg" in caplog.text
    assert torch.equal(before, weights(model))


def test_bfloat16_runs_under_autocast():
    model = Model()
    run(trainer(model, [[image(0)]], amp_dtype=torch.bfloat16))
    assert model.autocast_dtype is torch.bfloat16
    assert model.linear.weight.dtype is torch.float32


def test_float16_clips_what_is_unscaled():
    scaled, plain = twins()
    clip = build_gradient_clipper("full_model", 0.05)
    storage = run(trainer(scaled, [[image(0)]], amp_dtype=torch.float16, clip_gradients=clip))
    run(trainer(plain, [[image(0)]], clip_gradients=clip))
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-2, atol=1e-3)
    assert storage.history("grad_norm").latest() < 10  # the scale is 65536


def test_float16_searches_its_scale_without_complaint(caplog):
    model = Model()
    forward = model.forward
    overflowing = [True]

    def first_overflows(batch):
        losses = forward(batch)
        return {k: BadGradient.apply(v) for k, v in losses.items()} if overflowing[0] else losses

    model.forward = first_overflows
    before = weights(model)
    steps = trainer(model, [[image(0)], [image(1)]], amp_dtype=torch.float16)
    run(steps)
    assert torch.equal(before, weights(model))
    assert steps.grad_scaler.get_scale() == 2**15
    assert "skipped" not in caplog.text
    overflowing[0] = False
    run(steps)
    assert not torch.equal(before, weights(model))


def test_average_of_weights_and_buffers():
    model = Model(norm=True)
    averaged = averaged_model(model, 0.5)
    steps = trainer(model, [[image(i), image(i + 9)] for i in range(40)], averaged=averaged)
    expected = {}
    for seen in range(40):
        run(steps)
        state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        decay = min(0.5, seen / (seen + 10))
        for name, value in state.items():
            old = expected.get(name, value)
            expected[name] = decay * old + (1 - decay) * value
    found = averaged.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert not torch.equal(found["linear.weight"], model.linear.weight)
    assert not any(p.requires_grad for p in averaged.parameters())


def test_skipped_steps_are_not_averaged():
    model = Model()
    averaged = averaged_model(model, 0.5)
    run(trainer(model, [[image(0, bad=float("nan"))]], averaged=averaged))
    assert averaged.n_averaged == 0
