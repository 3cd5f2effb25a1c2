"""Packages made beside the serving, by real processes: what is said where there is none, and what is left behind."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from synerdiff.models.compiled.background import BackgroundCompiler, default_directory
from synerdiff.models.compiled.build import CompiledDiffers, build
from synerdiff.models.compiled.components import no_request
from synerdiff.models.compiled.store import CompileSubject, PackageStore
from synerdiff.models.digest import module_digest
from synerdiff.models.loading import load_unet_side
from synerdiff.settings import load
from synerdiff.worker_settings import WorkerSettings
from tests.waiting import HANG_S, wait_until

Call = Callable[..., Tensor]

# A worker that has a package made and waits for it.
WORKER = """
import sys
from pathlib import Path
from synerdiff.models.compiled.background import BackgroundCompiler
from synerdiff.models.compiled.store import CompileSubject
from synerdiff.settings import load
from synerdiff.worker_settings import WorkerSettings

compiler = BackgroundCompiler(load(WorkerSettings, ["--compile", "wait", "--compile-cache", sys.argv[1]]))
compiler.request(CompileSubject.from_json(sys.argv[2]), print)
compiler.wait()
"""


@pytest.fixture
def told(tiny_models: dict[str, Path]) -> CompileSubject:
    """A tiny model's UNet."""
    digest = module_digest(load_unet_side(tiny_models["sd1"], torch.float32).unet)
    return CompileSubject("unet", str(tiny_models["sd1"]), digest, "float32", (4, 8, 8))


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return load(WorkerSettings, ["--compile", "wait", "--compile-cache", str(tmp_path / "store")])


@pytest.fixture
def compiler_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that is there: these tests end before it would be called."""
    monkeypatch.setenv("CXX", sys.executable)


def directory_of(settings: WorkerSettings) -> Path:
    assert settings.compile_cache
    return settings.compile_cache


def request_and_wait(settings: WorkerSettings, *subjects: CompileSubject) -> list[Call]:
    """The packages that come of requests."""
    got: list[Call] = []
    with closing(BackgroundCompiler(settings)) as compiler:
        for subject in subjects:
            compiler.request(subject, got.append)
        compiler.wait()
    return got


def builders(parent: int) -> list[psutil.Process]:
    """The processes that compile for one, and all that they have started."""
    return [
        below
        for child in psutil.Process(parent).children()
        if any("synerdiff.models.compiled.build" in word for word in child.cmdline())
        for below in (child, *child.children(recursive=True))
    ]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def has_begun(directory: Path) -> Callable[[], bool]:
    """Whether a process has got as far as to have a folder to compile in."""
    return lambda: any(directory.glob("build-*"))


def break_package(settings: WorkerSettings, subject: CompileSubject, content: bytes) -> Path:
    store = PackageStore(directory_of(settings))
    path = store.directory / subject.file_name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"", b"no package at all", b"PK\x05\x06" + bytes(18)])
def test_a_broken_package_is_said_and_removed(settings: WorkerSettings, told: CompileSubject, content: bytes) -> None:
    path = break_package(settings, told, content)
    with capture_logs() as logs:
        assert request_and_wait(settings, told) == []
    assert not path.exists()
    (log,) = logs
    assert (log["log_level"], log["component"]) == ("warning", "unet")
    assert log["reason"]


def test_files_that_hold_other_weights_by_now_are_not_compiled(
    store: PackageStore, told: CompileSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process; what one of its own says of an error is in the log, as below."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TMPDIR"):
        monkeypatch.setenv(name, "")  # build sets it for the rest of its process
    with pytest.raises(CompiledDiffers, match="unet holds other weights by now than are served"):
        build(replace(told, component_digest="0" * 64), store)
    assert sorted(path.name for path in store.directory.iterdir()) == ["lock"]


def test_one_request_that_fails_does_not_stop_the_next(settings: WorkerSettings, told: CompileSubject) -> None:
    others = [told, replace(told, component="vae")]
    paths = [break_package(settings, one, b"broken") for one in others]
    with capture_logs() as logs:
        assert request_and_wait(settings, *others) == []
    assert [path.exists() for path in paths] == [False, False]
    assert [log["component"] for log in logs] == ["unet", "vae"]


def test_without_a_compiler_it_is_said_and_no_process_starts(
    settings: WorkerSettings, told: CompileSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with capture_logs() as logs:
        assert request_and_wait(settings, told) == []
    (log,) = logs
    assert (log["log_level"], log["component"], log["compiler"]) == ("info", "unet", "/nowhere/g++")
    assert "no C++ compiler" in log["event"]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(directory_of(settings)))
    with capture_logs() as logs:
        assert request_and_wait(settings, told) == []
    assert [(log["log_level"], log["compiler"]) for log in logs] == [("info", "g++")]


@pytest.mark.usefixtures("compiler_at_hand")
def test_a_compiler_that_takes_too_long_is_ended(settings: WorkerSettings, told: CompileSubject) -> None:
    with capture_logs() as logs:
        assert request_and_wait(settings.model_copy(update={"compile_limit_s": 0.1}), told) == []
    (log,) = logs
    assert (log["log_level"], log["reason"]) == ("warning", "it took over 0.1 s")
    assert builders(os.getpid()) == []


@pytest.mark.usefixtures("compiler_at_hand")
def test_a_model_that_cannot_be_loaded_is_said(settings: WorkerSettings, told: CompileSubject, tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert request_and_wait(settings, replace(told, model=str(tmp_path / "none"))) == []
    (log,) = logs
    assert (log["log_level"], log["status"]) == ("warning", 1)
    assert str(tmp_path / "none") in log["reason"]
    assert sorted(path.name for path in directory_of(settings).iterdir()) == ["lock"]


@pytest.mark.usefixtures("compiler_at_hand")
def test_a_process_that_needs_too_much_memory_is_refused_it(settings: WorkerSettings, told: CompileSubject) -> None:
    with capture_logs() as logs:
        assert request_and_wait(settings.model_copy(update={"compile_memory_bytes": 2**20}), told) == []
    (log,) = logs
    assert log["log_level"] == "warning"
    assert log["status"] != 0


@pytest.mark.usefixtures("compiler_at_hand")
def test_closing_ends_a_process_that_compiles(settings: WorkerSettings, told: CompileSubject) -> None:
    got: list[Call] = []
    with capture_logs() as logs:
        with closing(BackgroundCompiler(settings)) as compiler:
            compiler.request(told, got.append)
            waiting = threading.Thread(target=compiler.wait, daemon=True)
            waiting.start()
            wait_until(has_begun(directory_of(settings)), "a process that compiles")
            processes = builders(os.getpid())
            assert processes
        waiting.join(HANG_S)
        assert not waiting.is_alive(), "it is waited for in vain"
    assert all(map(gone, processes))
    assert builders(os.getpid()) == []
    assert (got, logs) == ([], [])


def test_closing_twice_and_without_requests_is_nothing(settings: WorkerSettings) -> None:
    with closing(BackgroundCompiler(settings)) as compiler:
        compiler.wait()
        compiler.close()


@pytest.mark.usefixtures("compiler_at_hand")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes outlive their parents")
def test_a_process_that_compiles_goes_with_its_worker(settings: WorkerSettings, told: CompileSubject) -> None:
    arguments = [str(directory_of(settings)), told.to_json()]
    worker = subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: has_begun(directory_of(settings))() or worker.poll() is not None, "a process that compiles")
        (builder, *_) = builders(worker.pid)
    finally:
        worker.kill()
        worker.wait(timeout=HANG_S)
    wait_until(lambda: gone(builder), "the end of the process that compiles")


def test_nothing_is_compiled_where_it_is_off(settings: WorkerSettings, told: CompileSubject) -> None:
    def reads_all_weights() -> CompileSubject:
        raise AssertionError("nobody needs to know")

    with closing(BackgroundCompiler(settings.model_copy(update={"compile": "off"}))) as compiler:
        assert compiler.requests_like(reads_all_weights) is no_request
        compiler.request(told, lambda _: pytest.fail("a package"))
        compiler.wait()
    assert not directory_of(settings).exists()


def test_a_directory_of_others_is_said_once_and_nothing_is_compiled(
    settings: WorkerSettings, told: CompileSubject
) -> None:
    directory_of(settings).mkdir()
    directory_of(settings).chmod(0o777)
    with capture_logs() as logs:
        assert request_and_wait(settings, told, told) == []
    (log,) = logs
    assert log["log_level"] == "warning"
    assert str(directory_of(settings)) in log["reason"]


def test_in_the_background_nobody_waits(settings: WorkerSettings, told: CompileSubject) -> None:
    store, settings = PackageStore(directory_of(settings)), settings.model_copy(update={"compile": "auto"})
    with closing(BackgroundCompiler(settings)) as compiler, store.compiling():
        break_package(settings, told, b"broken")
        compiler.request(told, lambda _: None)
        compiler.wait()


def test_requests_like_one_differ_in_their_shape_alone(settings: WorkerSettings, told: CompileSubject) -> None:
    larger = replace(told, latent_shape=(4, 16, 16))
    path, native = break_package(settings, larger, b"broken"), break_package(settings, told, b"untouched")
    with closing(BackgroundCompiler(settings)) as compiler, capture_logs() as logs:
        compiler.requests_like(lambda: told)((4, 16, 16), lambda _: None)
        compiler.wait()
    assert len(logs) == 1
    assert not path.exists()
    assert native.exists()


def test_packages_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "synerdiff" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_directory() == tmp_path / "home" / ".cache" / "synerdiff" / "compiled"
