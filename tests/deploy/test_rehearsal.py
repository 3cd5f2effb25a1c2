"""The dress rehearsal in its short form, and that nothing of one is left when it is killed."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import HANG_S, wait_until

pytestmark = pytest.mark.alone

REPOSITORY = Path(__file__).parents[2]
REHEARSAL = [sys.executable, "-m", "deploy.rehearsal", "--short", "--hold-s", "0.5"]
LOAD = ["--requests", "2", "--clients", "2", "--least-steps", "16", "--most-steps", "16"]


def test_from_manifests_to_pictures_and_from_one_unet_worker_to_two_and_back(tmp_path: Path) -> None:
    done = subprocess.run(
        [*REHEARSAL, *LOAD, "--logs", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.search(r"ok +short scaling +requests failed +none", done.stdout)
    assert re.search(r"ok +short scaling +pictures unlike the quiet ones +none", done.stdout)
    assert "unet-worker: 1 -> 2 replicas wanted" in done.stdout


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("how", [[], ["--loopback"]])
def test_nothing_of_a_rehearsal_survives_its_death(tmp_path: Path, how: list[str]) -> None:
    rehearsal = subprocess.Popen(
        [*REHEARSAL, *how, "--logs", str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert rehearsal.stdout is not None
    with rehearsal:
        for line in rehearsal.stdout:
            if "container redis has started" in line:
                break
        left = psutil.Process(rehearsal.pid).children(recursive=True)
        assert {"redis-server"} <= {process.name() for process in left}
        rehearsal.kill()
    wait_until(lambda: not any(runs(process) for process in left))
    assert "cluster0" not in Path("/proc/net/dev").read_text()
