"""Kinds of Kubernetes against the schemas of its newest releases, strictly; other kinds against schemas of our own."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
from kubernetes_validate.utils import all_versions, schema_contents  # type: ignore[import-untyped]
from referencing import Registry, Resource

from deploy.checks.crd_schemas import SCHEMAS
from deploy.checks.findings import Finding
from deploy.checks.workloads import title
from deploy.kustomize import Manifest

CHECK = "schemas"
RELEASES = 3


@cache
def releases() -> tuple[str, ...]:
    """The newest releases of Kubernetes that the validator knows, oldest first, as "1.37.0"."""
    return tuple(dict.fromkeys(all_versions()))[-RELEASES:]


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """A kind that neither Kubernetes nor we have a schema for is a finding."""
    for manifest in manifests:
        text = json.dumps(manifest, sort_keys=True)
        for message in dict.fromkeys(message for release in releases() for message in _errors(text, release)):
            yield Finding(CHECK, title(manifest), message)


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
    for config in (spec.get("devices") or {}).get("config") or ():
        parameters = (config.get("opaque") or {}).get("parameters") or {}
        validator = _own_validator(parameters.get("kind", ""), parameters.get("apiVersion", ""))
        if validator is None:
            yield f"no schema knows the parameters {parameters.get('apiVersion')} {parameters.get('kind')}"
            continue
        for error in validator.iter_errors(parameters):
            yield f"parameters {'.'.join(map(str, error.absolute_path))}: {error.message}"


@cache
def _own_validator(kind: str, api_version: str) -> Any:
    schema = SCHEMAS.get((api_version, kind))
    return jsonschema.Draft202012Validator(schema) if schema else None


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
