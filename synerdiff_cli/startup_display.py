"""The display of processes coming up: one live line on a terminal, a line per process elsewhere."""

import time
from collections.abc import Iterable
from typing import Self

from rich.markup import escape
from rich.status import Status

from synerdiff_cli.console import err
from synerdiff_cli.supervisor import ChildSpec, ChildState


class StartupDisplay:
    """`with StartupDisplay(children) as display`, and `display.change` as the supervisor's listener."""

    def __init__(self, children: Iterable[ChildSpec]) -> None:
        self._children = {child.name: child for child in children}
        self._states = dict.fromkeys(self._children, ChildState.STOPPED)
        self._began = time.monotonic()
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._status = err.status(self._line())
            self._status.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the live line; further changes are told in lines of their own."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def change(self, name: str, state: ChildState) -> None:
        """Show that the child `name` is in `state` now."""
        if state is ChildState.RESTARTING:
            err.print(f"[yellow]{name} died and is started again[/]; its log is {self._children[name].log}")
        elif state is ChildState.READY and self._status is None:
            err.print(f"{name} is ready after {time.monotonic() - self._began:.1f} s")
        self._states[name] = state
        if self._status is not None:
            self._status.update(self._line())

    def refuse(self, model: str, reason: str) -> None:
        """Show that a model is left out."""
        err.print(f"[red]{escape(model)} is not served[/]: {escape(reason)}", soft_wrap=True)
        if self._status is not None:
            self._status.update(self._line())

    def _line(self) -> str:
        waiting = [name for name, state in self._states.items() if state is not ChildState.READY]
        count, ready = len(self._states), len(self._states) - len(waiting)
        if not waiting:
            return f"All {count} processes are ready; waiting until the scheduler has found the workers"
        return f"Starting {count} processes, {ready} ready; waiting for {', '.join(waiting)}"
