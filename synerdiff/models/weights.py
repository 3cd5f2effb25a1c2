"""Weights of one component: the choice of their file, and only complete safetensors."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors import SafetensorError
from torch import nn

from synerdiff.models.device import Device
from synerdiff.models.layout import ModelLayout

AUTO = "auto"
_DIFFUSERS_STEM = "diffusion_pytorch_model"
_TRANSFORMERS_STEM = "model"
_PICKLED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")


def load_diffusers_model(
    model_class: Any, layout: ModelLayout, component: str, dtype: torch.dtype, variant: str, device: Device
) -> Any:
    """Load a diffusers model for inference; raises ModelLoadError."""
    file_variant = _find_variant(layout, component, _DIFFUSERS_STEM, variant)
    model = _load(model_class, layout, component, dtype, file_variant, device.torch_device)
    # Set explicitly, though diffusers' default: torch then picks its attention kernel by device and size.
    model.set_attn_processor(AttnProcessor2_0())
    return model


def load_transformers_model(
    model_class: Any, layout: ModelLayout, component: str, dtype: torch.dtype, variant: str, device: torch.device
) -> Any:
    """Load a transformers model for inference; raises ModelLoadError."""
    file_variant = _find_variant(layout, component, _TRANSFORMERS_STEM, variant)
    return _load(model_class, layout, component, dtype, file_variant, device)


def _load(
    model_class: Any, layout: ModelLayout, component: str, dtype: torch.dtype, variant: str | None, device: torch.device
) -> Any:
    folder = layout.path / component
    found = _states(folder)
    try:
        model, report = model_class.from_pretrained(
            str(layout.path),
            subfolder=component,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise layout.refuse(f"{component} does not load: {error}") from error
    # Both libraries fill missing weights with random numbers and go on.
    if report["missing_keys"]:
        raise layout.refuse(f"{component} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}, ...")
    # The dtype once more: the libraries have renamed that argument over time, and ignore an unknown name.
    model = model.to(device, dtype).eval().requires_grad_(False)
    _own(model)
    if _states(folder) != found:
        raise layout.refuse(f"{component} changed while it was read")
    return model


def _own(model: nn.Module) -> None:
    """Move tensors out of mapped files (safetensors): a write to the file must not change served weights."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _states(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the last change of every file in a folder."""
    states = []
    for path in sorted(folder.glob("*")):
        told = path.stat()
        states.append((path.name, told.st_size, told.st_mtime_ns))
    return states


def _find_variant(layout: ModelLayout, component: str, stem: str, variant: str) -> str | None:
    """The variant to ask the libraries for: None means the plain files. "auto" prefers those, then fp16."""
    folder = layout.path / component
    candidates = (None, "fp16") if variant == AUTO else (variant or None,)
    for candidate in candidates:
        if any((folder / name).is_file() for name in _weight_files(stem, candidate)):
            return candidate
    wanted = " or ".join(_weight_files(stem, candidate)[0] for candidate in candidates)
    pickled = _pickled_files(folder)
    if pickled:
        raise layout.refuse(f"{component} holds pickled weights ({pickled[0]}); only safetensors are loaded ({wanted})")
    raise layout.refuse(f"{component} holds no weights {wanted}")


def _weight_files(stem: str, variant: str | None) -> tuple[str, str]:
    """File names of whole and of sharded weights."""
    if variant is None:
        return f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    return f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json"


def _pickled_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED_SUFFIXES)
