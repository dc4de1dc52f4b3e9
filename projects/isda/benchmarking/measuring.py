"""Size, speed and memory of models side by side, as ``isda benchmark`` asks for them."""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from isda import strict_json
from isda.benchmarking.components import InferenceTimer, TrainingTimer, tensor_bytes
from isda.benchmarking.counting import count_flops, count_parameters
from isda.benchmarking.environment import describe_environment
from isda.benchmarking.memory import peak_beyond
from isda.benchmarking.tables import markdown, plot_ap_over_latency, plot_components
from isda.benchmarking.timing import Timeline, in_rounds, percentile_95, quartiles_of_ratios
from isda.benchmarking.workload import (
    build_for_inference,
    build_training,
    config_path,
    load_config,
    num_classes,
    synthetic_inputs,
)
from isda.engine.inference import inference_autocast
from isda.errors import UserError
from isda.files import write_text
from isda.visualization import read_metrics

__all__ = ["BenchmarkError", "benchmark", "write"]

AP_KEY = "segm/AP"
SETTINGS = (
    *("tasks", "size", "train_size", "batch", "train_batch", "instances", "rounds", "floor"),
    *("cpu_time", "opts"),
)

Calls = Mapping[str, Callable[[], dict[str, float]]]


class BenchmarkError(UserError):
    """What was asked for cannot be measured; the message is meant for the user."""


def load_configs(args: argparse.Namespace) -> dict[str, CfgNode]:
    """Per model's name, in the order of the command line.

    Raises:
        BenchmarkError: two models have one name.
    """
    names = args.names or [config_path(name).stem for name in args.config_file]
    if len(set(names)) < len(names):
        names = [name.removesuffix(".yaml") for name in args.config_file]
    if len(set(names)) < len(names):
        raise BenchmarkError("several models have one name: --names gives each its own")
    overrides = ["MODEL.DEVICE", args.device, *args.opts]
    return {n: load_config(file, overrides) for n, file in zip(names, args.config_file)}


def measure_size(model: nn.Module, size: tuple[int, int]) -> dict:
    """Parameters and multiply-adds."""
    parameters = count_parameters(model)
    flops, uncounted = count_flops(model, synthetic_inputs(1, *size, 0, 1))
    return {
        "parameters": {"total": sum(parameters.values()), "components": parameters},
        "flops": {"total": sum(flops.values()), "components": flops, "uncounted": uncounted},
    }


def measure_inference(
    models: Mapping[str, nn.Module],
    cfgs: Mapping[str, CfgNode],
    batch: int,
    args: argparse.Namespace,
) -> dict[str, dict]:
    """Seconds of calls with ``batch`` images, per model."""
    height, width = args.size
    inputs = [
        {"image": x["image"], "height": height, "width": width}
        for x in synthetic_inputs(batch, height, width, 0, 1)
    ]
    timers = {
        name: InferenceTimer(m, timeline(m, args), inputs, inference_autocast(cfgs[name], m))
        for name, m in models.items()
    }
    peaks = {}
    for name, timer in timers.items():
        timer()
        peaks[name] = with_own(peak_beyond(timer, timer.timeline.device), models[name])
    results = timed(timers, f"inference, batch {batch}", args)
    for name, result in results.items():
        result |= {"batch": batch, "instances": timers[name].instances}
        result |= {"images_per_second": batch / result["median"], "peak_bytes": peaks[name]}
        timers[name].remove()
    return results


def measure_training(cfgs: Mapping[str, CfgNode], args: argparse.Namespace) -> dict[str, dict]:
    """Seconds of training steps, per model.

    Raises:
        BenchmarkError: a model learns from more than instances with masks.
    """
    timers, peaks = {}, {}
    with EventStorage():  # where Detectron2's models note what they do
        for name, cfg in cfgs.items():
            inputs = synthetic_inputs(
                args.train_batch, *args.train_size, args.instances, num_classes(cfg)
            )
            training = build_training(cfg)
            timers[name] = TrainingTimer(training, timeline(training.model, args), inputs)
            try:
                extra = peak_beyond(timers[name], training.model.device)
            except (AttributeError, KeyError) as error:
                raise BenchmarkError(
                    f"{name} cannot be trained on images with masks alone ({error}): leave "
                    "training out, as in --tasks size latency throughput"
                ) from error
            peaks[name] = with_own(extra, training.model, training.optimizer)
        results = timed(timers, "training", args)
    for name, result in results.items():
        result |= {"batch": args.train_batch, "instances": args.instances}
        result["peak_bytes"] = peaks[name]
    return results


def timeline(model: nn.Module, args: argparse.Namespace) -> Timeline:
    return Timeline(model.device, clock(args))


def clock(args: argparse.Namespace) -> Callable[[], float]:
    """Of the wall, or of the processor, which leaves out the turns of other programs."""
    return time.process_time if args.cpu_time else time.perf_counter


def with_own(
    extra: int | None, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> int | None:
    """A call's memory together with that of what is always there; None where it is unknown."""
    return None if extra is None else extra + tensor_bytes(model, optimizer)


def timed(calls: Calls, what: str, args: argparse.Namespace) -> dict[str, dict]:
    """Rounds of the calls, summarised; what runs is shown on the terminal."""

    def report(number: int, name: str) -> None:
        print(f"{what}: round {number + 1} of {args.rounds}, {name}", file=sys.stderr)

    rounds = in_rounds(calls, args.rounds, floor=args.floor, now=clock(args), report=report)
    return summaries(rounds)


def summaries(rounds: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> dict[str, dict]:
    """Per model: median and 95th percentile of its calls, their parts, and ratios to the first.

    Args:
        rounds: per model and round the calls, each as seconds per part.
    """
    wholes = {
        name: [[sum(parts.values()) for parts in calls] for calls in of_model]
        for name, of_model in rounds.items()
    }
    medians = {name: [statistics.median(calls) for calls in w] for name, w in wholes.items()}
    reference = next(iter(medians.values()))
    results = {}
    for name, of_model in rounds.items():
        seconds = [whole for calls in wholes[name] for whole in calls]
        median = statistics.median(seconds)
        low, middle, high = quartiles_of_ratios(medians[name], reference)
        results[name] = {
            "median": median,
            "p95": percentile_95(seconds),
            "calls": len(seconds),
            "rounds": wholes[name],
            "ratio": {"low": low, "median": middle, "high": high},
            "components": shares_of(median, [parts for calls in of_model for parts in calls]),
        }
    return results


def shares_of(whole: float, calls: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """``whole`` divided as the calls' time is, all of them taken together."""
    totals: Counter[str] = Counter()
    for parts in calls:
        totals.update(parts)
    return {part: whole * seconds / totals.total() for part, seconds in totals.items()}


def read_ap(text: str) -> float:
    """Mask AP: a number, or that of the last evaluation in a training's ``metrics.json``.

    Raises:
        BenchmarkError: no evaluation is recorded there.
    """
    try:
        return float(text)
    except ValueError:
        path = Path(text)
    path = path / "metrics.json" if path.is_dir() else path
    try:
        found = [record[AP_KEY] for record in read_metrics(path) if AP_KEY in record]
    except ValueError as error:
        raise BenchmarkError(str(error)) from error
    if not found:
        raise BenchmarkError(f"{path} records no {AP_KEY}: has the training evaluated yet?")
    return found[-1]


def read_aps(pairs: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Mask AP per model.

    Raises:
        BenchmarkError: a pair is not NAME=RESULT, or names none of the models.
    """
    aps = {}
    for pair in pairs:
        name, _, result = pair.partition("=")
        if name not in names or not result:
            raise BenchmarkError(
                f"--ap {pair}: must be NAME=RESULT, with one of the names {', '.join(names)}"
            )
        aps[name] = read_ap(result)
    return aps


def benchmark(args: argparse.Namespace) -> dict:
    """Everything that was asked for, as it is written to ``benchmark.json``."""
    if args.threads:
        torch.set_num_threads(args.threads)
    cfgs = load_configs(args)
    rows = {name: {"name": name, "config": c} for name, c in zip(cfgs, args.config_file)}
    for name, ap in read_aps(args.ap, list(cfgs)).items():
        rows[name]["ap"] = ap
    if "training" in args.tasks:  # first, because it is what a model may be unfit for
        for name, result in measure_training(cfgs, args).items():
            rows[name]["training"] = result
    if set(args.tasks) != {"training"}:
        add_inference(rows, cfgs, args)
    settings = {key: getattr(args, key) for key in SETTINGS}
    environment = describe_environment(torch.device(args.device))
    return {"environment": environment, **settings, "rows": list(rows.values())}


def add_inference(
    rows: Mapping[str, dict], cfgs: Mapping[str, CfgNode], args: argparse.Namespace
) -> None:
    """Put into the rows what was asked for of size, latency and throughput."""
    models = {name: build_for_inference(cfg) for name, cfg in cfgs.items()}
    if "size" in args.tasks:
        for name, model in models.items():
            rows[name] |= measure_size(model, args.size)
    for task, batch in (("latency", 1), ("throughput", args.batch)):
        if task in args.tasks:
            for name, result in measure_inference(models, cfgs, batch, args).items():
                rows[name][task] = result


def write(report: Mapping, output: Path) -> None:
    """``benchmark.json``, ``benchmark.md`` and pictures of what was measured."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "benchmark.json", strict_json.dumps(report, indent=1) + "\n")
    write_text(output / "benchmark.md", markdown(report))
    rows = report["rows"]
    if any("latency" in row or "training" in row for row in rows):
        plot_components(rows, output / "components.png")
    if any("latency" in row and "ap" in row for row in rows):
        plot_ap_over_latency(rows, output / "ap_over_latency.png")
