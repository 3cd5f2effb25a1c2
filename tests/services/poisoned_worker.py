"""A worker process whose model fails as in a poisoned CUDA context once it is warm: `unet` or `vae`, then flags."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from synerdiff.models.compiled import CompiledUnet, CompiledVae


def poisoned(call: Callable[..., Any], let_through: int) -> Callable[..., Any]:
    """As many calls are let through, which are the worker's own."""
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > let_through:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        return call(*arguments)

    return failing


def main() -> int:
    """Run the worker; its exit status."""
    kind = sys.argv.pop(1)
    if kind == "unet":
        CompiledUnet.prepared = poisoned(CompiledUnet.prepared, 1)  # type: ignore[method-assign]
        from services.unet_worker import process

        return process.main()
    CompiledVae.decode = poisoned(CompiledVae.decode, 0)  # type: ignore[method-assign]
    from services.vae_worker import __main__ as vae_process

    return vae_process.main()


if __name__ == "__main__":
    raise SystemExit(main())
