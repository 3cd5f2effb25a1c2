"""The other process of the tests with CUDA tensors: either worker's end of the arena. Never been run on a GPU."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from services.unet_worker.residents import bytes_of
from services.vae_worker.decoder import elements
from synerdiff.latents.arena import create_arena
from synerdiff.latents.client import Latents
from synerdiff.latents.transports import TransportChoice
from synerdiff.plans import SlotRef
from tests.synerdiff.latents.cuda_process import CudaCommands
from tests.synerdiff.latents.other_process import described_to, serve

MODULE = "tests.gpu.tensor_process"
SHAPE = (4, 128, 128)
DEVICE = torch.device("cuda:0")


class TensorCommands(CudaCommands):
    """What the processes with tensors can be asked to do beside the others."""

    def own_tensors(self, slots: int, directory: str) -> dict[str, Any]:
        """Own an arena for float16 latents of SHAPE."""
        slot_bytes = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2]
        choice = TransportChoice(("cuda_ipc", "shm"), 0)
        self.arena = create_arena(slots, slot_bytes, "float16", Path(directory), choice)
        return described_to(self.arena.describe())

    def write_tensor(self, seed: int) -> dict[str, Any]:
        """Queue work that ends in latents, and hand them over at once: nothing waits for it but the hand-over."""
        assert self.arena
        start = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        for _ in range(20):
            start = torch.tanh(start @ start)
        sample = start.flatten()[: SHAPE[0] * SHAPE[1] * SHAPE[2]].reshape(SHAPE)
        slot = self.arena.acquire()
        data = bytes_of([sample], torch.float16)
        torch.cuda.current_stream(DEVICE).synchronize()
        self.arena.write(slot, data)
        return {"slot": vars(slot), "digest": _digest(sample.to(torch.float16))}

    def read_tensor(self, slot: dict[str, Any]) -> dict[str, Any]:
        """The latents of a slot as a VAE worker's tensor."""
        assert self.chosen
        [data] = self.loop.run_until_complete(self.chosen.read([SlotRef(**slot)]))
        assert data is not None
        tensor = elements(Latents(data, "float16"), torch.float16, DEVICE).reshape(SHAPE)
        return {"device": str(tensor.device), "digest": _digest(tensor)}


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    serve(TensorCommands())
