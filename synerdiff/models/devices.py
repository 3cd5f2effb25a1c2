"""Which domain a device belongs to."""

import torch

from synerdiff.registry import default_domain


def device_domain(device: torch.device) -> str:
    """The domain of the workers on this device: its GPU's UUID, or without a GPU this host's CPU."""
    if device.type == "cuda":
        return default_domain(str(torch.cuda.get_device_properties(device).uuid))
    return default_domain()
