"""Objects against each other: references that resolve, selectors that find their pods, and no needless rights."""

from collections.abc import Iterator, Mapping
from typing import Any

from deploy.checks.manifests import CONTAINERS, PODS, Container, Object, Pod, Rule, kinds, matches
from deploy.kustomize import at

# ---- references: every object that manifests name is among them, or is provided by the cluster's operator

# The operator creates these first: see README.md of deploy/k8s.
PROVIDED = frozenset(
    {("PersistentVolumeClaim", name) for name in ("models", "images")}
    | {("Secret", name) for name in ("images-s3", "redis", "callers", "redis-tls", "scheduler-tls", "worker-tls")}
)
_IN_VOLUMES = {
    "configMap": ("ConfigMap", "name"),
    "secret": ("Secret", "secretName"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}
_IN_VARIABLES = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}


def _missing(item: Object) -> Iterator[str]:
    there = {(other.kind, other.name) for other in item.given.objects} | PROVIDED
    for kind, name in _named_by_pod(item) if isinstance(item, Pod) else _named_by_scaler(item):
        if (kind, name) not in there:
            yield f"names {kind} {name}, which is not there"


def _named_by_pod(pod: Pod) -> Iterator[tuple[str, str]]:
    for kind, key, spec in (
        ("ServiceAccount", "serviceAccountName", pod.spec),
        ("PriorityClass", "priorityClassName", pod.spec),
        ("Service", "serviceName", pod.item["spec"]),
    ):
        if key in spec:
            yield kind, spec[key]
    for volume in pod.spec.get("volumes") or ():
        yield from ((kind, volume[source][key]) for source, (kind, key) in _IN_VOLUMES.items() if source in volume)
    for claim in pod.spec.get("resourceClaims") or ():
        template = claim.get("resourceClaimTemplateName")
        yield ("ResourceClaimTemplate", template) if template else ("ResourceClaim", claim["resourceClaimName"])
    for container in pod.containers:
        for source in container.at("envFrom", ()):
            kind = "ConfigMap" if "configMapRef" in source else "Secret"
            yield kind, (source.get("configMapRef") or source["secretRef"])["name"]
        for variable in container.at("env", ()):
            for key, kind in _IN_VARIABLES.items():
                if key in (variable.get("valueFrom") or {}) and not variable["valueFrom"][key].get("optional"):
                    yield kind, variable["valueFrom"][key]["name"]


def _named_by_scaler(item: Object) -> Iterator[tuple[str, str]]:
    if "scaleTargetRef" in item.spec:
        target = item.spec["scaleTargetRef"]
        yield target.get("kind", "Deployment"), target["name"]
    for trigger in item.spec.get("triggers") or ():
        if "authenticationRef" in trigger:
            yield "TriggerAuthentication", trigger["authenticationRef"]["name"]
    for source in item.spec.get("secretTargetRef") or ():
        yield "Secret", source["name"]


def _loose_ends(pod: Pod) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec.get("volumes") or ()}
    volumes |= {claim["metadata"]["name"] for claim in pod.item["spec"].get("volumeClaimTemplates") or ()}
    mounted = {mount["name"] for container in pod.containers for mount in container.at("volumeMounts", ())}
    for name in sorted(mounted - volumes):
        yield f"mounts the volume {name}, which it does not have"
    for name in sorted(volumes - mounted):
        yield f"has the volume {name}, which nobody mounts"
    claims = {claim["name"] for claim in pod.spec.get("resourceClaims") or ()}
    for container in pod.containers:
        for claim in container.at("resources.claims", ()):
            if claim["name"] not in claims:
                yield f"{container.item['name']} uses the claim {claim['name']}, which the pod does not have"


def _missing_keys(container: Container) -> Iterator[str]:
    data = container.pod.given.config_maps
    for variable in container.at("env", ()):
        reference = at(variable, "valueFrom.configMapKeyRef")
        if reference and reference["name"] in data and reference["key"] not in data[reference["name"]]:
            yield f"ConfigMap {reference['name']} has no key {reference['key']}"


def _missing_container(scaler: Object) -> Iterator[str]:
    target = scaler.spec["scaleTargetRef"]
    container, title = target.get("envSourceContainerName"), f"{target.get('kind', 'Deployment')}/{target['name']}"
    for pod in scaler.given.pods:
        if container and pod.title == title and container not in [each.item["name"] for each in pod.containers]:
            yield f"names the container {container} of {target['name']}, which has none"


# ---- selectors: each finds its intended pods


def _selector(item: Object) -> Mapping[str, Any]:
    if item.kind == "Service":
        return {"matchLabels": item.spec.get("selector") or {}}
    selector: Mapping[str, Any] = at(item.spec, "podSelector" if item.kind == "NetworkPolicy" else "selector", {})
    return selector


def _selects_none(item: Object) -> Iterator[str]:
    if not any(matches(_selector(item), pod.labels) for pod in item.given.pods):
        yield "selects no pod"


def _wrong_selectors(pod: Pod) -> Iterator[str]:
    """Workloads that do not own their pods, that spread other pods, or whose affinities select none."""
    if pod.kind == "Job":
        return  # it selects its pods by itself
    selector = pod.item["spec"]["selector"]
    if not matches(selector, pod.labels):
        yield "its selector does not match its own pods"
    for other in pod.given.pods:
        if other is not pod and matches(selector, other.labels):
            yield f"its selector also matches the pods of {other.title}"
    for spread in pod.spec.get("topologySpreadConstraints") or ():
        if not matches(spread["labelSelector"], pod.labels):
            yield f"spreads others than its own pods over {spread['topologyKey']}"
    affinity = at(pod.spec, "affinity.podAffinity", {})
    terms = [*(affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ())]
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    for term in (*terms, *(each["podAffinityTerm"] for each in preferred)):
        if not any(matches(term["labelSelector"], other.labels) for other in pod.given.pods):
            yield "wants to be near pods that there are none of"


def _wrong_budgets(pod: Pod) -> Iterator[str]:
    budgets = [each for each in pod.given.of_kind("PodDisruptionBudget") if matches(_selector(each), pod.labels)]
    if len(budgets) != (pod.kind not in ("DaemonSet", "Job")):
        yield f"has {len(budgets)} PodDisruptionBudgets"


# ---- security: the restricted Pod Security level, and a little more: a read-only root, no token, no service links

# It sets up the node's GPUs.
PRIVILEGED = frozenset({"DaemonSet/mps-daemon"})
LEVEL = "pod-security.kubernetes.io/enforce"


def _rights_of_pod(pod: Pod) -> Iterator[str]:
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of the Kubernetes API"
    if pod.spec.get("enableServiceLinks") is not False:
        yield "gets variables named after every Service"
    for key in ("hostNetwork", "hostIPC", "hostPID"):
        if pod.spec.get(key) and pod.title not in PRIVILEGED:
            yield f"{key} is on"


def _rights_of_container(container: Container) -> Iterator[str]:
    security = container.security
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image's files"
    if not container.limits.get("memory"):
        yield "has no limit to its memory"
    if container.pod.title in PRIVILEGED:
        return
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if at(security, "capabilities.drop") != ["ALL"] or at(security, "capabilities.add"):
        yield "keeps capabilities"
    if at(security, "seccompProfile.type") != "RuntimeDefault":
        yield "has no seccomp profile"


def _wrong_level(namespace: Object) -> Iterator[str]:
    opened = any("hostPath" in volume for pod in namespace.given.pods for volume in pod.spec.get("volumes") or ())
    level = namespace.labels.get(LEVEL)
    if level != ("privileged" if opened else "restricted"):
        yield f"enforces {level}, which is not what its pods need"


RULES = (
    Rule("references", PODS, _missing),
    Rule("references", kinds("ScaledObject", "HorizontalPodAutoscaler", "TriggerAuthentication"), _missing),
    Rule("references", PODS, _loose_ends),
    Rule("references", CONTAINERS, _missing_keys),
    Rule("references", kinds("ScaledObject"), _missing_container),
    Rule("selectors", PODS, _wrong_selectors),
    Rule("selectors", kinds("Service", "PodDisruptionBudget", "NetworkPolicy"), _selects_none),
    Rule("selectors", PODS, _wrong_budgets),
    Rule("security", PODS, _rights_of_pod),
    Rule("security", CONTAINERS, _rights_of_container),
    Rule("security", kinds("Namespace"), _wrong_level),
)
