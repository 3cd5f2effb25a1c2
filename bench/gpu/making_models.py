"""Beside the first sections: the directories of random models, and what a row and a decode of each cost."""

import time

from bench.gpu.configs import ModelName
from bench.gpu.kit import Kit
from bench.gpu.models import count_costs, save_model

_ORDER: tuple[ModelName, ...] = ("sd15", "sdxl", "sd21")


def run(kit: Kit) -> None:
    """Make them in the order of their need. Raises AssertionError for a config that is not the published one."""
    kit.model_path(_ORDER[0]).parent.mkdir(parents=True, exist_ok=True)
    for name in _ORDER:
        began, config = time.monotonic(), kit.config(name)
        costs = count_costs(config)
        published = config.unet_parameters_m
        assert not published or abs(costs["unet_parameters_m"] - published) < 0.1, f"{name}: {costs}, not {published}"
        save_model(config, kit.model_path(name))
        kit.record("cost", model=name, title=config.title, side=config.side, **costs, seconds=time.monotonic() - began)
