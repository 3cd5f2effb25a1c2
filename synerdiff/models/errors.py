"""Why a model directory was refused."""

from pathlib import Path

_MOST_CHARACTERS, _MOST_OF_A_LIBRARY = 900, 400  # libraries list every weight that does not fit


class ModelLoadError(Exception):
    """A directory that cannot be served. The message has the path and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        reason = _line(reason, _MOST_CHARACTERS)
        super().__init__(f"cannot load a model from {path}: {reason}")
        self.path = path
        self.reason = reason


def in_one_line(error: Exception) -> str:
    """An error of a library in one line; with its type where its text alone says little."""
    words = _line(str(error), _MOST_OF_A_LIBRARY)
    return (
        words if words and isinstance(error, (ValueError, OSError, ImportError)) else f"{type(error).__name__}: {words}"
    )


def _line(text: str, most: int) -> str:
    words = " ".join(text.split())
    return words if len(words) <= most else f"{words[:most]}..."
