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


def change(name: str, path: str, how: Callable[[Any, Any], object]) -> Change:
    """A mistake in an object. `path`: keys to what holds the mistake, and its own; a number at its start: of a
    container of the object's pod; "pod": in the pod's spec.
    """

    def plant(manifests: list[Any]) -> None:
        keys = path.split()
        keys = ["pod", "containers", *keys] if keys[0].isdigit() else keys
        keys = ["spec", "template", "spec", *keys[1:]] if keys[0] == "pod" else keys
        *way, last = (int(key) if key.lstrip("-").isdigit() else key for key in keys)
        holder = get(manifests, name)
        for key in way:
            holder = holder[key]
        how(holder, last)

    return plant


def put(name: str, path: str, value: object) -> Change:
    return change(name, path, lambda holder, key: holder.__setitem__(key, value))


def drop(name: str, path: str) -> Change:
    return change(name, path, lambda holder, key: holder.pop(key))


def add(name: str, path: str, value: object) -> Change:
    return change(name, path, lambda holder, key: holder[key].append(value))


def cut(name: str, path: str) -> Change:
    return change(name, path, lambda holder, key: holder[key].pop())


def remove(name: str) -> Change:
    return lambda manifests: manifests.remove(get(manifests, name))


def both(*changes: Change) -> Change:
    return lambda manifests: [each(manifests) for each in changes]


def variable(name: str, variable: str, value: str | None) -> Change:
    """Set anew for the first container, at the end; None: unset."""
    new = [] if value is None else [{"name": variable, "value": value}]
    return change(
        name, "0 env", lambda of, key: of.update(env=[each for each in of[key] if each["name"] != variable] + new)
    )


def mount(name: str, path: str, volume: dict[str, Any]) -> Change:
    mounted = {"name": "planted", "mountPath": path}
    return both(add(name, "pod volumes", {"name": "planted", **volume}), add(name, "0 volumeMounts", mounted))


DEPLOYED = ("scheduler", "gateway", "unet-worker", "vae-worker", "gpu-worker")
SCHEDULER, GATEWAY, UNET, VAE, GPU = (f"Deployment/{name}" for name in DEPLOYED)
REDIS, SETTINGS = "StatefulSet/redis", "ConfigMap/scheduler"
SCALER, VAE_SCALER, HPA_OF_UNET = "ScaledObject/unet-worker", "ScaledObject/vae-worker", "HorizontalPodAutoscaler/unet"
DEV, COLOCATED, KEDA = "overlays/dev-cpu", "overlays/colocated", "overlays/split-keda"
DAEMON, HPA = "overlays/colocated-mps-daemon", "split with an HPA and a load balancer"
DRA, TLS = "colocated by DRA, weights from an image", "dev-cpu with TLS and a password"
PASSWORD = "split-keda with TLS and a password"

MPS_CONFIG = "spec spec devices config 0 opaque parameters sharing mpsConfig activeThreadPercentage"
IN_MEMORY = {"emptyDir": {"medium": "Memory"}}
SPREAD = "pod topologySpreadConstraints 0 labelSelector matchLabels app.kubernetes.io/component"
LEVEL = "metadata labels pod-security.kubernetes.io/enforce"
SHARED, PERCENTAGE = "0 resources limits nvidia.com/gpu.shared", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
METRIC = "spec metrics 0 external metric"
DECODES = 'max(synerdiff_decode_seconds{model="sdxl"})'
ANYBODY: dict[str, Any] = {"podSelector": {}}
OPEN = [{"protocol": "TCP", "port": 50053}]

# (the set, the check that has to speak up, part of what it says, the mistake)
MISTAKES: list[tuple[str, str, str, Change]] = [
    # Schemas: of Kubernetes, of KEDA, of a DRA driver; kinds that nobody knows.
    (DEV, "schemas", "periodSecond", put(UNET, "0 readinessProbe periodSecond", 5)),
    (DEV, "schemas", "maxUnavailible", put("PodDisruptionBudget/redis", "spec maxUnavailible", 1)),
    (DEV, "schemas", "is not of type", put(UNET, "0 env 0 value", 5)),
    (DEV, "schemas", "no schema knows", put("Service/redis", "kind", "Servise")),
    (DEV, "schemas", "no schema knows", put(UNET, "apiVersion", "apps/v1beta1")),
    (KEDA, "schemas", "streamName", put(SCALER, "spec triggers 0 metadata streamName", "x")),
    (KEDA, "schemas", "activationLag", put(SCALER, "spec triggers 0 metadata activationLag", "0")),
    (KEDA, "schemas", "cooldown", put(VAE_SCALER, "spec cooldown", 1)),
    (KEDA, "schemas", "16 is not", put(SCALER, "spec triggers 0 metadata lagCount", 16)),
    (KEDA, "schemas", "'query' is a required", drop(VAE_SCALER, "spec triggers 0 metadata query")),
    (PASSWORD, "schemas", "pasword", put("TriggerAuthentication/redis", "spec secretTargetRef 0 parameter", "pasword")),
    (DRA, "schemas", "activeThreadPercentage", put("ResourceClaimTemplate/shared-gpu", MPS_CONFIG, 5)),
    # The environment against the settings classes.
    (DEV, "environment", "SYNERDIFF_LISTN", variable(UNET, "SYNERDIFF_LISTN", "x:1")),
    (DEV, "environment", "SINERDIFF_POOL", variable(UNET, "SINERDIFF_POOL", "x")),
    (DEV, "environment", "SYNERDIFF_SLOTS is no", variable(VAE, "SYNERDIFF_SLOTS", "8")),
    (DEV, "environment", "SYNERDIFF_SLOTS: ", variable(UNET, "SYNERDIFF_SLOTS", "many")),
    (DEV, "environment", "SYNERDIFF_POLICY", put(SETTINGS, "data SYNERDIFF_POLICY", "x")),
    (DEV, "environment", "not set before", change(UNET, "0 env", lambda of, key: of[key].reverse())),
    (DEV, "environment", "no other pod", variable(UNET, "SYNERDIFF_LISTEN", "127.0.0.1:50052")),
    (DEV, "environment", "not the address", variable(UNET, "SYNERDIFF_ADVERTISE", None)),
    (DEV, "environment", "no volume brings", variable(UNET, "SYNERDIFF_MODEL", "/weights/x")),
    (TLS, "environment", "and not all", drop("ConfigMap/services", "data SYNERDIFF_TLS_CA")),
    (TLS, "environment", "no volume brings", both(cut(GATEWAY, "0 volumeMounts"), cut(GATEWAY, "pod volumes"))),
    # Ports.
    (DEV, "ports", "serves 9099", variable(SCHEDULER, "SYNERDIFF_METRICS_PORT", "9099")),
    (DEV, "ports", "ports named metrics", put(UNET, "0 ports 2 containerPort", 9099)),
    (DEV, "ports", "advertises port", variable(UNET, "SYNERDIFF_ADVERTISE", "10.0.0.1:50053")),
    (DEV, "ports", "leads to api", put("Service/scheduler-", "spec ports 0 targetPort", "api")),
    (COLOCATED, "ports", "declared 2 times", put(GPU, "1 ports 2 name", "metrics")),
    (DEV, "ports", "ports named http", put(GATEWAY, "0 ports 0 name", "web")),
    # Probes.
    (DEV, "probes", "'ready'", put(UNET, "0 readinessProbe grpc service", "ready")),
    (DEV, "probes", "asks port 50052", put(UNET, "0 livenessProbe grpc port", 50052)),
    (DEV, "probes", "startupProbe", drop(SCHEDULER, "0 startupProbe")),
    (DEV, "probes", "no readinessProbe", drop(REDIS, "0 readinessProbe")),
    (DEV, "probes", "/readyz on port 8000", put(GATEWAY, "0 readinessProbe httpGet path", "/healthz")),
    # Grace periods.
    (DEV, "grace", "is killed after 540 s", put(VAE, "pod terminationGracePeriodSeconds", 540)),
    (DEV, "grace", "is killed after 30 s", drop(SCHEDULER, "pod terminationGracePeriodSeconds")),
    (DEV, "grace", "jobs may take 3600 s", drop(SETTINGS, "data SYNERDIFF_MAX_TIMEOUT_S")),
    (DEV, "grace", "drains for 30 s", put("ConfigMap/gateway", "data SYNERDIFF_DRAIN_GRACE_S", "30")),
    # What workers of one GPU share.
    (COLOCATED, "sharing", "MPS serves one user", put(GPU, "1 securityContext runAsUser", 10002)),
    (COLOCATED, "sharing", "process ids", drop(GPU, "pod shareProcessNamespace")),
    (COLOCATED, "sharing", "over /dev/shm", mount(GPU, "/dev/shm", IN_MEMORY)),
    (DRA, "sharing", "over /dev/shm", mount(GPU, "/dev", IN_MEMORY)),
    (DAEMON, "sharing", "more than one way", put(GPU, "pod nodeSelector", {"nvidia.com/mps.capable": "true"})),
    (DRA, "sharing", "by a claim and a share", put(GPU, SHARED, "1")),
    (COLOCATED, "sharing", "2 shares", put(GPU, SHARED, "2")),
    *(
        (name, "sharing", "without the MPS daemon", drop("ConfigMap/workers", "data SYNERDIFF_REQUIRE_MPS"))
        for name in (COLOCATED, DAEMON, DRA)
    ),
    (DAEMON, "sharing", "with an MPS daemon", put(GPU, "pod volumes -2 hostPath", {"path": "/tmp/other"})),
    (DAEMON, "sharing", "more than 100 %", variable(GPU, PERCENTAGE, "80")),
    (DAEMON, "sharing", "at most 100", variable(GPU, PERCENTAGE, "70%")),
    (DAEMON, "sharing", "MEM_LIMIT", variable(GPU, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "14Gi")),
    # Rights.
    (DEV, "security", "write to its image", drop(UNET, "0 securityContext readOnlyRootFilesystem")),
    (DEV, "security", "capabilities", put(UNET, "0 securityContext capabilities add", ["SYS_PTRACE"])),
    (DEV, "security", "token", drop(UNET, "pod automountServiceAccountToken")),
    (DEV, "security", "hostIPC", put(UNET, "pod hostIPC", True)),
    (DEV, "security", "no limit", drop(UNET, "0 resources limits")),
    (DAEMON, "security", "enforces restricted", put("Namespace/synerdiff", LEVEL, "restricted")),
    # Whatever is named is there.
    (DEV, "references", "ServiceAccount worker", remove("ServiceAccount/worker")),
    (DEV, "references", "Secret other", mount(UNET, "/tls", {"secret": {"secretName": "other"}})),
    (COLOCATED, "references", "PersistentVolumeClaim", lambda m: _claim(m).update(claimName="model")),
    (DEV, "references", "PriorityClass", put(UNET, "pod priorityClassName", "high")),
    (DEV, "references", "which nobody mounts", cut(UNET, "0 volumeMounts")),
    (DRA, "references", "ResourceClaimTemplate", remove("ResourceClaimTemplate/shared-gpu")),
    (
        KEDA,
        "references",
        "container unet-worker",
        put(SCALER, "spec scaleTargetRef envSourceContainerName", "unet-worker"),
    ),
    (KEDA, "references", "Deployment unet", put(SCALER, "spec scaleTargetRef name", "unet")),
    # Selectors.
    (DEV, "selectors", "own pods", put(UNET, "spec selector matchLabels x", "y")),
    (DEV, "selectors", "selects no pod", put("Service/scheduler-", "spec selector x", "y")),
    (DEV, "selectors", "has 0 Pod", remove("PodDisruptionBudget/vae-worker")),
    (DEV, "selectors", "spreads others", put(UNET, SPREAD, "vae-worker")),
    # Images and commands.
    (DEV, "programs", "no module", put(UNET, "0 command 2", "services.unet")),
    (DEV, "programs", "names no version", put(UNET, "0 image", "r.example/synerdiff/unet-worker:latest")),
    (DEV, "programs", "in the image", put(UNET, "0 image", "r.example/synerdiff/vae-worker:0.1.0")),
    (DEV, "programs", "no registry", put(UNET, "0 image", "synerdiff/unet-worker:0.1.0")),
    (DEV, "programs", "no registry", put(REDIS, "0 image", "redis:8.2")),
    (DEV, "programs", "in the image", put(REDIS, "0 command", ["redis"])),
    # Network policies.
    (DEV, "network", "none denies", remove("NetworkPolicy/default-deny")),
    (DEV, "network", "is not let in", put("NetworkPolicy/unet-worker", "spec ingress", [])),
    (DEV, "network", "50051, and is not let out", put("NetworkPolicy/gateway", "spec egress", [])),
    (DEV, "network", "is not let out", put("NetworkPolicy/to-redis", "spec egress 0 ports 0 port", 6380)),
    (DEV, "network", "for everybody", add("NetworkPolicy/redis", "spec ingress", {})),
    (
        DEV,
        "network",
        "without needing to",
        both(
            add("NetworkPolicy/vae-worker", "spec ingress", {"from": [ANYBODY], "ports": OPEN}),
            add("NetworkPolicy/to-redis", "spec egress", {"to": [ANYBODY], "ports": OPEN}),
        ),
    ),
    (DEV, "network", "ask for names", put("NetworkPolicy/dns", "spec egress", [])),
    (DEV, "network", "NodeLocal DNSCache", drop("NetworkPolicy/dns", "spec egress 0 to 1")),
    (DEV, "network", "OpenShift", drop("NetworkPolicy/dns", "spec egress 1")),
    ("weights", "network", "no way out", put("NetworkPolicy/weights-loader", "spec egress", [])),
    (PASSWORD, "network", "leads nowhere", put("GRPCRoute/synerdiff", "spec rules 0 backendRefs 0 name", "schedulers")),
    # Autoscalers.
    (
        KEDA,
        "scaling",
        "no stream of 'sdxl'",
        put(SCALER, "spec triggers 0 metadata stream", "synerdiff:queue:emoji:high"),
    ),
    (KEDA, "scaling", "no group", put(SCALER, "spec triggers 1 metadata consumerGroup", "unet")),
    (KEDA, "scaling", "does not go by the pendingEntriesCount", drop(SCALER, "spec triggers 1")),
    (KEDA, "scaling", "no Service", put(SCALER, "spec triggers 2 metadata address", "redis:6379")),
    (KEDA, "scaling", "is called synerdiff_decode_seconds", put(VAE_SCALER, "spec triggers 0 metadata query", DECODES)),
    (
        KEDA,
        "scaling",
        "not of 'sdxl'",
        put(VAE_SCALER, "spec triggers 0 metadata query", "max(synerdiff_decode_backlog_seconds)"),
    ),
    (KEDA, "scaling", "before the first worker", put(SCALER, "spec initialCooldownPeriod", 60)),
    (KEDA, "scaling", "no fallback", drop(SCALER, "spec fallback")),
    (KEDA, "scaling", "replicas of its own", put(UNET, "spec replicas", 2)),
    (KEDA, "scaling", "only one that scales", lambda m: m.append(get(m, SCALER) | {"metadata": {"name": "again"}})),
    (HPA, "scaling", "is called synerdiff_queue", put(HPA_OF_UNET, f"{METRIC} name", "synerdiff_queue_length")),
    (HPA, "scaling", "of another model", put(HPA_OF_UNET, f"{METRIC} selector matchLabels model", "emoji")),
    (COLOCATED, "scaling", "requests none", drop(GATEWAY, "0 resources requests cpu")),
]


def _claim(manifests: list[Any]) -> Any:
    volumes = get(manifests, GPU)["spec"]["template"]["spec"]["volumes"]
    (claim,) = (volume["persistentVolumeClaim"] for volume in volumes if "persistentVolumeClaim" in volume)
    return claim


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
