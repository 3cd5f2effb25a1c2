"""The input of a section, and the place of its figures."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.configs import FULL, TINY, ModelConfig, ModelName

RESULTS = "results.jsonl"
SUMMARY = "summary.md"
PYTEST_LOG = "pytest.txt"
WORKERS_LOG = "workers.log"
PICTURES = "pictures.png"

# The most bytes kept of a log, so that no file is too large to be copied off the machine.
_MOST_LOG_BYTES = 4 << 20


def append_record(out: Path, section: str, kind: str, **figures: Any) -> None:
    """A line of results.jsonl, on disk at once. Several processes may append."""
    line = json.dumps({"section": section, "kind": kind, "unix_s": round(time.time(), 2), **figures})
    descriptor = os.open(out / RESULTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Kit:
    """One section's view of the run. `out`: where results go; `work`: a scratch folder of the whole run, with `models`.

    `device`: cuda or cpu, where the models are tiny. `give_up_at`: of time.monotonic, when the section will be ended.
    """

    section: str
    out: Path
    work: Path
    device: str
    give_up_at: float

    @property
    def tiny(self) -> bool:
        """Whether this only shows that the kit runs."""
        return self.device == "cpu"

    @property
    def left_s(self) -> float:
        """Seconds until the section will be ended."""
        return self.give_up_at - time.monotonic()

    @property
    def dtype(self) -> str:
        """The dtype that models compute in."""
        return "float32" if self.tiny else "float16"

    def config(self, name: ModelName) -> ModelConfig:
        return (TINY if self.tiny else FULL)[name]

    def model_path(self, name: ModelName) -> Path:
        return self.work / "models" / name

    def wait_for_model(self, name: ModelName) -> Path:
        """The model's path, once it is whole. Raises TimeoutError after half of the time left."""
        path, give_up_at = self.model_path(name), time.monotonic() + self.left_s / 2
        while not path.is_dir():
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"no model at {path}: see the section that makes them")
            time.sleep(0.2)
        return path

    def record(self, kind: str, **figures: Any) -> None:
        append_record(self.out, self.section, kind, **figures)

    def keep_log(self, title: str, path: Path) -> None:
        """Append the end of a log to workers.log."""
        if not path.is_file():
            return
        kept = self.out / WORKERS_LOG
        room = _MOST_LOG_BYTES - (kept.stat().st_size if kept.exists() else 0)
        tail = path.read_bytes()[-max(0, min(room, _MOST_LOG_BYTES // 8)) :] if room > 0 else b""
        with kept.open("ab") as file:
            file.write(f"==== {self.section}: {title}\n".encode() + tail + b"\n")


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A folder that is gone afterwards: in memory where the models have room there, else where temporary files are."""
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and os.statvfs(shm).f_bavail * os.statvfs(shm).f_frsize > 16 << 30
    with tempfile.TemporaryDirectory(prefix=prefix, dir=shm if roomy else None, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
