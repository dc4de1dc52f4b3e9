import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from toys import toy_config

from isda import add_config, cli
from isda.cli import predict
from isda.data.images import ImageOptions
from isda.engine.inference import Classes
from isda.errors import UsageError
from isda.model_zoo.weights import sha256_of
from isda.prediction import files, video
from isda.prediction.errors import RequestError
from isda.prediction.prediction import Prediction
from isda.prediction.predictor import Predictor, confident


@pytest.fixture(autouse=True)
def same_colors():
    """Detectron2 draws the colors of a video at random; some are as grey as the frames here."""
    np.random.seed(1)


def two_instances(height, width):
    """A sure one in the left half, an unsure one in the right."""
    instances = Instances((height, width))
    instances.pred_masks = torch.zeros(2, height, width, dtype=torch.bool)
    instances.pred_masks[0, 5 : height - 5, 5 : width // 2 - 5] = True
    instances.pred_masks[1, 5 : height - 5, width // 2 + 5 : width - 5] = True
    boxes = [[5, 5, width // 2 - 5, height - 5], [width // 2 + 5, 5, width - 5, height - 5]]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float))
    instances.scores = torch.tensor([0.9, 0.3])
    instances.pred_classes = torch.tensor([1, 0])
    return instances


class FakePredictor:
    def __init__(self, names=("bolt", "nut"), ids=(3, 7)):
        self.classes = Classes(names, ids)
        self.class_names = names
        self.image_options = ImageOptions()

    def __call__(self, image):
        return Prediction(two_instances(*image.shape[:2]), image, *self.classes)


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 2), (0.3, 2), (0.31, 1), (0.95, 0)])
def test_threshold_filters(threshold, kept):
    instances = two_instances(20, 40)
    instances.scores = torch.tensor([0.9, 0.3], dtype=torch.float64)
    filtered = confident(instances, threshold)
    assert len(filtered) == len(filtered.pred_masks) == kept


def parse(*arguments):
    words = ["--config-file", "none", *map(str, arguments)]
    return cli.parser_of("predict").parse_args(words)


def run_on_images(*arguments, predictor=None):
    return predict.run_on_images(predictor or FakePredictor(), parse(*arguments))


def write_grey(path, height=100, width=200):
    cv2.imwrite(str(path), np.full((height, width, 3), 100, np.uint8))
    return path


@pytest.mark.parametrize(("threshold", "right_is_drawn"), [(0.5, False), (0.2, True)])
def test_only_what_passes_the_threshold_is_drawn(tmp_path, threshold, right_is_drawn):
    image = write_grey(tmp_path / "a.png")
    options = ["--confidence-threshold", threshold, "--no-labels"]
    assert run_on_images("--input", image, "--output", tmp_path / "o", *options) == 0
    drawn = cv2.imread(str(tmp_path / "o" / "a.png"))
    assert drawn.shape == (100, 200, 3)
    assert (drawn[50, 50] != 100).any()
    assert (drawn[50, 150] != 100).any() == right_is_drawn


def test_what_cannot_be_read_is_named_once_and_the_rest_is_drawn(tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    write_grey(tmp_path / "good.png")
    assert run_on_images("--input", tmp_path / "*.png", "--output", tmp_path / "o") == 1
    captured = capsys.readouterr()
    assert captured.err.count("bad.png") == 1 == captured.err.count("\n")
    assert "cannot be read, skipped (no image, or of an unknown format)" in captured.err
    assert (tmp_path / "o" / "good.png").is_file()


def test_several_failing_inputs_are_named_at_the_end(tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    good, nowhere = write_grey(tmp_path / "good.png"), tmp_path / "*.gif"
    inputs = ["--input", tmp_path / "bad.png", nowhere, tmp_path / "empty.jpg", good]
    assert run_on_images(*inputs, "--output", tmp_path / "o") == 3
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0] == "3 inputs failed:"
    assert lines[1] == f"{nowhere}: no image there"
    assert sorted(line.split(":")[0] for line in lines[2:]) == [
        str(tmp_path / "bad.png"),
        str(tmp_path / "empty.jpg"),
    ]
    assert f"[1/3] {tmp_path / 'bad.png'}: skipped" in captured.out
    assert f"[3/3] {good}: 1 instances, drawn in {tmp_path / 'o' / 'good.png'}" in captured.out


def write_stack(path, pages=3):
    pixels = np.full((pages, 100, 200), 100, np.uint8)
    pixels[:, 0] = 0
    tifffile.imwrite(path, pixels, photometric="minisblack")
    return path


def test_a_stack_is_predicted_page_by_page(tmp_path, capsys):
    path, file = write_stack(tmp_path / "a.tif"), tmp_path / "found.json"
    assert run_on_images("--input", path, "--output", tmp_path / "o", file) == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        f"a_page{page}.png" for page in range(3)
    ]
    assert "[1/1] " in (told := capsys.readouterr().out)
    assert f"{path}: page 2 of 3: 1 instances, drawn in {tmp_path / 'o' / 'a_page2.png'}" in told
    images = json.loads(file.read_text())["images"]
    assert [(image["file_name"], image["page"]) for image in images] == [
        (str(path), 0),
        (str(path), 1),
        (str(path), 2),
    ]


def test_a_page_and_a_channel_are_chosen(tmp_path, capsys):
    pixels = np.zeros((2, 3, 100, 200), np.uint16)
    pixels[1, 2] = np.arange(200)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "ZCYX"})
    seen = []

    class Seeing(FakePredictor):
        def __call__(self, image):
            seen.append(image)
            return super().__call__(image)

    cfg, predictor = get_cfg(), Seeing()
    add_config(cfg)
    choice = parse("--input", path, "--page", 1, "--channel", 2)
    predict.choose_pixels(cfg, choice)
    predictor.image_options = ImageOptions.from_config(cfg)
    assert predictor.image_options == ImageOptions(page=1, channel=2)
    assert run_on_images("--input", path, "--output", tmp_path / "o", predictor=predictor) == 0
    assert len(seen) == 1 and seen[0][0, 0, 0] == 0 and seen[0][0, -1, 0] == 255
    capsys.readouterr()
    assert run_on_images("--input", path, "--output", tmp_path / "o") == 1
    told = capsys.readouterr().err
    assert "a.tif: cannot be read, skipped" in told and "has 3 channels: say which" in told
    cfg.INPUT.PAGE = 1
    predict.choose_pixels(cfg, parse("--input", path, "--page", "all"))
    assert cfg.INPUT.PAGE == -1
    with pytest.raises(SystemExit):
        parse("--input", path, "--page", "first")
    with pytest.raises(UsageError, match="counted from 0"):
        predict.choose_pixels(cfg, parse("--input", path, "--channel", -2))


def test_an_image_that_fails_does_not_end_the_run(tmp_path, capsys):
    class Failing(FakePredictor):
        def __call__(self, image):
            if image.shape[0] == 50:
                raise RuntimeError("no memory\x1b[2J")
            return super().__call__(image)

    for name, height in (("a.png", 100), ("b.png", 50), ("c.png", 100)):
        write_grey(tmp_path / name, height=height)
    long = tmp_path / "d.jpg"  # its picture is of a size that no JPEG has
    cv2.imwrite(str(tmp_path / "d.png"), np.zeros((12, 65_600, 3), np.uint8))
    (tmp_path / "d.png").rename(long)
    inputs = ["--input", tmp_path, "--output", tmp_path / "o", tmp_path / "o.json"]
    assert run_on_images(*inputs, predictor=Failing()) == 2
    captured = capsys.readouterr()
    assert f"{tmp_path / 'b.png'}: failed, skipped (no memory\\x1b[2J)" in captured.err
    assert "d.jpg: failed, skipped (cannot write" in captured.err
    assert "holds sides of at most 65500 pixels" in captured.err
    assert "c.png: 1 instances, drawn in" in captured.out
    drawn = {path.name for path in (tmp_path / "o").iterdir()}
    assert drawn == {"a.png", "c.png"}


def test_speed_is_told(tmp_path, capsys, monkeypatch):
    """Half a second for the model, and as much for everything else."""
    moments = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr(predict, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    images = [write_grey(tmp_path / f"{index}.png") for index in range(2)]
    run_on_images("--input", *images, "--output", tmp_path / "o")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "2 images in 2.5 s: 0.80 per second, 2.00 without reading and drawing"
    assert predict.Speed().summary("image") == "0 images"


def test_files_patterns_and_folders_are_found(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "[1].jpg"):
        (tmp_path / name).touch()
    found, missing = files.find_images([str(tmp_path)])
    assert [path.name for path in found] == ["[1].jpg", "a.PNG", "b.jpg"]
    assert missing == {}
    pattern, bracketed = str(tmp_path / "*.jpg"), str(tmp_path / "[1].jpg")
    found, missing = files.find_images([bracketed, pattern, "none.tif"])
    assert [path.name for path in found] == ["[1].jpg", "b.jpg"]
    assert missing == {"none.tif": "no image there"}
    with pytest.raises(RequestError, match=r"--input .*\*\.gif none\.tif: no image there"):
        files.find_images([str(tmp_path / "*.gif"), "none.tif"])


def test_results_do_not_overwrite_each_other_or_the_images(tmp_path):
    images = [Path("x/1.png"), Path("y/1.png"), Path("y/1_2.png"), Path("y/1.heic")]
    names = [path.name for path in paths(images, "out")]
    assert len(set(names)) == 4
    assert names[3] == "1_3.png"  # OpenCV writes no .heic
    assert paths(images[:1], "one.jpg") == [Path("one.jpg")]
    with pytest.raises(RequestError, match=r"one\.jpg is one file, but there are 4 images"):
        paths(images, "one.jpg")
    with pytest.raises(RequestError, match=r"would replace x/\.\./x/1\.png: give another folder"):
        paths(images[:1], "x/../x")


def paths(images, *outputs, save=(), page=None):
    targets = files.targets_of(images, files.sort_outputs([*outputs]), save)
    return [path for image in targets for target in image for path in target.paths(page)]


def test_where_results_of_other_kinds_go(tmp_path):
    images = [Path("x/1.ome.tif"), Path("y/1.tif"), Path("y/b.c.png")]
    assert paths(images, "out") == [Path("out/1.png"), Path("out/1_2.png"), Path("out/b.c.png")]
    assert [str(p) for p in paths(images, "out", save=("masks.tif", "geojson"))] == [
        *("out/1.masks.tif", "out/1.geojson", "out/1_2.masks.tif", "out/1_2.geojson"),
        *("out/b.c.masks.tif", "out/b.c.geojson"),
    ]
    outputs = ["a.masks.png", "b.TIF", "c.zip", "all.csv", "all.json"]
    assert [str(p) for p in paths(images[:1], *outputs)] == ["a.masks.png", "b.TIF", "c.zip"]
    pages = paths(images[:1], "a.masks.png", "o", save=["rois.zip"], page=7)
    assert [str(p) for p in pages] == ["a_page7.masks.png", "o/1_page7.rois.zip"]
    with pytest.raises(RequestError, match=r"c\.zip is one file, but there are 3.*and --save with"):
        paths(images, "c.zip")
    with pytest.raises(RequestError, match="--save csv: writes into a folder"):
        paths(images[:1], "a.png", save=["csv"])
    with pytest.raises(RequestError, match="a.csv b.csv: give one folder or file"):
        paths(images, "a.csv", "b.csv")
    with pytest.raises(RequestError, match="a.zip: of a video there is a drawn video and one"):
        files.split_outputs(["a.mp4", "a.zip"])


def test_every_format_at_once(tmp_path, capsys):
    """Into a folder, with one table and one file in COCO's format for all images."""
    images = [write_grey(tmp_path / name) for name in ("a.png", "b.png")]
    saved = ["--save", "png", *(form for form in files.FORMS if form not in ("png", "jpg"))]
    outputs = ["--output", tmp_path / "o", tmp_path / "all.csv", tmp_path / "all.json"]
    assert run_on_images("--input", *images, *outputs, *saved) == 0
    ends = ("csv", "geojson", "json", "masks.png", "masks.tif", "png", "rois.zip", "txt")
    expected = [f"{stem}.{end}" for stem in "ab" for end in ends]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == expected
    labels = tifffile.imread(tmp_path / "o" / "a.masks.tif")
    expected = two_instances(100, 200).pred_masks[0].numpy()
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint16
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert [row["image"] for row in rows] == [str(image) for image in images]
    assert [int(row["area"]) for row in rows] == [expected.sum()] * 2
    assert {float(row["intensity_mean_red"]) for row in rows} == {100.0}
    told = capsys.readouterr().out
    assert f"drawn in {tmp_path / 'o' / 'a.png'}, results in {tmp_path / 'o'}" in told
    assert f"; instances in {tmp_path / 'all.json'}; measurements in {tmp_path / 'all.csv'}" in told


def test_a_table_measures_the_numbers_of_the_file(tmp_path):
    pixels = np.full((100, 200), 3000, np.uint16)
    pixels[:, ::2] = 5000
    tifffile.imwrite(tmp_path / "a.tif", np.stack([pixels, pixels + 1]), photometric="minisblack")
    table = tmp_path / "a.csv"
    assert run_on_images("--input", tmp_path / "a.tif", "--output", table) == 0
    rows = list(csv.DictReader(table.open()))
    assert [row["page"] for row in rows] == ["0", "1"]
    assert [float(row["intensity_mean"]) for row in rows] == pytest.approx([4000, 4001], abs=12)


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 1), (0.1, 2)])
def test_coco_json_can_be_loaded(tmp_path, threshold, count):
    images = [write_grey(tmp_path / name, 60, 90) for name in ("a.png", "b.png")]
    file, options = tmp_path / "new" / "found.json", ["--confidence-threshold", threshold]
    assert run_on_images("--input", *images, "--output", file, *options) == 0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
        again = coco.loadRes(coco.dataset["annotations"])
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == [str(i) for i in images]
    assert {c["id"]: c["name"] for c in coco.loadCats([3, 7])} == {3: "bolt", 7: "nut"}
    expected = two_instances(60, 90)
    for image_id in (1, 2):
        found = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(found) == count
        for index, annotation in enumerate(found):
            mask = expected.pred_masks[index].numpy()
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
            x0, y0, x1, y1 = expected.pred_boxes.tensor[index].tolist()
            assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert annotation["score"] == pytest.approx(expected.scores[index].item())
            assert annotation["category_id"] == (7, 3)[index]
    assert len(again.getAnnIds()) == 2 * count
    assert list((tmp_path / "new").iterdir()) == [file]  # no pictures were asked for


def test_pictures_and_json_at_once_and_classes_without_names(tmp_path):
    image, file = write_grey(tmp_path / "a.png"), tmp_path / "found.json"
    predictor = FakePredictor(None, None)
    outputs = ["--output", tmp_path / "o", file]
    run_on_images("--input", image, *outputs, predictor=predictor)
    assert (tmp_path / "o" / "a.png").is_file()
    content = json.loads(file.read_text())
    assert content["categories"] == [{"id": 2, "name": "class 1"}]
    assert [a["category_id"] for a in content["annotations"]] == [2]
    with pytest.raises(RequestError, match="--output o p: give one folder or file for pictures"):
        files.split_outputs(["o", "a.json", "p"])


def test_an_interrupted_run_leaves_what_it_found(tmp_path):
    images = [write_grey(tmp_path / name) for name in ("a.png", "b.png")]

    class Impatient(FakePredictor):
        def __call__(self, image):
            if (tmp_path / "seen").exists():
                raise KeyboardInterrupt
            (tmp_path / "seen").touch()
            return super().__call__(image)

    file = tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        run_on_images("--input", *images, "--output", file, predictor=Impatient())
    assert len(json.loads(file.read_text())["annotations"]) == 1


@pytest.mark.parametrize("output", ["taken", "taken/x", "taken/x.png", "taken/x.json", "a.json"])
def test_where_nothing_can_be_written_nothing_is_predicted(tmp_path, output):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "a.json").mkdir()
    image, film = write_grey(tmp_path / "a.png"), write_video(tmp_path / "a.mp4")
    output, nobody = tmp_path / output, SimpleNamespace(classes=Classes(None, None))
    with pytest.raises(RequestError, match="^--output.* (cannot be made|is a folder)"):
        predict.run_on_images(nobody, parse("--input", image, "--output", output))
    if output.suffix:
        output = output.with_suffix(".mp4") if output.suffix == ".png" else output
        with pytest.raises(RequestError, match="^--output.* (cannot be made|is a folder)"):
            predict.run_on_video(nobody, parse("--video-input", film, "--output", output))


def test_a_window_shows_one_image_after_the_other_until_escape(tmp_path, monkeypatch):
    images = [write_grey(tmp_path / name, 60, 90) for name in ("a.png", "b.png", "c.png")]
    shown, keys = [], iter([32, video.ESCAPE])
    monkeypatch.setattr(video.cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(video.cv2, "waitKey", lambda milliseconds: next(keys))
    assert run_on_images("--input", *images) == 0
    assert [image.shape for image in shown] == [(60, 90, 3)] * 2
    assert (shown[0][30, 20] != 100).any()


def test_no_window_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(video.cv2, "imshow", refuse)
    with pytest.raises(RequestError, match="no window here: add --output"):
        run_on_images("--input", write_grey(tmp_path / "a.png"))


def write_video(path, frames=4):
    writer = video.open_video(str(path), 10.0, (64, 128))
    for _ in range(frames):
        writer.write(np.full((64, 128, 3), 100, np.uint8))
    writer.release()
    return path


def darkest(frame):
    return frame.astype(int).sum(axis=2).min()


@pytest.mark.parametrize("labels", [True, False])
def test_every_frame_of_a_video_is_drawn(tmp_path, capsys, labels):
    path, output = write_video(tmp_path / "in.mp4"), tmp_path / "out" / "out.mp4"
    arguments = ["--video-input", path, "--output", output, tmp_path / "found.json"]
    predict.run_on_video(FakePredictor(), parse(*arguments, *["--no-labels"] * (not labels)))
    frames = list(video.frames_of(cv2.VideoCapture(str(output))))
    assert len(frames) == 4
    for frame in frames:
        assert np.abs(frame[45:55, 30:40].astype(int) - 100).max() > 30
        assert np.abs(frame[20:40, 80:110].astype(int) - 100).max() < 30
        assert (darkest(frame[:, :60]) < 60) == labels  # the black ground of the text
    told = capsys.readouterr().out
    assert "4 frames in" in told
    assert f"drawn in {output}" in told
    content = json.loads((tmp_path / "found.json").read_text())
    assert [image["frame_id"] for image in content["images"]] == [0, 1, 2, 3]
    assert len(content["annotations"]) == 4


@pytest.mark.parametrize("labels", [True, False])
def test_an_instance_keeps_its_color_when_the_ranks_change(labels):
    frame = np.full((64, 128, 3), 100, np.uint8)
    painter = video.VideoPainter(["a", "b"], labels)
    first, nothing = Prediction(two_instances(64, 128), frame), FakePredictor()(frame)[:0]
    before = painter.draw(frame, first)
    np.testing.assert_array_equal(painter.draw(frame, nothing), frame)
    after = painter.draw(frame, first[torch.tensor([1, 0])])
    for x in (30, 90):
        assert (before[50, x] != 100).any()
        np.testing.assert_array_equal(after[50, x], before[50, x])
    assert (before[50, 30] != before[50, 90]).any()


def test_a_camera_is_shown_until_escape(monkeypatch):
    class Camera:
        def __init__(self, source):
            assert source == 0
            self.released = False

        def isOpened(self):  # noqa: N802  (OpenCV's name)
            return True

        def get(self, _):
            return -1.0  # cameras know neither length nor rate

        def read(self):
            return True, np.full((40, 60, 3), 100, np.uint8)

        def release(self):
            self.released = True

    cameras, keys = [], iter([255, 255, video.ESCAPE])
    monkeypatch.setattr(
        video.cv2, "VideoCapture", lambda source: cameras.append(Camera(source)) or cameras[0]
    )
    monkeypatch.setattr(video.cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(video.cv2, "waitKey", lambda milliseconds: next(keys))
    predict.run_on_video(FakePredictor(), parse("--webcam"))
    assert next(keys, None) is None
    assert cameras[0].released


def test_a_video_that_is_not_there_or_has_no_suffix(tmp_path):
    with pytest.raises(RequestError, match=r"none\.mp4 cannot be opened"):
        predict.run_on_video(FakePredictor(), parse("--video-input", tmp_path / "none.mp4"))
    with pytest.raises(RequestError, match="it is a file, .mp4"):
        video.open_video(str(tmp_path / "folder"), 10.0, (64, 128))


def test_a_model_of_the_zoo_from_its_name_to_coco_json(tmp_path, monkeypatch, capsys):
    """Real weights, those of a toy: what the predictor finds above the threshold is in the file."""
    cfg = toy_config(tmp_path, "MODEL.ISDA.NUM_CLASSES", 3)
    model = build_model(cfg)
    with torch.no_grad():
        model.instance_head.classes.weight.normal_()  # scores that differ
    weights, classes = tmp_path / "toy.pth", {"names": ["a", "b", "c"], "ids": [5, 7, 9]}
    torch.save({"model": model.state_dict(), "classes": classes}, weights)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "toy.yaml").write_text(cfg.dump())
    row = {"weights": "toy.pth", "sha256": sha256_of(weights), "license": "", "data": ""}
    (tmp_path / "models.json").write_text(json.dumps({"mine/toy": row}))
    monkeypatch.setenv("ISDA_MODEL_ZOO", str(tmp_path))
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    found = Predictor("mine/toy", threshold=0)(str(tmp_path / "a.png"))
    threshold = float(found.scores[: 2 + len(found) // 2].mean())
    expected = [a["score"] for a in found.to_coco() if a["score"] >= threshold]
    assert 0 < len(expected) < len(found)
    arguments = ["--model", "mine/toy", "--input", str(tmp_path / "a.png")]
    arguments += ["--confidence-threshold", str(threshold), "--output", str(tmp_path / "o.json")]
    assert cli.main(["predict", *arguments]) == 0
    content = json.loads((tmp_path / "o.json").read_text())
    assert [a["score"] for a in content["annotations"]] == pytest.approx(expected)
    assert content["categories"] == [{"id": i, "name": n} for i, n in zip((5, 7, 9), "abc")]
    assert {a["category_id"] for a in content["annotations"]} <= {5, 7, 9}
    assert f"{len(expected)} instances" in capsys.readouterr().out


def test_mistakes_end_with_one_message(tmp_path, capsys):
    image = str(write_grey(tmp_path / "a.jpg"))
    arguments = ["--config-file", str(tmp_path / "no.yaml"), "--input", image]
    assert cli.main(["predict", *arguments]) == 1
    assert capsys.readouterr().err.startswith("error: config file")
    assert cli.main(["predict", "--model", "nuclei/isda_tinny", "--input", "a.jpg"]) == 1
    assert "did you mean nuclei/isda_tiny" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["predict", *arguments, "--confidence-threshold", "50"])
    assert "from 0 to 1, got 50" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["predict", "--input", "a.jpg"])
    assert "one of the arguments --model --config-file is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nuclei/isda_tinny", "--input", "IMAGE"], "did you mean nuclei/isda_tiny"),
        (["--model", "shapes/isda_tiny", "--input", "IMAGE"], "has no trained weights here"),
        (["--model", "NAME", "--input", "nowhere/*.png"], "nowhere/*.png: no image there"),
        (["--model", "NAME", "--input", "IMAGE", "--output", "IMAGE"], "would replace"),
        (["--model", "NAME", "--input", "IMAGE", "--output", "a", "b"], "give one folder"),
    ],
)
def test_mistakes_are_told_before_pytorch_is_imported(tmp_path, words, message):
    names = {"IMAGE": write_grey(tmp_path / "a.png"), "NAME": "nuclei/isda_boxes_mobilenet_v2"}
    typed = ["predict", *(str(names.get(word, word)) for word in words)]
    code = f"import sys; from isda import cli; print(cli.main({typed}), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "1 False\n"
    assert message in result.stderr and result.stderr.count("\n") == 1
