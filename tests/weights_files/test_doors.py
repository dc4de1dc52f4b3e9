"""Every way by which a file of weights comes in, with files that hold a trap.

``conftest.py`` sees to it that no trap was sprung; here it is seen that each door found the file,
and said what is wrong with it.
"""

import functools
import http.server
import importlib.util
import json
import shutil
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from detectron2.utils.file_io import Detectron2Handler
from strangers import Trap, write
from torch import nn
from toys import call, toy_config, toy_data

import publish_model
from isda import Predictor, cli, model_zoo
from isda import exported as exported_runner
from isda.checkpoint import Checkpointer, WeightsError
from isda.cli.arguments import argument_parser
from isda.engine.hooks import BestCheckpointer
from isda.engine.launch import run
from isda.engine.setup import check_config, load_config
from isda.engine.trainer import Trainer
from isda.errors import ConfigError
from isda.mask_dictionary.partial_sums import PartialSums
from isda.model_zoo.weights import sha256_of
from isda.modeling.backbone.torch_backbone import build_torch_backbone
from isda.modeling.mask_dictionary import DictionaryError, MaskDictionary

ROOT = Path(__file__).parents[2]
REFUSED = "holds Python objects besides tensors (strangers.spring)"


def program(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[("pickle 2", ".pkl"), ("torch", ".pth"), ("torch before 1.6", ".pyth")])
def stranger(request, tmp_path) -> Path:
    content, suffix = request.param
    return write(tmp_path, content, suffix)


@pytest.fixture
def config(tmp_path) -> Path:
    """A config of a model that can be trained."""
    toy_data(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(toy_config(tmp_path / "out").dump())
    return path


# --- programs


@pytest.mark.parametrize("flags", [[], ["--eval-only"]], ids=["train", "evaluate"])
def test_training_and_evaluation(flags, stranger, config):
    train_net = program(ROOT / "train_net.py")
    with pytest.raises(SystemExit) as end:
        call(train_net, "--config-file", config, *flags, "MODEL.WEIGHTS", stranger)
    assert REFUSED in str(end.value)


def test_resuming(stranger, config, tmp_path):
    """The file that says which checkpoint is the last, and the best one beside it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "last_checkpoint").write_text(f"../{stranger.name}")
    train_net = program(ROOT / "train_net.py")
    with pytest.raises(SystemExit) as end:
        call(train_net, "--config-file", config, "--resume")
    assert REFUSED in str(end.value)


def test_the_best_checkpoint_so_far(stranger, tmp_path):
    shutil.copy(stranger, tmp_path / "model_best.pth")
    hook = BestCheckpointer(SimpleNamespace(save_dir=str(tmp_path)), 1, "segm/AP")
    hook.trainer = SimpleNamespace(start_iter=3)
    with pytest.raises(WeightsError) as error:
        hook.before_train()
    assert REFUSED in str(error.value)


def test_prediction(stranger, config):
    with pytest.raises(WeightsError) as error:
        Predictor(load_config(str(config), ["MODEL.WEIGHTS", str(stranger)]))
    assert REFUSED in str(error.value)


def test_a_folder_of_a_training(stranger, config, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(config, tmp_path / "run" / "config.yaml")
    shutil.copy(stranger, tmp_path / "run" / "model_final.pth")
    with pytest.raises(WeightsError) as error:
        Predictor(tmp_path / "run")
    assert REFUSED in str(error.value)


def test_the_demo(stranger, config, tmp_path, capsys):
    image = tmp_path / "image_0.png"
    words = ["--config-file", config, "--input", image, "--output", tmp_path / "shown"]
    assert cli.main(["predict", *map(str, words), "--opts", "MODEL.WEIGHTS", str(stranger)]) == 1
    assert REFUSED in capsys.readouterr().err


def test_export(stranger, config, tmp_path, capsys):
    words = ["--config-file", config, "--output", tmp_path / "model.pt2"]
    assert cli.main(["export", *map(str, words), "--opts", "MODEL.WEIGHTS", str(stranger)]) == 1
    assert REFUSED in capsys.readouterr().err


def test_conversion(stranger, tmp_path, capsys):
    assert cli.main(["convert", "weights", str(stranger), str(tmp_path / "ours.pth")]) == 1
    assert REFUSED in capsys.readouterr().err
    assert not (tmp_path / "ours.pth").exists()


def test_publishing(stranger):
    with pytest.raises(WeightsError) as error:
        publish_model.iteration_of(stranger)
    assert REFUSED in str(error.value)


def test_an_exported_program(tmp_path, capsys):
    """What PyTorch unpickles of it where it is no tensor: the inputs that it was made with."""
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "good.pt2")
    torch.save(((torch.zeros(1, 2), Trap()), {}), tmp_path / "inputs")
    with (
        zipfile.ZipFile(tmp_path / "good.pt2") as good,
        zipfile.ZipFile(tmp_path / "m.pt2", "w") as bad,
    ):
        names = good.namelist()
        (inputs,) = (name for name in names if "sample_inputs" in name)
        for name in names:
            content = (tmp_path / "inputs").read_bytes() if name == inputs else good.read(name)
            bad.writestr(name, content)
    assert exported_runner.main([str(tmp_path / "m.pt2"), "a.jpg"]) == 1
    assert "m.pt2 holds Python objects besides its graph and tensors" in capsys.readouterr().err


# --- the model zoo, addresses, downloads


def test_the_model_zoo(stranger, config, tmp_path, monkeypatch):
    zoo = tmp_path / "zoo"
    (zoo / "mine").mkdir(parents=True)
    shutil.copy(config, zoo / "mine" / "parts.yaml")
    shutil.copy(stranger, zoo)
    row = {"weights": stranger.name, "license": "none", "data": "none"}
    row["sha256"] = sha256_of(stranger)  # whoever makes the file makes the table
    (zoo / "models.json").write_text(json.dumps({"mine/parts": row}))
    monkeypatch.setenv("ISDA_MODEL_ZOO", str(zoo))
    with pytest.raises(WeightsError) as error:
        model_zoo.get("mine/parts", device="cpu")
    assert REFUSED in str(error.value)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of the test's folder."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def load(address: str) -> str:
    """What a checkpointer says of it."""
    with pytest.raises(WeightsError) as error:
        Checkpointer(nn.Linear(1, 1)).load(address)
    return str(error.value)


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
def test_addresses(query, stranger, server):
    assert REFUSED in load(f"{server}{stranger.name}{query}")


def test_detectron2s_addresses(stranger, server, monkeypatch):
    monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", server)
    assert REFUSED in load(f"detectron2://{stranger.name}")


def test_detectron2s_catalogue(stranger, server, monkeypatch):
    get = "detectron2.checkpoint.catalog.ModelCatalog.get"
    monkeypatch.setattr(get, lambda name: f"{server}{stranger.name}")
    assert REFUSED in load("catalog://ImageNetPretrained/MSRA/R-50")


def test_an_address_that_answers_with_a_page(server, tmp_path):
    (tmp_path / "page.pth").write_text("<!doctype html><title>Sign in</title>")
    text = load(f"{server}page.pth")
    cached = next((tmp_path / "cache").rglob("page.pth"))
    assert f"{server}page.pth is a web page that was saved in place of the file" in text
    assert f"(kept as {cached}: delete it first)" in text  # else the next try would find it


def test_addresses_without_a_file(server):
    text = load(f"{server}nowhere.pth")
    assert f"{server}nowhere.pth cannot be fetched (HTTP Error 404" in text
    assert "there is no file nobody://w.pth" in load("nobody://w.pth")
    assert "catalog://x cannot be fetched" in load("catalog://x")


def test_an_address_with_another_query(server, tmp_path):
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "w.pth")
    assert "after ? only matching_heuristics=True is known" in load(f"{server}w.pth?raw=1")
    Checkpointer(nn.Linear(1, 1), min_matched=1.0).load(f"{server}w.pth?matching_heuristics=True")


def backbone(weights: str) -> str:
    cfg = toy_config("unused", "MODEL.TORCH_BACKBONE.NAME", "resnet18")
    cfg.MODEL.TORCH_BACKBONE.WEIGHTS = weights
    with pytest.raises(WeightsError) as error:
        build_torch_backbone(cfg, None)
    return str(error.value)


def test_backbones(stranger):
    assert f"MODEL.TORCH_BACKBONE.WEIGHTS: {stranger} {REFUSED}" in backbone(str(stranger))


@pytest.mark.parametrize("content", ["torch", "torch before 1.6"])
def test_torchvisions_downloads(content, tmp_path, monkeypatch):
    """A file of its cache, which it compares with no hash."""
    address = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    write(tmp_path, content, ".pth").rename(cache / address.rsplit("/", 1)[-1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    text = backbone("pretrained")
    assert "besides tensors (strangers.spring)" in text
    assert "weights_only" not in text


# --- what comes beside weights


@pytest.mark.parametrize(
    ("content", "suffix"), [("numpy", ".npz"), ("pickle 2", ".npz"), ("pickle 5", ".pkl")]
)
def test_mask_dictionaries(content, suffix, tmp_path):
    path = write(tmp_path, content, suffix)
    for kind in (MaskDictionary, PartialSums):
        with pytest.raises(DictionaryError) as error:
            kind.load(path)
        message = str(error.value)
        assert "is no readable .npz without pickles" in message
        assert "allow_pickle" not in message and "pickle.load" not in message


def test_proposals(stranger, config, tmp_path):
    opts = ["MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TEST", f"('{stranger}',)"]
    opts += ["DATASETS.PROPOSAL_FILES_TRAIN", f"('{stranger}',)"]
    cfg = load_config(str(config), opts)
    with pytest.raises(ConfigError, match="MODEL.LOAD_PROPOSALS must be False: proposals in files"):
        check_config(cfg)
    # Nor by those who do not check.
    assert len(Trainer.build_test_loader(cfg, "toy").dataset) == 5
    next(iter(Trainer.build_train_loader(cfg)))


@pytest.mark.parametrize("depth", [0, 1], ids=["itself", "its base"])
def test_configs(depth, tmp_path):
    (tmp_path / "0.yaml").write_text("SEED: !!python/object/apply:strangers.spring ['sprung']\n")
    (tmp_path / "1.yaml").write_text("_BASE_: 0.yaml\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(str(tmp_path / f"{depth}.yaml"))


def test_a_config_in_python(tmp_path, monkeypatch):
    """Detectron2's lazy configs are programs, and not read here."""
    (tmp_path / "config.py").write_text("import strangers\nstrangers.spring('sprung')\n")
    arguments = argument_parser().parse_args(["--config-file", str(tmp_path / "config.py")])
    with pytest.raises(SystemExit, match="config.py"):
        run(lambda args: None, arguments)
