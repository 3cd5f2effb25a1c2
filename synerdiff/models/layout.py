"""A model directory in diffusers' layout, read from its JSON files alone: no weights are touched."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class ModelLayout:
    """The directory `path` and its model_index.json."""

    path: Path
    index: Mapping[str, Any]

    @property
    def pipeline_class(self) -> str:
        """The diffusers pipeline that the directory was saved from."""
        return str(self.index.get("_class_name"))

    def component_class(self, name: str) -> str | None:
        """The class of a component, or None when the directory does not carry it."""
        entry = self.index.get(name)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 else None

    def component(self, name: str) -> tuple[str, str]:
        """The library and class of a component; raises ModelLoadError when the directory does not carry it."""
        entry = self.index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            raise self.refuse(f"{name} is missing from model_index.json")
        return entry[0], entry[1]

    def integer(self, component: str, key: str, default: int) -> int:
        """A whole number of a component's config; raises ModelLoadError for anything else."""
        value = self.config(component).get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refuse(f"{component}/config.json has {key} {json.dumps(value)}, which is no whole number")
        return value

    def config(self, component: str, file_name: str = "config.json") -> dict[str, Any]:
        """A component's config; raises ModelLoadError when it is missing or not a JSON object."""
        return self._read(f"{component}/{file_name}")

    def require(self, component: str, *classes: str) -> None:
        """Raise ModelLoadError unless the component is there and of one of `classes`."""
        found = self.component_class(component)
        if found not in classes:
            raise self.refuse(f"{component} is {found or 'missing'}, but must be {' or '.join(classes)}")

    def refuse(self, reason: str) -> ModelLoadError:
        """The error that refuses this directory."""
        return ModelLoadError(self.path, reason)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise self.refuse(f"{name} is missing") from None
        except (OSError, ValueError) as error:
            raise self.refuse(f"{name} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise self.refuse(f"{name} is not a JSON object")
        return content


def read_layout(path: Path | str) -> ModelLayout:
    """Read the layout of a local directory; raises ModelLoadError for anything else."""
    path = Path(path)
    if not path.is_dir():
        reason = "it is a file, not a directory in diffusers' layout" if path.exists() else "there is no such directory"
        raise ModelLoadError(path, reason)
    return ModelLayout(path=path, index=ModelLayout(path, {}).config(".", "model_index.json"))
