"""Measures a model's budget of skipped guidance in a process of its own, which loads the model."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from synerdiff.skip_cfg import SkipCfgBudget

FLOOR_DB = 40
MODULE = "services.unet_worker.fidelity"
_TAIL_LINES = 5

Told = Callable[[int, int, float], None]


class FidelityFailed(RuntimeError):
    """The measuring process failed; the message ends with its last output."""


async def measured_budget(model: Path, dtype: str, told: Told) -> SkipCfgBudget | None:
    """The budget that keeps pictures at FLOOR_DB of PSNR against full guidance; None where no skipping does.

    `dtype` as in the workers' settings. `told` hears how many of how many comparisons are done, and the seconds left.
    Raises FidelityFailed.
    """
    with tempfile.TemporaryDirectory(prefix="synerdiff-fidelity-") as folder:
        result, errors = Path(folder) / "fidelity.json", Path(folder) / "errors.log"
        with errors.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", MODULE),
                *("--model", str(model), "--out", str(result), "--floor-db", str(FLOOR_DB), "--dtype", dtype),
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                _tell(line, told)
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status:
            said = errors.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            raise FidelityFailed("\n".join([f"measuring fidelity failed with exit status {status}", *said]))
        budget = json.loads(result.read_text(encoding="utf-8"))["budget"]
        return SkipCfgBudget(**budget) if budget else None


def _tell(line: bytes, told: Told) -> None:
    try:
        progress = json.loads(line)
        told(progress["done"], progress["total"], progress["eta_s"])
    except (ValueError, KeyError, TypeError):
        return
