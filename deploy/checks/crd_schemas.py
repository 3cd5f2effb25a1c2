"""Strict schemas of kinds that Kubernetes itself does not know: crd_schemas.yaml, with its words spelled out."""

from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WORDS: dict[str, Schema] = {
    "text": _TEXT,
    "texts": {"type": "object", "additionalProperties": _TEXT},
    "bool": {"type": "boolean"},
    "count": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "positive": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    # What is written as a text all the same.
    "digits": {"type": "string", "pattern": "^[0-9]+$"},
    "number": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"},
    "truth": {"enum": ["true", "false"]},
    "duration": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"},
    "quantity": {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?([KMGT]i?)?$"},
}
_METADATA = {"fields": {"name": "text", "namespace": "text", "labels": "texts", "annotations": "texts"}}


def _spelled_out(schema: Any) -> Any:
    if isinstance(schema, str):
        return _WORDS.get(schema, schema)
    if isinstance(schema, list):
        return [_spelled_out(item) if isinstance(item, dict) else item for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: Schema = {}
    for key, value in schema.items():
        if key == "fields":
            fields = {name: _spelled_out(of) for name, of in value.items()}
            found |= {"type": "object", "properties": fields, "additionalProperties": False}
        elif key in ("list", "some"):
            found |= {"type": "array", "items": _spelled_out(value), "minItems": int(key == "some")}
        elif key in ("properties", "additionalProperties", "if", "then", "allOf"):
            inner = {name: _spelled_out(of) for name, of in value.items()} if key == "properties" else None
            found[key] = inner or _spelled_out(value)
        else:
            found[key] = value
    return found


def _of_kind(api_version: str, kind: str, schema: Any) -> Schema:
    holds = "sharing" if kind == "GpuConfig" else "spec"
    fields = {"apiVersion": {"enum": [api_version]}, "kind": {"enum": [kind]}, holds: schema}
    if holds == "spec":
        fields["metadata"] = _METADATA | {"required": ["name"]}
    whole: Schema = _spelled_out({"fields": fields, "required": list(fields)})
    return whole


SCHEMAS: dict[tuple[str, str], Schema] = {
    (api_version, kind): _of_kind(api_version, kind, schema)
    for api_version, kinds in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items()
    for kind, schema in kinds.items()
}
