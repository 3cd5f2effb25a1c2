"""Packages on disk: whose directory it must be, who is kept, and who waits for whom."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synerdiff.models.compiled import store as module
from synerdiff.models.compiled.store import CompileSubject, PackageStore, StoreUnusable
from tests.waiting import HANG_S, wait_until

PACKAGE_BYTES = 100
LONG_AGO_S = 1_000_000_000

HOLDER = """
import sys
from pathlib import Path
from synerdiff.models.compiled.store import PackageStore

with PackageStore(Path(sys.argv[1])).compiling():
    print("inside", flush=True)
    sys.stdin.read()
"""


def subjects(subject: CompileSubject, count: int) -> list[CompileSubject]:
    """Subjects that differ, and whose file names are not in the order in which they are given."""
    made = [replace(subject, latent_shape=(4, 8, 8 * (count - one))) for one in range(count)]
    assert sorted(made, key=lambda one: one.file_name) != made
    return made


def publish(store: PackageStore, subject: CompileSubject, text: str = "x" * PACKAGE_BYTES) -> Path:
    with store.compiling(), store.scratch() as scratch:
        (scratch / "made").write_text(text)
        return store.publish(scratch / "made", subject)


def age(path: Path, seconds: int) -> None:
    """Have a package been used last `seconds` before a moment long ago."""
    os.utime(path, (LONG_AGO_S - seconds, LONG_AGO_S - seconds))


def test_a_directory_is_made_for_this_user_alone(tmp_path: Path) -> None:
    PackageStore(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o707, 0o702, 0o777])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(StoreUnusable, match=f"{re.escape(str(tmp_path))}: others"):
        PackageStore(tmp_path)


def test_a_directory_that_others_may_only_read_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert PackageStore(tmp_path).directory == tmp_path


def test_another_users_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    with pytest.raises(StoreUnusable, match="others"):
        PackageStore(tmp_path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for impossible in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreUnusable, match=re.escape(str(impossible))):
            PackageStore(impossible)


def test_a_package_is_found_by_its_subject_until_it_is_discarded(store: PackageStore, subject: CompileSubject) -> None:
    other = replace(subject, dtype="bfloat16")
    assert store.find(subject) is None
    published = publish(store, subject, "code")
    assert store.find(subject) == published
    assert published.read_text() == "code"
    assert store.find(other) is None
    assert PackageStore(store.directory).find(subject) == published, "another worker does not see it"
    store.discard(other)
    assert store.find(subject) == published
    store.discard(subject)
    assert store.find(subject) is None
    store.discard(subject)


def test_a_package_takes_the_place_of_an_older_one(store: PackageStore, subject: CompileSubject) -> None:
    publish(store, subject, "older")
    assert publish(store, subject, "newer").read_text() == "newer"
    assert len(list(store.directory.glob("*.pt2"))) == 1


def test_those_used_least_recently_make_room(tmp_path: Path, subject: CompileSubject) -> None:
    store = PackageStore(tmp_path, capacity_bytes=3 * PACKAGE_BYTES)
    first, second, third, fourth = subjects(subject, 4)
    for seconds, one in ((30, first), (20, second), (10, third)):
        age(publish(store, one), seconds)
    assert [path is None for path in map(store.find, (third, first))] == [False, False], "three fit"
    publish(store, fourth)
    assert store.find(second) is None
    assert all(store.find(one) for one in (first, third, fourth))


def test_the_newest_stays_whatever_its_size_and_its_age(tmp_path: Path, subject: CompileSubject) -> None:
    store = PackageStore(tmp_path, capacity_bytes=2 * PACKAGE_BYTES)
    first, second, newest = subjects(subject, 3)
    publish(store, first)
    publish(store, second)
    with store.compiling(), store.scratch() as scratch:
        made = scratch / "made"
        made.write_text("x" * (3 * PACKAGE_BYTES))
        age(made, 0)
        store.publish(made, newest)
    assert store.find(newest)
    assert not store.find(first)
    assert not store.find(second)


def test_only_packages_make_room(tmp_path: Path, subject: CompileSubject) -> None:
    (tmp_path / "notes.txt").write_text("x" * 10 * PACKAGE_BYTES)
    publish(PackageStore(tmp_path, capacity_bytes=1), subject)
    assert (tmp_path / "notes.txt").exists()


def test_scratch_is_empty_and_gone_afterwards_and_what_was_left_goes(
    store: PackageStore, subject: CompileSubject
) -> None:
    published = publish(store, subject)
    left = store.directory / "build-killed" / "inductor"
    left.mkdir(parents=True)
    (left / "half.so").write_text("x")
    with store.compiling(), store.scratch() as scratch:
        assert not left.parent.exists()
        assert scratch.parent == store.directory, "a package could not be renamed from another file system"
        assert list(scratch.iterdir()) == []
        (scratch / "deep").mkdir()
    assert not scratch.exists()
    assert published.exists()


def test_scratch_goes_when_compiling_fails(store: PackageStore) -> None:
    with pytest.raises(ZeroDivisionError), store.compiling(), store.scratch() as scratch:
        raise ZeroDivisionError
    assert not scratch.exists()


@pytest.fixture
def start_another() -> Iterator[Callable[[Path], "subprocess.Popen[str]"]]:
    """Starts a process that wants to compile for a store, and does so until it is told to end."""
    started: list[subprocess.Popen[str]] = []

    def start(directory: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", HOLDER, str(directory)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def waits_for_a_lock(pid: int) -> bool:
    """Whether a process stands in line for a lock, as the kernel lists it."""
    return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="this kernel does not say who waits for a lock")
def test_one_process_waits_for_another_and_then_goes_on(
    store: PackageStore, start_another: Callable[[Path], "subprocess.Popen[str]"]
) -> None:
    with store.compiling():
        process = start_another(store.directory)
        wait_until(lambda: waits_for_a_lock(process.pid) or process.poll() is not None, "a process that waits")
        assert process.poll() is None
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    process.kill()
    process.communicate(timeout=HANG_S)
    with store.compiling():
        pass  # one that was killed is not waited for


CHANGES: dict[str, Any] = {
    "component": "vae",
    "component_digest": "f" * 64,
    "dtype": "bfloat16",
    "latent_shape": (4, 8, 16),
    "variant": "fp16",
}


@pytest.fixture
def instruction_sets() -> Iterator[None]:
    """Instruction sets are read anew, before the test and after it."""
    module._instruction_sets.cache_clear()
    yield
    module._instruction_sets.cache_clear()


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_key(subject: CompileSubject, name: str) -> None:
    other = replace(subject, **{name: CHANGES[name]})
    assert other.key != subject.key
    assert other.file_name != subject.file_name


def test_all_fields_are_tried_and_only_where_the_model_lies_does_not_count(subject: CompileSubject) -> None:
    assert {field.name for field in fields(CompileSubject)} == {*CHANGES, "model"}
    elsewhere = replace(subject, model="/elsewhere")
    assert elsewhere.key == subject.key
    assert elsewhere.file_name == subject.file_name


def test_a_file_name_lies_in_its_directory_and_says_what_it_is_of(subject: CompileSubject) -> None:
    assert Path(subject.file_name).name == subject.file_name
    assert subject.file_name == f"unet-4x8x8-float32-{subject.key}.pt2"
    assert len(subject.key) == 20


def test_another_torch_has_another_key(subject: CompileSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = subject.key
    monkeypatch.setattr(torch, "__version__", torch.__version__ + ".other")
    assert subject.key != before


def test_another_recipe_has_another_key(subject: CompileSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = subject.key
    monkeypatch.setattr(module, "RECIPE", module.RECIPE + 1)
    assert subject.key != before


@pytest.mark.usefixtures("instruction_sets")
def test_another_cpu_has_another_key(subject: CompileSubject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def key_on(info: str) -> str:
        (tmp_path / "cpuinfo").write_text(info)
        module._instruction_sets.cache_clear()
        return subject.key

    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    intel = key_on("processor\t: 0\ncpu MHz\t: 2000\nflags\t\t: sse avx avx512f\n")
    assert key_on("processor\t: 1\ncpu MHz\t: 3000\nflags\t\t: avx512f sse avx\n") == intel, "neither order nor clock"
    less = key_on("processor\t: 0\nflags\t\t: sse avx\n")
    arm = key_on("processor\t: 0\nFeatures\t: fp asimd sve\n")
    none = key_on("processor\t: 0\n")
    monkeypatch.setattr(platform, "machine", lambda: "another")
    assert len({intel, less, arm, none, key_on("processor\t: 0\n")}) == 5


@pytest.mark.usefixtures("instruction_sets")
def test_a_machine_that_does_not_list_its_flags_has_a_key(
    subject: CompileSubject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "none")
    assert len(subject.key) == 20


def test_another_process_reads_the_same_subject(subject: CompileSubject) -> None:
    for one in (subject, *(replace(subject, **{name: changed}) for name, changed in CHANGES.items())):
        read = CompileSubject.from_json(one.to_json())
        assert read == one
        assert read.key == one.key
