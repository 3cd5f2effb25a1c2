"""Scheduler configs as published models carry them."""

from typing import Any

from synerdiff.cards import Sampler

SchedulerConfig = dict[str, Any]

_LATENT_DIFFUSION: SchedulerConfig = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
}

STABLE_DIFFUSION_1_5 = _LATENT_DIFFUSION | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
STABLE_DIFFUSION_2_1 = _LATENT_DIFFUSION | {
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
    "skip_prk_steps": True,
}
STABLE_DIFFUSION_XL = _LATENT_DIFFUSION | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "skip_prk_steps": True,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SDXL_TURBO = _LATENT_DIFFUSION | {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "use_karras_sigmas": False,
}
ZERO_TERMINAL_SNR = STABLE_DIFFUSION_2_1 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
LATENT_CONSISTENCY = _LATENT_DIFFUSION | {
    "_class_name": "LCMScheduler",
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
}

CONFIGS: dict[str, SchedulerConfig] = {
    "sd1.5": STABLE_DIFFUSION_1_5,
    "sd2.1": STABLE_DIFFUSION_2_1,
    "sdxl": STABLE_DIFFUSION_XL,
    "sdxl-turbo": SDXL_TURBO,
    "zero-snr": ZERO_TERMINAL_SNR,
    "lcm": LATENT_CONSISTENCY,
}

# Those that a request may name, whatever the model's own scheduler is.
NAMED = tuple(sampler for sampler in Sampler if sampler is not Sampler.OWN)
