"""Sections 4 and 6: profiles of a model by the real workers, time-sliced and under MPS, and two streams of one process.

A profile has L(r, 0), L(0, v) and L(r, v, c), and the findings on running side by side: the input of `synerdiff
simulate` and of the scheduler.
"""

import asyncio
import json
import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gpu import mps, served
from bench.gpu.configs import ModelName
from bench.gpu.kit import Kit
from services.scheduler.profiles.measuring.profiler import ProfilerOptions
from synerdiff.profiles import dump
from synerdiff_cli.deployment import LocalOptions, ModelSource
from synerdiff_cli.measuring import Measured, Split, Wishes, measure, parse_shares, splits_of

_TIME_SLICED = ""
# With MPS first: the workers are made for it.
_SHARES = ("100:100", _TIME_SLICED, "70:30", "50:50")


@dataclass(frozen=True)
class Extent:
    """The measurements of a model. `budget_s`: for each way; `start_s`: a pair of workers needs as long to be ready.

    `slots`: of the UNet worker, which captures a graph of every common batch size up to two rows each before it serves.
    """

    max_rows: int
    max_decodes: int
    budget_s: float
    start_s: float
    streams_rows: int
    slots: int


_EXTENTS = {"sd15": Extent(48, 4, 14.0, 16.0, 16, 32), "sdxl": Extent(16, 2, 16.0, 40.0, 8, 16)}
_TINY = Extent(4, 1, 1.0, 0.0, 2, 8)


def run(kit: Kit, name: ModelName) -> None:
    """Record a profile of each way, and write the best one. Raises RuntimeError where none could be measured."""
    extent = _TINY if kit.tiny else _EXTENTS[name]
    kit.wait_for_model(name)
    os.environ |= {"SYNERDIFF_DEVICE": kit.device, "SYNERDIFF_SLOTS": str(extent.slots)}
    found: list[Measured] = []
    for shares in _SHARES if mps.works(kit) else (_TIME_SLICED,):
        if found and kit.left_s < extent.start_s + extent.budget_s:
            kit.record("trouble", what=f"{name}: no time for {_way(shares)}", error=f"{kit.left_s:.0f} s")
            continue
        try:
            found.append(_profile(kit, name, extent, shares, serve=not found))
        except Exception as error:
            kit.record("trouble", what=f"{name}: {_way(shares)}", error=repr(error)[-1000:])
    if kit.left_s > extent.start_s:
        from bench.gpu import calls  # brings torch, which the profiles need not wait for

        calls.measure(kit, name, extent.streams_rows, 1)
    if not found:
        raise RuntimeError("no profile could be measured; what the workers said is in workers.log")
    best = max(found, key=lambda each: each.pictures_per_s)
    (kit.out / f"profile-{name}.json").write_text(dump(best.profile))


def _way(shares: str) -> str:
    return f"MPS {shares}" if shares else "time-sliced"


def _profile(kit: Kit, name: ModelName, extent: Extent, shares: str, *, serve: bool) -> Measured:
    """Of workers under MPS with these shares; without shares, of workers that take turns at the device.

    `serve`: then serve by it, on workers with the whole device each.
    """
    daemon: AbstractContextManager[None] = mps.daemon() if shares else nullcontext()
    with daemon, tempfile.TemporaryDirectory() as folder:
        local = LocalOptions(
            Path(folder), (ModelSource(name, kit.model_path(name)),), schedulers=0, dtype=kit.dtype, compile="off"
        )
        split = splits_of(local, parse_shares(shares), kit.device)[0] if shares else Split((), local)
        options = ProfilerOptions(
            max_rows=extent.max_rows,
            max_decodes=extent.max_decodes,
            chunks=(1,) if kit.tiny else (1, 2),
            bound=0.05,
            budget_s=extent.budget_s,
        )
        try:
            [measured] = asyncio.run(measure(Wishes((split,), options, 0, 0, fidelity=False, redis_url="")))
        finally:
            for log in sorted(Path(folder, "logs").glob("*")):
                kit.keep_log(f"{name} {shares}: {log.name}", log)
        note = f"made by the GPU kit, of random weights, {_way(shares)}"
        profile = replace(measured.profile, notes=(*measured.profile.notes, note))
        rate, dumped = measured.pictures_per_s, dump(profile)
        kit.record("profile", model=name, way=_way(shares), pictures_per_s=rate, profile=json.loads(dumped))
        if serve and kit.left_s > extent.start_s:
            _serve(kit, name, _way(shares), Path(folder, "profile.json"), dumped)
    return measured._replace(profile=profile)


def _serve(kit: Kit, name: ModelName, way: str, file: Path, profile: str) -> None:
    """A profile is worth keeping even where nothing could be served by it."""
    file.write_text(profile)
    try:
        served.by_profile(kit, name, way, file)
    except Exception as error:
        kit.record("trouble", what=f"{name}: served by the profile, {way}", error=repr(error)[-1000:])
