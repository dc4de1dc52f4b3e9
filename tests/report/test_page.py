"""The report as a whole, of a generated training."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from examples_of_reports import METRICS

from isda.report import write_report
from isda.report.scores import Scores
from isda.report.sections import course

VOID = {"meta", "br", "img", "hr"}


class Checker(HTMLParser):
    """Sees whether every element is closed, and collects texts, attributes and ids."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.attributes, self.problems = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def read(path):
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert checker.problems == [] and checker.open == []
    return checker


@pytest.fixture(scope="module")
def page(prepared, tmp_path_factory):
    return write_report(prepared, tmp_path_factory.mktemp("page") / "sub" / "page.html")


def test_it_needs_nothing_from_elsewhere(page):
    checker = read(page)
    sources = [value for key, value in checker.attributes if key in ("href", "src", "xlink:href")]
    assert sources and all(s.startswith(("#", "data:image/jpeg;base64,")) for s in sources)
    content = page.read_text(encoding="utf-8")
    assert re.findall(r"https?:|@import|url\(|<script|<link|<iframe", content) == []


def test_ids_are_unique_and_links_lead_somewhere(page):
    attributes = read(page).attributes
    ids = [value for key, value in attributes if key == "id"]
    links = {value[1:] for key, value in attributes if key == "href" and value.startswith("#")}
    assert len(ids) == len(set(ids))
    assert links <= set(ids)


def test_names_and_messages_are_escaped(page):
    content, text = page.read_text(encoding="utf-8"), read(page).text
    assert "<script>" not in content and "cell <b>" not in content
    assert "run <one>" in text and "cell <b>" in text and '<script>alert("deep")</script>' in text
    assert "debris &amp; dust" in content


def test_headline_is_the_best_of_metrics_json(page):
    text = read(page).text
    assert "Mask AP 71.2 at iteration 49, epoch 4.9" in text
    assert "Box AP 60.5 at iteration 49" in text
    assert "Iterations 60 all that were planned" in text
    assert "Loss 2.5 from 4 at the start" in text
    assert "Duration 1 min 05 s 30 s of it in steps" in text
    assert "finished" in text and "unfinished" not in text


def test_figures_are_those_of_cocos_evaluation(page, content, predictions):
    text = read(page).text
    masks, boxes = (Scores(content, predictions, task) for task in ("segm", "bbox"))
    row = [masks.ap(), masks.ap(iou=0.5), masks.ap(iou=0.75), masks.ar()]
    expected = " ".join(f"{value:.1f}" for value in row)
    assert f"By size: masks AP AP50 AP75 AR@100 instances all {expected} 7" in text
    assert f"all {boxes.ap():.1f} {boxes.ap(iou=0.5):.1f}" in text
    by_class = [scores.ap(category=3) for scores in (masks, boxes)]
    by_class += [masks.ap(iou=0.5, category=3), masks.ar(category=3)]
    expected = " ".join(f"{value:.1f}" for value in by_class)
    assert f"cell <b> {expected} 5" in text
    assert "large – – – – 0" in text


def test_predictions_of_another_moment_are_told(page):
    assert "the predictions on toy_val are not those of the last evaluation" in read(page).text


def test_errors_are_counted(page):
    text = read(page).text
    # Lower, the double prediction lowers the quality; from 0.85 on an instance is missed.
    assert "With a score threshold of 0.65" in text
    assert (
        "7 annotated instances found 3 (43%) confused 1 (14%) merged 2 (29%) imprecise 0 (0%) "
        "missed 1 (14%)"
    ) in text
    assert (
        "5 predictions correct 3 (60%) confused 1 (20%) double 0 (0%) merged 1 (20%) "
        "imprecise 0 (0%) background 0 (0%)"
    ) in text


def test_images_are_ranked_by_their_masks(page):
    content = page.read_text(encoding="utf-8")
    order = re.findall(r"<code>image_(\d)\.png</code> quality ([\d.]+)", content)
    # Three have instances, so one is the worst and one the best.
    assert [number for number, _ in order] == ["2", "1"]
    assert float(order[0][1]) < 0.5 and order[1][1] == "1.00"
    assert content.count("data:image/jpeg;base64,") == 2
    assert content.count('href="#worst-0"') == content.count('href="#best-0"') == 2


def test_predicted_masks_are_outlined_in_the_color_of_their_fate(page):
    content = page.read_text(encoding="utf-8")
    worst = content[content.index('id="worst-0"') : content.index('id="best-0"')]
    found = re.findall(r'<path d="([^"]*)" class="mask (\w+)"|<title>([^<]*)</title>', worst)
    kinds = re.findall(r'class="mask (\w+)"', worst)
    assert found and kinds == ["merged", "merged", "missed", "merged"]
    assert "cell &lt;b&gt; 90%: merged, IoU 0.49" in worst


def test_course_has_a_chart_for_everything_that_was_recorded(page):
    text = read(page).text
    for title in ("Average precision", "Loss", "Parts of the loss", "Learning rate", "Gradients"):
        assert title in text
    assert "loss_cls loss_mask" in text and "loss_mask_0" not in text


def test_no_part_of_the_loss_of_isda_with_boxes_is_left_out():
    own = [f"loss_{term}" for term in ("bbox", "cls", "giou", "mask")]
    enc, dn = ([f"{name}_{suffix}" for name in own] for suffix in ("enc", "dn"))
    keys = [*own, *(f"{name}_0" for name in own), *dn, *(key for key in enc if "mask" not in key)]
    training = SimpleNamespace(
        records=[dict.fromkeys(keys, 1.0)],
        iterations=20,
        names=lambda use: [],
        metric=lambda key, *_: [(19, 1.0)] if key in keys else [],
    )
    figures = re.findall(r"<figure.*?</figure>", course(training), re.DOTALL)
    parts, beside = (set(re.findall(r"loss_\w+", figure)) for figure in figures)
    assert parts == set(own)
    assert beside == {*dn, *enc} - {"loss_mask_enc"}


def test_machine_software_and_command_are_there(page):
    text = read(page).text
    for part in ("Some CPU, 2 cores", "8 GiB", "1.5 GiB host", "python 3.11.2, torch 2.14.1"):
        assert part in text
    assert "train_net.py --config-file configs/x.yaml SOLVER.MAX_ITER 60" in text
    assert "2026-01-02 03:04 to 03:05, 1 min 05 s" in text and "abc1234-dirty" in text


def test_configuration_names_what_differs_and_who_set_it(page):
    text = read(page).text
    assert re.search(r"SOLVER.MAX_ITER 60 \d+ command line", text)
    assert "DATASETS.TEST ['toy_val'] []" in text
    assert "MODEL: " in text  # the whole one


def test_warnings_of_this_training_are_listed_once(page):
    text = read(page).text
    assert "no CUDA device can be used isda.engine.setup" in text
    assert text.count("alert") == 1 and "isda.data.images, 2 times" in text
    assert "an older training in this folder" not in text and "nothing to worry" not in text


# --- what is missing is said


def report_of(folder):
    return read(write_report(folder)).text


def test_without_metrics_there_is_no_report(folder):
    (folder / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no metrics at .*metrics\.json: give the"):
        write_report(folder)
    (folder / "metrics.json").write_text("")
    with pytest.raises(ValueError, match="holds no record yet"):
        write_report(folder)


def test_an_interrupted_training_without_evaluation(folder):
    lines = [json.dumps(record) for record in METRICS[:2]]
    (folder / "metrics.json").write_text("\n".join(lines) + '\n{"iteration": 5')
    for name in ("environment.json", "last_checkpoint", "log.txt"):
        (folder / name).unlink()
    (folder / "inference" / "coco_instances_results.json").unlink()
    text = report_of(folder)
    assert "unfinished: 40 of 60 iterations are done, and isda train --resume" in text
    assert "toy_val was not evaluated, so there are no results" in text
    assert "there is no environment.json" in text
    assert "data set 'toy_val': its annotation file is not where it was" in text
    assert "Mask AP" not in text and "Time in steps 20 s" in text


def test_only_metrics(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS[0]))
    text = report_of(tmp_path)
    assert "There is no config.yaml" in text and "Learning rate" in text


def test_only_an_evaluation(folder):
    (folder / "metrics.json").write_text(json.dumps(METRICS[2]))
    assert "Mask AP 71.2 at iteration 49" in report_of(folder)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "the model predicted nothing"),
        ("{}", "the model predicted nothing"),
        ('{"a": 1}', "is not a list of predictions"),
        ("[{", "no results on toy_val"),
        ('[{"image_id": 77, "category_id": 3, "score": 1}]', "image id 77 is not"),
        ('[{"category_id": 3}]', "no results on toy_val: KeyError('image_id')"),
    ],
)
def test_results_that_are_none(folder, content, message):
    (folder / "inference" / "coco_instances_results.json").write_text(content)
    assert message in report_of(folder)


def test_an_image_that_is_gone_leaves_the_others(folder, prepared, tmp_path):
    data = prepared.parent / "data"
    environment = json.loads((folder / "environment.json").read_text())
    environment["data"]["test"][0]["image_root"] = str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "image_2.png").write_bytes((data / "image_2.png").read_bytes())
    (folder / "environment.json").write_text(json.dumps(environment))
    path = write_report(folder)
    assert path.read_text().count("data:image/jpeg") == 1
    assert "image_1.png: no such image" in read(path).text


def test_boxes_alone_are_evaluated_and_drawn(folder, predictions):
    boxes = [{k: v for k, v in p.items() if k != "segmentation"} for p in predictions]
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(boxes))
    path = write_report(folder)
    text = read(path).text
    assert "By size: boxes" in text and "By size: masks" not in text
    assert path.read_text().count('class="mask merged"') == 3


def test_predictions_of_the_best_evaluation_come_before_those_of_the_last(folder, predictions):
    name = "best_coco_instances_results.json"
    (folder / "inference" / name).write_text(json.dumps(predictions[:2]))
    text = report_of(folder)
    assert "Of the best evaluation" in text and "2 predictions correct 2" in text


def test_a_training_that_stopped_early(folder):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("MAX_ITER: 60", "MAX_ITER: 600"))
    text = report_of(folder)
    assert "stopped early" in text and "Iterations 60 of 600" in text
    assert "unfinished" not in text


def test_several_test_sets_have_chapters_of_their_own(folder, predictions):
    environment = json.loads((folder / "environment.json").read_text())
    (source,) = environment["data"]["test"]
    environment["data"]["test"] = [source, source | {"name": "second"}]
    (folder / "environment.json").write_text(json.dumps(environment))
    inference = folder / "inference"
    for name in ("toy_val", "second"):
        (inference / name).mkdir()
        results = json.dumps(predictions)
        (inference / name / "coco_instances_results.json").write_text(results)
    record = {"iteration": 59, "toy_val/segm/AP": 50.0, "second/segm/AP": 40.0}
    with (folder / "metrics.json").open("a") as file:
        file.write(json.dumps(record) + "\n")
    path = write_report(folder, num_images=1)
    text, content = read(path).text, path.read_text()
    assert "Mask AP on toy_val 50.0" in text and "Mask AP on second 40.0" in text
    assert 'id="results-toy_val"' in content and 'id="errors-second"' in content


def test_no_images_if_none_are_wanted(folder):
    assert "data:image" not in write_report(folder, num_images=0).read_text()
    with pytest.raises(ValueError, match="num_images must be at least 0, got -1"):
        write_report(folder, num_images=-1)
