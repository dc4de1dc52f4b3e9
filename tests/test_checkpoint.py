import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from small_models import small_model as small_isda
from torch import nn

from isda.checkpoint import Checkpointer, WeightsError, report_weights
from isda.engine.steps import averaged_model


def small_model(num_classes=3):
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "head": nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))),
            "classes": nn.Linear(2, num_classes),
        }
    )


def save(path, weights):
    torch.save({"model": weights}, path)
    return str(path)


def test_weights_of_the_model_and_their_report(tmp_path):
    model = small_model()
    weights = small_model().state_dict()
    path = save(tmp_path / "weights.pth", weights)
    Checkpointer(model, min_matched=1.0).load(path)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_weights_of_the_backbone_alone_are_enough(tmp_path):
    weights = small_model()["backbone"].state_dict()
    path = save(tmp_path / "w.pth", {f"backbone.{name}": w for name, w in weights.items()})
    model = small_model()
    Checkpointer(model, min_matched=0.5).load(path)  # 4 of 14 tensors, but the whole backbone
    assert torch.equal(model["backbone"][0].weight, weights["0.weight"])


def test_another_number_of_classes_is_reported_and_not_fatal(tmp_path, caplog):
    weights = small_model(num_classes=80).state_dict()
    model = small_model(num_classes=3)
    Checkpointer(model, min_matched=0.5).load(save(tmp_path / "w.pth", weights))
    assert "classes.weight: [80, 2] in the file, [3, 2] here" in caplog.text
    assert "12 of 14 tensors of the model" in caplog.text
    assert torch.equal(model["head"][0].weight, weights["head.0.weight"])


def learned_queries(number):
    """As ISTR has them."""
    queries = {"features": nn.Embedding(number, 4), "boxes": nn.Embedding(number, 2)}
    return nn.ModuleDict({"queries": nn.ModuleDict(queries)})


@pytest.mark.parametrize(("theirs", "ours"), [(9, 5), (5, 9)])
def test_another_number_of_queries(theirs, ours, tmp_path, caplog):
    weights = learned_queries(theirs).state_dict()
    if ours > theirs:  # as pickles of NumPy hold them
        weights = {name: tensor.numpy() for name, tensor in weights.items()}
    model = learned_queries(ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    caplog.set_level("INFO")
    Checkpointer(model, min_matched=1.0).load(save(tmp_path / "w.pth", weights))
    for name, after in model.state_dict().items():
        assert torch.equal(after[:5], torch.as_tensor(weights[name])[:5])
        assert torch.equal(after[5:], before[name][5:])
    (message,) = [r.getMessage() for r in caplog.records if "queries, the" in r.getMessage()]
    start = f"the weights have {theirs} queries, the configuration asks for {ours}: "
    assert message.startswith(start)
    assert message.endswith("are taken" if ours == 5 else "the others start anew")


def test_queries_of_another_width_start_anew(tmp_path, caplog):
    weights = learned_queries(9).state_dict() | {"queries.features.weight": torch.zeros(9, 3)}
    Checkpointer(learned_queries(5)).load(save(tmp_path / "w.pth", weights))
    assert "queries.features.weight: [9, 3] in the file, [5, 4] here" in caplog.text


@torch.no_grad()
def test_fewer_queries_of_boxes_are_those_of_the_best_proposals(tmp_path):
    """Content is learned by rank, so the first rows go on with the tokens that they had."""
    learned = ("isda_boxes", "MODEL.ISDA.TOKEN_CONTENT", "False", "MODEL.ISDA.NUM_QUERIES")
    many, few = small_isda(*learned, "9"), small_isda(*learned, "4")
    nn.init.zeros_(few.transformer.query_embed.weight)
    Checkpointer(few, min_matched=1.0).load(save(tmp_path / "w.pth", many.state_dict()))
    image = {"image": torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 255}
    decoded = [model._decode(model.preprocess([image]))[1] for model in (many, few)]
    # Products of nine rows and of four need not be rounded alike.
    torch.testing.assert_close(decoded[0].references[:, :4], decoded[1].references)
    rows = many.transformer.query_embed.weight[:4]
    assert torch.equal(few.transformer.query_embed.weight, rows)


def test_weights_that_do_not_fit_stop_the_program(tmp_path):
    weights = {f"body.{i}.weight": torch.zeros(1) for i in range(20)}
    weights["classes.bias"] = torch.zeros(7)
    path = save(tmp_path / "w.pth", weights)
    with pytest.raises(WeightsError, match="the weights do not fit") as error:
        Checkpointer(small_model(), min_matched=0.5).load(path)
    message = str(error.value)
    assert "0 of 14 tensors" in message
    assert "classes.bias: [7] in the file, [3] here" in message
    assert "13 not in the file, left as initialised: backbone.0.bias" in message
    assert "20 in the file, but not in the model: body.0.weight" in message
    assert "Only 0% are matched, MODEL.WEIGHTS_MIN_MATCHED asks for 50%" in message
    Checkpointer(small_model(), min_matched=0.0).load(path)


def test_share_counts_tensors():
    report = report_weights(small_model(), ["classes.weight", "backbone.0.bias"], ["x"], [])
    assert (report.matched, report.total) == (12, 14)
    assert (report.backbone_matched, report.backbone_total) == (3, 4)
    assert report.share == pytest.approx(12 / 14)


def test_missing_truncated_and_foreign_files(tmp_path):
    checkpointer = Checkpointer(small_model())
    with pytest.raises(WeightsError, match="no weights at nowhere.pth: check MODEL.WEIGHTS"):
        checkpointer.load("nowhere.pth")
    path = save(tmp_path / "w.pth", small_model().state_dict())
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="is cut off or damaged: download or copy it again"):
        Checkpointer(small_model()).load(path)
    torch.save({"model": {}, "args": object}, tmp_path / "objects.pth")
    with pytest.raises(WeightsError, match="holds Python objects besides tensors"):
        Checkpointer(small_model()).load(str(tmp_path / "objects.pth"))


def resnet18():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    return nn.ModuleDict({"backbone": build_resnet_backbone(cfg, ShapeSpec(channels=3))})


def test_weights_of_a_torchvision_resnet(tmp_path):
    import torchvision

    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = resnet18().eval()
    Checkpointer(ours, min_matched=1.0).load(str(tmp_path / "resnet18.pth"))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        found = ours["backbone"](image)["res5"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_below_state_dict(tmp_path):
    weights = small_model().state_dict()
    torch.save({"state_dict": weights, "meta": {"epoch": 12}}, tmp_path / "w.pth")
    model = small_model()
    Checkpointer(model, min_matched=1.0).load(str(tmp_path / "w.pth"))
    assert torch.equal(model["classes"].weight, weights["classes.weight"])


def test_weights_of_another_implementation(tmp_path):
    name = "transformer.encoder.layers.0.self_attn.sampling_offsets.weight"
    path = save(tmp_path / "w.pth", {name: torch.zeros(2), "class_embed.0.bias": torch.zeros(91)})
    with pytest.raises(WeightsError, match="the authors' release.: isda convert weights"):
        Checkpointer(small_model(), min_matched=0.5).load(path)


def test_weights_of_detectron2s_model_zoo(tmp_path):
    weights = {n: w.numpy() for n, w in small_model().state_dict().items()}
    with open(tmp_path / "w.pkl", "wb") as file:
        pickle.dump({"model": weights, "__author__": "Detectron2 Model Zoo"}, file)
    model = small_model()
    Checkpointer(model, min_matched=1.0).load(str(tmp_path / "w.pkl"))
    np.testing.assert_array_equal(model["classes"].weight.detach(), weights["classes.weight"])


def test_a_kill_while_saving_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = small_model()
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def die(contents, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert checkpointer.get_checkpoint_file() == os.path.join(tmp_path, "model.pth")


class Progress:
    """What a trainer saves of itself, after its first step."""

    def state_dict(self):
        steps = {"iteration": 0, "optimizer": {"state": {}}}
        return {"iteration": 0, "images": 2, "random_states": [], "_trainer": steps}

    def load_state_dict(self, state):
        assert state == self.state_dict()


def test_inference_loads_averaged_weights_and_resumption_both(tmp_path):
    model = small_model()
    averaged = averaged_model(model, 0.9)
    averaged.update_parameters(model)
    for parameter in model.parameters():
        parameter.data += 1
    averaged.update_parameters(model)
    checkpointer = Checkpointer(
        model, str(tmp_path), averaged=averaged, intensity="0 4095", trainer=Progress()
    )
    checkpointer.save("model")
    assert torch.load(tmp_path / "model.pth")["intensity"] == "0 4095"

    plain = small_model()
    Checkpointer(plain).load(str(tmp_path / "model.pth"))
    assert torch.equal(plain["classes"].weight, averaged.module["classes"].weight)
    assert not torch.equal(plain["classes"].weight, model["classes"].weight)

    resumed, resumed_average = small_model(), averaged_model(small_model(), 0.9)
    Checkpointer(
        resumed, str(tmp_path), averaged=resumed_average, trainer=Progress()
    ).resume_or_load("", resume=True)
    assert torch.equal(resumed["classes"].weight, model["classes"].weight)
    assert torch.equal(resumed_average.module["classes"].bias, averaged.module["classes"].bias)
    assert resumed_average.n_averaged == 2
