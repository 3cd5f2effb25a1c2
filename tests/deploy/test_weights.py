"""The Job that brings weights: whole and known files get into place, others do not."""

import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.kustomize import K8S

MODEL = K8S.parents[1] / "models/emoji/model"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Run it with a WEIGHTS_SHA256. A copy of the bundled model stands for the hub, which no test may ask."""
    module = runpy.run_path(str(K8S / "weights/load.py"))
    module["main"].__globals__["snapshot_download"] = download
    for name, value in {"REPOSITORY": "team/emoji", "REVISION": "0" * 40, "FOLDER": "emoji", "FILES": "*.json"}.items():
        monkeypatch.setenv(f"WEIGHTS_{name}", value)
    monkeypatch.setattr("sys.argv", ["load.py", str(tmp_path)])

    def run(checksum: str) -> int:
        monkeypatch.setenv("WEIGHTS_SHA256", checksum)
        return int(module["main"]())

    return run


def download(repository: str, revision: str, allow_patterns: list[str], local_dir: Path) -> None:
    assert (repository, revision, allow_patterns) == ("team/emoji", "0" * 40, ["*.json"])
    shutil.copytree(MODEL, local_dir, dirs_exist_ok=True)


def checksum() -> str:
    """By the tool that a person would use."""
    command = "find . -type f | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1"
    return subprocess.run(command, shell=True, cwd=MODEL, capture_output=True, text=True, check=True).stdout.strip()


def test_known_files_get_into_place_and_are_known_again(load: Any, tmp_path: Path) -> None:
    assert load(checksum()) == 0
    assert (tmp_path / "emoji/model_index.json").read_bytes() == (MODEL / "model_index.json").read_bytes()
    assert load(checksum()) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["emoji"]


@pytest.mark.parametrize("wanted", ["", "0" * 64])
def test_unknown_files_do_not_and_their_checksum_is_told(load: Any, tmp_path: Path, capsys: Any, wanted: str) -> None:
    assert load(wanted) == 1
    assert checksum() in capsys.readouterr().out
    assert not (tmp_path / "emoji").exists()
    assert load(checksum()) == 0


def test_files_that_changed_in_place_are_noticed(load: Any, tmp_path: Path) -> None:
    assert load(checksum()) == 0
    (tmp_path / "emoji/model_index.json").write_text("{}")
    assert load(checksum()) == 1
