import argparse

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from isda import cli
from isda.checkpoint import Checkpointer
from isda.conversion import SOURCES, convert
from isda.engine.setup import load_config
from isda.model_zoo import get_config_file

STEPS, CLASSES, QUERIES, DIM, HIDDEN = 2, 4, 7, 12, 32
SMALL = [
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.FPN.OUT_CHANNELS", str(HIDDEN), "MODEL.ISTR.HIDDEN_DIM", str(HIDDEN)),
    *("MODEL.ISTR.NUM_STEPS", str(STEPS), "MODEL.ISTR.NUM_CLASSES", str(CLASSES)),
    *("MODEL.ISTR.NUM_QUERIES", str(QUERIES), "MODEL.ISTR.EMBEDDING_DIM", str(DIM)),
    *("MODEL.ISTR.FEEDFORWARD_DIM", "48", "MODEL.ISTR.DYNAMIC_DIM", "8"),
    *("MODEL.ISTR.NUM_HEADS", "4", "MODEL.ISTR.POOLER_RESOLUTION", "3"),
    *("DATASETS.TRAIN", "()", "DATASETS.TEST", "()"),
]

# A step in the authors' names.
STEP = {
    "self_attn.in_proj_weight": (96, 32),
    "self_attn.in_proj_bias": (96,),
    "self_attn.out_proj.weight": (32, 32),
    "self_attn.out_proj.bias": (32,),
    "inst_interact.dynamic_layer.weight": (512, 32),
    "inst_interact.dynamic_layer.bias": (512,),
    "inst_interact.norm1.weight": (8,),
    "inst_interact.norm1.bias": (8,),
    "inst_interact.norm2.weight": (32,),
    "inst_interact.norm2.bias": (32,),
    "inst_interact.out_layer.weight": (32, 288),
    "inst_interact.out_layer.bias": (32,),
    "inst_interact.norm3.weight": (32,),
    "inst_interact.norm3.bias": (32,),
    "linear1.weight": (48, 32),
    "linear1.bias": (48,),
    "linear2.weight": (32, 48),
    "linear2.bias": (32,),
    **{f"norm{i}.{kind}": (32,) for i in (1, 2, 3) for kind in ("weight", "bias")},
    **{
        f"{tower}_module.{3 * layer + index}.{kind}": shape
        for tower in ("cls", "reg", "mask")
        for layer in range(3)
        for index, kind, shape in (
            (0, "weight", (32, 32)),
            (1, "weight", (32,)),
            (1, "bias", (32,)),
        )
    },
    "class_logits.weight": (CLASSES, 32),
    "class_logits.bias": (CLASSES,),
    "bboxes_delta.weight": (4, 32),
    "bboxes_delta.bias": (4,),
    "mask_logits.weight": (DIM, 32),
    "mask_logits.bias": (DIM,),
}
WHOLE = {
    "pos_embeddings.weight": (QUERIES, HIDDEN),
    "init_proposal_boxes.weight": (QUERIES, 4),
    "mask_encoding.components": (DIM, 784),
    "mask_encoding.means": (784,),
    "mask_encoding.explained_variances": (DIM,),
    **{f"head.head_series.{t}.{name}": s for t in range(STEPS) for name, s in STEP.items()},
}


def small_model():
    cfg = load_config(get_config_file(SOURCES["istr"].config))
    cfg.merge_from_list([*SMALL, "MODEL.DEVICE", "cpu", "MODEL.ISTR.MASK_DICTIONARY", ""])
    return build_model(cfg)


def authors_weights():
    """Every tensor with other values; the backbone's names are Detectron2's in both."""
    generator = torch.Generator().manual_seed(0)
    shapes = dict(WHOLE)
    backbone = {n: w.shape for n, w in small_model().state_dict().items() if "backbone" in n}
    return {
        name: 0.1 + torch.rand(*shape, generator=generator)
        for name, shape in (shapes | backbone).items()
    }


def convert_file(tmp_path, weights, *options, wrapper="model"):
    torch.save({wrapper: weights, "iteration": 3} if wrapper else weights, tmp_path / "theirs.pth")
    files = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]
    return cli.main(["convert", "weights", "--from", "istr", *options, *files, *SMALL])


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
def test_every_tensor_finds_its_place(tmp_path, wrapper, capsys):
    theirs = authors_weights()
    assert convert_file(tmp_path, theirs, wrapper=wrapper) == 0
    out = capsys.readouterr().out
    count = len(theirs)
    assert out.splitlines()[0] == (
        f"ISTR, the authors' release: {count} tensors of the file are {count} of the model"
    )
    assert "missing" not in out
    assert out.splitlines()[1] == "use it with"
    assert f"istr_R_50_FPN_3x.yaml MODEL.WEIGHTS {tmp_path / 'ours.pth'}" in out
    model = small_model()
    Checkpointer(model, min_matched=1.0).load(str(tmp_path / "ours.pth"))
    ours = model.state_dict()
    assert len(ours) == len(theirs)
    assert sorted(w.sum().item() for w in ours.values()) == sorted(
        w.sum().item() for w in theirs.values()
    )
    assert torch.equal(model.queries.features.weight, theirs["pos_embeddings.weight"])
    assert torch.equal(model.queries.boxes.weight, theirs["init_proposal_boxes.weight"])


def test_a_converted_step_computes_what_the_names_say(tmp_path):
    theirs = authors_weights()
    convert_file(tmp_path, theirs)
    model = small_model()
    Checkpointer(model, min_matched=1.0).load(str(tmp_path / "ours.pth"))
    queries, rois = torch.randn(1, QUERIES, HIDDEN), torch.randn(QUERIES, HIDDEN, 3, 3)
    prefix = "head.head_series.1."
    w = {n.removeprefix(prefix): t for n, t in theirs.items() if n.startswith(prefix)}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def tower(x, name, last):
        for index in (0, 3, 6):
            x = x @ w[f"{name}_module.{index}.weight"].T
            x = F.elu(norm(x, f"{name}_module.{index + 1}"))
        return F.linear(x, w[f"{last}.weight"], w[f"{last}.bias"])

    step = model.refinement.steps[1]
    for found, name, last in (
        (step.class_logits(queries), "cls", "class_logits"),
        (step.box_deltas(queries), "reg", "bboxes_delta"),
        (step.embeddings(queries), "mask", "mask_logits"),
    ):
        torch.testing.assert_close(found, tower(queries, name, last), rtol=1e-4, atol=1e-3)
    numbers = F.linear(
        queries[0], w["inst_interact.dynamic_layer.weight"], w["inst_interact.dynamic_layer.bias"]
    )
    cells = rois.flatten(2).mT
    cells = F.elu(norm(cells @ numbers[:, :256].view(-1, 32, 8), "inst_interact.norm1"))
    cells = F.elu(norm(cells @ numbers[:, 256:].view(-1, 8, 32), "inst_interact.norm2"))
    x = F.linear(
        cells.flatten(1), w["inst_interact.out_layer.weight"], w["inst_interact.out_layer.bias"]
    )
    expected = F.elu(norm(x, "inst_interact.norm3"))[None]
    torch.testing.assert_close(step.dynamic_conv(queries, rois), expected, rtol=1e-4, atol=1e-3)
    r = torch.randn(2, DIM)
    logits = (r * theirs["mask_encoding.explained_variances"].sqrt()) @ theirs[
        "mask_encoding.components"
    ] + theirs["mask_encoding.means"]
    torch.testing.assert_close(
        model.mask_embedding.decode(r).flatten(1), logits.sigmoid(), rtol=1e-4, atol=1e-5
    )


def test_what_does_not_fit_is_listed_and_not_written(tmp_path, capsys):
    weights = authors_weights()
    weights["head.head_series.0.extra.weight"] = weights.pop("head.head_series.0.linear1.bias")
    weights["pos_embeddings.weight"] = torch.zeros(9, HIDDEN)
    assert convert_file(tmp_path, weights) == 1
    captured = capsys.readouterr()
    missing = "1 of the model missing from the file:\n    refinement.steps.0.linear1.bias\n"
    assert missing in captured.out
    assert "head.head_series.0.extra.weight: no such name is known" in captured.out
    assert "pos_embeddings.weight: [9, 32], but [7, 32] as queries.features.w" in captured.out
    assert "ours.pth is not written, because the weights do not fit" in captured.err
    assert "--partial" in captured.err
    assert not (tmp_path / "ours.pth").exists()
    assert convert_file(tmp_path, weights, "--partial") == 0
    assert len(torch.load(tmp_path / "ours.pth")["model"]) == len(weights) - 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a.weight": torch.zeros(1)}}, "has none of the model's tensors under the name"),
        ({"model": {"a.weight": [1, 2]}}, "holds no state dict, neither alone nor below model or"),
        ([1, 2], "holds a list instead of tensors by name"),
        ({"model": {}, "args": object}, "Python objects besides tensors (object)"),
    ],
)
def test_files_that_are_no_such_checkpoint(tmp_path, content, message, capsys):
    torch.save(content, tmp_path / "theirs.pth")
    files = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]
    assert cli.main(["convert", "weights", "--from", "istr", "--partial", *files, *SMALL]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours.pth").exists()


def test_missing_and_truncated_files(tmp_path, capsys):
    arguments = ["--from", "istr", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth"), *SMALL]
    assert cli.main(["convert", "weights", *arguments]) == 1
    assert "there is no file" in capsys.readouterr().err
    torch.save(WHOLE, tmp_path / "theirs.pth")
    content = (tmp_path / "theirs.pth").read_bytes()
    (tmp_path / "theirs.pth").write_bytes(content[: len(content) // 2])
    assert cli.main(["convert", "weights", *arguments]) == 1
    assert "is cut off or damaged" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["convert", "weights", "--from", "nobody", "a", "b"])
    assert "invalid choice: 'nobody'" in capsys.readouterr().err


def test_names_that_merely_look_alike_are_left_alone():
    tensor = torch.zeros(1)
    names = ["backbone.head.head_series.weight", "backbone.class_logits.weight"]
    expected = dict.fromkeys(names, tensor)
    assert convert(expected, "istr", expected).is_complete


def test_whose_names_a_file_has_is_found_out(tmp_path, capsys):
    torch.save(authors_weights(), tmp_path / "theirs.pth")
    files = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]
    assert cli.main(["convert", "weights", *files, *SMALL]) == 0
    assert capsys.readouterr().out.startswith("ISTR, the authors' release: ")


def test_names_that_no_source_has(tmp_path, capsys):
    torch.save({"a.weight": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "theirs.pth")
    files = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]
    assert cli.main(["convert", "weights", *files]) == 1
    error = capsys.readouterr().err
    assert "has the names of no known source (its first: a.weight, b)" in error
    assert "\n  hf-deformable-detr: Deformable DETR of Hugging Face transformers\n" in error


def test_the_command_line_that_the_authors_saved_along(tmp_path, capsys):
    """A Namespace is data; any other object is refused."""
    content = {"model": authors_weights(), "args": argparse.Namespace(lr=1e-4, device="cuda")}
    torch.save(content, tmp_path / "theirs.pth")
    files = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]
    assert cli.main(["convert", "weights", *files, *SMALL]) == 0


def test_a_damaged_safetensors_file(tmp_path, capsys):
    (tmp_path / "theirs.safetensors").write_bytes(b"\x10" * 40)
    files = [str(tmp_path / "theirs.safetensors"), str(tmp_path / "ours.pth")]
    assert cli.main(["convert", "weights", *files]) == 1
    assert "is no readable safetensors file" in capsys.readouterr().err


def test_every_source_can_be_named():
    """The command lists them without importing what converts."""
    from isda.cli import convert_weights

    assert tuple(SOURCES) == convert_weights.SOURCES
