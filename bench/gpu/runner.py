"""Runs the sections one by one, each a process of its own that is ended at its limit and never stops the next."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from bench.gpu.kit import Kit, append_record

MODELS = "models"


@dataclass(frozen=True)
class Section:
    """A part of the run. `call`: MODULE.FUNCTION here, of a Kit and `arguments`; needs `least_s`, ends at `limit_s`."""

    name: str
    title: str
    call: str
    limit_s: float
    least_s: float
    arguments: tuple[str, ...] = ()

    def run(self, kit: Kit) -> None:
        module, _, function = self.call.rpartition(".")
        found = getattr(importlib.import_module(f"bench.gpu.{module}"), function)
        cast(Callable[..., None], found)(kit, *self.arguments)


# Made beside the first sections, which need no model of full size.
MODEL_MAKER = Section(MODELS, "models with random weights", "models.run", 180, 0)

SECTIONS = (
    Section("machine", "what this machine is, and its ceilings", "checks.machine_section", 60, 10),
    Section("gpu-tests", "tests/gpu", "checks.gpu_tests", 100, 30),
    Section("parity", "the bundled model, served against diffusers", "parity.run", 75, 25),
    Section("served-sd15", "SD 1.5 served, and diffusers", "served.run", 170, 60, ("sd15",)),
    Section("contention-sd15", "SD 1.5: steps beside decodes", "contention.run", 150, 40, ("sd15",)),
    Section("served-sdxl", "SDXL served, and diffusers", "served.run", 200, 80, ("sdxl",)),
    Section("contention-sdxl", "SDXL: steps beside decodes", "contention.run", 170, 60, ("sdxl",)),
    Section("choices", "SD 1.5: the same calls in other ways", "calls.choices", 90, 25, ("sd15",)),
    Section("latents", "latents over CUDA IPC, with kills", "checks.latents", 45, 20),
    Section("cells-sd21", "SD 2.1: two cells", "calls.two_cells", 40, 15, ("sd21",)),
)

BY_NAME = {section.name: section for section in (MODEL_MAKER, *SECTIONS)}


ROOT = Path(__file__).parents[2]
# Kept for the report, and for cleaning up after a section.
RESERVE_S = 8.0
_GRACE_S = 4.0
_ERROR_LINES = 12
# On a CPU nothing is measured: there limits only end a section that hangs, on a machine that may be busy.
_PATIENCE = {"cpu": 4.0, "cuda": 1.0}

Say = Callable[[str], None]
_FORKS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Wanted:
    """The sections to run. `give_up_at`: of time.monotonic, the end of all. `planted`: sections that are to fail."""

    out: Path
    work: Path
    device: str
    give_up_at: float
    names: Sequence[str]
    planted: Sequence[str] = ()


def be_section(section: Section, wanted: Wanted, limit_s: float) -> None:
    """One section's own process: its deadline is a little before the kill."""
    if section.name in wanted.planted:
        raise RuntimeError("planted")
    section.run(Kit(section.name, wanted.out, wanted.work, wanted.device, time.monotonic() + limit_s - _GRACE_S))


def _apart(log: Path, work: Callable[[Section, Wanted, float], None], *arguments: Any) -> None:
    """Work in a process group that ends with the kit, with all output in a log."""
    os.setsid()
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    threading.Thread(target=_end_with_the_kit, daemon=True).start()
    # So that a section's resources, as a daemon of CUDA MPS, are released when its time is over.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    work(*arguments)


def _end_with_the_kit() -> None:
    cast(BaseProcess, multiprocessing.parent_process()).join()
    os.killpg(0, signal.SIGKILL)


class SectionProcess:
    """One section under way. `work`: takes the section, the `Wanted`, and the limit in s."""

    def __init__(
        self, section: Section, wanted: Wanted, limit_s: float, work: Callable[[Section, Wanted, float], None]
    ) -> None:
        self.section = section
        self._wanted = wanted
        self._began = time.monotonic()
        self._give_up_at = self._began + limit_s
        self._log = wanted.work / f"{section.name}.log"
        self._process = _FORKS.Process(target=_apart, args=(self._log, work, section, wanted, limit_s))
        self._process.start()

    def wait(self) -> str:
        """Until it ends or has to be ended. Records and returns how: done, failed, or out of time."""
        self._process.join(max(0.0, self._give_up_at - time.monotonic()))
        status = {None: "out of time", 0: "done"}.get(self._process.exitcode, "failed")
        self._end()
        said = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        error = "\n".join(said[-_ERROR_LINES:]) if status != "done" else ""
        seconds = round(time.monotonic() - self._began, 1)
        _record(self._wanted, self.section, status, seconds=seconds, error=error)
        return status

    def _end(self) -> None:
        """Kill the rest of it; its own children end with it."""
        for sign in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(cast(int, self._process.pid), sign)
            self._process.join(_GRACE_S)


def run_sections(
    wanted: Wanted, say: Say, work: Callable[[Section, Wanted, float], None] = be_section
) -> dict[str, str]:
    """Run the sections that fit until the end, the models being made meanwhile; how each section ended, by name."""
    if wanted.device == "cpu":
        _FORKS.set_forkserver_preload(["bench.gpu.models"])  # whose imports take longest; on a GPU each has its own
    ended: dict[str, str] = {}
    maker = SectionProcess(MODEL_MAKER, wanted, min(MODEL_MAKER.limit_s, _left_s(wanted)), work)
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
                ended[section.name] = SectionProcess(section, wanted, limit_s, work).wait()
            say(f"{section.name}: {ended[section.name]}, {_left_s(wanted):.0f} s left")
        ended[MODEL_MAKER.name] = making.result()
    return ended


def _left_s(wanted: Wanted) -> float:
    return wanted.give_up_at - RESERVE_S - time.monotonic()


def _record(wanted: Wanted, section: Section, status: str, *, seconds: float, error: str) -> None:
    append_record(wanted.out, section.name, "section", title=section.title, status=status, seconds=seconds, error=error)
