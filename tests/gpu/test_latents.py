"""Latents by CUDA IPC on a real GPU. Never been run on one: what it proves there is for its first user to say.

Run it in each place that matters: on the bare machine, under MPS, and in two containers of one pod.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from bench.latents import Experiment, Trial
from synerdiff.mps import find_client
from tests.gpu import tensor_process
from tests.synerdiff.latents.other_process import OtherProcess
from tests.told_process import module

TRANSFERS = int(os.environ.get("SYNERDIFF_TEST_TRANSFERS", "10000"))
KILLS = int(os.environ.get("SYNERDIFF_TEST_KILLS", "20"))
# A killed process's context goes a little later, and others may use the GPU.
TOLERANCE_BYTES = 64 * 2**20


@pytest.mark.timeout(3600)
async def test_nothing_is_torn_stale_lost_or_leaked_whoever_is_killed() -> None:
    """Two processes; kill -9 of either at random; the times of opening and of transfers are printed.

    Under MPS where it is on: a client that is killed there may take its neighbours' contexts with it, which would show
    as reads that fall back from cuda_ipc and is allowed for; torn or stale latents never are.
    """
    mps = find_client().client
    print(f"\nMPS: {mps or 'off'}")
    trial = Trial(TRANSFERS, KILLS, ("cuda_ipc", "shm"), slot_bytes=131072, leak_tolerance_bytes=TOLERANCE_BYTES)
    findings = await Experiment(trial).run()
    print(findings.summary())
    assert findings.violations == []
    assert findings.whole >= TRANSFERS
    assert findings.transports["cuda_ipc"] > 0
    if mps is None:
        assert set(findings.transports) == {"cuda_ipc"}


def test_tensors_go_from_worker_to_worker_without_leaving_the_gpu(cuda: Any, tmp_path: Path) -> None:
    """The producer hands over latents whose kernels may not have run yet; the reader sees them whole, as a tensor."""
    owner, reader = (OtherProcess(*module(tensor_process.MODULE)) for _ in range(2))
    try:
        described = owner.ask("own_tensors", slots=4, directory=str(tmp_path))
        reader.ask("look_at_device")
        chosen = reader.ask("choose", description=described, faults={})
        print(f"\nopened in {chosen['seconds'] * 1000:.1f} ms")
        assert chosen["transport"] == "cuda_ipc", chosen["logs"]
        for seed in range(50):
            written = owner.ask("write_tensor", seed=seed)
            found = reader.ask("read_tensor", slot=written["slot"])
            assert found == {"device": "cuda:0", "digest": written["digest"]}
            owner.ask("release", slot=written["slot"])
            assert reader.ask("read_chosen", slot=written["slot"], faults={}) is None
    finally:
        owner.close()
        reader.close()
