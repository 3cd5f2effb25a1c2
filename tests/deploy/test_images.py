"""The images, as far as they can be checked without docker: their Dockerfiles against code, packages and manifests."""

import json
import os
import re
import subprocess
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deploy.docker.requirements import requirements
from tests.deploy.dockerfiles import Dockerfile, read_dockerfile
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
SERVICES = ("scheduler", "gateway", "unet-worker", "vae-worker")
WORKERS = SERVICES[2:]

# Of the 150 MB that a scheduler may install: itself, and the bytecode of what it imports, 17 MB when last weighed.
BYTECODE_BYTES = 20e6
MOST_BYTES = 150e6


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dockerfile(service: str) -> Dockerfile:
    return read_dockerfile(DOCKER / f"{service}.Dockerfile")


def container(service: str) -> dict[str, Any]:
    """The only container of a service's Deployment."""
    documents = yaml.safe_load_all((ROOT / "deploy" / "k8s" / "base" / f"{service}.yaml").read_text())
    deployment = next(document for document in documents if document["kind"] == "Deployment")
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def extras(service: str) -> list[str]:
    """The extras that a Dockerfile installs by default."""
    found = re.search(r'^ARG EXTRAS="(.*)"$', (DOCKER / f"{service}.Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path` from the builder: the last pattern that fits decides."""
    result = False
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        bare = pattern.removeprefix("!")
        if pattern and not pattern.startswith("#") and (fnmatch(path, bare) or path.startswith(bare + "/")):
            result = not pattern.startswith("!")
    return result


def test_the_base_is_an_argument_with_a_place_for_its_digest(dockerfile: Dockerfile) -> None:
    assert set(dockerfile.arguments) == {"PYTHON_IMAGE", "PYTHON_DIGEST"}
    name, _, tag = dockerfile.arguments["PYTHON_IMAGE"].partition(":")
    assert (name, tag != "", tag != "latest") == ("python", True, True)
    first, builder, image = dockerfile.stages
    assert first[0].text == "${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS base"
    assert (builder[0].text, image[0].text) == ("base AS builder", "base")


def test_it_runs_as_the_user_that_all_images_share_and_starts_no_shell(dockerfile: Dockerfile, service: str) -> None:
    assert dockerfile.texts("USER") == ["10001:10001"]
    assert dockerfile.texts("RUN") == [], "the image itself is put together without a shell"
    (command,) = dockerfile.texts("CMD")
    assert json.loads(command) == ["python", "-m", f"services.{service.replace('-', '_')}"]
    assert dockerfile.texts("ENTRYPOINT") == []


def test_the_manifests_start_the_same_command_on_the_ports_it_exposes(dockerfile: Dockerfile, service: str) -> None:
    found = container(service)
    assert found["command"] == json.loads(dockerfile.texts("CMD")[0])
    assert found["image"] == f"registry.invalid/synerdiff/{service}"
    exposed = dockerfile.texts("EXPOSE")[0].split()
    assert [str(port["containerPort"]) for port in found["ports"]] == exposed


def test_everything_written_to_is_a_volume_where_the_root_is_read_only(dockerfile: Dockerfile, service: str) -> None:
    found = container(service)
    assert found["securityContext"]["readOnlyRootFilesystem"]
    volumes = [mount["mountPath"] for mount in found["volumeMounts"] if not mount.get("readOnly")]
    written = {n: v for n, v in dockerfile.environment.items() if n.endswith(("HOME", "_DIR", "_PATH"))}
    assert "HOME" in written
    for name, path in written.items():
        assert any(Path(path).is_relative_to(volume) for volume in volumes), f"{name}={path}"
    assert dockerfile.environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert not [name for name in dockerfile.environment if name.startswith("SYNERDIFF_")], "settings are the manifests'"


def test_what_is_copied_is_there_and_reaches_the_builder(dockerfile: Dockerfile) -> None:
    copies = [found for stage in dockerfile.stages for instruction in stage if (found := instruction.copied)]
    sources = [source for paths, _ in copies for source in paths]
    assert {"pyproject.toml", "constraints.txt", "synerdiff", "services"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert ignored("tests")
    assert ignored("models/emoji/train.py")
    assert ignored(".venv")


def test_it_is_labelled(dockerfile: Dockerfile) -> None:
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", " ".join(dockerfile.texts("LABEL"))))
    assert labels == {"title", "description", "licenses", "version", "revision"}


@pytest.mark.parametrize("service", WORKERS)
def test_workers_carry_the_bundled_model_where_the_cpu_overlay_looks(dockerfile: Dockerfile) -> None:
    copies = [found for instruction in dockerfile.image if (found := instruction.copied)]
    assert copies == [(["models/emoji/model"], "/app/models/emoji/model")]
    overlay = (ROOT / "deploy" / "k8s" / "overlays" / "dev-cpu" / "kustomization.yaml").read_text()
    assert "SYNERDIFF_MODEL=/app/models/emoji/model" in overlay


def test_the_two_workers_differ_in_their_names_alone() -> None:
    def text(service: str, kind: str) -> str:
        lines = (DOCKER / f"{service}.Dockerfile").read_text().splitlines()
        kept = [line for line in lines[1:] if not re.search(r"image\.(title|description)=|^EXPOSE", line)]
        return "\n".join(kept).replace(f"{kind}_worker", "worker")

    assert text("unet-worker", "unet") == text("vae-worker", "vae")


# ---- what a scheduler installs


def closure(wanted: list[str]) -> dict[str, metadata.Distribution]:
    """Every distribution that the requirements lead to, as they are installed here, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(requirement, {""}) for requirement in map(Requirement, wanted)]
    while waiting:
        requirement, of_extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in of_extras):
            continue
        distribution = metadata.distribution(requirement.name)
        if distribution.metadata["Name"].lower() in found:
            continue
        found[distribution.metadata["Name"].lower()] = distribution
        waiting += [(Requirement(line), {"", *requirement.extras}) for line in distribution.requires or ()]
    return found


def installed_bytes(distribution: metadata.Distribution) -> int:
    """The bytes of a distribution's files, less what the image leaves out: bytecode and tests."""
    kept = [f for f in distribution.files or () if f.suffix != ".pyc" and "tests" not in f.parts]
    return sum(path.stat().st_size for f in kept if (path := Path(str(f.locate()))).is_file())


def test_the_extras_exist() -> None:
    for service in SERVICES:
        requirements(ROOT / "pyproject.toml", extras(service))
    assert not {"worker"} & {*extras("scheduler"), *extras("gateway")}
    assert all("worker" in extras(worker) for worker in WORKERS)


def test_a_scheduler_installs_no_torch_and_less_than_150_mb() -> None:
    found = closure(requirements(ROOT / "pyproject.toml", extras("scheduler")))
    assert {"grpcio", "numpy", "redis", "opentelemetry-sdk"} <= set(found)
    assert not {"torch", "diffusers", "transformers", "safetensors", "accelerate"} & set(found)
    sizes = {name: installed_bytes(distribution) for name, distribution in found.items()}
    largest = sorted(sizes.items(), key=lambda size: -size[1])[:8]
    assert 50e6 < sum(sizes.values()) < MOST_BYTES - BYTECODE_BYTES, largest


def test_a_gateway_installs_no_torch_and_no_more_than_a_scheduler_may() -> None:
    found = closure(requirements(ROOT / "pyproject.toml", extras("gateway")))
    assert {"grpcio", "fastapi", "uvicorn", "pillow"} <= set(found)
    assert not {"torch", "diffusers", "transformers", "safetensors", "accelerate"} & set(found)
    assert sum(map(installed_bytes, found.values())) < MOST_BYTES - BYTECODE_BYTES


# ---- make images


def make_images(docker: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "DOCKER": str(docker), **variables}
    command = ["sh", str(DOCKER / "build.sh")]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S)


def test_where_docker_cannot_run_one_line_says_so(tmp_path: Path) -> None:
    done = make_images(tmp_path / "none")
    assert done.returncode == 1
    assert "needs a running docker daemon" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_image_is_built_with_the_arguments_they_know(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = info ] || printf "%s\\n" "$*"\n')
    docker.chmod(0o755)
    done = make_images(docker, TAG="7", REGISTRY="r/t", TORCH_INDEX_URL="x", WORKER_EXTRAS="worker gpu")
    builds = [line for line in done.stdout.splitlines() if line.startswith("build ")]
    assert [re.findall(r"--tag (\S+)", line) for line in builds] == [[f"r/t/synerdiff/{name}:7"] for name in SERVICES]
    for service, line in zip(SERVICES, builds, strict=True):
        declared = set(re.findall(r"^ARG (\w+)", (DOCKER / f"{service}.Dockerfile").read_text(), re.MULTILINE))
        assert set(re.findall(r"--build-arg (\w+)=", line)) <= declared
    assert ["EXTRAS=worker gpu" in line for line in builds] == [service in WORKERS for service in SERVICES]
