import json
import sys

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure
from matplotlib.text import Text

import plot_metrics
from isda import visualization
from isda.structures import RLEMasks
from isda.visualization import (
    brighten,
    class_labels,
    contact_sheet,
    draw_annotations,
    draw_instances,
    draw_predictions,
    instance_colors,
    legible,
    plot_curves,
    read_metrics,
    side_by_side,
    training_minutes,
    write_image,
)

GREY = 100


@pytest.fixture
def image():
    return np.full((60, 80, 3), GREY, np.uint8)


@pytest.fixture
def masks():
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 5:25, 5:25] = True
    masks[1, 30:55, 40:75] = True
    return masks


def blended(color, alpha=0.5):
    return (1 - alpha) * GREY + alpha * 255 * np.array(color)


def test_each_instance_gets_its_own_color_and_the_rest_stays(image, masks):
    drawn = draw_instances(image, masks)
    first, second = instance_colors(2)
    np.testing.assert_allclose(drawn[15, 15], blended(first), atol=2)
    np.testing.assert_allclose(drawn[40, 60], blended(second), atol=2)
    assert np.abs(blended(first) - blended(second)).max() > 50
    assert (drawn[28:, :30] == GREY).all()
    assert (drawn[:20, 40:] == GREY).all()


@pytest.mark.parametrize("form", ["tensor", "bitmasks", "polygons", "rle"])
def test_masks_of_every_form_look_the_same(image, masks, form):
    expected = draw_instances(image, masks)
    polygons = [
        [np.array([5, 5, 25, 5, 25, 25, 5, 25.0])],
        [np.array([40, 30, 75, 30, 75, 55, 40, 55.0])],
    ]
    given = {
        "tensor": torch.from_numpy(masks),
        "bitmasks": BitMasks(torch.from_numpy(masks)),
        "polygons": PolygonMasks(polygons),
        "rle": [mask_util.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks],
    }[form]
    drawn = draw_instances(image, given)
    # Outlines differ by half a pixel.
    np.testing.assert_array_equal(drawn[8:22, 8:22], expected[8:22, 8:22])
    np.testing.assert_array_equal(drawn[33:52, 43:72], expected[33:52, 43:72])
    assert (drawn[28:, :37] == GREY).all()


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (3000, 2), (2, 3000)])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_thinnest_images_are_drawn(size, scale):
    thin = np.full((*size, 3), GREY, np.uint8)
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask.view(-1)[: mask.numel() // 3] = True
    drawn = draw_instances(thin, mask, scale=scale)
    assert drawn.shape == (*(max(round(side * scale), 1) for side in size), 3)
    assert not (drawn == GREY).all()


def test_a_picture_too_long_for_its_format_says_so(tmp_path):
    with pytest.raises(OSError, match=r"\.jpg holds sides of at most 65500 pixels.*use \.png"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 70_000, 3), np.uint8))
    write_image(tmp_path / "a.png", np.zeros((1, 70_000, 3), np.uint8))


def test_scale_enlarges_image_and_masks(image, masks):
    drawn = draw_instances(image, masks, scale=2)
    assert drawn.shape == (120, 160, 3)
    np.testing.assert_allclose(drawn[30, 30], blended(instance_colors(1)[0]), atol=2)


@pytest.mark.parametrize("empty", [None, [], np.zeros((0, 60, 80), bool)])
def test_an_image_without_instances_is_left_as_it_is(image, empty):
    np.testing.assert_array_equal(draw_instances(image, empty), image)


def test_colors_of_neighbours_differ_and_repeat_at_every_call():
    colors = np.array(instance_colors(50))
    assert colors.tolist() == np.array(instance_colors(50)).tolist()
    for index in range(48):
        distances = np.abs(colors[index + 1 : index + 3] - colors[index]).max(axis=1)
        assert (distances > 0.3).all()


def test_labels_have_name_and_score():
    assert class_labels([1, 0], ["cat", "dog"], [0.934, 0.5]) == ["dog 93%", "cat 50%"]
    assert class_labels([2], None) == class_labels([2], ["cat", "dog"]) == ["class 2"]


def test_predictions_are_drawn_with_and_without_labels(image, masks):
    instances = Instances((60, 80))
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 25, 25], [40, 30, 75, 55]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    plain = draw_predictions(image, instances, ["nucleus"], with_labels=False)
    np.testing.assert_array_equal(plain, draw_instances(image, masks))
    labelled = draw_predictions(image, instances, ["nucleus"])
    assert (labelled.min(axis=2) < 40).sum() > 20  # the black ground of the text
    instances.remove("pred_masks")
    boxes_only = draw_predictions(image, instances, with_labels=False)
    assert (boxes_only[15, 15] == GREY).all()
    assert (boxes_only[5, 5:25] != GREY).any()


@pytest.mark.parametrize("name", [r"$\frac$", "$a$", r"\$", "$"])
def test_names_are_texts_and_no_formulas(image, masks, name):
    """Matplotlib sets what stands between two dollar signs, or raises."""
    drawn = draw_instances(image, masks, labels=[name, "b"])
    assert (drawn != draw_instances(image, masks, labels=["", "b"])).any()
    shown = Text(0, 0, legible(name))
    assert shown._preprocess_math(shown.get_text()) == (name, False)


def test_what_is_invisible_reaches_no_library(image, found, masks, monkeypatch):
    """Not even bytes of a file name that are no UTF-8."""
    texts = []
    monkeypatch.setattr(cv2, "putText", lambda canvas, text, *_: texts.append(text))
    monkeypatch.setattr(cv2, "getTextSize", lambda text, *_: texts.append(text) or ((9, 9), 1))
    monkeypatch.setattr(
        "detectron2.utils.visualizer.Visualizer.draw_text",
        lambda self, text, *_, **__: texts.append(text),
    )
    name = "a\x1b[2J\udcffb\n"
    side_by_side({name: image})
    draw_instances(image, masks, labels=[name, name])
    monkeypatch.setattr(visualization, "_LARGE_PIXELS", 100)
    draw_predictions(image, found, [name])
    assert len(texts) >= 6
    assert all(text.startswith(r"a\x1b[2J\udcffb\n") for text in texts), texts


def test_annotations_without_segmentation_are_left_out(image, monkeypatch):
    polygon = [[40, 30, 75, 30, 75, 55, 40, 55]]
    rle = mask_util.encode(np.asfortranarray(np.eye(60, 80, dtype=np.uint8)))
    annotations = [
        {"category_id": 0, "bbox": [0, 0, 5, 5]},
        {"category_id": 1, "segmentation": polygon},
        {"category_id": 0, "segmentation": rle, "iscrowd": 1},
    ]
    seen = {}
    monkeypatch.setattr(
        "isda.visualization.draw_instances",
        lambda *args, **kwargs: seen.update(kwargs, masks=args[1]),
    )
    draw_annotations(image, annotations, ["cat", "dog"])
    assert seen["labels"] == ["dog", "cat (crowd)"]
    assert len(seen["masks"]) == 2


def test_side_by_side_keeps_panels_in_order_under_titles():
    left, right = np.full((30, 90, 3), 10, np.uint8), np.full((50, 70, 3), 20, np.uint8)
    sheet = side_by_side({"photograph": left, "prediction": right})
    assert (sheet == 10).all(axis=2).sum() >= left[..., 0].size
    assert (sheet == 20).all(axis=2).sum() >= right[..., 0].size
    assert np.argmax((sheet[40] == 10).all(axis=1)) < np.argmax((sheet[40] == 20).all(axis=1))
    titles = sheet[6:30]
    assert (titles[:, 6:96] < 100).any()  # dark text
    assert (titles[:, 102:172] < 100).any()


def test_contact_sheet_places_images_in_rows():
    images = [np.full((10 + index, 20 + index, 3), index, np.uint8) for index in range(5)]
    sheet = contact_sheet(images, 2)
    assert sheet.shape == (6 + 17 + 19 + 20, 6 + 30 + 29, 3)  # cells are as large as the largest
    for index, (y, x) in enumerate([(6, 6), (6, 36), (23, 6), (23, 36), (42, 6)]):
        np.testing.assert_array_equal(sheet[y : y + 10 + index, x : x + 20 + index], images[index])
    with pytest.raises(ValueError, match="0 images"):
        contact_sheet([], 2)


def test_only_dark_images_are_brightened():
    dark = np.zeros((50, 50, 3), np.uint8)
    dark[:10] = 40
    assert brighten(dark).max() == 200
    assert (brighten(dark)[20:] == 0).all()
    bright = dark * 6
    assert brighten(bright) is bright
    black = np.zeros_like(dark)
    assert brighten(black) is black


def test_written_images_are_rgb(tmp_path, image):
    image[..., 0] = 250
    write_image(tmp_path / "new" / "red.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "red.png"))[..., ::-1], image)
    with pytest.raises(OSError, match=r"red\.xyz: '\.xyz' is no image format"):
        write_image(tmp_path / "red.xyz", image)


def write_metrics(path, *lines):
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def test_a_truncated_last_line_is_skipped(tmp_path, caplog):
    path = write_metrics(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 4.0},
        {"iteration": 39, "total_loss": 3.0},
        '{"iteration": 59, "total_lo',
    )
    assert [record["iteration"] for record in read_metrics(path)] == [19, 39]
    assert "skipped 1 unreadable line" in caplog.text


def test_a_broken_line_in_the_middle_costs_only_itself(tmp_path):
    path = write_metrics(
        tmp_path / "metrics.json", {"iteration": 1}, '{"iter{"iteration": 2}', "7", {"iteration": 3}
    )
    assert [record["iteration"] for record in read_metrics(path)] == [1, 3]


def test_records_of_a_resumed_run_replace_the_older_ones(tmp_path):
    path = write_metrics(
        tmp_path / "metrics.json",
        {"iteration": 9, "total_loss": 9.0},
        {"iteration": 19, "total_loss": 8.0},
        {"iteration": 29, "total_loss": 7.0},
        {"iteration": 19, "total_loss": 6.0, "lr": 0.1},
        {"iteration": 19, "segm/AP": 5.0},
    )
    assert read_metrics(path) == [
        {"iteration": 9, "total_loss": 9.0},
        {"iteration": 19, "total_loss": 6.0, "lr": 0.1, "segm/AP": 5.0},
    ]


def test_an_evaluation_is_written_after_later_losses(tmp_path):
    path = write_metrics(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 9.0},
        {"iteration": 39, "total_loss": 8.0},
        {"iteration": 22, "segm/AP": 5.0},
        {"iteration": 49, "total_loss": 7.0},
        {"iteration": 45, "segm/AP": 6.0},
        {"iteration": 50, "segm/AP": 6.5},
    )
    assert [r["iteration"] for r in read_metrics(path)] == [19, 22, 39, 45, 49, 50]
    assert [r.get("total_loss") for r in read_metrics(path)] == [9.0, None, 8.0, None, 7.0, None]


def test_metrics_that_are_missing_or_empty_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metrics at .*metrics.json"):
        read_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").touch()
    with pytest.raises(ValueError, match="holds no record"):
        read_metrics(tmp_path / "metrics.json")


def has_color(path, hexadecimal):
    rgb = [int(hexadecimal[i : i + 2], 16) for i in (0, 2, 4)]
    return (np.abs(cv2.imread(str(path))[..., ::-1].astype(int) - rgb).max(axis=2) < 4).sum() > 20


def test_curves_show_every_run(tmp_path):
    run = [{"iteration": i, "total_loss": 9.0 / (i + 1), "segm/AP": 2.0 * i} for i in range(9)]
    plot_curves({"one": run}, tmp_path / "one.png")
    plot_curves({"one": run, "two": run[:5]}, tmp_path / "two.png")
    assert has_color(tmp_path / "one.png", "1f77b4")
    assert not has_color(tmp_path / "one.png", "ff7f0e")
    assert has_color(tmp_path / "two.png", "ff7f0e")


def test_curves_without_any_value_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none of total_loss, segm/AP, bbox/AP is recorded in one"):
        plot_curves({"one": [{"iteration": 1, "lr": 0.1}]}, tmp_path / "one.png")
    with pytest.raises(ValueError, match="at most 4"):
        plot_curves({"one": []}, tmp_path / "one.png", metrics="abcde")


STEPS = [  # 20 steps of 3 s, an evaluation, 10 of 6 s, an evaluation
    {"iteration": 19, "time": 3.0, "total_loss": 4.0},
    {"iteration": 24, "segm/AP": 5.0},
    {"iteration": 29, "time": 6.0, "total_loss": 3.0},
    {"iteration": 30, "segm/AP": 9.0},
]


def test_minutes_are_those_of_training_steps():
    assert training_minutes(STEPS) == pytest.approx([1.0, 1.5, 2.0, 2.0])
    with pytest.raises(ValueError, match="no record states the time"):
        training_minutes(STEPS[1:2])


def test_curves_over_time(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plot_curves({"one": STEPS}, tmp_path / "one.png", metrics=["segm/AP"], over="time")
    left, right = drawn[0].axes
    assert left.lines[0].get_xdata().tolist() == pytest.approx([1.0, 2.0])
    assert right.lines[0].get_xdata().tolist() == pytest.approx([1.5, 2.0])
    assert right.get_xlabel() == "minutes of training" and right.get_xlim()[0] == 0
    with pytest.raises(ValueError, match="over iteration or time, got 'epochs'"):
        plot_curves({"one": STEPS}, tmp_path / "one.png", over="epochs")


def test_plot_metrics_reads_folders_and_files(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_metrics(tmp_path / name / "metrics.json", {"iteration": 1, "total_loss": 2.0})
    output = tmp_path / "curves.png"
    runs = [str(tmp_path / "a"), str(tmp_path / "b" / "metrics.json")]
    assert plot_metrics.main([*runs, "--output", str(output)]) == 0
    assert has_color(output, "ff7f0e")
    assert plot_metrics.main([*runs, "--output", str(output), "--over", "time"]) == 1
    assert "error: no record states the time of a step" in capsys.readouterr().err
    assert plot_metrics.main([str(tmp_path / "c")]) == 1
    assert "error: no metrics at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plot_metrics.main([*runs, "--names", "one"])
    assert "wants 2 names" in capsys.readouterr().err


@pytest.fixture
def found(masks):
    """Three instances, of which the first lies within the last."""
    instances = Instances(masks.shape[1:])
    inner = np.zeros_like(masks[:1])
    inner[0, 35:45, 50:60] = True
    instances.pred_masks = torch.from_numpy(np.concatenate([inner, masks]))
    instances.scores = torch.tensor([0.9, 0.8, 0.7])
    instances.pred_classes = torch.zeros(3, dtype=torch.int64)
    return instances


@pytest.mark.parametrize("encoded", [False, True])
def test_large_images_are_painted_mask_by_mask(image, found, encoded, monkeypatch):
    monkeypatch.setattr(visualization, "_LARGE_PIXELS", 100)
    monkeypatch.setitem(sys.modules, "detectron2.utils.visualizer", None)  # nobody asks for it
    masks = found.pred_masks
    if encoded:
        found.pred_masks = RLEMasks.encode(masks)
    before = image.copy()
    drawn = draw_predictions(image, found, with_labels=False)
    np.testing.assert_array_equal(image, before)
    expected, edges = image.astype(float), np.zeros(image.shape[:2], bool)
    # The smallest, which lies within another, last.
    for index in masks.flatten(1).sum(dim=1).argsort(descending=True).tolist():
        mask = masks[index].numpy()
        expected[mask] = (expected[mask] + 255 * np.array(instance_colors(3)[index])) / 2
        edges |= mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert edges.mean() < 0.1
    assert np.abs(drawn - expected)[~edges].max() <= 2
    assert np.abs(drawn - expected)[edges].max() > 50  # the outlines
    labelled = draw_predictions(image, found, ["thing"])
    assert (labelled != drawn).any()
    half = draw_predictions(image, found, with_labels=False, scale=0.5)
    assert half.shape == (round(image.shape[0] / 2), round(image.shape[1] / 2), 3)
    assert (half != cv2.resize(image, half.shape[1::-1], interpolation=cv2.INTER_AREA)).any()


def test_a_large_image_without_instances_is_left_as_it_is(image, found, monkeypatch):
    monkeypatch.setattr(visualization, "_LARGE_PIXELS", 100)
    np.testing.assert_array_equal(draw_predictions(image, found[found.scores > 1]), image)


def test_pictures_are_detectron2s_to_the_pixel():
    """Patches that are not measured change nothing, not even those that leave the image."""
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    masks = np.zeros((3, 60, 80), bool)
    masks[0, 5:20, 5:30] = masks[1, 30:, 40:] = masks[2, 25:40, 20:60] = True
    boxes = np.array([[5, 5, 30, 20], [-20, 30, 120, 90], [20, 25, 60, 40]], float)
    labels, colors = ["a", "b", "c"], instance_colors(3)
    theirs = Visualizer(image, scale=1.5)
    theirs.overlay_instances(masks=masks, boxes=boxes, labels=labels, assigned_colors=colors)
    ours = draw_instances(image, masks, boxes=boxes, labels=labels, colors=colors, scale=1.5)
    np.testing.assert_array_equal(ours, theirs.get_output().get_image())
