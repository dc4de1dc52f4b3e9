"""isda.model_zoo: names, the table, files and their hashes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager

from isda import model_zoo
from isda.checkpoint import WeightsError
from isda.errors import ConfigError
from isda.model_zoo import ModelZooError, catalog
from isda.model_zoo.weights import sha256_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "projects" / "isda"


@pytest.fixture
def zoo(training, tmp_path, monkeypatch):
    """A folder of one's own with one trained and one untrained model."""
    folder = tmp_path / "zoo"
    (folder / "mine").mkdir(parents=True)
    shutil.copy(training / "config.yaml", folder / "mine" / "parts.yaml")
    shutil.copy(training / "config.yaml", folder / "mine" / "untrained.yaml")
    shutil.copy(training / "model_final.pth", folder / "parts.pth")
    row = {"sha256": sha256_of(folder / "parts.pth"), "license": "Apache-2.0", "data": "screws"}
    write_table(folder, "mine/parts", row | {"weights": "parts.pth"})
    monkeypatch.setenv("ISDA_MODEL_ZOO", str(folder))
    return folder


def write_table(folder, name, row):
    (folder / "models.json").write_text(json.dumps({name: row}))


def test_names_are_those_of_the_config_files():
    names = model_zoo.list()
    files = (ROOT / "configs").rglob("*.yaml")
    files = {f.relative_to(ROOT / "configs").with_suffix("").as_posix() for f in files}
    assert set(names) == {name for name in files if not name.startswith("Base-")}
    assert len(names) == len(set(names))
    shown = model_zoo.list("nuclei/*")
    assert "nuclei/isda_tiny" in shown
    assert all(name.startswith("nuclei/") for name in shown)


@pytest.mark.parametrize("spelling", ["{}", "{}.yaml", "configs/{}.yaml"])
def test_spellings_of_a_name(spelling):
    file = model_zoo.get_config_file(spelling.format("shapes/isda_tiny"))
    assert Path(file) == ROOT / "configs" / "shapes" / "isda_tiny.yaml"


def test_trained_models_come_first(zoo):
    names = model_zoo.list()
    trained = model_zoo.list(trained=True)
    assert "mine/parts" in trained
    assert "mine/untrained" not in trained
    assert names[: len(trained)] == trained
    assert {"mine/untrained", "nuclei/isda_tiny"} < set(names)


@pytest.mark.parametrize(
    ("name", "proposed"), [("nuclei/isda_tny", "nuclei/isda_tiny"), ("isda_tiny", "isda_tiny")]
)
def test_unknown_names_are_answered_with_similar_ones(name, proposed):
    with pytest.raises(ModelZooError) as error:
        model_zoo.get_config(name)
    message = str(error.value)
    assert message.startswith(f"there is no model '{name}': did you mean ")
    assert proposed in message
    assert message.endswith("isda.model_zoo.list() names all")
    with pytest.raises(ModelZooError, match=r"no model 'xyzzy': isda\.model_zoo\.list\(\) names"):
        model_zoo.get_checkpoint_path("xyzzy")


def test_a_model_without_weights_says_which_have_some_and_how_to_train_it(zoo):
    with pytest.raises(ModelZooError) as error:
        model_zoo.get("shapes/isda_tiny")
    message = str(error.value)
    assert message.startswith("'shapes/isda_tiny' has no trained weights here")
    assert "mine/parts" in message
    assert "isda train --config-file " in message


def test_config_with_and_without_training(zoo):
    trained = model_zoo.get_config("mine/parts", trained=True)
    assert str(zoo / "parts.pth") == trained.MODEL.WEIGHTS
    untrained = model_zoo.get_config(
        "shapes/isda_tiny", overrides=["SOLVER.BASE_LR", 0.5, "INPUT.MIN_SIZE_TEST", "77"]
    )
    assert untrained.MODEL.WEIGHTS == ""
    assert (untrained.SOLVER.BASE_LR, untrained.INPUT.MIN_SIZE_TEST) == (0.5, 77)
    with pytest.raises(ConfigError, match="unknown config key SOLVER.BASE_LRR"):
        model_zoo.get_config("shapes/isda_tiny", overrides=["SOLVER.BASE_LRR", 0.5])


def test_get_gives_the_trained_model(zoo, training):
    model = model_zoo.get("mine/parts")
    saved = torch.load(training / "model_final.pth")["model"]
    assert not model.training
    loaded = model.state_dict()
    assert set(loaded) == set(saved)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_get_untrained_knows_its_classes():
    model = model_zoo.get("shapes/isda_tiny", trained=False, device="cpu")
    assert model.instance_head.classes.out_features == 3
    assert not model.training


def test_a_file_of_another_hash_is_refused_with_both(zoo):
    stated = sha256_of(zoo / "parts.pth")
    with open(zoo / "parts.pth", "r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    for ask in (model_zoo.get_checkpoint_path, model_zoo.get_checkpoint_url, model_zoo.get):
        with pytest.raises(WeightsError) as error:
            ask("mine/parts")
        message = str(error.value)
        assert str(zoo / "parts.pth") in message
        assert stated in message
        assert sha256_of(zoo / "parts.pth") in message
        assert "delete it" in message


def test_a_missing_file_says_where_to_put_it(zoo):
    (zoo / "parts.pth").unlink()
    with pytest.raises(WeightsError, match="put parts.pth into a folder.*ISDA_MODEL_ZOO"):
        model_zoo.get_checkpoint_path("mine/parts")


def test_a_url_is_fetched_once_unless_the_file_is_at_hand(zoo, tmp_path, monkeypatch):
    url = "https://models.example/v1/parts.pth"
    row = {"weights": url, "license": "Apache-2.0", "data": ""}
    write_table(zoo, "mine/parts", row | {"sha256": sha256_of(zoo / "parts.pth")})
    assert model_zoo.get_checkpoint_path("mine/parts") == str(zoo / "parts.pth")
    assert model_zoo.get_checkpoint_url("mine/parts") == str(zoo / "parts.pth")
    source = (zoo / "parts.pth").rename(tmp_path / "server.pth")
    fetched = []

    def download(url, dirname, filename):
        fetched.append(url)
        Path(dirname).mkdir(parents=True, exist_ok=True)
        return shutil.copy(source, Path(dirname) / filename)

    monkeypatch.setattr("iopath.common.file_io.download", download)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(handler_of(url), "cache_map", {})
    path = Path(model_zoo.get_checkpoint_path("mine/parts"))
    assert path.read_bytes() == source.read_bytes()
    assert tmp_path / "cache" in path.parents
    assert model_zoo.get_checkpoint_url("mine/parts") == url
    assert fetched == [url]


def handler_of(url):
    return PathManager._PathManager__get_path_handler(url)


def test_without_a_network_the_message_names_the_remedy(zoo, tmp_path, monkeypatch):
    def download(url, dirname, filename):
        raise OSError("Name or service not known")

    url = "https://models.example/v2/elsewhere.pth"
    row = {"weights": url, "license": "Apache-2.0", "data": "", "sha256": "0"}
    write_table(zoo, "mine/parts", row)
    monkeypatch.setattr("iopath.common.file_io.download", download)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError) as error:
        model_zoo.get_checkpoint_path("mine/parts")
    assert "Name or service not known" in str(error.value)
    assert "put elsewhere.pth into a folder and name that by ISDA_MODEL_ZOO" in str(error.value)


def test_a_wrong_folder_and_a_broken_table_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ISDA_MODEL_ZOO", str(tmp_path / "none"))
    with pytest.raises(ModelZooError, match="ISDA_MODEL_ZOO is .*none, which is no folder"):
        model_zoo.list()
    monkeypatch.setenv("ISDA_MODEL_ZOO", str(tmp_path))
    for content in ("{", "[]", '{"a": {"weigths": "x"}}'):
        (tmp_path / "models.json").write_text(content)
        with pytest.raises(ModelZooError, match="models.json is no table of models"):
            model_zoo.list()


def test_an_installed_package_has_its_own_configs(tmp_path, monkeypatch):
    (tmp_path / "nuclei").mkdir()
    (tmp_path / "Base-ISDA.yaml").touch()
    (tmp_path / "nuclei" / "other.yaml").touch()
    monkeypatch.setattr(catalog, "_CONFIG_FOLDERS", (tmp_path / "absent", tmp_path))
    assert model_zoo.list() == ["nuclei/other"]


def test_every_row_of_the_shipped_table_holds():
    """The file is there, is the one of the hash, and fits the config in full."""
    for name, entry in catalog.read_table(PACKAGE / "model_zoo" / "models.json").items():
        assert entry.weights.startswith("isda://"), name
        assert entry.license and entry.data and entry.training["command"], name
        assert 0 < entry.metrics["segm/AP"] <= 100, name
        model = model_zoo.get(name, device="cpu")
        assert {p.dtype for p in model.parameters()} == {torch.float32}, name


def test_every_shipped_file_is_in_a_table():
    parts = json.loads((PACKAGE / "model_zoo" / "parts.json").read_text())
    models = catalog.read_table(PACKAGE / "model_zoo" / "models.json")
    stated = {name: part["sha256"] for name, part in parts.items()}
    stated |= {entry.file_name: entry.sha256 for entry in models.values()}
    files = {f.name: f for f in (PACKAGE / "weights").iterdir() if f.suffix in (".pth", ".npz")}
    assert {name: sha256_of(file) for name, file in files.items()} == stated
    assert sum(file.stat().st_size for file in files.values()) < 40e6
