"""A worker process whose model fails once it is warm: `unet` or `vae`, `poisoned` or `hangs`, then flags.

It fails as in a poisoned CUDA context, or never answers.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from services.unet_worker.settings import UnetWorkerSettings
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.models.compiled.components import CompiledUnet, CompiledVae
from synerdiff.worker.main import main
from tests.waiting import HANG_S


def failing_after(call: Callable[..., Any], let_through: int, fail: Callable[[], object]) -> Callable[..., Any]:
    """As many calls are let through, which are the worker's own."""
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > let_through:
            fail()
        return call(*arguments)

    return failing


def be_poisoned() -> NoReturn:
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")


def hang() -> None:
    time.sleep(10 * HANG_S)


def run() -> NoReturn:
    """Run the worker."""
    kind, fail = sys.argv.pop(1), {"poisoned": be_poisoned, "hangs": hang}[sys.argv.pop(1)]
    if kind == "unet":
        CompiledUnet.prepared = failing_after(CompiledUnet.prepared, 1, fail)  # type: ignore[method-assign]
        main("unet_worker", UnetWorkerSettings)
    CompiledVae.decode = failing_after(CompiledVae.decode, 0, fail)  # type: ignore[method-assign]
    main("vae_worker", VaeWorkerSettings)


if __name__ == "__main__":
    run()
