"""Digests of models: of directories without reading all of them, and of loaded components to the byte."""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.models.layout import ModelLayout

_COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_HEADER_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100 * 2**20  # the format's own bound
_SAMPLES = 16
_SAMPLE_BYTES = 4096


def model_digest(layout: ModelLayout) -> str:
    """SHA-256, as 64 hex digits, over the components that take time: file names, sizes, configs, and of the weights the
    header (every tensor's dtype, shape and place) and a few samples, so that one that was trained further differs.

    Reads about 64 KiB a file. Raises ModelLoadError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for component in _COMPONENTS:
        for name, part in _files(layout, component):
            digest.update(f"{component}/{name}:{part}\n".encode())
    return digest.hexdigest()


def module_digest(module: nn.Module) -> str:
    """SHA-256, as 64 hex digits, of a component as it lies in memory: its config, and every tensor's name, dtype, shape
    and bytes, regardless of the memory format. Its source path is no part of it.
    """
    digest = hashlib.sha256(_config(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def component_digest(side: UnetSide | VaeSide) -> str:
    """`module_digest` of a side's UNet or VAE."""
    return module_digest(side.vae if isinstance(side, VaeSide) else side.unet)


def weights_digest(side: UnetSide | VaeSide, component: str = "") -> str:
    """SHA-256, as 64 hex digits, of all parts that a worker draws with, as in memory: two workers with the same digest
    draw the same pictures, within rounding. Of a UNet worker: UNet, text encoders, tokenizers and scheduler config; of
    a VAE worker: VAE and safety checker. `component`: the side's `component_digest`, where it is known.
    """
    component = component or component_digest(side)
    if isinstance(side, VaeSide):
        parts = {"vae": component, "checker": _parts(side.checker)}
    else:
        parts = {"unet": component, "encoder": _parts(side.encoder)}
        parts["scheduler"] = json.dumps(side.scheduler_config, sort_keys=True, default=str)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _parts(value: object) -> Any:
    """The parts of a value of dataclasses, modules and tokenizers, as JSON values."""
    if isinstance(value, nn.Module):
        return module_digest(value)
    if isinstance(value, PreTrainedTokenizerBase):
        # Its present padding and truncation are no part of it: each call sets its own.
        vocabulary = json.dumps([value.get_vocab(), _merges(value), value.model_max_length], sort_keys=True)
        return hashlib.sha256(vocabulary.encode()).hexdigest()
    if dataclasses.is_dataclass(value):
        return {field.name: _parts(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_parts(one) for one in value]
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


def _merges(tokenizer: Any) -> Any:
    """A tokenizer's merges of words, as far as its library exposes them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.loads(backend.to_str())["model"].get("merges") if backend is not None else None


def _config(module: nn.Module) -> str:
    """A component's config without its library's notes on its path and version."""
    config: Any = getattr(module, "config", {})
    told = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {name: value for name, value in told.items() if not name.startswith("_") and name != "transformers_version"}
    return json.dumps(kept, sort_keys=True, default=str)


def _files(layout: ModelLayout, component: str) -> Iterator[tuple[str, str]]:
    """The name and identity of a component's config and weight files, in order. Raises ModelLoadError."""
    for path in sorted((layout.path / component).glob("*")):
        if path.name == "config.json" or path.suffix == ".safetensors":
            try:
                yield path.name, _identity(path)
            except OSError as error:
                raise layout.refuse(f"{component}/{path.name} cannot be read: {error}") from error


def _identity(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            prefix = file.read(_HEADER_LENGTH.size)
            length = _HEADER_LENGTH.unpack(prefix)[0] if len(prefix) == _HEADER_LENGTH.size else 0
            digest.update(prefix + file.read(min(length, _LONGEST_HEADER)))
            for sample in range(_SAMPLES):
                file.seek(sample * size // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
        else:
            digest.update(file.read())
    return f"{size}:{digest.hexdigest()}"
