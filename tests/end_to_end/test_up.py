"""`synerdiff up` for real: it serves, mends what dies, and is gone after Ctrl-C."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import synerdiff
from tests.end_to_end.command import SYNERDIFF, environment, processes


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [SYNERDIFF, "up", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--dtype", "float32"]
    process = subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def pid_of(home: Path, module: str) -> int:
    (pid,) = [pid for pid, command in processes(home).items() if f"-m {module} " in command]
    return pid


@pytest.mark.timeout(180)
def test_up_serves_mends_itself_and_goes(up: subprocess.Popen[str], tmp_path: Path) -> None:
    assert up.stdout is not None
    address = up.stdout.readline().strip()
    assert address, up.communicate()[1]
    with synerdiff.Client(address, patience_s=60.0) as client:
        first = client.generate("a red car", seed=3, num_inference_steps=3)
        killed = [pid_of(tmp_path, f"services.{name}") for name in ("unet_worker", "vae_worker", "scheduler")]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        again = client.generate("a red car", seed=3, num_inference_steps=3, timeout=120.0)
    assert again.image.data == first.image.data
    assert not set(killed) & set(processes(tmp_path))

    up.send_signal(signal.SIGINT)
    _, stderr = up.communicate(timeout=30)
    assert up.returncode == 130
    assert "unet-emoji-0 died and is started again" in stderr
    assert processes(tmp_path) == {}
    assert {path.name for path in (tmp_path / "data" / "logs").iterdir()} == {
        *("redis.log", "scheduler-0.log", "unet-emoji-0.log", "vae-emoji-0.log")
    }
