"""What a measurement says of itself: the machine, the date, tables for documents, files under bench/results."""

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# What of a CPU decides how fast torch is on it.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def machine() -> dict[str, object]:
    import torch  # tables are made without it

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": model,
        "cores": cores,
        "flags": [flag for flag in flags if flag in FLAGS],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }


def save(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write a result with the command, machine and date to NAME.json; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    module = getattr(sys.modules["__main__"].__spec__, "name", sys.argv[0]).removesuffix(".__main__")
    about = {"date": datetime.now(UTC).date().isoformat(), "machine": machine()}
    whole = {**about, "command": shlex.join(["python", "-m", module, *sys.argv[1:]]), **result}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return path


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float | None, digits: int, unit: str = "") -> str:
    """A number as tables show it; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}{unit}"
