"""Check of an installation: packages, kernels, devices, files, and advice: ``isda doctor``.

Whatever may be missing or broken is imported in a process of its own, so that not even a crash
there keeps this one from reporting.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from isda.machine import PACKAGE, ROOT, commit, processor_name, version_of

__all__ = ["Report", "examine"]

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
NEEDED = (
    *("torchvision", "numpy", "scipy", "pillow", "pycocotools", "fvcore", "iopath", "yacs"),
    *("tabulate", "termcolor"),
)
OPTIONAL = ("opencv-python-headless", "matplotlib", "timm", "onnx", "onnxscript", "onnxruntime")
DETECTRON2 = (
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git"
    "@a59f05630a8f205756064244bf5beb8661f96180', or `make env` in a checkout of ISDA, which does "
    "everything (docs/INSTALL.md)"
)
KERNELS = (
    "ISDA_BUILD={} pip install --no-build-isolation --no-deps . in a checkout, or a wheel with "
    "kernels (docs/INSTALL.md)"
)
PROBE_SECONDS = 300


@dataclass
class Report:
    """What has been found, in the order of finding."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # something does not work
    advice: list[str] = field(default_factory=list)  # it works, and could do better

    def title(self, text: str) -> None:
        self.lines += ["", text] if self.lines else [text]

    def line(self, name: str, text: str) -> None:
        self.lines.append(f"  {name:<24}  {text}")

    def __str__(self) -> str:
        lines = list(self.lines)
        for title, items in (("To act on", self.problems), ("Could be better", self.advice)):
            if items:
                lines += ["", title]
                lines += [f"  {number}. {item}" for number, item in enumerate(items, start=1)]
        if not self.problems:
            lines += ["", "Everything works."]
        return "\n".join(lines)


class ProbeError(Exception):
    """A probe ended without an answer; the message is its last line."""


def examine() -> Report:
    """Look at everything; takes some seconds, most of them for importing PyTorch."""
    report = Report()
    examine_versions(report)
    if examine_torch(report):
        examine_operator(report)
        examine_detectron2(report)
    examine_files(report)
    return report


# --- in this process, with the standard library


def examine_versions(report: Report) -> None:
    """Python, this package, and what it needs, by the metadata that pip reads as well."""
    report.title("Versions")
    python = platform.python_version()
    report.line("Python", f"{python}, {platform.system()} {platform.machine()}")
    if sys.version_info < OLDEST_PYTHON:
        report.problems.append(f"Python is {python}, and ISDA needs 3.10 or later.")
    report.line("isda", f"{version_of('isda') or 'not installed, only found'}, in {PACKAGE}")
    report.line("  commit", commit() or "not known")
    for name in NEEDED:
        version = version_of(name)
        report.line(name, version or "missing")
        if version is None:
            report.problems.append(f"{name} is missing: pip install {name}")
    found = [f"{name} {version}" for name in OPTIONAL if (version := version_of(name))]
    report.line("optional", ", ".join(found) or "none")


def examine_files(report: Report) -> None:
    """Recipes, and shipped weights against their published hashes."""
    report.title("Files")
    folder = next((f for f in (PACKAGE / "configs", ROOT / "configs") if f.is_dir()), None)
    count = len(list(folder.rglob("*.yaml"))) if folder else 0
    report.line("configs", f"{count} in {folder}" if folder else "missing")
    if not count:
        report.problems.append("The configs are missing: install ISDA again, or clone it again.")
    sums = published_sums(PACKAGE)
    if not sums:
        report.problems.append(f"There are no weights in {PACKAGE / 'weights'}: install again.")
    for name, expected in sums.items():
        state = state_of(PACKAGE / "weights" / name, expected)
        report.line(name, state)
        if not state.startswith("ok"):
            report.problems.append(
                f"weights/{name} is {state}: install ISDA again, or `git checkout` the file."
            )


def published_sums(package: Path) -> dict[str, str]:
    """File names and sha256 that weights/README.md and the table of models state."""
    sums = {}
    readme = package / "weights" / "README.md"
    if readme.exists():
        for section in readme.read_text(encoding="utf-8").split("\n## ")[1:]:
            found = re.search(r"^- sha256: `([0-9a-f]{64})`", section, re.MULTILINE)
            if found:
                sums[section.splitlines()[0].strip()] = found[1]
    table = package / "model_zoo" / "models.json"
    if table.exists():
        for model in json.loads(table.read_text(encoding="utf-8")).values():
            if model["weights"].startswith("isda://"):
                sums[model["weights"].removeprefix("isda://")] = model["sha256"]
    return sums


def state_of(path: Path, expected: str) -> str:
    """``ok``, ``missing``, or how the file differs."""
    if not path.exists():
        return "missing"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        return f"not what was published (sha256 {found[:12]}…, not {expected[:12]}…)"
    return f"ok, {path.stat().st_size / 1e6:.1f} MB"


# --- in processes of their own


def probe(function: Callable[[], None]) -> dict:
    """What ``function`` prints as JSON in a fresh interpreter that imports as this one does.

    Raises:
        ProbeError: it failed, crashed, or took too long.
    """
    code = f"from isda import doctor; doctor.{function.__name__}()"
    folders = [str(PACKAGE.parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", code]
    try:
        result = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"no answer within {PROBE_SECONDS} s") from error
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        raise ProbeError(f"the interpreter crashed ({name})")
    if result.returncode:
        raise ProbeError((result.stderr.strip() or "no message").splitlines()[-1])
    return json.loads(result.stdout.splitlines()[-1])


def answer(**values) -> None:
    sys.stdout.write(json.dumps(values) + "\n")


def examine_torch(report: Report) -> bool:
    """PyTorch and its devices; False if it cannot be imported."""
    if importlib.util.find_spec("torch") is None:
        report.line("torch", "missing")
        report.problems.append("PyTorch is missing: pip install torch torchvision")
        return False
    try:
        torch = probe(probe_torch)
    except ProbeError as error:
        report.line("torch", f"{version_of('torch')}, cannot be imported")
        report.problems.append(
            f"PyTorch cannot be imported ({error}): pip install --force-reinstall torch torchvision"
        )
        return False
    build = f"built with CUDA {torch['cuda']}" if torch["cuda"] else "built without CUDA"
    report.line("torch", f"{torch['version']}, {build}")
    if tuple(torch["numbers"]) < OLDEST_TORCH:
        report.problems.append(
            f"PyTorch is {torch['version']}, and ISDA needs 2.10 or later: "
            "pip install --upgrade torch torchvision"
        )
    report.title("Devices")
    report.line("cpu", f"{torch['cpu']}, {torch['threads']} threads, {torch['capability']}")
    for number, gpu in enumerate(torch["gpus"]):
        report.line(f"cuda:{number}", gpu)
    if not torch["gpus"]:
        report.line("cuda", why_no_gpu(torch["cuda"]))
    examine_precision(report)
    return True


def examine_precision(report: Report) -> None:
    """Whether half precision pays, and so what SOLVER.AMP and TEST.AMP take."""
    report.title("Half precision (SOLVER.AMP, TEST.AMP)")
    try:
        found = probe(probe_precision)
    except ProbeError as error:
        report.line("all devices", f"not known ({error})")
        return
    for device, types in found.items():
        for name, (is_slower, reason) in types.items():
            verdict = "slower, so float32 is taken" if is_slower else "as asked for"
            report.line(f"{device}, {name}", f"{verdict}: {reason}")


def probe_precision() -> None:
    import torch

    from isda.engine.precision import speed_of

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    names = ("bfloat16", "float16")
    answer(**{d: {name: speed_of(getattr(torch, name), d) for name in names} for d in devices})


def why_no_gpu(cuda: str | None) -> str:
    if cuda is None:
        return "none: this PyTorch is built without CUDA"
    return f"none: PyTorch, built with CUDA {cuda}, finds no GPU or no driver for it (nvidia-smi)"


def probe_torch() -> None:
    import torch

    gpus = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            capability = f"compute capability {gpu.major}.{gpu.minor}"
            gpus.append(f"{gpu.name}, {capability}, {gpu.total_memory / 2**30:.0f} GiB")
    answer(
        version=torch.__version__,
        numbers=[int(number) for number in torch.__version__.split(".")[:2]],
        cuda=torch.version.cuda,
        cpu=processor_name(),
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        gpus=gpus,
    )


def examine_operator(report: Report) -> None:
    """Which implementation of deformable attention serves which device, and how fast."""
    report.title("Deformable attention")
    try:
        operator = probe(probe_operator)
    except ProbeError as error:
        report.line("all devices", "does not work")
        report.problems.append(
            f"Deformable attention does not work ({error}). ISDA_MSDA_BACKEND=torch in the "
            "environment leaves the compiled kernels out; if that helps, build them again: "
            f"{KERNELS.format('cpu')}"
        )
        return
    for device, result in operator["devices"].items():
        is_broken = not operator["missing"].get(device, "not built").startswith("not built")
        report.line(device, "raises, see below" if is_broken else describe_operator(result))
        if result["difference"] > 1e-5:
            report.problems.append(
                f"The kernel on {device} computes something else than PyTorch (difference "
                f"{result['difference']:.1g}): build it again, {KERNELS.format(device)}"
            )
    for name, reason in operator["missing"].items():
        judge_missing_kernel(report, name, reason, present=name in operator["devices"])
    if operator["chosen"] != "auto":
        report.advice.append(
            f"ISDA_MSDA_BACKEND={operator['chosen']} chooses the implementation: unset it to have "
            "the fastest one"
        )


def describe_operator(result: dict) -> str:
    plain = f"plain PyTorch, {result['torch_ms']:.1f} ms for a small call"
    if result["serving"] == "torch":
        return plain
    return (
        f"compiled kernel, {result['ms']:.1f} ms for a small call "
        f"({result['torch_ms']:.1f} ms in plain PyTorch)"
    )


def judge_missing_kernel(report: Report, name: str, reason: str, *, present: bool) -> None:
    """A kernel that does not load is a fault; one that was never built costs time at most."""
    device = {"cpu": "CPUs", "cuda": "GPUs"}[name]
    remedy = KERNELS.format(name)
    if reason.startswith("not built"):
        report.line("", f"the {name} kernel is not built")
        if present:
            report.advice.append(f"On {device} the operator is faster when compiled: {remedy}")
    else:
        report.line("", f"the {name} kernel is {reason}")
        report.problems.append(
            f"The compiled kernel for {device} is {reason}. Deformable attention raises there "
            f"until it is built again, {remedy}, or left out by ISDA_MSDA_BACKEND=torch"
        )


def probe_operator() -> None:
    import torch

    from isda.ops import backend, backends

    found = backends()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    results = {}
    for device in devices:
        inputs = small_call(device)
        with backend("torch"):
            plain, torch_ms = timed(*inputs)
        serving = found.serving(device)
        output, ms = timed(*inputs) if serving != "torch" else (plain, torch_ms)
        difference = float((output - plain).abs().max() / plain.abs().max())
        results[device] = {
            "serving": serving,
            "ms": ms,
            "torch_ms": torch_ms,
            "difference": difference,
        }
    answer(chosen=found.chosen, missing=found.missing, devices=results)


def small_call(device: str) -> tuple:
    """An encoder's call on a 256×256 image: four levels, 8 heads of 32 channels, 4 points."""
    import torch

    torch.manual_seed(0)
    sizes = [(32, 32), (16, 16), (8, 8), (4, 4)]
    tokens = sum(height * width for height, width in sizes)
    value = torch.randn(1, tokens, 8, 32, device=device)
    locations = torch.rand(1, tokens, 8, 4, 4, 2, device=device)
    weights = torch.rand(1, tokens, 8, 4, 4, device=device) / 8
    return value, sizes, None, locations, weights


def timed(*inputs) -> tuple:
    """The operator's output, and milliseconds of the fastest of five calls."""
    import torch

    from isda.ops import ms_deform_attn

    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        output = ms_deform_attn(*inputs)
        if output.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return output, 1000 * min(seconds)


def examine_detectron2(report: Report) -> None:
    """Detectron2, and this package on top of it."""
    report.title("Models")
    if importlib.util.find_spec("detectron2") is None:
        report.line("detectron2", "missing")
        report.problems.append(f"Detectron2 is missing: {DETECTRON2}")
        return
    try:
        found = probe(probe_models)
    except ProbeError as error:
        blame_for_models(report, error)
        return
    compiled = "" if found["compiled"] else ", without its own compiled parts, which ISDA can spare"
    report.line("detectron2", found["version"] + compiled)
    report.line("isda", f"registered {', '.join(found['architectures'])}")


def blame_for_models(report: Report, error: ProbeError) -> None:
    """Find out whether Detectron2 fails alone, or only this package on top of it."""
    try:
        probe(probe_detectron2)
    except ProbeError as its_error:
        report.line("detectron2", "cannot be imported")
        report.problems.append(f"Detectron2 cannot be imported ({its_error}). Again: {DETECTRON2}")
    else:
        report.line("isda", "cannot be imported")
        report.problems.append(
            f"The models of ISDA cannot be imported ({error}), though Detectron2 can: is another "
            "version of a package installed than docs/INSTALL.md asks for?"
        )


def probe_detectron2() -> None:
    import detectron2.engine
    import detectron2.evaluation  # noqa: F401  (as the models' users do)

    answer(version=detectron2.__version__)


def probe_models() -> None:
    from isda import add_config

    # isort: split
    import detectron2
    from detectron2.config import get_cfg
    from detectron2.modeling import META_ARCH_REGISTRY

    from isda.meta_arch import METHODS

    add_config(get_cfg())
    answer(
        version=detectron2.__version__,
        compiled=importlib.util.find_spec("detectron2._C") is not None,
        architectures=[m.__name__ for m in METHODS if m.__name__ in META_ARCH_REGISTRY],
    )
