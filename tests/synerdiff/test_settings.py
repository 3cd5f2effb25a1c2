"""Settings: which source wins, and what a bad one is told."""

from pathlib import Path

import pytest

from services.scheduler.settings import SchedulerSettings
from synerdiff.settings import load


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNERDIFF_CONFIG", "")


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('pool = "file"\nunet_batch = 3\nvae_batch = 2\n')
    monkeypatch.setenv("SYNERDIFF_POOL", "variable")
    monkeypatch.setenv("SYNERDIFF_UNET_BATCH", "5")
    settings = load(SchedulerSettings, ["--config", str(file), "--pool", "flag"])
    assert (settings.pool, settings.unet_batch, settings.vae_batch) == ("flag", 5, 2)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--listen", "nowhere"], "--listen"),
        (["--listen", "127.0.0.1:99999"], "--listen"),
        (["--unet-batch", "0"], "--unet-batch"),
        (["--drain-grace-s", "nan-ish"], "--drain-grace-s"),
        (["--policy", "best"], "--policy"),
        (["--no-such-setting", "1"], "--no-such-setting"),
    ],
)
def test_a_bad_setting_is_named_and_ends_with_status_2(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(SchedulerSettings, flags)
    assert exit_.value.code == 2
    assert named in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not a file"):
        load(SchedulerSettings, ["--config", str(tmp_path / "none.toml")])
