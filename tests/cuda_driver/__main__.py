"""`python -m tests.cuda_driver COMMAND ...`: run a command with the stand-in CUDA driver in place of a real one."""

import subprocess
import sys
import tempfile
from pathlib import Path

from synerdiff.host import SHARED_MEMORY_DIRECTORY
from tests.cuda_driver.stand_in import build


def main() -> int:
    """Build, run, and name what device memory was left by processes that live on. The command's exit status."""
    with (
        tempfile.TemporaryDirectory() as library,
        tempfile.TemporaryDirectory(prefix="synerdiff-standin-", dir=SHARED_MEMORY_DIRECTORY) as memory,
    ):
        stand_in = build(Path(library), Path(memory))
        return subprocess.run(sys.argv[1:], env=stand_in.environment()).returncode


if __name__ == "__main__":
    sys.exit(main())
