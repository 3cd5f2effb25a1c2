"""Builds packages beside the serving: a process of its own builds, this one loads and hands them over."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from synerdiff import lifeline
from synerdiff.models.compiled.calls import Call, CompiledCall
from synerdiff.models.compiled.components import Request, no_request
from synerdiff.models.compiled.rehearsal import compute_at_lowest_priority
from synerdiff.models.compiled.store import CompileSubject, PackageStore, StoreUnusable, load_package
from synerdiff.telemetry import get_logger
from synerdiff.worker_settings import WorkerSettings

log = get_logger("compiled")

_LAST_LINES = 3


def default_directory() -> Path:
    """`synerdiff/compiled` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synerdiff" / "compiled"


@dataclass(frozen=True)
class _Order:
    subject: CompileSubject
    install: Callable[[Call], None]


class BackgroundCompiler:
    """A thread that gets packages in the order of requests. A failure is logged once, and its calls stay eager."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._store: PackageStore | None = None
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._waiting = 0
        self._settled = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
        try:
            if settings.compile != "off":
                self._store = PackageStore(settings.compile_cache or default_directory(), settings.compile_cache_bytes)
        except StoreUnusable as error:
            log.warning("nothing is compiled: no place for packages", reason=str(error))
        if self._store:
            self._thread.start()

    def request(self, subject: CompileSubject, install: Callable[[Call], None]) -> bool:
        """Find or make a package, and call `install` on this thread. Returns at once whether the package exists."""
        if self._store is None:
            return False
        with self._settled:
            self._waiting += 1
        self._orders.put(_Order(subject, install))
        return self._store.find(subject) is not None

    def requests_like(self, subject_of: Callable[[], CompileSubject]) -> Request:
        """`request` for subjects that differ from the given one in their latent shape; `no_request` without a store."""
        if self._store is None:
            return no_request
        subject = subject_of()
        return lambda shape, install: self.request(replace(subject, latent_shape=shape), install)

    def wait(self) -> None:
        """In the mode "wait", return once every requested package exists or has failed."""
        if self._settings.compile == "wait":
            with self._settled:
                self._settled.wait_for(lambda: not self._waiting or self._closing.is_set())

    def close(self) -> None:
        """End the thread, and a process that compiles."""
        self._closing.set()
        self._orders.put(None)
        with self._settled:
            self._settled.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        compute_at_lowest_priority(self._settings.threads)
        while (order := self._orders.get()) is not None and not self._closing.is_set():
            try:
                self._serve(order)
            except Exception as error:
                log.warning("not compiled", component=order.subject.component, reason=str(error))
            with self._settled:
                self._waiting -= 1
                self._settled.notify_all()

    def _serve(self, order: _Order) -> None:
        assert self._store is not None
        subject = order.subject
        started, found = time.monotonic(), self._store.find(subject)
        if found is None:
            found = self._build(subject)
        if found is None:
            return
        try:
            package = load_package(found)
        except Exception:
            self._store.discard(subject)
            raise
        order.install(CompiledCall(package))
        seconds = round(time.monotonic() - started, 1)
        log.info("compiled", component=subject.component, latents=subject.latent_shape, seconds=seconds)

    def _build(self, subject: CompileSubject) -> Path | None:
        """The package from a process of its own; None, after one line in the log, where there is none."""
        assert self._store is not None
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            log.info("not compiled: there is no C++ compiler", component=subject.component, compiler=compiler)
            return None
        bound_to_us = (sys.executable, "-I", "-S", str(lifeline.__file__), str(os.getpid()))
        command = (sys.executable, "-P", "-m", "synerdiff.models.compiled.build")
        most = str(self._settings.compile_memory_bytes)
        arguments = (str(self._store.directory), subject.to_json(), "--memory-bytes", most)
        child = subprocess.Popen(
            [*bound_to_us, *command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said = self._wait_for(child)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if self._closing.is_set():
            return None
        if child.returncode:
            reason = " / ".join(said.strip().splitlines()[-_LAST_LINES:])
            log.warning("not compiled", component=subject.component, status=child.returncode, reason=reason)
            return None
        return self._store.find(subject)

    def _wait_for(self, child: "subprocess.Popen[str]") -> str:
        """The stderr of the process. Ends it when its time is over or this compiler is closed."""
        give_up_at = time.monotonic() + self._settings.compile_limit_s
        while not self._closing.is_set():
            try:
                return child.communicate(timeout=0.2)[1]
            except subprocess.TimeoutExpired:
                if time.monotonic() >= give_up_at:
                    return f"it took over {self._settings.compile_limit_s:g} s"
        return ""
