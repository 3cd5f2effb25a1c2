"""Section 1: tests/gpu, with latents over CUDA IPC whose processes are killed."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from bench.gpu.kit import PYTEST_LOG, Kit
from bench.gpu.runner import ROOT

# Fewer than `make test-gpu` makes: there are ten minutes for everything.
_AMOUNTS = {"SYNERDIFF_TEST_TRANSFERS": "2000", "SYNERDIFF_TEST_KILLS": "6"}
_OUTCOMES = ("failure", "error", "skipped")
_MOST_MESSAGE = 600


def run(kit: Kit) -> None:
    """Run them, keep what they print, and record how each ended. Raises RuntimeError where one failed, or none ran."""
    with tempfile.TemporaryDirectory() as folder, (kit.out / PYTEST_LOG).open("wb") as log:
        found = Path(folder, "junit.xml")
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-s", "tests/gpu", f"--junit-xml={found}"]
        command += ["-p", "no:cacheprovider", "-o", "junit_family=xunit2"]
        ended = subprocess.run(command, cwd=ROOT, env=os.environ | _AMOUNTS, stdout=log, stderr=subprocess.STDOUT)
        outcomes = _record(kit, found) if found.exists() else Counter[str]()
    if ended.returncode or outcomes["failed"]:
        raise RuntimeError(f"pytest ended with {ended.returncode}; {PYTEST_LOG} says why")
    if not (outcomes["passed"] or kit.tiny):
        raise RuntimeError(f"no test found a GPU; {PYTEST_LOG} says why")


def _record(kit: Kit, found: Path) -> Counter[str]:
    outcomes = Counter[str]()
    for case in ElementTree.parse(found).getroot().iter("testcase"):
        outcome = next((child for child in case if child.tag in _OUTCOMES), None)
        name = "passed" if outcome is None else {"failure": "failed", "error": "failed"}.get(outcome.tag, outcome.tag)
        outcomes[name] += 1
        message = "" if outcome is None else (outcome.get("message") or "")[:_MOST_MESSAGE]
        kit.record("test", test=case.get("name"), outcome=name, s=float(case.get("time", 0)), message=message)
    return outcomes
