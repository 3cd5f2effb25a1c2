"""What is read out of manifests, and that what cannot be rehearsed is refused or named."""

import copy
from typing import Any

import pytest

from deploy.rehearsal.manifests import NotRehearsed, Probe, Variable, parse

DEPLOYMENT: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "worker", "namespace": "here"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "worker"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": {"app": "worker"}},
            "spec": {
                "terminationGracePeriodSeconds": 70,
                "securityContext": {"runAsUser": 10001, "runAsGroup": 10001},
                "priorityClassName": "some",
                "containers": [
                    {
                        "name": "unet",
                        "image": "synerdiff/unet-worker:1",
                        "command": ["python", "-m", "services.unet_worker"],
                        "envFrom": [{"configMapRef": {"name": "settings"}}],
                        "env": [
                            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                            {"name": "ADDRESS", "value": "$(POD_IP):50052"},
                        ],
                        "ports": [{"name": "health", "containerPort": 50062}],
                        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                        "readinessProbe": {"grpc": {"port": 50062, "service": "readiness"}, "periodSeconds": 2},
                        "livenessProbe": {"tcpSocket": {"port": "health"}},
                        "securityContext": {"readOnlyRootFilesystem": True},
                        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                        "resources": {},
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            },
        },
    },
}
CONFIG = {"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"SYNERDIFF_POOL": "default"}}


def rendered(deployment: dict[str, Any], *more: dict[str, Any]) -> list[dict[str, Any]]:
    return [deployment, CONFIG, *more]


def changed(where: str, value: object) -> dict[str, Any]:
    """The Deployment with one value of its pod, or of its container, put in or (None) taken out."""
    deployment = copy.deepcopy(DEPLOYMENT)
    owner, _, key = where.partition(".")
    spec = deployment["spec"]["template"]["spec"]
    (spec if owner == "pod" else spec["containers"][0])[key] = value
    return deployment


def test_a_deployment_becomes_values() -> None:
    manifests = parse(rendered(DEPLOYMENT))
    workload = manifests.workloads["worker"]
    container = workload.template.containers[0]
    assert (workload.replicas, workload.surge, workload.unavailable, workload.template.grace_s) == (2, 1, 0, 70.0)
    assert (container.uid, container.gid, container.read_only_root, container.pre_stop_s) == (10001, 10001, True, 5.0)
    assert container.environment == (
        Variable("SYNERDIFF_POOL", "default"),
        Variable("POD_IP", field="status.podIP"),
        Variable("ADDRESS", "$(POD_IP):50052"),
    )
    assert container.readiness == Probe("grpc", 50062, "readiness", period_s=2.0)
    assert container.liveness == Probe("tcpSocket", 50062, period_s=10.0, timeout_s=1.0, failure_threshold=3)
    assert manifests.not_rehearsed == ("container.resources", "pod.priorityClassName")


def test_a_probe_over_http_has_a_path() -> None:
    deployment = changed("container.readinessProbe", {"httpGet": {"path": "/readyz", "port": "health"}})
    (container,) = parse(rendered(deployment)).workloads["worker"].template.containers
    assert container.readiness == Probe("httpGet", 50062, path="/readyz")


def test_anything_in_a_template_makes_another_revision() -> None:
    revisions = {
        parse(rendered(deployment)).workloads["worker"].template.revision
        for deployment in (DEPLOYMENT, changed("container.image", "synerdiff/unet-worker:2"))
    }
    assert len(revisions) == 2


@pytest.mark.parametrize(
    ("where", "value", "names"),
    [
        ("pod.initContainers", [{"name": "x"}], "initContainers"),
        ("pod.hostNetwork", True, "hostNetwork"),
        ("pod.volumes", [{"name": "tmp", "hostPath": {"path": "/"}}], "volume tmp"),
        ("container.envFrom", [{"secretRef": {"name": "s"}}], "envFrom"),
        ("container.envFrom", [{"configMapRef": {"name": "absent"}}], "absent"),
        ("container.env", [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}], "env.X"),
        ("container.lifecycle", {"preStop": {"exec": {"command": ["x"]}}}, "lifecycle"),
        ("container.startupProbe", {"httpHead": {"port": 1}}, "startupProbe"),
        ("container.startupProbe", {"grpc": {"port": "health"}}, "startupProbe"),
        ("container.startupProbe", {"tcpSocket": {"port": "absent"}}, "absent"),
    ],
)
def test_what_cannot_be_run_as_written_is_refused_by_name(where: str, value: object, names: str) -> None:
    with pytest.raises(NotRehearsed, match=names):
        parse(rendered(changed(where, value)))


def test_a_selector_that_misses_its_own_pods_is_refused() -> None:
    deployment = copy.deepcopy(DEPLOYMENT)
    deployment["spec"]["selector"]["matchLabels"] = {"app": "other"}
    with pytest.raises(NotRehearsed, match="selector"):
        parse(rendered(deployment))
