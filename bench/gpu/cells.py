"""Section 9: two cells of a model, UNet rows alone and a decode alone, and both side by side on two streams."""

from bench.gpu import streams
from bench.gpu.configs import ModelName
from bench.gpu.kit import Kit


def run(kit: Kit, name: ModelName) -> None:
    """Record them."""
    kit.wait_for_model(name)
    streams.measure(kit, name, 2 if kit.tiny else 16, 1)
