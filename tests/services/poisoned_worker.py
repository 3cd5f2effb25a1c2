"""A worker process whose model fails at its second call as in a poisoned CUDA context: `unet` or `vae`, then flags."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from synerdiff.models.family import UnetSide, VaeSide


def poisoned(call: Callable[..., Any]) -> Callable[..., Any]:
    """The first call, the worker's own warm-up, is let through."""
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        return call(*arguments)

    return failing


def main() -> int:
    """Run the worker; its exit status."""
    kind = sys.argv.pop(1)
    if kind == "unet":
        UnetSide.predict = poisoned(UnetSide.predict)  # type: ignore[method-assign]
        from services.unet_worker import process

        return process.main()
    VaeSide.decode = poisoned(VaeSide.decode)  # type: ignore[method-assign]
    from services.vae_worker import __main__ as vae_process

    return vae_process.main()


if __name__ == "__main__":
    raise SystemExit(main())
