"""Strict schemas of kinds that Kubernetes itself does not know, from their documented fields.

Of KEDA (2.20) ScaledObject with the two triggers used here and TriggerAuthentication; of the Prometheus operator
PodMonitor, ServiceMonitor and PrometheusRule; of NVIDIA's DRA driver the parameters GpuConfig. A field that is missing
here is refused: add it with the first manifest that needs it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_BOOL: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "string", "pattern": "^[0-9]+$"}
_NUMBER: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}
_TRUTH: Schema = {"enum": ["true", "false"]}
_QUANTITY: Schema = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?([KMGT]i?)?$"}
_DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"}


def _whole(least: int = 0, most: int = 2**31 - 1) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def _list(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


def _map(values: Schema = _TEXT) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _object(properties: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def _texts(*names: str) -> dict[str, Schema]:
    return dict.fromkeys(names, _TEXT)


def _kind(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = _object({**_texts("name", "namespace"), "labels": _map(), "annotations": _map()}, ["name"])
    properties = {"apiVersion": _one_of(api_version), "kind": _one_of(kind), "metadata": metadata, "spec": spec}
    return _object(properties, list(properties))


def _scaled_object() -> Schema:
    policy = {"type": _one_of("Pods", "Percent"), "value": _whole(1), "periodSeconds": _whole(1, 1800)}
    rules = _object(
        {
            "stabilizationWindowSeconds": _whole(0, 3600),
            "selectPolicy": _one_of("Max", "Min", "Disabled"),
            "policies": _list(_object(policy, list(policy))),
        }
    )
    behaviors = ("static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower", "scalingModifiers")
    fallback = {"failureThreshold": _whole(), "replicas": _whole(), "behavior": _one_of(*behaviors)}
    autoscaler = {"name": _TEXT, "behavior": _object({"scaleUp": rules, "scaleDown": rules})}
    modifiers = {**_texts("formula", "target", "activationTarget"), "metricType": _one_of("AverageValue", "Value")}
    counts = ("pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount", "minReplicaCount")
    spec = {
        "scaleTargetRef": _object(_texts("apiVersion", "kind", "name", "envSourceContainerName"), ["name"]),
        **dict.fromkeys(counts, _whole()),
        "maxReplicaCount": _whole(1),
        "fallback": _object(fallback, ["failureThreshold", "replicas"]),
        "advanced": _object(
            {
                "restoreToOriginalReplicaCount": _BOOL,
                "horizontalPodAutoscalerConfig": _object(autoscaler),
                "scalingModifiers": _object(modifiers),
            }
        ),
        "triggers": _list(_trigger(), 1),
    }
    return _object(spec, ["scaleTargetRef", "triggers"])


def _trigger() -> Schema:
    authentication = {"name": _TEXT, "kind": _one_of("TriggerAuthentication", "ClusterTriggerAuthentication")}
    trigger = _object(
        {
            "type": _one_of(*TRIGGER_METADATA),
            "name": _TEXT,
            "metricType": _one_of("AverageValue", "Value"),
            "useCachedMetrics": _BOOL,
            "authenticationRef": _object(authentication, ["name"]),
            "metadata": {"type": "object"},
        },
        ["type", "metadata"],
    )
    trigger["allOf"] = [
        {"if": {"properties": {"type": {"const": name}}}, "then": {"properties": {"metadata": metadata}}}
        for name, metadata in TRIGGER_METADATA.items()
    ]
    return trigger


def _trigger_authentication() -> Schema:
    parameters = _one_of("username", "password", "tls", "ca", "cert", "key")
    secret = {"parameter": parameters, **_texts("name", "key")}
    variable = {"parameter": parameters, **_texts("name", "containerName")}
    return _object(
        {
            "secretTargetRef": _list(_object(secret, list(secret)), 1),
            "env": _list(_object(variable, ["parameter", "name"]), 1),
        }
    )


def _monitor(endpoints: str, endpoint: Mapping[str, Schema]) -> Schema:
    operators = _one_of("In", "NotIn", "Exists", "DoesNotExist")
    expression = {"key": _TEXT, "operator": operators, "values": _list(_TEXT)}
    relabeling = {
        "sourceLabels": _list(_TEXT),
        **_texts("separator", "targetLabel", "regex", "replacement"),
        "action": _one_of("replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep", "lowercase", "uppercase"),
    }
    scrape = {
        **_texts("port", "path", "scheme"),
        **dict.fromkeys(("interval", "scrapeTimeout"), _DURATION),
        **dict.fromkeys(("relabelings", "metricRelabelings"), _list(_object(relabeling))),
        "honorLabels": _BOOL,
    }
    selector = {
        "matchLabels": _map(),
        "matchExpressions": _list(_object(expression, ["key", "operator"])),
    }
    spec = {
        "jobLabel": _TEXT,
        "podTargetLabels": _list(_TEXT),
        "namespaceSelector": _object({"any": _BOOL, "matchNames": _list(_TEXT)}),
        "selector": _object(selector),
        endpoints: _list(_object({**scrape, **endpoint}), 1),
    }
    return _object(spec, ["selector", endpoints])


def _prometheus_rule() -> Schema:
    rule = _object(
        {
            **_texts("record", "alert", "expr"),
            **dict.fromkeys(("for", "keep_firing_for"), _DURATION),
            **dict.fromkeys(("labels", "annotations"), _map()),
        },
        ["expr"],
    )
    rule["oneOf"] = [{"required": ["alert"]}, {"required": ["record"]}]
    group = {"name": _TEXT, "interval": _DURATION, "rules": _list(rule, 1)}
    return _object({"groups": _list(_object(group, ["name", "rules"]), 1)}, ["groups"])


def _gpu_config() -> Schema:
    mps = {
        "defaultActiveThreadPercentage": _whole(1, 100),
        "defaultPinnedDeviceMemoryLimit": _QUANTITY,
        "defaultPerDevicePinnedMemoryLimit": _map(_QUANTITY),
    }
    slices = {"interval": _one_of("Default", "Short", "Medium", "Long")}
    sharing = {
        "strategy": _one_of("MPS", "TimeSlicing"),
        "mpsConfig": _object(mps),
        "timeSlicingConfig": _object(slices),
    }
    head = {"apiVersion": _one_of("resource.nvidia.com/v1beta1"), "kind": _one_of("GpuConfig")}
    return _object({**head, "sharing": _object(sharing, ["strategy"])}, list(head))


TRIGGER_METADATA: dict[str, Schema] = {
    "redis-streams": _object(
        {
            **_texts("address", "addressFromEnv", "usernameFromEnv", "passwordFromEnv", "stream", "consumerGroup"),
            **dict.fromkeys(("lagCount", "activationLagCount", "pendingEntriesCount", "databaseIndex"), _COUNT),
            **dict.fromkeys(("enableTLS", "unsafeSsl"), _TRUTH),
        },
        ["stream", "consumerGroup"],
    ),
    "prometheus": _object(
        {
            **_texts("serverAddress", "query", "namespace", "customHeaders", "timeout"),
            **dict.fromkeys(("threshold", "activationThreshold"), _NUMBER),
            **dict.fromkeys(("ignoreNullValues", "unsafeSsl"), _TRUTH),
        },
        ["serverAddress", "query", "threshold"],
    ),
}

KEDA, PROMETHEUS, NVIDIA = "keda.sh/v1alpha1", "monitoring.coreos.com/v1", "resource.nvidia.com/v1beta1"
_POD_ENDPOINT = {"portNumber": _whole(1, 65535), "filterRunning": _BOOL}
_SERVICE_ENDPOINT: dict[str, Schema] = {"targetPort": {"type": ["string", "integer"]}}

SCHEMAS: dict[tuple[str, str], Schema] = {
    (KEDA, "ScaledObject"): _kind(KEDA, "ScaledObject", _scaled_object()),
    (KEDA, "TriggerAuthentication"): _kind(KEDA, "TriggerAuthentication", _trigger_authentication()),
    (PROMETHEUS, "PodMonitor"): _kind(PROMETHEUS, "PodMonitor", _monitor("podMetricsEndpoints", _POD_ENDPOINT)),
    (PROMETHEUS, "ServiceMonitor"): _kind(PROMETHEUS, "ServiceMonitor", _monitor("endpoints", _SERVICE_ENDPOINT)),
    (PROMETHEUS, "PrometheusRule"): _kind(PROMETHEUS, "PrometheusRule", _prometheus_rule()),
    (NVIDIA, "GpuConfig"): _gpu_config(),
}
