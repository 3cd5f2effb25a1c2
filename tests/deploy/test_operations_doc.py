"""docs/operations.md against what it speaks of: alerts, commands, options, settings, metrics, files, resources."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import typer.main

from deploy.checks.metric_names import by_series, families
from services.gateway.settings import GatewaySettings
from services.scheduler.settings import SchedulerSettings
from services.unet_worker.settings import UnetWorkerSettings
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff_cli.main import app
from tests.deploy.rendered import rendered
from tests.markdown import ROOT, dead_links

PAGE = ROOT / "docs" / "operations.md"
THE_READERS_OWN = {"deploy/k8s/overlays/production", "deploy/k8s/overlays/production/kustomization.yaml"}
SETTINGS = (SchedulerSettings, GatewaySettings, UnetWorkerSettings, VaeWorkerSettings)
KINDS = {"deployment": "Deployment", "statefulset": "StatefulSet", "service": "Service", "scaledobject": "ScaledObject"}
OVERLAYS = ("overlays/split-keda", "overlays/colocated")


def test_the_page_speaks_of_what_there_is() -> None:
    assert list(mistakes(PAGE.read_text())) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("### SynerdiffNoLeader", "### SynerdiffNobodyLeads", "no section: SynerdiffNoLeader"),
        ("### SynerdiffNoLeader", "### SynerdiffNobodyLeads\n### SynerdiffNoLeader", "no alert: SynerdiffNobodyLeads"),
        ("synerdiff models\n", "synerdiff model\n", "no command: synerdiff model"),
        ("synerdiff jobs watch", "synerdiff jobs follow", "no command: synerdiff jobs follow"),
        ("status --watch", "status --live", "no option: synerdiff status --live"),
        ("--target-p99-s 15", "--target-p99 15", "no option: synerdiff simulate --target-p99"),
        ("deploy/k8s/overlays/dev-cpu", "deploy/k8s/overlays/dev-gpu", "no file: deploy/k8s/overlays/dev-gpu"),
        ("components/mps-device-plugin/dev", "components/mps-device-plugin/new", "no file: deploy/k8s/components/mps"),
        ("(gpu.md)", "(gpus.md)", "no file: gpus.md"),
        ("gpu.md#memory", "gpu.md#remembering", "no heading: gpu.md#remembering"),
        ("(#upgrading)", "(#updating)", "no heading: #updating"),
        ("SYNERDIFF_MAX_DEATHS", "SYNERDIFF_MOST_DEATHS", "no setting: SYNERDIFF_MOST_DEATHS"),
        ("synerdiff_decode_backlog_seconds", "synerdiff_decode_backlog_s", "no metric: synerdiff_decode_backlog_s"),
        ("make manifests", "make manifest", "no target: make manifest"),
        ("deployment/gpu-worker", "deployment/gpu-workers", "no resource: deployment/gpu-workers"),
        ("component=scheduler", "component=planner", "no component: planner"),
        (
            "port-forward service/scheduler 50051",
            "port-forward service/scheduler 50052",
            "no port: service/scheduler 50052",
        ),
        ("args/5", "args/6", "no argument of Redis to switch: args/6"),
    ],
)
def test_a_planted_mistake_is_found(old: str, new: str, found: str) -> None:
    text = PAGE.read_text()
    assert old in text
    assert any(mistake.startswith(found) for mistake in mistakes(text.replace(old, new)))


def mistakes(text: str) -> Iterator[str]:
    """What the page says and is not so."""
    checks: tuple[Callable[[str], Iterator[str]], ...] = (alerts, commands, files, links, settings, resources)
    for check in checks:
        yield from check(text)


def alerts(text: str) -> Iterator[str]:
    told = re.findall(r"^### (Synerdiff\w+)$", text, re.MULTILINE)
    groups = next(m for m in _manifests() if m["kind"] == "PrometheusRule")["spec"]["groups"]
    known = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    yield from (f"no section: {name}" for name in sorted(known - set(told)))
    yield from (f"no alert: {name}" for name in told if name not in known)


def commands(text: str) -> Iterator[str]:
    for line in code(text):
        if call := re.match(r"\s*(?:\$ )?synerdiff ([a-z][^|;&#]*)", line):
            yield from _misused(_synerdiff(), "synerdiff", call[1].split())
    for target in re.findall(r"\bmake ([a-z][\w-]*)", "\n".join(code(text))):
        if not re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
            yield f"no target: make {target}"


@cache
def _synerdiff() -> Any:
    return typer.main.get_command(app)


def _misused(command: Any, said: str, words: list[str]) -> Iterator[str]:
    while hasattr(command, "commands") and words:
        name = words.pop(0)
        if name not in command.commands:
            yield f"no command: {said} {name}"
            return
        said, command = f"{said} {name}", command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    yield from (f"no option: {said} {word}" for word in words if word.startswith("-") and word not in known)


def files(text: str) -> Iterator[str]:
    for line in code(text):
        for path in re.findall(r"(?<![\w/.])(?:deploy|bench|docs|tests|services)/[\w./-]+", line):
            if path not in THE_READERS_OWN and not (ROOT / path).exists():
                yield f"no file: {path}"
        for component in re.findall(r"(?:\.\./\.\./)components/[\w-]+", line):
            if not (ROOT / "deploy/k8s" / component.removeprefix("../../")).exists():
                yield f"no file: {component}"


def links(text: str) -> Iterator[str]:
    return dead_links(PAGE, text)


def settings(text: str) -> Iterator[str]:
    known = {f"SYNERDIFF_{name.upper()}" for kind in SETTINGS for name in kind.model_fields}
    yield from (f"no setting: {name}" for name in sorted(set(re.findall(r"\bSYNERDIFF_\w+", text)) - known))
    series = {*by_series(), *(family.name for family in families())}
    yield from (f"no metric: {name}" for name in sorted(set(re.findall(r"`(synerdiff_\w+)`", text)) - series))


def resources(text: str) -> Iterator[str]:
    manifests = _manifests()
    named = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for kind, name in re.findall(rf"\b({'|'.join(KINDS)})[ /]([a-z][\w-]+)", "\n".join(code(text))):
        if (KINDS[kind], name) not in named:
            yield f"no resource: {kind}/{name}"
    components = {m["metadata"].get("labels", {}).get("app.kubernetes.io/component") for m in manifests}
    for name in re.findall(r"kubernetes\.io/component=([\w-]+)", text):
        if name not in components:
            yield f"no component: {name}"
    services = {m["metadata"]["name"]: m["spec"]["ports"] for m in manifests if m["kind"] == "Service"}
    for name, number in re.findall(r"port-forward service/([\w-]+) (\d+)", text):
        if int(number) not in [port["port"] for port in services.get(name, ())]:
            yield f"no port: service/{name} {number}"
    redis = next(m for m in manifests if m["kind"] == "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    for index in map(int, re.findall(r"containers/0/args/(\d+)", text)):
        if redis["args"][index - 1 : index + 1] != ["--appendonly", "yes"]:
            yield f"no argument of Redis to switch: args/{index}"


@cache
def _manifests() -> list[Any]:
    return [manifest for name in OVERLAYS for manifest in rendered(name)]


def code(text: str) -> Iterator[str]:
    """Lines of code blocks, and every piece of code within prose."""
    for place, part in enumerate(text.split("```")):
        yield from part.splitlines() if place % 2 else re.findall(r"`([^`]+)`", part)
