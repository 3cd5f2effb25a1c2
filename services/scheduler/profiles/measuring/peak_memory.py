"""The most memory that a pair of workers held since it was last asked, where they run on this host."""

import contextlib
from pathlib import Path

from synerdiff.host import boot_id
from synerdiff.registry import WorkerRecord

_RESET_HIGH_WATER = "5"  # proc(5), clear_refs: the peak resident set size begins again at what is resident now


class PeakMemory:
    """Resident bytes of the workers' processes at their highest, summed; 0 where that cannot be known."""

    def __init__(self, processes: list[Path]) -> None:
        self._processes = processes

    @classmethod
    def of(cls, *workers: WorkerRecord) -> "PeakMemory":
        """Of workers that are processes of this host and this process may look into; of none where one is not."""
        processes = [Path(f"/proc/{worker.pid}") for worker in workers]
        ours = all(
            worker.boot_id == boot_id() and _is_worker(process, worker.kind)
            for worker, process in zip(workers, processes, strict=True)
        )
        return cls(processes if ours else [])

    def restart(self) -> None:
        """Forget what was held before."""
        try:
            for process in self._processes:
                (process / "clear_refs").write_text(_RESET_HIGH_WATER)
        except OSError:
            self._processes = []

    def peak_bytes(self) -> int:
        """The most since `restart`."""
        with contextlib.suppress(OSError):
            return sum(_high_water_bytes((process / "status").read_text()) for process in self._processes)
        return 0


def _is_worker(process: Path, kind: str) -> bool:
    """Whether the process is what the record says: in another container its id is another process's."""
    try:
        return f"services.{kind}_worker".encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def _high_water_bytes(status: str) -> int:
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024
