"""Runs the sections one by one, each a process of its own that is ended at its limit and never stops the next."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.kit import append_record
from bench.gpu.sections import MODEL_MAKER, SECTIONS, Section
from synerdiff import lifeline

ROOT = Path(__file__).parents[2]
# Kept for the report, and for what a section leaves behind.
RESERVE_S = 8.0
_GRACE_S = 4.0
_ERROR_LINES = 12
# On a CPU nothing is measured: there limits only end what hangs, on a machine that may be busy.
_PATIENCE = {"cpu": 4.0, "cuda": 1.0}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What to run. `give_up_at`: of time.monotonic, when all has to be over. `planted`: sections that are to fail."""

    out: Path
    work: Path
    device: str
    give_up_at: float
    names: Sequence[str]
    planted: Sequence[str] = ()


class SectionProcess:
    def __init__(self, section: Section, wanted: Wanted, limit_s: float) -> None:
        self.section = section
        self._wanted = wanted
        self._began = time.monotonic()
        self._give_up_at = self._began + limit_s
        self._log = wanted.work / f"{section.name}.log"
        bound_to_us = [sys.executable, "-I", "-S", str(lifeline.__file__), str(os.getpid())]
        command = [*bound_to_us, *self.command(section, wanted, limit_s)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
            )

    @staticmethod
    def command(section: Section, wanted: Wanted, limit_s: float) -> list[str]:
        """What the process runs: the section, told to be done a little earlier."""
        command = [sys.executable, "-P", "-m", "bench.gpu", "section", section.name, "--device", wanted.device]
        command += ["--out", str(wanted.out), "--work", str(wanted.work), "--limit-s", f"{limit_s - _GRACE_S:.1f}"]
        return command + ["--planted"] * (section.name in wanted.planted)

    def wait(self) -> str:
        """Until it ends or has to be ended. Records and returns how: done, failed, or out of time."""
        try:
            self._process.wait(max(0.0, self._give_up_at - time.monotonic()))
            status = "failed" if self._process.returncode else "done"
        except subprocess.TimeoutExpired:
            status = "out of time"
        self.end()
        said = self._log.read_text(errors="replace").splitlines()
        error = "\n".join(said[-_ERROR_LINES:]) if status != "done" else ""
        seconds = round(time.monotonic() - self._began, 1)
        _record(self._wanted, self.section, status, seconds=seconds, error=error)
        return status

    def end(self) -> None:
        """Kill what there still is of it; its own children are bound to its life."""
        for sign, grace_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def run_sections(wanted: Wanted, say: Say) -> dict[str, str]:
    """Run what fits until the end, the models being made beside it; how each section ended, by name."""
    ended: dict[str, str] = {}
    maker = SectionProcess(MODEL_MAKER, wanted, min(MODEL_MAKER.limit_s, _left_s(wanted)))
    with ThreadPoolExecutor(1) as beside:
        making = beside.submit(maker.wait)
        for section in SECTIONS:
            if section.name not in wanted.names:
                continue
            limit_s = min(section.limit_s * _PATIENCE[wanted.device], _left_s(wanted))
            if limit_s < min(section.least_s, section.limit_s):
                _record(wanted, section, "dropped", seconds=0.0, error=f"{limit_s:.0f} s were left")
                ended[section.name] = "dropped"
            else:
                ended[section.name] = SectionProcess(section, wanted, limit_s).wait()
            say(f"{section.name}: {ended[section.name]}, {_left_s(wanted):.0f} s left")
        ended[MODEL_MAKER.name] = making.result()
    return ended


def _left_s(wanted: Wanted) -> float:
    return wanted.give_up_at - RESERVE_S - time.monotonic()


def _record(wanted: Wanted, section: Section, status: str, *, seconds: float, error: str) -> None:
    append_record(wanted.out, section.name, "section", title=section.title, status=status, seconds=seconds, error=error)


def _environment() -> Mapping[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
