"""Section 9: two cells of a model, UNet rows alone and a decode alone, and both side by side on two streams."""

from bench.gpu import streams
from bench.gpu.configs import ModelName
from bench.gpu.kit import Kit
from bench.gpu.models import wait_for_model


def run(kit: Kit, name: ModelName) -> None:
    """Record them."""
    wait_for_model(kit.model_path(name), kit.left_s / 2)
    streams.measure(kit, name, 2 if kit.tiny else 16, 1)
