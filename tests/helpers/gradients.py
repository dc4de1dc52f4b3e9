"""One training step of any model, and what its gradients reach."""

__all__ = ["backward", "without_gradient"]


def backward(model, batched_inputs):
    """Losses of one training step, which must all be finite and leave finite gradients."""
    losses = model(batched_inputs)
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    return losses


def without_gradient(model):
    """Names of parameters that the last training step has not moved."""
    return {n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()}
