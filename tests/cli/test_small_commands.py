"""What ``isda config``, ``isda models`` and ``isda doctor`` say."""

import json

import pytest

from isda import cli, doctor
from isda.engine.config_reference import all_keys, meanings, reference


def said(capsys, *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def test_a_key(capsys):
    text = said(capsys, "config", "model.isda.num_queries")
    assert text.splitlines()[0] == "MODEL.ISDA.NUM_QUERIES"
    for line in ("default   300", "must be   at least 1", "read by   ISDA"):
        assert f"  {line}\n" in text
    assert "meaning   The largest number of instances in an image." in text
    assert "](" not in text  # a link's address is of no use in a terminal


def test_when_a_key_has_no_effect(capsys):
    assert "read by   ISDA, unless MODEL.ISDA.BOXES is False\n" in said(
        capsys, "config", "MODEL.ISDA.BOX_REFINEMENT"
    )
    assert "read by   nothing: this project has no test-time aug" in said(
        capsys, "config", "TEST.AUG.ENABLED"
    )
    assert "read by   SOLO\n" in said(capsys, "config", "MODEL.SOLO.DECOUPLED")


def test_keys_by_their_beginning_and_by_a_part(capsys):
    text = said(capsys, "config", "SOLVER.EMA")
    assert [line.split()[0] for line in text.splitlines()[::2]] == [
        "SOLVER.EMA.ENABLED",
        "SOLVER.EMA.DECAY",
    ]
    assert "MODEL.ISTR.NUM_QUERIES  300" in said(capsys, "config", "queries")
    listed = {line.split()[0] for line in said(capsys, "config").splitlines() if line[0] != " "}
    assert listed == set(meanings())


def test_a_mistyped_key(capsys):
    assert cli.main(["config", "MODEL.ISDA.NUM_QUERYS"]) == 1
    assert "did you mean MODEL.ISDA.NUM_QUERIES" in capsys.readouterr().err
    assert cli.main(["config", "NUM_QUERYS"]) == 1
    assert "did you mean MODEL.ISDA.NUM_QUERIES" in capsys.readouterr().err


def test_every_key_can_be_asked_for():
    for key in ("MODEL.SWIN.DEPTHS", "SOLVER.EMA.DECAY", "INPUT.FORMAT", "MODEL.RPN.NMS_THRESH"):
        found = reference(key)
        assert found.default == all_keys()[key] and found.resumed
    assert set(meanings()) <= set(all_keys())
    assert reference("SOLVER.EMA.DECAY").requirement == "between 0 and 1, both excluded"


def test_trained_models(capsys):
    lines = said(capsys, "models").splitlines()
    assert lines[0].split() == ["NAME", "DATA", "MASK", "AP", "SIZE", "WEIGHTS"]
    row = next(line for line in lines if line.startswith("nuclei/isda_boxes_mobilenet_v2 "))
    assert row.endswith("  Data Science Bowl 2018  55.1     10.7 MB  shipped")


def test_recipes_and_patterns(capsys):
    text = said(capsys, "models", "--all", "shapes/*")
    assert "shapes/isda_tiny " in text and "nuclei" not in text
    assert cli.main(["models", "shapes/*"]) == 1
    assert "no model has a name like shapes/*, or not trained: --all" in capsys.readouterr().out


@pytest.mark.parametrize("is_there, place", [(True, "downloaded"), (False, "to be downloaded")])
def test_models_of_ones_own(tmp_path, monkeypatch, capsys, is_there, place):
    """Of weights at an address, what iopath has fetched is found."""
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/mine.yaml").touch()
    row = {"weights": "https://host/path/w.pth", "sha256": "", "license": "", "data": "cells (3)"}
    (tmp_path / "models.json").write_text(json.dumps({"cells/mine": row}))
    monkeypatch.setenv("ISDA_MODEL_ZOO", str(tmp_path))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    if is_there:
        (tmp_path / "cache/path").mkdir(parents=True)
        (tmp_path / "cache/path/w.pth").write_bytes(b"x" * 1_200_000)
    row = said(capsys, "models", "cells/*").splitlines()[1]
    assert row.startswith("cells/mine  cells  -") and row.endswith(f"  {place}")
    assert ("1.2 MB" in row) == is_there


@pytest.mark.parametrize("problems, status", [([], 0), (["PyTorch is missing"], 1)])
def test_the_doctors_verdict_is_the_exit_status(monkeypatch, capsys, problems, status):
    report = doctor.Report(lines=["Versions"], problems=problems)
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert cli.main(["doctor"]) == status
    assert capsys.readouterr().out == f"{report}\n"
