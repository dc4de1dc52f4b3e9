"""isda report; what it writes is tested in tests/report."""

import json

import pytest

from isda import cli


def test_a_page_is_written_where_it_is_wanted(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"iteration": 19, "lr": 0.1}))
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert "Learning rate" in (tmp_path / "run" / "report.html").read_text()
    other = tmp_path / "deep" / "page.html"
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(other)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {other}"
    assert other.is_file()


def test_a_folder_without_training_is_one_sentence(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 1
    expected = f"error: no metrics at {tmp_path}/metrics.json: give the metrics.json of a training"
    assert capsys.readouterr().err.startswith(expected)


def test_a_page_that_has_no_folder_is_told_before_anything_is_drawn(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("isda.report.write_report", None)  # is not called
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "file" / "a.html")]) == 1
    assert "file cannot be made (File exists): give another one" in capsys.readouterr().err


def test_a_negative_number_of_images(capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "output", "--images", "-1"])
    assert "--images must be at least 0, got -1" in capsys.readouterr().err
