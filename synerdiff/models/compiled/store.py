"""Packages on disk, for the next start and for other workers of the same model.

A package is code that workers run, so only this user may own and write the directory. Files are renamed into place:
a visible file is complete.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Self

import torch
import torch._inductor.config

from synerdiff.models.compiled.calls import Call

Component = Literal["unet", "vae"]

# Raise this with every change to the making of packages: older ones are then compiled anew.
RECIPE = 2

_CPU_INFO = Path("/proc/cpuinfo")

_PATTERN = "*.pt2"
_SCRATCH = "build-"

_UNPACKED = "aotinductor_"


@dataclass(frozen=True)
class CompileSubject:
    """One component of a model directory, at one latent shape [C, h, w].

    `component_digest` is that of the served component (see `digest.module_digest`): the package has its weights.
    `variant` names the weight files, as for `loading.load_unet_side`.
    """

    component: Component
    model: str
    component_digest: str
    dtype: str
    latent_shape: tuple[int, int, int]
    variant: str = "auto"

    @property
    def key(self) -> str:
        """Twenty hex digits over all inputs of the machine code; the directory's path is not among them."""
        told = asdict(self) | {"model": "", "recipe": RECIPE, "torch": torch.__version__, "cpu": _instruction_sets()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def file_name(self) -> str:
        """Of the package in a store."""
        return f"{self.component}-{'x'.join(map(str, self.latent_shape))}-{self.dtype}-{self.key}.pt2"

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A subject from the text of `to_json`."""
        fields = json.loads(text)
        return cls(**fields | {"latent_shape": tuple(fields["latent_shape"])})


@cache
def _instruction_sets() -> str:
    """The CPU's flags, as compilers for "native" see them; the architecture where the kernel lists none."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {' '.join(sorted(flags.split()))}"


class StoreUnusable(Exception):
    """The directory cannot be made or opened, or others could write to it."""


class PackageStore:
    """The packages in `directory`, at most `capacity_bytes`, the most recently used. Raises StoreUnusable."""

    def __init__(self, directory: Path, capacity_bytes: int = 8 * 2**30) -> None:
        self.directory = directory
        self._capacity_bytes = capacity_bytes
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.stat()
        except OSError as error:
            raise StoreUnusable(f"{directory}: {error.strerror}") from error
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreUnusable(f"{directory}: others than this user may write there")

    def find(self, subject: CompileSubject) -> Path | None:
        """The package of a subject, noted as used; None where there is none."""
        path = self.directory / subject.file_name
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def publish(self, built: Path, subject: CompileSubject) -> Path:
        """Add a package from a file on this directory's file system; removes the least recently used ones for room."""
        path = self.directory / subject.file_name
        built.replace(path)
        self._evict(path)
        return path

    def discard(self, subject: CompileSubject) -> None:
        """Remove a package that does not work."""
        (self.directory / subject.file_name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder to compile in. Use it within `compiling`: it removes the remains of killed processes."""
        for left in self.directory.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=_SCRATCH) as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Only one process at a time compiles for a store: others wait here, and may then find their package."""
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _evict(self, newest: Path) -> None:
        by_age = sorted(self.directory.glob(_PATTERN), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        by_age.sort(key=lambda path: path != newest)
        kept_bytes = 0
        for path in by_age:
            kept_bytes += path.stat().st_size
            if kept_bytes > self._capacity_bytes and path != newest:
                path.unlink(missing_ok=True)


_MAPS = Path("/proc/self/maps")


def load_package(path: Path) -> Call:
    """The call that a package holds. Raises torch's errors for a file that is no package, or of another machine."""
    before = _unpacked()
    # Else inductor has a C++ compiler try out instruction sets, for seconds. Packages are found by the CPU's flags.
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
        package: Call = torch._inductor.aoti_load_package(str(path))
    # Mapped files stay mapped after their removal.
    for folder in _unpacked() - before:
        shutil.rmtree(folder, ignore_errors=True)
    return package


def _unpacked() -> set[Path]:
    """The folders of unpacked packages that this process has code mapped from."""
    mapped = {line.split(maxsplit=5)[-1] for line in _MAPS.read_text().splitlines() if _UNPACKED in line}
    folders = (folder for name in mapped for folder in Path(name).parents)
    return {folder for folder in folders if folder.name.startswith(_UNPACKED)}
