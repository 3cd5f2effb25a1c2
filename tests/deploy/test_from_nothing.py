"""What a team does with the manifests: apply them in the documented order, in a namespace and with links of its own."""

import os
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.checks import objects
from deploy.checks.run import findings
from deploy.kustomize import K8S, overlays, render
from tests.waiting import HANG_S

ROOT = K8S.parents[1]
STEPS = re.compile(r"kubectl apply -k (\S+)|sh (\S+/redis-secret\.sh)")


def steps() -> list[str]:
    """What the operations page applies before an overlay, in its order."""
    text = (ROOT / "docs/operations.md").read_text()
    section = text[text.index("4. **Namespace, secrets, weights**") : text.index("5. **Your overlay**")]
    return [folder or script for folder, script in STEPS.findall(section)]


def applied(step: str) -> list[Any]:
    """The objects that a step brings."""
    if step.endswith(".sh"):
        done = subprocess.run(["sh", step], cwd=ROOT, capture_output=True, text=True, check=True, timeout=HANG_S)
        return [yaml.safe_load(done.stdout)]
    return list(render(ROOT / step))


@pytest.mark.parametrize("overlay", [overlay.name for overlay in overlays()])
def test_whatever_an_overlay_names_was_there_before_it(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each step finds the namespace that it goes into."""
    monkeypatch.setattr(objects, "PROVIDED", frozenset())
    there: list[Any] = []
    for step in (*steps(), f"deploy/k8s/overlays/{overlay}"):
        new = applied(step)
        assert any(item["kind"] == "Namespace" for item in (*there, *new)), step
        there = [*there, *new]
        assert findings(there, "references") == [], step


def kustomization(folder: Path, **content: Any) -> Path:
    """A folder with a kustomization; resources and components as paths below deploy/k8s, or of this folder."""
    folder.mkdir()
    up = os.path.relpath(K8S, folder.resolve())
    for key in ("resources", "components"):
        content[key] = [path if path.startswith("../") else f"{up}/{path}" for path in content.get(key, ())]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def team(tmp_path: Path) -> Path:
    return kustomization(
        tmp_path / "team", apiVersion="kustomize.config.k8s.io/v1alpha1", kind="Component", namespace="team"
    )


def test_another_namespace_is_followed_by_what_names_it_in_a_text(tmp_path: Path, team: Path) -> None:
    parts: dict[str, Any] = {"resources": ["overlays/split-keda"], "components": [f"../{team.name}"]}
    said = " ".join(map(str, findings(render(kustomization(tmp_path / "forgotten", **parts)))))
    assert "no Service of these manifests is at redis.synerdiff.svc" in said
    assert "looks at the namespace synerdiff, not at team" in said
    parts["components"].append("components/namespace")
    assert findings(render(kustomization(tmp_path / "followed", **parts))) == []


def test_runbooks_get_the_address_that_the_readme_shows_how_to_set(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    (shown,) = (yaml.safe_load(textwrap.dedent(block)) for block in blocks if "runbooks" in block)
    rendered = render(kustomization(tmp_path / "own", resources=["overlays/split-keda"], **shown))
    (rules,) = (item for item in rendered if item["kind"] == "PrometheusRule")
    urls = re.findall(r"runbook_url: (\S+)#", yaml.safe_dump(rules))
    assert set(urls) == {"https://git.example/synerdiff/docs/operations.md"}
    assert not any(item["metadata"]["name"].startswith("runbooks") for item in rendered)
