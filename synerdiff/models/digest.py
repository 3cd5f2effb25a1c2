"""What tells one model from another without reading all of it: the same for both workers of a model directory."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

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
        for name, part in _files(layout, component, _identity):
            digest.update(f"{component}/{name}:{part}\n".encode())
    return digest.hexdigest()


def component_digest(layout: ModelLayout, component: str) -> str:
    """SHA-256, as 64 hex digits, over all of a component's config and weights: of two models that differ in anything it
    differs. Reads every byte. Raises ModelLoadError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for name, part in _files(layout, component, _whole):
        digest.update(f"{name}:{part}\n".encode())
    return digest.hexdigest()


def _files(layout: ModelLayout, component: str, identity: Callable[[Path], str]) -> Iterator[tuple[str, str]]:
    """The name and identity of a component's config and weight files, in order. Raises ModelLoadError."""
    for path in sorted((layout.path / component).glob("*")):
        if path.name == "config.json" or path.suffix == ".safetensors":
            try:
                yield path.name, identity(path)
            except OSError as error:
                raise layout.refuse(f"{component}/{path.name} cannot be read: {error}") from error


def _whole(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
