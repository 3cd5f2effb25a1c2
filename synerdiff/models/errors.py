"""Why a model directory was refused."""

from pathlib import Path


class ModelLoadError(Exception):
    """A directory that cannot be served: names the path and the reason, for whoever started the worker."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot load a model from {path}: {reason}")
        self.path = path
        self.reason = reason
