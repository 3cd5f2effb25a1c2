"""Every alert fires where it must and stays silent where it must, by Prometheus' own engine (promtool)."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendered import rendered
from tests.waiting import HANG_S

CASES = Path(__file__).with_name("alerts.yaml")
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: Debian's package prometheus has it")


def rules() -> Any:
    """The spec of the rules as rendered, which is a rule file of Prometheus."""
    (found,) = (item for item in rendered("split with monitoring") if item["kind"] == "PrometheusRule")
    return found["spec"]


def promtool(folder: Path, spec: Any) -> subprocess.CompletedProcess[str]:
    """Run the cases over the rules. The texts of alerts are not compared: they are for people."""
    for group in spec["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    folder.joinpath("rules.yaml").write_text(yaml.safe_dump(spec))
    shutil.copy(CASES, folder)
    assert PROMTOOL is not None
    command = [PROMTOOL, "test", "rules", CASES.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S)


@needs_promtool
def test_alerts_fire_and_stay_silent_as_told(tmp_path: Path) -> None:
    done = promtool(tmp_path, rules())
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_made_to_fire_and_to_stay_silent() -> None:
    """A case has several namespaces: an alert of one of them is the silence of the others."""
    cases = yaml.safe_load(CASES.read_text())["tests"]
    told = [(case, test) for case in cases for test in case["alert_rule_test"]]
    fires = {test["alertname"] for _, test in told if test["exp_alerts"]}
    quiet = {
        test["alertname"]
        for case, test in told
        if not test["exp_alerts"] or len({series["series"].split('"')[1] for series in case["input_series"]}) > 1
    }
    alerts = {rule["alert"] for group in rules()["groups"] for rule in group["rules"] if "alert" in rule}
    assert fires == alerts
    assert quiet == alerts


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "old", "new"),
    [
        ("SynerdiffSloBurnFast", "and synerdiff:jobs:bad_1h >= 5", ""),
        ("SynerdiffNoLeader", "by (namespace, pool)", "by (pool)"),
        ("SynerdiffNoScheduler", '{namespace="synerdiff"}', ""),
        ("SynerdiffRedisNearlyFull", " > 0)", ")"),
    ],
)
def test_a_planted_mistake_is_found(tmp_path: Path, alert: str, old: str, new: str) -> None:
    spec = rules()
    (rule,) = (rule for group in spec["groups"] for rule in group["rules"] if rule.get("alert") == alert)
    assert old in rule["expr"]
    rule["expr"] = rule["expr"].replace(old, new)
    done = promtool(tmp_path, spec)
    assert alert in done.stdout + done.stderr
