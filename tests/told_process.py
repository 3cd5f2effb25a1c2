"""A second side to a test: a killable process that is told JSON lines on stdin and answers each with a line."""

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.waiting import HANG_S

ROOT = Path(__file__).parents[1]


class ToldProcess:
    """This side's handle on it."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def send(self, command: str, **arguments: Any) -> None:
        assert self.process.stdin
        print(json.dumps({"command": command, **arguments}), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self, command: str, **arguments: Any) -> Any:
        self.send(command, **arguments)
        return self.answer()

    def has_answered(self, within_s: float) -> bool:
        """Whether there is something to read."""
        assert self.process.stdout
        return bool(select.select([self.process.stdout], [], [], within_s)[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=HANG_S)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=HANG_S)
        assert self.process.stdout
        self.process.stdout.close()


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module."""
    return [sys.executable, "-m", name, *arguments]


@contextlib.contextmanager
def told(name: str, *arguments: str) -> Iterator[ToldProcess]:
    """A module's process, which ends with the block."""
    with contextlib.closing(ToldProcess(*module(name, *arguments))) as process:
        yield process


def obey(commands: Any) -> None:
    """Carry out commands, each a method's name with its arguments, until stdin ends."""
    for line in sys.stdin:
        arguments = json.loads(line)
        print(json.dumps(getattr(commands, arguments.pop("command"))(**arguments)), flush=True)
