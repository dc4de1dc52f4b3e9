import shutil
from pathlib import Path

import pytest
from examples_of_reports import coco_content, coco_results, make_training


@pytest.fixture
def content():
    return coco_content()


@pytest.fixture
def predictions():
    return coco_results()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return make_training(tmp_path_factory.mktemp("training"))


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy that a test may damage; images and annotations stay where they are."""
    return Path(shutil.copytree(prepared, tmp_path / prepared.name))
