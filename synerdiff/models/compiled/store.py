"""Packages on disk, for the next start and for other workers of the same model.

A package is code that workers run, so only this user may own and write the directory. Files are renamed into place:
a visible file is complete.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from synerdiff.models.compiled.subject import CompileSubject

_PATTERN = "*.pt2"
_SCRATCH = "build-"


class StoreUnusable(Exception):
    """The directory cannot be had, or others could write to it."""


class PackageStore:
    """The packages in `directory`, of `capacity_bytes` at most, those used last. Raises StoreUnusable."""

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
        """Take in a package, which lies in a file of this directory's file system; the least used ones make room."""
        path = self.directory / subject.file_name
        built.replace(path)
        self._evict(path)
        return path

    def discard(self, subject: CompileSubject) -> None:
        """Remove a package that does not work."""
        (self.directory / subject.file_name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder to compile in, gone after. Within `compiling`: it removes the remains of killed processes."""
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
