"""The images, as far as they can be checked without docker: their Dockerfiles against code, packages and manifests."""

import json
import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.dockerfiles import Dockerfile, read_dockerfile
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
SERVICES = ("scheduler", "gateway", "unet-worker", "vae-worker")
WORKERS = SERVICES[2:]

# Of the 170 MB that a scheduler may install: itself, and the bytecode of what it imports, 17 MB when last weighed.
BYTECODE_BYTES = 20e6
MOST_BYTES = 170e6
# In the pins for Python before 3.11.3, whose own timeouts were not enough for redis; not installed on a later one.
EARLIER_PYTHON = {"async-timeout"}


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


def pins(name: str) -> dict[str, Requirement]:
    """The releases that deploy/docker/pins/NAME.txt lists, by name."""
    found = map(Requirement, re.findall(r"^\S+==\S+", (DOCKER / "pins" / f"{name}.txt").read_text(), re.MULTILINE))
    return {canonicalize_name(pin.name): pin for pin in found}


def needed(*extras: str) -> list[str]:
    """What pyproject.toml asks for with `extras`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


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
    assert {"pyproject.toml", "deploy/docker/pins", "synerdiff", "services"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert ignored("tests")
    assert ignored("models/emoji/train.py")
    assert ignored(".venv")


def test_it_is_labelled(dockerfile: Dockerfile) -> None:
    labels = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", " ".join(dockerfile.texts("LABEL"))))
    assert labels == {"title", "description", "licenses", "version", "revision", "base.name", "base.digest"}


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


# ---- what the images install


def closure(wanted: list[str]) -> set[str]:
    """The names of all that the requirements lead to, by the metadata of what is installed here."""
    found: set[str] = set()
    waiting = [(requirement, {""}) for requirement in map(Requirement, wanted)]
    while waiting:
        requirement, of_extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in of_extras):
            continue
        distribution = metadata.distribution(requirement.name)
        found.add(canonicalize_name(distribution.name))
        waiting += [
            (Requirement(line), {"", *requirement.extras})
            for line in distribution.requires or ()
            if canonicalize_name(Requirement(line).name) not in found
        ]
    return found


def installed_bytes(name: str) -> int:
    """The bytes of a distribution's files, less what the image leaves out: bytecode and tests."""
    kept = [f for f in metadata.distribution(name).files or () if f.suffix != ".pyc" and "tests" not in f.parts]
    return sum(path.stat().st_size for f in kept if (path := Path(str(f.locate()))).is_file())


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("scheduler", ["tracing", "s3"]),
        ("gateway", ["gateway"]),
        ("worker-cpu", ["worker"]),
        ("worker", ["worker"]),
    ],
)
def test_pins_have_all_that_is_needed_in_the_releases_that_are_tested(name: str, extras: list[str]) -> None:
    found = pins(name)
    wanted = closure(needed(*extras))
    assert wanted <= set(found), "run `make pins`"
    assert set(found) - wanted <= EARLIER_PYTHON or name == "worker", "only CUDA's packages are not installed here"
    listed = map(Requirement, re.findall(r"^\S+==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    tested: dict[str, str] = {canonicalize_name(release.name): str(release.specifier) for release in listed}
    for package, pin in found.items():
        assert package not in tested or str(pin.specifier).split("+")[0] == tested[package], "run `make pins`"


def test_every_pin_is_one_release_with_hashes_and_no_address() -> None:
    for path in (DOCKER / "pins").glob("*.txt"):
        for line in path.read_text().replace("\\\n", " ").splitlines():
            assert re.fullmatch(r"[\w.-]+==[\w.+]+(\s+--hash=sha256:[0-9a-f]{64})+", line), f"{path.name}: {line}"


def test_each_image_has_pins_and_only_workers_have_torch(dockerfile: Dockerfile, service: str) -> None:
    (name,) = (text for i in dockerfile.stages[1] if (text := i.text).startswith("PINS="))
    found = set(pins(name.removeprefix("PINS=").strip('"')))
    heavy = {"torch", "diffusers", "transformers", "safetensors", "accelerate"}
    assert heavy & found == (heavy if service in WORKERS else set())


def test_the_cpu_workers_pins_have_no_cuda() -> None:
    assert str(pins("worker-cpu")["torch"].specifier).endswith("+cpu")
    assert not [name for name in pins("worker-cpu") if name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize("service", ["scheduler", "gateway"])
def test_what_has_no_torch_installs_less_than_170_mb(service: str) -> None:
    sizes = {name: installed_bytes(name) for name in pins(service).keys() - EARLIER_PYTHON}
    largest = sorted(sizes.items(), key=lambda size: -size[1])[:8]
    assert 10e6 < sum(sizes.values()) < MOST_BYTES - BYTECODE_BYTES, largest


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
    variables = {"TORCH_INDEX_URL": "x", "TORCH_BUILD": "cpu", "PYTHON_DIGEST": "sha256:1"}
    done = make_images(docker, TAG="7", REGISTRY="r/t", **variables)
    builds = [line for line in done.stdout.splitlines() if line.startswith("build ")]
    assert [re.findall(r"--tag (\S+)", line) for line in builds] == [[f"r/t/synerdiff/{name}:7"] for name in SERVICES]
    for service, line in zip(SERVICES, builds, strict=True):
        declared = set(re.findall(r"^ARG (\w+)", (DOCKER / f"{service}.Dockerfile").read_text(), re.MULTILINE))
        assert set(re.findall(r"--build-arg (\w+)=", line)) <= declared
    assert ["PINS=worker-cpu" in line for line in builds] == [service in WORKERS for service in SERVICES]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TORCH_INDEX_URL": "x"}, "TORCH_INDEX_URL without TORCH_BUILD"),
        ({"TORCH_INDEX_URL": "x", "TORCH_BUILD": "cu0"}, "no deploy/docker/pins/worker-cu0.txt"),
    ],
)
def test_a_torch_that_nothing_pins_is_refused(variables: dict[str, str], said: str) -> None:
    done = make_images(Path("/bin/true"), **variables)
    assert done.returncode == 1
    assert said in done.stderr


# ---- push.sh

PUSHED = "sha256:" + 64 * "7"


@pytest.mark.parametrize(
    ("name", "script"),
    [
        # Of what has been pushed to two places, the one that was asked for.
        ("docker", f'[ "$1" = push ] || printf "elsewhere/%s@sha256:0\\n%s@{PUSHED}\\n" x "${{5%:*}}"'),
        ("buildah", f'while [ "$1" != --digestfile ]; do shift; done; printf %s {PUSHED} > "$2"'),
    ],
)
def test_what_push_prints_is_images_of_a_kustomization(tmp_path: Path, name: str, script: str) -> None:
    done = push(tmp_path / name, script)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["images"] == [
        {"name": container(service)["image"], "newName": f"r:5000/t/synerdiff/{service}", "digest": PUSHED}
        for service in SERVICES
    ]


@pytest.mark.parametrize("script", ["exit 1", "true"])
def test_a_push_that_failed_or_left_no_digest_prints_no_images(tmp_path: Path, script: str) -> None:
    done = push(tmp_path / "docker", script)
    assert (done.returncode, done.stdout) == (1, "")


def push(docker: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run push.sh with a stand-in for docker or buildah that does `script`."""
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(0o755)
    command = ["sh", str(DOCKER / "push.sh"), "r:5000/t", "1"]
    environment = {"PATH": os.environ["PATH"], "DOCKER": str(docker)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
