"""The operator where PyTorch compiles, exports or traces it."""

import pytest
import torch
import torch._dynamo.testing
from problems import random_inputs
from torch import Tensor

from isda.ops import ms_deform_attn

SIZES = [(3, 4), (2, 1)]


class Attention(torch.nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, SIZES, None, locations, weights)


def detached(device: str, **changes) -> list[Tensor]:
    inputs = random_inputs(SIZES, dtype=torch.float32, device=device, **changes)
    return [tensor.detach() for tensor in inputs]


@pytest.mark.slow
def test_compiles_in_one_graph(device):
    """Forward and backward, with every size open."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def attend(value, sizes, locations, weights):
        return 2 * ms_deform_attn(value, sizes, None, locations, weights)

    for sizes in ([(3, 4), (2, 1)], [(5, 2), (4, 3)], [(6, 7), (2, 5)]):
        inputs = random_inputs(sizes, dtype=torch.float32, device=device)
        value, locations, weights = inputs
        found = attend(value, sizes, locations, weights)
        expected = 2 * ms_deform_attn(value, sizes, None, locations, weights)
        assert torch.equal(found, expected)
        for one, other in zip(
            torch.autograd.grad(found.square().sum(), inputs),
            torch.autograd.grad(expected.square().sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(one, other)
    assert counter.frame_count <= 2


def test_exports_to_grid_sample(device):
    inputs = detached(device)
    program = torch.export.export(Attention(), tuple(inputs))
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("grid_sample" in target for target in targets) == 2
    assert not any("isda" in target for target in targets)
    torch.testing.assert_close(program.module()(*inputs), Attention()(*inputs))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_traces_to_grid_sample(device):
    inputs = detached(device)
    traced = torch.jit.trace(Attention(), tuple(inputs))
    assert "isda::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*inputs), Attention()(*inputs))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The attention in ONNX Runtime."""
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = str(tmp_path_factory.mktemp("onnx") / "attention.onnx")
    torch.onnx.export(Attention(), tuple(detached("cpu")), path, dynamo=True, opset_version=20)
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_computes_the_same(session, device):
    inputs = detached(device)
    names = [argument.name for argument in session.get_inputs()]
    feed = {name: tensor.cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
    (output,) = session.run(None, feed)
    torch.testing.assert_close(torch.from_numpy(output), Attention()(*inputs).cpu())
