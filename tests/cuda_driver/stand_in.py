"""The stand-in for the CUDA driver: built with the C compiler at hand, and the environment that processes find it in.

It is a stand-in and no GPU: see standin.c for what it does and docs/latents.md for what it cannot show.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import HANG_S

SOURCE = Path(__file__).with_name("standin.c")
NO_COMPILER = "the stand-in CUDA driver needs a C compiler (cc), and there is none"


def compiler() -> str | None:
    """The C compiler's path, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


@dataclass(frozen=True)
class StandIn:
    """A built library and the directory that its device memory lives in."""

    library: Path
    memory: Path

    def environment(self, **settings: str) -> dict[str, str]:
        """This process's environment with the library in it; `fail="cuMemAlloc=2"` becomes STANDIN_CUDA_FAIL."""
        ours = {"LD_LIBRARY_PATH": str(self.library.parent), "STANDIN_CUDA_DIR": str(self.memory)}
        return os.environ | ours | {f"STANDIN_CUDA_{name.upper()}": value for name, value in settings.items()}

    def left(self) -> list[str]:
        """The names of all device memory that is there, whoever has it."""
        return sorted(path.name for path in self.memory.iterdir())

    def mapped_by(self, pid: int) -> list[str]:
        """The names of the device memory that a process has mapped: its own and what it has opened."""
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return sorted(line.rpartition("/")[2] for line in lines if f"{self.memory}/" in line)


def build(library: Path, memory: Path) -> StandIn:
    """Compile into the directory `library`, for device memory in the directory `memory`.

    Raises FileNotFoundError where there is no C compiler; CalledProcessError where it refused the source.
    """
    cc = compiler()
    if cc is None:
        raise FileNotFoundError(NO_COMPILER)
    built = library / "libcuda.so.1"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([cc, *flags, "-o", str(built), str(SOURCE), "-lpthread", "-ldl"], check=True, timeout=HANG_S)
    return StandIn(built, memory)
