"""Kinds of Kubernetes against the schemas of its newest releases, strictly; other kinds against schemas of our own."""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from kubernetes_validate.utils import all_versions, schema_contents  # type: ignore[import-untyped]
from referencing import Registry, Resource

from deploy.checks.manifests import OBJECTS, Object, Rule
from deploy.kustomize import at

RELEASES = 3


@cache
def releases() -> tuple[str, ...]:
    """The newest releases of Kubernetes that the validator knows, oldest first, as "1.37.0"."""
    return tuple(dict.fromkeys(all_versions()))[-RELEASES:]


def _wrong(manifest: Object) -> Iterator[str]:
    """A kind that neither Kubernetes nor we have a schema for is a finding."""
    text = json.dumps(manifest.item, sort_keys=True)
    yield from dict.fromkeys(message for release in releases() for message in _errors(text, release))


@cache
def _errors(text: str, release: str) -> tuple[str, ...]:
    manifest = json.loads(text)
    kind, api_version = manifest.get("kind", ""), manifest.get("apiVersion", "")
    validator = _own_validator(kind, api_version) or _validator(kind, api_version, release)
    if validator is None:
        return (f"no schema knows {api_version} {kind}",)
    return tuple(
        f"{'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message}"
        for error in validator.iter_errors(manifest)
    ) + tuple(_opaque_errors(manifest))


def _opaque_errors(manifest: Any) -> Iterator[str]:
    """Parameters of DRA drivers, which Kubernetes hands on unread."""
    if manifest.get("kind") not in ("ResourceClaim", "ResourceClaimTemplate"):
        return
    spec = manifest["spec"]["spec"] if manifest["kind"] == "ResourceClaimTemplate" else manifest["spec"]
    for config in at(spec, "devices.config", ()):
        parameters = at(config, "opaque.parameters", {})
        validator = _own_validator(parameters.get("kind", ""), parameters.get("apiVersion", ""))
        if validator is None:
            yield f"no schema knows the parameters {parameters.get('apiVersion')} {parameters.get('kind')}"
            continue
        for error in validator.iter_errors(parameters):
            yield f"parameters {'.'.join(map(str, error.absolute_path))}: {error.message}"


@cache
def _validator(kind: str, api_version: str, release: str) -> Any:
    group, _, version = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}-{version}" if group else f"{kind.lower()}-{version}"
    folder = f"kubernetes-json-schema/v{release}-local-strict"
    if not files("kubernetes_validate").joinpath(folder, f"{name}.json").is_file():
        return None
    schema = schema_contents(f"{folder}/{name}.json", release)
    of_kind = schema.get("x-kubernetes-group-version-kind") or ()
    if {"group": group, "kind": kind, "version": version} not in of_kind:
        return None
    return jsonschema.Draft202012Validator(schema, registry=_definitions(release))


@cache
def _definitions(release: str) -> Any:
    contents = schema_contents(f"kubernetes-json-schema/v{release}-local-strict/_definitions.json", release)
    empty: Registry[Any] = Registry()
    return (Resource.from_contents(contents) @ empty).crawl()


# ---- schemas of our own: schemas.yaml, with its words spelled out

_WORDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "texts": {"type": "object", "additionalProperties": {"type": "string"}},
    "bool": {"type": "boolean"},
    "count": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "positive": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    # Values that are written as text in spite of their type.
    "digits": {"type": "string", "pattern": "^[0-9]+$"},
    "number": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"},
    "truth": {"enum": ["true", "false"]},
    "duration": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"},
    "quantity": {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?([KMGT]i?)?$"},
}
_METADATA = {"fields": {"name": "text", "namespace": "text", "labels": "texts", "annotations": "texts"}}


def _spelled_out(schema: Any) -> Any:
    if isinstance(schema, list):  # of schemas, or of names
        return [_spelled_out(item) if isinstance(item, dict) else item for item in schema]
    if not isinstance(schema, dict):
        return _WORDS.get(schema, schema) if isinstance(schema, str) else schema
    found = {key: _spelled_out(value) for key, value in schema.items()}
    if "fields" in found:
        found |= {"type": "object", "properties": found.pop("fields"), "additionalProperties": False}
    for key in found.keys() & {"list", "some"}:
        found |= {"type": "array", "items": found.pop(key), "minItems": int(key == "some")}
    return found


@cache
def _own_schemas() -> dict[tuple[str, str], Any]:
    found = {}
    for api_version, of_kinds in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items():
        for kind, schema in of_kinds.items():
            holds = "sharing" if kind == "GpuConfig" else "spec"
            fields = {"apiVersion": {"enum": [api_version]}, "kind": {"enum": [kind]}, holds: schema}
            if holds == "spec":
                fields["metadata"] = _METADATA | {"required": ["name"]}
            found[api_version, kind] = _spelled_out({"fields": fields, "required": list(fields)})
    return found


@cache
def _own_validator(kind: str, api_version: str) -> Any:
    schema = _own_schemas().get((api_version, kind))
    return jsonschema.Draft202012Validator(schema) if schema else None


RULES = (Rule("schemas", OBJECTS, _wrong),)
