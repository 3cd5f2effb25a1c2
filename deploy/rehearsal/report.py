"""The options of a rehearsal, and its checks and measurements as one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from deploy.kustomize import K8S

_SHOWN = 5


@dataclass(frozen=True)
class Options:
    """The options of the command line, and their meanings."""

    overlay: Annotated[Path, "folder of the kustomization"] = K8S / "overlays/dev-cpu"
    only: Annotated[str, "scenarios by comma; default: all but short-scaling"] = ""
    short: Annotated[bool, "only short-scaling, with one scheduler"] = False
    loopback: Annotated[bool, "do without namespaces"] = False
    logs: Annotated[Path | None, "folder to keep the pods' logs in"] = None
    quiet: Annotated[bool, "print the table only"] = False
    requests: Annotated[int, "different requests in the load"] = 12
    clients: Annotated[int, "clients at once"] = 3
    least_steps: Annotated[int, "steps of the shortest picture"] = 4
    most_steps: Annotated[int, "steps of the longest picture"] = 12
    seed: Annotated[int, "draws requests and disturbances"] = 1
    chaos_s: Annotated[float, "seconds of chaos"] = 90.0
    kill_every_s: Annotated[float, "mean seconds between two disturbances"] = 7.0
    measure_s: Annotated[float, "seconds of each measurement of throughput"] = 12.0
    hold_s: Annotated[float, "seconds of load after each change"] = 5.0
    patience_s: Annotated[float, "seconds after which something has not come about"] = 240.0


class Report:
    """Checks, and numbers that were measured, in the order they came."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str]] = []

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed."""
        return {row[0] for row in self._rows} - {""} == {"ok"}

    def check(self, scenario: str, what: str, passed: bool, value: str = "") -> None:
        """Note how a check ended."""
        self._rows.append(("ok" if passed else "FAILED", scenario, what, value))

    def none_of(self, scenario: str, what: str, found: Sequence[str]) -> None:
        """Check that nothing was found; the first few findings are named."""
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        self.check(scenario, what, not found, "; ".join(found[:_SHOWN]) + more if found else "none")

    def measured(self, scenario: str, what: str, value: str) -> None:
        """Note a number."""
        self._rows.append(("", scenario, what, value))

    def table(self) -> str:
        """All of them."""
        widths = [max((len(row[column]) for row in self._rows), default=0) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
            for row in self._rows
        )
