"""The environment that OpenMP starts with: ours, unless somebody has decided otherwise."""

import subprocess
import sys

import pytest

from synerdiff.openmp import prepare_openmp


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("passive", True)),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, ("PASSIVE", True)),
        ({"OMP_WAIT_POLICY": "active"}, ("active", False)),
    ],
)
def test_what_is_left_open_is_filled_in(given: dict[str, str], expected: tuple[str, bool]) -> None:
    prepare_openmp(given)
    assert (given["OMP_WAIT_POLICY"], "GOMP_SPINCOUNT" in given) == expected


def test_a_spin_count_that_was_given_stays() -> None:
    given = {"GOMP_SPINCOUNT": "7"}
    prepare_openmp(given)
    assert given["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize("worker", ["unet_worker", "vae_worker"])
def test_workers_say_so_before_torch_is_loaded(worker: str) -> None:
    """Later would be without effect: libgomp reads its environment when it is loaded."""
    code = f"""
import os, sys
import synerdiff.openmp
prepare, loaded = synerdiff.openmp.prepare_openmp, []
def prepared():
    loaded.append("torch" in sys.modules)
    prepare()
    print(loaded, os.environ["OMP_WAIT_POLICY"])
    sys.exit(0)
synerdiff.openmp.prepare_openmp = prepared
import runpy
runpy.run_module("services.{worker}", run_name="__main__")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[False]", "passive"]
