"""A whole sampler as one small matrix per UNet call, so that tasks of any samplers at any steps share one bmm."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

NoiseDtype = Literal["model", "float32"]


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """The coefficients of a scheduler for one num_inference_steps. Shared between tasks: never written to.

    A task holds registers `regs [R, n]`: register 0 is the sample, the others hold earlier samples and model outputs
    for later calls; all but register 0 start as zeros. The input of UNet call i is `regs[0] * input_scale[i]` at
    `timesteps[i]`, and then

        regs = matrix[i] @ cat([regs, noise_pred, noise])        in float32

    where `noise` may be zeros when `draws_noise[i]` is false. After the last call register 0 is the finished latents.

    timesteps: [num_calls] float32, as the UNet's time embedding casts them anyway.
    input_scale: [num_calls] float32.
    init_noise_sigma: the factor of the initial noise.
    matrix: [num_calls, R, R + 2] float32.
    draws_noise: per call, whether the scheduler takes noise from the task's generator (even if it weighs it by 0).
    noise_dtype: the dtype it draws in: the model's dtype, or float32 for any model.
    """

    timesteps: Tensor
    input_scale: Tensor
    init_noise_sigma: float
    matrix: Tensor
    draws_noise: tuple[bool, ...]
    noise_dtype: NoiseDtype

    @property
    def num_calls(self) -> int:
        """How often the UNet is called: not always num_inference_steps (Heun and KDPM2: 2N - 1; PNDM: N + 1)."""
        return self.matrix.shape[0]

    @property
    def num_registers(self) -> int:
        """R, register 0 included."""
        return self.matrix.shape[1]

    def padded(self, num_registers: int) -> "SamplerTable":
        """The same table with `num_registers` registers, those added unused. Raises ValueError when it uses more."""
        extra = num_registers - self.num_registers
        if extra < 0:
            raise ValueError(f"num_registers {num_registers} is below the {self.num_registers} that the table uses")
        if extra == 0:
            return self
        history, inputs = self.matrix[:, :, :-2], self.matrix[:, :, -2:]
        unused_columns = self.matrix.new_zeros(self.num_calls, self.num_registers, extra)
        unused_rows = self.matrix.new_zeros(self.num_calls, extra, num_registers + 2)
        used_rows = torch.cat([history, unused_columns, inputs], dim=2)
        return replace(self, matrix=torch.cat([used_rows, unused_rows], dim=1))
