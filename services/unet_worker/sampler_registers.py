"""Lays a scheduler's memories out over as few registers as it needs."""

from collections.abc import Mapping

import numpy as np
import torch

from services.unet_worker.sampler_probe import NOISE, OUTPUT, SAMPLE, Array, SchedulerCoefficients, Weights
from services.unet_worker.sampler_table import SamplerTable


def build_table(coefficients: SchedulerCoefficients) -> SamplerTable:
    """The table of a probed scheduler. A memory has a register from the call that makes it to the last that uses it."""
    weights = coefficients.weights
    layouts = _layouts(weights)
    num_registers = 1 + max(register for layout in layouts for register in layout.values())
    matrix = np.zeros((len(weights), num_registers, num_registers + 2))
    for call, after in enumerate(weights):
        columns = {**layouts[call], OUTPUT: num_registers, NOISE: num_registers + 1}
        for value, register in layouts[call + 1].items():
            matrix[call, register] = 0  # two values of one register have the same weights
            for source, weight in after[value].items():
                matrix[call, register, columns[source]] += weight
    return SamplerTable(
        timesteps=_float32(coefficients.timesteps),
        input_scale=_float32(coefficients.input_scale),
        init_noise_sigma=coefficients.init_noise_sigma,
        matrix=_float32(matrix),
        draws_noise=coefficients.draws_noise,
        noise_dtype=coefficients.noise_dtype,
    )


def _layouts(weights: tuple[Weights, ...]) -> list[Mapping[str, int]]:
    """Before each call, and after the last, the register of every value that is still needed; the sample's is 0."""
    layouts: list[Mapping[str, int]] = [{SAMPLE: 0}]
    for after, needed in zip(weights, _needed(weights)[1:], strict=True):
        layout = {SAMPLE: 0}
        register_of = {_key(after[SAMPLE]): 0}  # by what is in it: equal values share a register
        for value in sorted(needed):
            free = min(set(range(1, len(needed) + 1)) - set(register_of.values()), default=0)
            layout[value] = register_of.setdefault(_key(after[value]), free)
        layouts.append(layout)
    return layouts


def _needed(weights: tuple[Weights, ...]) -> list[set[str]]:
    """Before each call, and after the last, the memories that the samples to come depend on."""
    needed: list[set[str]] = [set()]
    for after in reversed(weights):
        sources = {source for value in {SAMPLE, *needed[-1]} for source in after[value]}
        needed.append(sources - {SAMPLE, OUTPUT, NOISE})
    return needed[::-1]


def _key(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(weights.items()))


def _float32(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.float32)
