"""Why a model directory was refused."""

from pathlib import Path

_MOST_CHARACTERS = 600  # libraries list every weight that does not fit


class ModelLoadError(Exception):
    """A directory that cannot be served: names the path and the reason, for whoever started the worker."""

    def __init__(self, path: Path, reason: str) -> None:
        reason = _line(reason)
        super().__init__(f"cannot load a model from {path}: {reason}")
        self.path = path
        self.reason = reason


def in_one_line(error: Exception) -> str:
    """What a library raised, in one line; with its type where its words alone say little."""
    words = _line(str(error))
    return words if words and isinstance(error, (ValueError, OSError, ImportError)) else f"{type(error).__name__}: {words}"


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _MOST_CHARACTERS else f"{words[:_MOST_CHARACTERS]}..."
