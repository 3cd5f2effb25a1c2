"""Lays a scheduler's coefficients out over as few registers as its memory needs."""

from typing import Literal

import numpy as np
import torch

from services.unet_worker.sampler_probe import Array, SchedulerCoefficients
from services.unet_worker.sampler_table import SamplerTable

Value = tuple[Literal["sample", "output"], int]  # the sample before, or the model output of, that call


def build_table(coefficients: SchedulerCoefficients) -> SamplerTable:
    """The table of a probed scheduler. A value has a register from the call that makes it to the last that uses it."""
    terms = [_terms(coefficients, call) for call in range(len(coefficients.timesteps))]
    last_use = {value: call for call, needed in enumerate(terms) for value in needed}
    layouts = _layouts(len(terms), last_use)
    num_registers = 1 + max((register for layout in layouts for register in layout.values()), default=0)
    matrix = np.zeros((len(terms), num_registers, num_registers + 2))
    for call, needed in enumerate(terms):
        here = {**layouts[call], ("sample", call): 0, ("output", call): num_registers}
        for value, weight in needed.items():
            matrix[call, 0, here[value]] = weight
        matrix[call, 0, num_registers + 1] = coefficients.noise[call]
        for value, register in layouts[call + 1].items():
            matrix[call, register, here[value]] = 1
    return SamplerTable(
        timesteps=_float32(coefficients.timesteps),
        input_scale=_float32(coefficients.input_scale),
        init_noise_sigma=coefficients.init_noise_sigma,
        matrix=_float32(matrix),
        draws_noise=coefficients.draws_noise,
        noise_dtype=coefficients.noise_dtype,
    )


def _terms(coefficients: SchedulerCoefficients, call: int) -> dict[Value, float]:
    """The values that the sample after `call` is the weighted sum of, noise aside."""
    terms: dict[Value, float] = {}
    for age in range(coefficients.samples.shape[1]):
        if coefficients.samples[call, age]:
            terms["sample", call - age] = float(coefficients.samples[call, age])
        if coefficients.outputs[call, age]:
            terms["output", call - age] = float(coefficients.outputs[call, age])
    return terms


def _layouts(num_calls: int, last_use: dict[Value, int]) -> list[dict[Value, int]]:
    """Per call, and after the last, which earlier value is in which register (1 and up)."""
    layouts: list[dict[Value, int]] = [{}]
    for call in range(num_calls):
        kept = {value: register for value, register in layouts[-1].items() if last_use[value] > call}
        made: list[Value] = [("sample", call), ("output", call)]
        for value in made:
            if last_use.get(value, call) > call:
                kept[value] = min(set(range(1, len(kept) + 2)) - set(kept.values()))
        layouts.append(kept)
    return layouts


def _float32(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.float32)
