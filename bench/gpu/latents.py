"""Section 8: latents from process to process over CUDA IPC while either is killed, under MPS where that can be had."""

import asyncio
import statistics
from contextlib import AbstractContextManager, nullcontext

from bench.gpu import mps
from bench.gpu.kit import Kit
from bench.latents import Experiment, Trial

# A killed process's context goes a little later.
_TOLERANCE_BYTES = 64 << 20


def run(kit: Kit) -> None:
    """Record what came of it. Raises AssertionError where a transfer was torn, stale or lost."""
    under_mps = mps.works(kit)
    daemon: AbstractContextManager[None] = mps.daemon() if under_mps else nullcontext()
    transports = ("shm",) if kit.tiny else ("cuda_ipc", "shm")
    transfers, kills = (40, 1) if kit.tiny else (1500, 5)
    trial = Trial(transfers, kills, transports, slot_bytes=131072, leak_tolerance_bytes=_TOLERANCE_BYTES)
    with daemon:
        found = asyncio.run(Experiment(trial).run())
    kit.record(
        "latents",
        way="MPS" if under_mps else "without MPS",
        whole=found.whole,
        transports=dict(found.transports),
        kills=dict(found.kills),
        violations=found.violations[:20],
        read_ms_p50=statistics.median(found.read_ms) if found.read_ms else None,
        open_ms=[round(ms, 2) for ms in found.open_ms],
        seconds=round(found.seconds, 1),
    )
    assert not found.violations, found.summary()
