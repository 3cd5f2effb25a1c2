"""Dockerfiles as values: their arguments, and the instructions of each stage."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction, on one line: `RUN` and what it is told."""

    name: str
    text: str

    @property
    def copied(self) -> tuple[list[str], str] | None:
        """What a COPY from the build context copies, and where to; None for anything else."""
        words = [word for word in self.text.split() if not word.startswith("--")]
        return (words[:-1], words[-1]) if self.name == "COPY" and "--from=" not in self.text else None


@dataclass(frozen=True)
class Dockerfile:
    """`arguments`: those before the first stage, with their defaults. `stages`: the last is the image."""

    arguments: dict[str, str]
    stages: list[list[Instruction]]

    @property
    def image(self) -> list[Instruction]:
        """The instructions of the last stage."""
        return self.stages[-1]

    def texts(self, name: str) -> list[str]:
        """What the instructions called `name` in the last stage are told."""
        return [instruction.text for instruction in self.image if instruction.name == name]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the image."""
        return dict(pair.split("=", 1) for text in self.texts("ENV") for pair in text.split())


def read_dockerfile(path: Path) -> Dockerfile:
    """Parse a Dockerfile as far as ours go: no heredocs, no escapes but of line ends."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    stages: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, text = line.split(maxsplit=1)
        if name == "FROM":
            stages.append([])
        elif not stages:
            argument, _, default = text.partition("=")
            arguments[argument] = default.strip('"')
            continue
        stages[-1].append(Instruction(name, text))
    return Dockerfile(arguments, stages)
