"""Our models in others' programs, which know Detectron2's functions and nothing of ours."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import isda
from isda.data.errors import DatasetError
from isda.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[1]
ADDERS = ("isda", "istr", "solo", "condinst", "blendmask")
OURS = {"ISDA": "ISDA", "ISTR": "ISTR", "SOLO": "SOLO", "SOLOv2": "SOLOV2"}
OURS |= {"CondInst": "CONDINST", "BlendMask": "BLENDMASK"}
CLASSES = {"coco_2017_train": 80, "shapes_train": 3, "nuclei_train": 1}


def typed(path: Path) -> CfgNode:
    """As the notebooks of Detectron2's users begin."""
    cfg = get_cfg()
    for name in ADDERS:
        getattr(isda, f"add_{name}_config")(cfg)
    cfg.merge_from_file(str(path))
    # Parameters without memory; the distances of Swin and ViT are computed from numbers.
    needs_numbers = any(name in cfg.MODEL.BACKBONE.NAME for name in ("swin", "vit"))
    cfg.MODEL.DEVICE = "cpu" if needs_numbers else "meta"
    if cfg.MODEL.TORCH_BACKBONE.WEIGHTS == "pretrained":  # would be downloaded
        cfg.MODEL.TORCH_BACKBONE.WEIGHTS = ""
    return cfg


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_every_config_builds_as_it_is():
    import torch

    models = {}
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        cfg = typed(path)
        node = OURS.get(cfg.MODEL.META_ARCHITECTURE)
        if not cfg.DATASETS.TRAIN:  # for the user's data
            if node:
                with pytest.raises(DatasetError, match=f"MODEL.{node}.NUM_CLASSES is 0 and DATA"):
                    build_model(cfg)
            cfg.DATASETS.TRAIN = ("shapes_train",)
        data = cfg.DATASETS.TRAIN[0]
        models.setdefault((cfg.MODEL.dump(), data), (path, cfg, node))
    assert len(models) > 70
    for (_, data), (path, cfg, node) in models.items():
        with torch.device(cfg.MODEL.DEVICE):
            model = build_model(cfg)
        classes = {
            parameter.shape[0]
            for name, parameter in model.named_parameters()
            if name.endswith(("classes.weight", "semantic_head.classes.weight"))
        }
        if node:
            assert cfg.MODEL[node].NUM_CLASSES == 0, path  # the config stays as it is
            assert CLASSES.get(data, 3 if "shapes" in data else 1) in classes, path


@pytest.fixture
def data(tmp_path):
    """A registered data set of four classes."""
    DatasetCatalog.register("four_classes", list)
    MetadataCatalog.get("four_classes").thing_classes = ["a", "b", "c", "d"]
    yield "four_classes"
    DatasetCatalog.remove("four_classes")
    MetadataCatalog.remove("four_classes")


def small_isda(*opts: object) -> CfgNode:
    sizes = {"HIDDEN_DIM": 32, "MASK_HEAD_DIM": 32, "MASK_DIM": 32, "ENCODER_LAYERS": 1}
    words = [word for key, value in sizes.items() for word in (f"MODEL.ISDA.{key}", str(value))]
    words += ["MODEL.DEVICE", "cpu", *map(str, opts)]
    return load_config(str(ROOT / "configs/shapes/isda_tiny.yaml"), words)


@pytest.mark.parametrize(
    "opts, expected",
    [
        (("DATASETS.TRAIN", "('four_classes',)"), 4),
        (("DATASETS.TRAIN", "()", "DATASETS.TEST", "('four_classes',)"), 4),
        (("DATASETS.TRAIN", "('four_classes',)", "MODEL.ISDA.NUM_CLASSES", 7), 7),
    ],
)
def test_an_open_number_of_classes_is_that_of_the_data(data, opts, expected):
    cfg = small_isda(*opts)
    cfg.freeze()
    assert build_model(cfg).instance_head.classes.out_features == expected


def test_data_that_do_not_tell_their_classes():
    DatasetCatalog.register("silent", list)
    try:
        with pytest.raises(DatasetError) as error:
            build_model(small_isda("DATASETS.TRAIN", "('silent',)"))
    finally:
        DatasetCatalog.remove("silent")
        MetadataCatalog.remove("silent")
    assert str(error.value) == (
        "MODEL.ISDA.NUM_CLASSES is 0: data set 'silent' does not say which classes it has: set "
        "MetadataCatalog.get('silent').thing_classes to the list of their names; or set "
        "MODEL.ISDA.NUM_CLASSES, or DATASETS.TRAIN to a registered data set, which tells its "
        "classes"
    )


@pytest.mark.parametrize("order", ["isda first", "detectron2 first"])
def test_importing_the_package_serves_a_program_that_reads_a_trainings_config(order, tmp_path):
    """As sahi's wrapper of Detectron2 does, which knows no keys of ours."""
    cfg = small_isda("MODEL.ISDA.NUM_CLASSES", 3, "MODEL.ISDA.KEEP_LARGEST_COMPONENT", True)
    # Of a training before the key had its present name.
    text = cfg.dump().replace("KEEP_LARGEST_COMPONENT", "LARGEST_PART")
    (tmp_path / "config.yaml").write_text(text)
    np.save(tmp_path / "image.npy", np.zeros((64, 80, 3), np.uint8))
    imports = [
        "import isda",
        "from detectron2.config import get_cfg\n"
        "from detectron2.data import MetadataCatalog\n"
        "from detectron2.engine import DefaultPredictor\n",
    ]
    code = (
        "\n".join(imports if order == "isda first" else imports[::-1])
        + "\nimport sys, numpy as np\n"
        "cfg = get_cfg()\n"
        "cfg.set_new_allowed(True)\n"
        "cfg.merge_from_file(sys.argv[1] + '/config.yaml')\n"
        "predictor = DefaultPredictor(cfg)\n"
        "found = predictor(np.load(sys.argv[1] + '/image.npy'))['instances']\n"
        "print(found.image_size, predictor.model.keep_largest_component)\n"
        "print(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "projects")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    classes = MetadataCatalog.get("shapes_train").thing_classes
    assert result.stdout.splitlines()[-2:] == ["(64, 80) True", str(classes)]
