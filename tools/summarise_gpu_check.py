"""Write summary.json and summary.md of what tools/gpu_check.sh, which calls this, has done."""

import argparse
import json
import platform
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from pathlib import Path

from isda.files import write_text

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with steps.tsv and what the steps have written")
    folder = parser.parse_args().folder
    summary = {**machine(), "steps": steps(folder), "tests": tests(folder / "tests.xml")}
    write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    log = folder / "benchmark.log"
    page = markdown(summary, log.read_text(encoding="utf-8") if log.exists() else "")
    write_text(folder / "summary.md", page)
    (folder / "steps.tsv").unlink()
    for step in summary["steps"]:
        print(f"{step['name']:<12} {step['result']}, {step['seconds']} s")


def machine() -> dict:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
    release = re.search(r"release ([0-9.]+)", output_of(["nvcc", "--version"]))
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver and clock": output_of(query).strip(),
        "pytorch": torch.__version__,
        "nvcc": release.group(1) if release else None,
        "python": platform.python_version(),
    }


def output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def steps(folder: Path) -> list[dict]:
    rows = [
        line.split("\t") for line in (folder / "steps.tsv").read_text(encoding="utf-8").splitlines()
    ]
    return [{"name": n, "result": r, "seconds": int(s)} for n, r, s in rows]


def tests(report: Path) -> dict[str, int] | None:
    if not report.exists():
        return None
    suite = ElementTree.parse(report).getroot().find("testsuite")
    return {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}


def markdown(summary: dict, benchmark: str) -> str:
    """The same for people, with the benchmark's own output below."""
    facts = [f"- {name}: {fact}" for name, fact in summary.items() if name != "steps"]
    rows = [f"|{s['name']}|{s['result']}|{s['seconds']}|" for s in summary["steps"]]
    lines = [
        "# What the GPU showed",
        "",
        *facts,
        "",
        "|step|result|seconds|",
        "|---|---|---|",
        *rows,
    ]
    if benchmark:
        lines += ["", "```", benchmark.rstrip(), "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
