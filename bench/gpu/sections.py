"""The sections, by value: when time runs short the last ones are left out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from bench.gpu.kit import Kit

MODELS = "models"


@dataclass(frozen=True)
class Section:
    """One part of the run. `call`: MODULE.FUNCTION under this package, which takes a Kit.

    It begins only with `least_s` seconds left, and is ended after `limit_s`. `arguments` are of its function.
    """

    name: str
    title: str
    call: str
    limit_s: float
    least_s: float
    arguments: tuple[str, ...] = ()

    def run(self, kit: Kit) -> None:
        """Run it here. Raises whatever it fails with."""
        module, _, function = self.call.rpartition(".")
        found = getattr(importlib.import_module(f"bench.gpu.{module}"), function)
        cast(Callable[..., None], found)(kit, *self.arguments)


# Made beside the first sections, which need no model of full size.
MODEL_MAKER = Section(MODELS, "models with random weights", "making_models.run", limit_s=180, least_s=0)

SECTIONS = (
    Section("machine", "what this machine is, and its ceilings", "machine.run", limit_s=60, least_s=10),
    Section("gpu-tests", "tests/gpu", "gpu_tests.run", limit_s=100, least_s=30),
    Section("parity", "the bundled model, served against diffusers", "parity.run", limit_s=75, least_s=25),
    Section("served-sd15", "SD 1.5 served, and diffusers", "served.run", limit_s=150, least_s=60, arguments=("sd15",)),
)

BY_NAME = {section.name: section for section in (MODEL_MAKER, *SECTIONS)}
