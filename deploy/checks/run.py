"""All checks over one set of manifests, and the sets that are checked."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from deploy.checks import gpus, monitoring, network, objects, scaling, schemas, services
from deploy.checks.manifests import Finding, Manifests, Rule
from deploy.kustomize import K8S, Manifest, overlays, render, render_composition

RULES: Sequence[Rule] = tuple(
    rule for module in (schemas, services, objects, gpus, network, scaling, monitoring) for rule in module.RULES
)

# Compositions beside the overlays: name -> its base, and its components, each as below deploy/k8s.
COMPOSITIONS: Mapping[str, tuple[str, Sequence[str]]] = {
    "dev-cpu with callers and a pull secret": ("overlays/dev-cpu", ["callers", "pull-secret"]),
    "dev-cpu with images in a claim": ("overlays/dev-cpu", ["images-pvc"]),
    "split-keda with images in a bucket": ("overlays/split-keda", ["images-s3"]),
    "dev-cpu with TLS and a password": ("overlays/dev-cpu", ["tls", "redis-password"]),
    "colocated by DRA, weights from an image": ("base", ["redis", "colocated", "gpu", "dra", "weights-image"]),
    "colocated with TLS and a password": ("overlays/colocated", ["tls", "redis-tls"]),
    "split with an HPA and a load balancer": ("overlays/split", ["hpa", "load-balancer"]),
    "split with monitoring": ("overlays/split", ["monitoring"]),
    "colocated with monitoring": ("overlays/colocated", ["monitoring"]),
    "split-keda with texts that follow its namespace": ("overlays/split-keda", ["namespace"]),
    "split-keda with TLS and a password": (
        "overlays/split-keda",
        ["tls", "redis-tls", "keda-redis-tls", "grpc-route"],
    ),
}


def findings(manifests: Sequence[Manifest], *checks: str) -> list[Finding]:
    """All findings of these checks, or of every one. A set that violates its schemas gets no other check."""
    given, found = Manifests(manifests), set[Finding]()
    for rule in RULES:
        if rule.check in checks or not (checks or any(finding.check == "schemas" for finding in found)):
            found.update(rule.findings(given))
    return sorted(found)


def sets() -> Mapping[str, Callable[[], list[Manifest]]]:
    """Every overlay and composition by name, rendered when called."""
    found: dict[str, Callable[[], list[Manifest]]] = {
        f"overlays/{overlay.name}": partial(render, overlay) for overlay in overlays()
    }
    found["weights"] = partial(render, K8S / "weights")
    return found | {name: partial(render_composition, *made_of) for name, made_of in COMPOSITIONS.items()}
