"""The sections, by value: when time runs short the last ones are left out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from bench.gpu.kit import Kit

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
    Section("machine", "what this machine is, and its ceilings", "machine.run", 60, 10),
    Section("gpu-tests", "tests/gpu", "gpu_tests.run", 100, 30),
    Section("parity", "the bundled model, served against diffusers", "parity.run", 75, 25),
    Section("served-sd15", "SD 1.5 served, and diffusers", "served.run", 170, 60, ("sd15",)),
    Section("contention-sd15", "SD 1.5: steps beside decodes", "contention.run", 150, 40, ("sd15",)),
    Section("served-sdxl", "SDXL served, and diffusers", "served.run", 200, 80, ("sdxl",)),
    Section("contention-sdxl", "SDXL: steps beside decodes", "contention.run", 170, 60, ("sdxl",)),
    Section("choices", "SD 1.5: the same calls in other ways", "choices.run", 90, 25, ("sd15",)),
    Section("latents", "latents over CUDA IPC, with kills", "latents.run", 45, 20),
    Section("cells-sd21", "SD 2.1: two cells", "streams.run", 40, 15, ("sd21",)),
)

BY_NAME = {section.name: section for section in (MODEL_MAKER, *SECTIONS)}
