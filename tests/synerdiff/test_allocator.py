"""Memory that torch frees is kept: seen by the pages that the kernel has to give a process anew."""

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest

from synerdiff import allocator
from tests.waiting import HANG_S

# glibc gives blocks of over 32 MiB back to the kernel whenever they are freed, if it is not told otherwise.
BLOCKS = 2
BLOCK_BYTES = 40 * 2**20
ROUNDS = 8

# Rounds of activations, on the first thread and on another: faults of the first round and, once blocks have found their
# places, of ROUNDS more.
PROCESS = f"""
import json, resource, sys, threading
from synerdiff.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

import torch

torch.set_num_threads(1)
answers = []

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def round():
    blocks = [torch.empty({BLOCK_BYTES}, dtype=torch.uint8).fill_(1) for _ in range({BLOCKS})]
    while blocks:
        blocks.pop(0)

def rounds():
    before = faults()
    round()
    first = faults()
    for _ in range({ROUNDS}):
        round()
    settled = faults()
    for _ in range({ROUNDS}):
        round()
    answers.append((first - before, faults() - settled))

rounds()
thread = threading.Thread(target=rounds)
thread.start()
thread.join()
print(json.dumps([kept, answers]))
"""


def faults_of(how: str) -> tuple[bool | None, list[tuple[int, int]]]:
    """What `keep_freed_memory` has answered, if it was called; page faults by thread: first round, later rounds."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    command = [sys.executable, "-c", PROCESS, how]
    process = subprocess.run(command, env=plain, check=True, capture_output=True, text=True, timeout=HANG_S)
    kept, answers = json.loads(process.stdout)
    return kept, [(first, later) for first, later in answers]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is left as it is")
def test_freed_memory_is_kept_for_all_threads() -> None:
    kept, keeping = faults_of("keep")
    assert kept is True
    _, plain = faults_of("leave")
    # A round takes pages for all blocks; huge ones where the kernel gives those.
    fresh = plain[0][0]
    assert fresh >= BLOCKS
    # Without it every round takes them anew (half is asked for), and with it all of them take less than a block.
    assert all(later > ROUNDS * fresh / 2 for _, later in plain), plain
    assert all(later < fresh / BLOCKS for _, later in keeping), keeping


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(*_: object) -> None:
        raise AssertionError("asked of another C library")

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert allocator.keep_freed_memory() is False


@pytest.mark.parametrize("refused", [-1, -3, -8])
def test_a_library_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    class Library:
        def __init__(self, _: None) -> None:
            self.asked: list[int] = []

        def mallopt(self, parameter: int, value: int) -> int:
            assert value > 0
            return 0 if parameter == refused else 1

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert allocator.keep_freed_memory() is False
