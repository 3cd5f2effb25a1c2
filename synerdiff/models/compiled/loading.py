"""Loads a package. torch unpacks it into a temporary folder, which a process that is killed would leave behind."""

import shutil
from pathlib import Path

import torch
import torch._inductor.config

from synerdiff.models.compiled.calls import Call

_MAPS = Path("/proc/self/maps")
_UNPACKED = "aotinductor_"


def load_package(path: Path) -> Call:
    """The call that a package holds. Raises whatever torch raises for a file that is none, or of another machine."""
    before = _unpacked()
    # Else inductor has a C++ compiler try out instruction sets, for seconds. Packages are found by the CPU's flags.
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
        package: Call = torch._inductor.aoti_load_package(str(path))
    # What is mapped stays mapped when its file is gone.
    for folder in _unpacked() - before:
        shutil.rmtree(folder, ignore_errors=True)
    return package


def _unpacked() -> set[Path]:
    """The folders of unpacked packages that this process has code mapped from."""
    mapped = {line.split(maxsplit=5)[-1] for line in _MAPS.read_text().splitlines() if _UNPACKED in line}
    folders = (folder for name in mapped for folder in Path(name).parents)
    return {folder for folder in folders if folder.name.startswith(_UNPACKED)}
