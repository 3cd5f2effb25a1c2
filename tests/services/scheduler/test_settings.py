"""Settings: an ablation is a setting."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.scheduler.api.callers_file import key_hash
from services.scheduler.policy.policy_spec import POLICIES
from services.scheduler.settings import SchedulerSettings
from synerdiff.settings import load


def test_a_policy_is_its_own_unless_told_otherwise() -> None:
    for name, spec in POLICIES.items():
        assert load(SchedulerSettings, ["--policy", name]).policy_spec() == spec
    assert load(SchedulerSettings, []).policy_spec() == POLICIES["synerdiff"]
    assert load(SchedulerSettings, []).engine_bounds().plan_ahead >= 2, "the policy's own is not cut short"


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        (["--order", "sharing"], {"order": "sharing"}),
        (["--knee", "off"], {"knee": False}),
        (["--planning", "decodes_first"], {"planning": "decodes_first"}),
        (["--chunking", "off"], {"chunking": False}),
        (["--chunking", "on"], {"chunking": True}),
        (["--skip-cfg", "off"], {"skip_cfg": False}),
        (["--controller", "off"], {"controller": False}),
        (["--threshold", "0.9"], {"controller": False, "threshold": 0.9}),
        (["--plan-ahead", "1"], {"plan_ahead": 1}),
        (["--in-step", "off"], {"in_step": False}),
    ],
)
def test_each_mechanism_has_a_switch_of_its_own(flags: list[str], changes: dict[str, object]) -> None:
    chosen = load(SchedulerSettings, flags).policy_spec()
    assert chosen == replace(POLICIES["synerdiff"], **changes)  # type: ignore[arg-type]


def test_an_unknown_policy_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(SchedulerSettings, ["--policy", "best"])
    assert "--policy" in capsys.readouterr().err


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.1.2.3:1", "scheduler:1"])
def test_strangers_are_served_only_where_somebody_said_so(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(SchedulerSettings, ["--listen", listen])
    assert "--anonymous" in capsys.readouterr().err
    load(SchedulerSettings, ["--listen", listen, "--anonymous"])


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "localhost:1"])
def test_on_its_own_machine_it_asks_nobody(listen: str) -> None:
    load(SchedulerSettings, ["--listen", listen])


def test_a_file_of_callers_will_do_and_a_bad_one_will_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "callers"
    file.write_text(f"alice {key_hash('a key')}\n")
    load(SchedulerSettings, ["--listen", "0.0.0.0:1", "--callers-file", str(file)])
    file.write_text("alice\n")
    with pytest.raises(SystemExit):
        load(SchedulerSettings, ["--listen", "0.0.0.0:1", "--callers-file", str(file)])
    assert f"--callers-file: {file}, line 1" in capsys.readouterr().err
