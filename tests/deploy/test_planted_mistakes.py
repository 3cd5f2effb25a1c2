"""Each check finds the mistake it is there for, and no other check does."""

from collections.abc import Callable
from typing import Any

import pytest

from deploy.checks.__main__ import main
from deploy.checks.run import RULES, findings
from tests.deploy.rendered import rendered

Change = Callable[[list[Any]], object]


def get(manifests: list[Any], name: str) -> Any:
    kind, _, of = name.partition("/")
    (found,) = (item for item in manifests if item["kind"] == kind and item["metadata"]["name"].startswith(of))
    return found


def pod(manifests: list[Any], name: str) -> Any:
    return get(manifests, name)["spec"]["template"]["spec"]


def container(manifests: list[Any], name: str, index: int = 0) -> Any:
    return pod(manifests, name)["containers"][index]


def set_variable(manifests: list[Any], name: str, variable: str, value: str | None, index: int = 0) -> None:
    variables = container(manifests, name, index)["env"]
    variables[:] = [item for item in variables if item["name"] != variable]
    if value is not None:
        variables.append({"name": variable, "value": value})


def mount(manifests: list[Any], name: str, path: str, volume: dict[str, Any]) -> None:
    pod(manifests, name)["volumes"].append({"name": "planted", **volume})
    container(manifests, name)["volumeMounts"].append({"name": "planted", "mountPath": path})


def triggers(manifests: list[Any], name: str = "unet-worker") -> Any:
    return get(manifests, f"ScaledObject/{name}")["spec"]["triggers"]


def policy(manifests: list[Any], name: str) -> Any:
    return get(manifests, f"NetworkPolicy/{name}")["spec"]


def remove(manifests: list[Any], name: str) -> None:
    manifests.remove(get(manifests, name))


REQUIRE_MPS = "SYNERDIFF_REQUIRE_MPS"
DEPLOYED = ("scheduler", "gateway", "unet-worker", "vae-worker", "gpu-worker")
SCHEDULER, GATEWAY, UNET, VAE, GPU = (f"Deployment/{name}" for name in DEPLOYED)
REDIS = "StatefulSet/redis"
DEV, COLOCATED, KEDA = "overlays/dev-cpu", "overlays/colocated", "overlays/split-keda"
DAEMON, HPA = "overlays/colocated-mps-daemon", "split with an HPA and a load balancer"
DRA = "colocated by DRA, weights from an image"
PASSWORD = "split-keda with TLS and a password"

# (the set, the check that has to speak up, part of what it says, the mistake)
MISTAKES: list[tuple[str, str, str, Change]] = [
    # Schemas: of Kubernetes, of KEDA, of a DRA driver; kinds that nobody knows.
    (DEV, "schemas", "periodSecond", lambda m: container(m, UNET)["readinessProbe"].update(periodSecond=5)),
    (DEV, "schemas", "maxUnavailible", lambda m: get(m, "PodDisruptionBudget/redis")["spec"].update(maxUnavailible=1)),
    (DEV, "schemas", "is not of type", lambda m: container(m, UNET)["env"][0].update(value=5)),
    (DEV, "schemas", "no schema knows", lambda m: get(m, "Service/redis").update(kind="Servise")),
    (DEV, "schemas", "no schema knows", lambda m: get(m, UNET).update(apiVersion="apps/v1beta1")),
    (KEDA, "schemas", "streamName", lambda m: triggers(m)[0]["metadata"].update(streamName="x")),
    (KEDA, "schemas", "activationLag", lambda m: triggers(m)[0]["metadata"].update(activationLag="0")),
    (KEDA, "schemas", "cooldown", lambda m: get(m, "ScaledObject/vae")["spec"].update(cooldown=1)),
    (KEDA, "schemas", "16 is not", lambda m: triggers(m)[0]["metadata"].update(lagCount=16)),
    (KEDA, "schemas", "'query' is a required", lambda m: triggers(m, "vae-worker")[0]["metadata"].pop("query")),
    (PASSWORD, "schemas", "pasword", lambda m: _secret_target(m).update(parameter="pasword")),
    (DRA, "schemas", "activeThreadPercentage", lambda m: _mps_config(m).update(activeThreadPercentage=5)),
    # The environment against the settings classes.
    (DEV, "environment", "SYNERDIFF_LISTN", lambda m: set_variable(m, UNET, "SYNERDIFF_LISTN", "x:1")),
    (DEV, "environment", "SINERDIFF_POOL", lambda m: set_variable(m, UNET, "SINERDIFF_POOL", "x")),
    (DEV, "environment", "SYNERDIFF_SLOTS is no", lambda m: set_variable(m, VAE, "SYNERDIFF_SLOTS", "8")),
    (DEV, "environment", "SYNERDIFF_SLOTS: ", lambda m: set_variable(m, UNET, "SYNERDIFF_SLOTS", "many")),
    (
        DEV,
        "environment",
        "SYNERDIFF_POLICY",
        lambda m: get(m, "ConfigMap/scheduler")["data"].update(SYNERDIFF_POLICY="x"),
    ),
    (DEV, "environment", "not set before", lambda m: container(m, UNET)["env"].reverse()),
    (DEV, "environment", "no other pod", lambda m: set_variable(m, UNET, "SYNERDIFF_LISTEN", "127.0.0.1:50052")),
    (DEV, "environment", "not the address", lambda m: set_variable(m, UNET, "SYNERDIFF_ADVERTISE", None)),
    (DEV, "environment", "no volume brings", lambda m: set_variable(m, UNET, "SYNERDIFF_MODEL", "/weights/x")),
    (
        "dev-cpu with TLS and a password",
        "environment",
        "and not all",
        lambda m: get(m, "ConfigMap/services")["data"].pop("SYNERDIFF_TLS_CA"),
    ),
    (
        "dev-cpu with TLS and a password",
        "environment",
        "no volume brings",
        lambda m: container(m, GATEWAY)["volumeMounts"].pop() and pod(m, GATEWAY)["volumes"].pop(),
    ),
    # Ports.
    (DEV, "ports", "serves 9099", lambda m: set_variable(m, SCHEDULER, "SYNERDIFF_METRICS_PORT", "9099")),
    (DEV, "ports", "ports named metrics", lambda m: container(m, UNET)["ports"][2].update(containerPort=9099)),
    (DEV, "ports", "advertises port", lambda m: set_variable(m, UNET, "SYNERDIFF_ADVERTISE", "10.0.0.1:50053")),
    (DEV, "ports", "leads to api", lambda m: get(m, "Service/scheduler-")["spec"]["ports"][0].update(targetPort="api")),
    (COLOCATED, "ports", "declared 2 times", lambda m: container(m, GPU, 1)["ports"][2].update(name="metrics")),
    # Probes.
    (DEV, "probes", "'ready'", lambda m: container(m, UNET)["readinessProbe"]["grpc"].update(service="ready")),
    (DEV, "probes", "asks port 50052", lambda m: container(m, UNET)["livenessProbe"]["grpc"].update(port=50052)),
    (DEV, "probes", "startupProbe", lambda m: container(m, SCHEDULER).pop("startupProbe")),
    (DEV, "probes", "no readinessProbe", lambda m: container(m, REDIS).pop("readinessProbe")),
    (DEV, "probes", "/readyz on port 8000", lambda m: _get_of(m, "readinessProbe").update(path="/healthz")),
    (DEV, "ports", "ports named http", lambda m: container(m, GATEWAY)["ports"][0].update(name="web")),
    # Grace periods.
    (DEV, "grace", "is killed after 540 s", lambda m: pod(m, VAE).update(terminationGracePeriodSeconds=540)),
    (DEV, "grace", "is killed after 30 s", lambda m: pod(m, SCHEDULER).pop("terminationGracePeriodSeconds")),
    (
        DEV,
        "grace",
        "jobs may take 3600 s",
        lambda m: get(m, "ConfigMap/scheduler")["data"].pop("SYNERDIFF_MAX_TIMEOUT_S"),
    ),
    (
        DEV,
        "grace",
        "drains for 30 s",
        lambda m: get(m, "ConfigMap/gateway")["data"].update(SYNERDIFF_DRAIN_GRACE_S="30"),
    ),
    # What workers of one GPU share.
    (
        COLOCATED,
        "sharing",
        "MPS serves one user",
        lambda m: container(m, GPU, 1)["securityContext"].update(runAsUser=10002),
    ),
    (COLOCATED, "sharing", "process ids", lambda m: pod(m, GPU).pop("shareProcessNamespace")),
    (COLOCATED, "sharing", "over /dev/shm", lambda m: mount(m, GPU, "/dev/shm", {"emptyDir": {"medium": "Memory"}})),
    (DRA, "sharing", "over /dev/shm", lambda m: mount(m, GPU, "/dev", {"emptyDir": {"medium": "Memory"}})),
    (
        DAEMON,
        "sharing",
        "more than one way",
        lambda m: pod(m, GPU).update(nodeSelector={"nvidia.com/mps.capable": "true"}),
    ),
    (
        DRA,
        "sharing",
        "by a claim and a share",
        lambda m: container(m, GPU)["resources"]["limits"].update({"nvidia.com/gpu.shared": "1"}),
    ),
    (
        COLOCATED,
        "sharing",
        "2 shares",
        lambda m: container(m, GPU)["resources"]["limits"].update({"nvidia.com/gpu.shared": "2"}),
    ),
    *(
        (name, "sharing", "without the MPS daemon", lambda m: get(m, "ConfigMap/workers")["data"].pop(REQUIRE_MPS))
        for name in (COLOCATED, DAEMON, DRA)
    ),
    (DAEMON, "sharing", "with an MPS daemon", lambda m: pod(m, GPU)["volumes"][-2].update(_empty_directory())),
    (DAEMON, "sharing", "more than 100 %", lambda m: set_variable(m, GPU, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "80")),
    (DAEMON, "sharing", "at most 100", lambda m: set_variable(m, GPU, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "70%")),
    (DAEMON, "sharing", "MEM_LIMIT", lambda m: set_variable(m, GPU, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "14Gi")),
    # Rights.
    (
        DEV,
        "security",
        "write to its image",
        lambda m: container(m, UNET)["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    (
        DEV,
        "security",
        "capabilities",
        lambda m: container(m, UNET)["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
    ),
    (DEV, "security", "token", lambda m: pod(m, UNET).pop("automountServiceAccountToken")),
    (DEV, "security", "hostIPC", lambda m: pod(m, UNET).update(hostIPC=True)),
    (DEV, "security", "no limit", lambda m: container(m, UNET)["resources"].pop("limits")),
    (DAEMON, "security", "enforces restricted", lambda m: _level(m, "restricted")),
    # Whatever is named is there.
    (DEV, "references", "ServiceAccount worker", lambda m: remove(m, "ServiceAccount/worker")),
    (DEV, "references", "Secret other", lambda m: mount(m, UNET, "/tls", {"secret": {"secretName": "other"}})),
    (COLOCATED, "references", "PersistentVolumeClaim", lambda m: _claim(m).update(claimName="model")),
    (DEV, "references", "PriorityClass", lambda m: pod(m, UNET).update(priorityClassName="high")),
    (DEV, "references", "which nobody mounts", lambda m: container(m, UNET)["volumeMounts"].pop()),
    (DRA, "references", "ResourceClaimTemplate", lambda m: remove(m, "ResourceClaimTemplate/shared-gpu")),
    (KEDA, "references", "container unet-worker", lambda m: _target(m).update(envSourceContainerName="unet-worker")),
    (KEDA, "references", "Deployment unet", lambda m: _target(m).update(name="unet")),
    # Selectors.
    (DEV, "selectors", "own pods", lambda m: get(m, UNET)["spec"]["selector"]["matchLabels"].update(x="y")),
    (DEV, "selectors", "selects no pod", lambda m: get(m, "Service/scheduler-")["spec"]["selector"].update(x="y")),
    (DEV, "selectors", "has 0 Pod", lambda m: remove(m, "PodDisruptionBudget/vae-worker")),
    (
        DEV,
        "selectors",
        "spreads others",
        lambda m: _spread(m, UNET).update({"app.kubernetes.io/component": "vae-worker"}),
    ),
    # Images and commands.
    (DEV, "programs", "no module", lambda m: container(m, UNET)["command"].__setitem__(2, "services.unet")),
    (
        DEV,
        "programs",
        "names no version",
        lambda m: container(m, UNET).update(image="r.example/synerdiff/unet-worker:latest"),
    ),
    (
        DEV,
        "programs",
        "in the image",
        lambda m: container(m, UNET).update(image="r.example/synerdiff/vae-worker:0.1.0"),
    ),
    (DEV, "programs", "no registry", lambda m: container(m, UNET).update(image="synerdiff/unet-worker:0.1.0")),
    (DEV, "programs", "no registry", lambda m: container(m, REDIS).update(image="redis:8.2")),
    (DEV, "programs", "in the image", lambda m: container(m, REDIS).update(command=["redis"])),
    # Network policies.
    (DEV, "network", "none denies", lambda m: remove(m, "NetworkPolicy/default-deny")),
    (DEV, "network", "is not let in", lambda m: policy(m, "unet-worker")["ingress"].clear()),
    (DEV, "network", "50051, and is not let out", lambda m: policy(m, "gateway")["egress"].clear()),
    (DEV, "network", "is not let out", lambda m: policy(m, "to-redis")["egress"][0]["ports"][0].update(port=6380)),
    (DEV, "network", "for everybody", lambda m: policy(m, "redis")["ingress"].append({})),
    (DEV, "network", "without needing to", lambda m: _open_both_ends(m)),
    (DEV, "network", "ask for names", lambda m: policy(m, "dns")["egress"].clear()),
    (DEV, "network", "NodeLocal DNSCache", lambda m: policy(m, "dns")["egress"][0]["to"].pop(1)),
    (DEV, "network", "OpenShift", lambda m: policy(m, "dns")["egress"].pop(1)),
    ("weights", "network", "no way out", lambda m: policy(m, "weights-loader")["egress"].clear()),
    (PASSWORD, "network", "leads nowhere", lambda m: _backend(m).update(name="schedulers")),
    # Autoscalers.
    (
        KEDA,
        "scaling",
        "no stream of 'sdxl'",
        lambda m: triggers(m)[0]["metadata"].update(stream="synerdiff:queue:emoji:high"),
    ),
    (KEDA, "scaling", "no group", lambda m: triggers(m)[1]["metadata"].update(consumerGroup="unet")),
    (KEDA, "scaling", "does not go by the pendingEntriesCount", lambda m: triggers(m).pop(1)),
    (KEDA, "scaling", "no Service", lambda m: triggers(m)[2]["metadata"].update(address="redis:6379")),
    (
        KEDA,
        "scaling",
        "is called synerdiff_decode_seconds",
        lambda m: _query(m, 'max(synerdiff_decode_seconds{model="sdxl"})'),
    ),
    (KEDA, "scaling", "not of 'sdxl'", lambda m: _query(m, "max(synerdiff_decode_backlog_seconds)")),
    (
        KEDA,
        "scaling",
        "before the first worker",
        lambda m: get(m, "ScaledObject/unet")["spec"].update(initialCooldownPeriod=60),
    ),
    (KEDA, "scaling", "no fallback", lambda m: get(m, "ScaledObject/unet")["spec"].pop("fallback")),
    (KEDA, "scaling", "replicas of its own", lambda m: get(m, UNET)["spec"].update(replicas=2)),
    (KEDA, "scaling", "only one that scales", lambda m: m.append(_copy_of_scaler(m))),
    (HPA, "scaling", "is called synerdiff_queue", lambda m: _metric(m).update(name="synerdiff_queue_length")),
    (HPA, "scaling", "of another model", lambda m: _metric(m)["selector"]["matchLabels"].update(model="emoji")),
    (
        COLOCATED,
        "scaling",
        "requests none",
        lambda m: container(m, GATEWAY)["resources"]["requests"].pop("cpu"),
    ),
]


def _get_of(manifests: list[Any], probe: str) -> Any:
    return container(manifests, GATEWAY)[probe]["httpGet"]


def _open_both_ends(manifests: list[Any]) -> None:
    port = {"protocol": "TCP", "port": 50053}
    policy(manifests, "vae-worker")["ingress"].append({"from": [{"podSelector": {}}], "ports": [port]})
    policy(manifests, "to-redis")["egress"].append({"to": [{"podSelector": {}}], "ports": [port]})


def _backend(manifests: list[Any]) -> Any:
    return get(manifests, "GRPCRoute/synerdiff")["spec"]["rules"][0]["backendRefs"][0]


def _secret_target(manifests: list[Any]) -> Any:
    return get(manifests, "TriggerAuthentication/redis")["spec"]["secretTargetRef"][0]


def _mps_config(manifests: list[Any]) -> Any:
    (config,) = get(manifests, "ResourceClaimTemplate/shared-gpu")["spec"]["spec"]["devices"]["config"]
    return config["opaque"]["parameters"]["sharing"]["mpsConfig"]


def _empty_directory() -> dict[str, Any]:
    return {"hostPath": {"path": "/tmp/other"}}


def _level(manifests: list[Any], level: str) -> None:
    labels = get(manifests, "Namespace/synerdiff")["metadata"]["labels"]
    labels["pod-security.kubernetes.io/enforce"] = level


def _claim(manifests: list[Any]) -> Any:
    (claim,) = (v["persistentVolumeClaim"] for v in pod(manifests, GPU)["volumes"] if "persistentVolumeClaim" in v)
    return claim


def _target(manifests: list[Any]) -> Any:
    return get(manifests, "ScaledObject/unet-worker")["spec"]["scaleTargetRef"]


def _spread(manifests: list[Any], name: str) -> Any:
    return pod(manifests, name)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]


def _query(manifests: list[Any], query: str) -> None:
    triggers(manifests, "vae-worker")[0]["metadata"]["query"] = query


def _copy_of_scaler(manifests: list[Any]) -> Any:
    scaler = get(manifests, "ScaledObject/unet-worker")
    return scaler | {"metadata": scaler["metadata"] | {"name": "again"}}


def _metric(manifests: list[Any]) -> Any:
    return get(manifests, "HorizontalPodAutoscaler/unet-worker")["spec"]["metrics"][0]["external"]["metric"]


@pytest.mark.parametrize(
    ("name", "check", "says", "mistake"),
    MISTAKES,
    ids=[f"{check}-{says.replace(' ', '_')}" for _, check, says, _ in MISTAKES],
)
def test_a_planted_mistake_is_found_by_its_check_alone(name: str, check: str, says: str, mistake: Change) -> None:
    manifests = rendered(name)
    mistake(manifests)
    found = findings(manifests)
    assert {finding.check for finding in found} == {check}
    assert any(says in str(finding) for finding in found), found


def test_every_check_has_a_mistake_planted() -> None:
    elsewhere = {"monitoring"}
    assert {check for _, check, _, _ in MISTAKES} | elsewhere == {rule.check for rule in RULES}


def test_the_command_names_what_it_finds_and_fails(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [pod.yaml]\n")
    (tmp_path / "pod.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {container: []}\n")
    assert main([str(tmp_path)]) == 1
    assert "schemas: Pod/x" in capsys.readouterr().out
