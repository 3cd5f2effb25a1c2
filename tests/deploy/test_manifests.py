import socket
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from deploy.checks.manifests import Manifests, Pod
from deploy.checks.run import COMPOSITIONS, findings
from deploy.checks.schemas import releases
from deploy.checks.services import settings_of
from deploy.kustomize import K8S, CannotRender, render
from services.unet_worker.settings import UnetWorkerSettings
from synerdiff.tls import WORKER_NAME
from tests.deploy.rendered import SETS, rendered
from tests.waiting import HANG_S


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_wrong_with(name: str) -> None:
    assert findings(rendered(name)) == []


def test_every_component_is_in_a_set_that_is_checked() -> None:
    used = "\n".join(path.read_text() for path in K8S.rglob("kustomization.yaml"))
    in_sets = {component for _, components in COMPOSITIONS.values() for component in components}
    in_overlays = {
        Path(component).name
        for path in (K8S / "overlays").glob("*/kustomization.yaml")
        for component in yaml.safe_load(path.read_text()).get("components", ())
    }
    nested = {"gpu-shared"}
    assert all(f"../{name}" in used for name in nested)
    components = {path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml")}
    assert components == in_sets | in_overlays | nested


def test_with_a_pull_secret_every_account_that_pulls_our_images_has_it() -> None:
    manifests = Manifests(rendered("dev-cpu with callers and a pull secret"))
    ours = {
        pod.spec["serviceAccountName"] for pod in manifests.pods if "/synerdiff/" in pod.containers[0].item["image"]
    }
    accounts = manifests.of_kind("ServiceAccount")
    assert ours == {each.name for each in accounts if each.item.get("imagePullSecrets") == [{"name": "registry"}]}


def test_three_releases_of_kubernetes_are_the_newest_known_and_differ() -> None:
    found = releases()
    assert len(set(found)) == 3
    assert list(found) == sorted(found, key=lambda release: [int(part) for part in release.split(".")])


def test_the_validator_itself_says_the_same_as_our_faster_way_of_asking_it() -> None:
    deployment = next(item for item in rendered("overlays/colocated") if item["kind"] == "Deployment")
    assert kubernetes_validate.validate(deployment, releases()[-1], strict=True) == releases()[-1].removesuffix(".0")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["periodSecond"] = 5
    with pytest.raises(kubernetes_validate.ValidationError, match="periodSecond") as refusal:
        kubernetes_validate.validate(deployment, releases()[-1], strict=True)
    assert any(str(refusal.value.message) in finding.message for finding in findings([deployment], "schemas"))


def pod_of(name: str, title: str) -> Pod:
    (pod,) = (pod for pod in Manifests(rendered(name)).pods if pod.title == title)
    return pod


def test_a_folder_that_cannot_be_rendered_says_why(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    with pytest.raises(CannotRender, match=r"nowhere\.yaml"):
        render(tmp_path)


def test_workers_of_colocated_pods_move_latents_by_cuda_ipc_first_and_share_no_shm_volume() -> None:
    pod = pod_of("overlays/colocated", "Deployment/gpu-worker")
    assert pod.spec["shareProcessNamespace"]
    assert [container.service for container in pod.containers] == ["unet_worker", "vae_worker"]
    for container in pod.containers:
        settings = settings_of(container)
        assert isinstance(settings, UnetWorkerSettings) or container.service == "vae_worker"
        assert getattr(settings, "latents_transports", "") == "cuda_ipc,shm"
        assert getattr(settings, "device", "") == "cuda"
        assert getattr(settings, "domain", None) == "", "the GPU's UUID decides"
        assert container.volume_at("/dev/shm") is None


def test_dev_cpu_serves_the_bundled_model_on_the_cpu() -> None:
    workers = [each for each in Manifests(rendered("overlays/dev-cpu")).services if each.is_worker]
    assert len(workers) == 2
    for worker in workers:
        model = Path(worker.environment["SYNERDIFF_MODEL"])
        assert (K8S.parents[1] / model.relative_to("/app") / "model_index.json").is_file()
        assert worker.environment["SYNERDIFF_DEVICE"] == "cpu"


@pytest.mark.parametrize("name", [name for name in SETS if "TLS" in name])
def test_probes_stay_in_plaintext_under_tls(name: str) -> None:
    services = Manifests(rendered(name)).services
    assert services
    for container in services:
        assert container.environment["SYNERDIFF_TLS_CA"] == "/tls/ca.crt"
        if container.service == "gateway":
            assert "SYNERDIFF_HTTPS_CERTIFICATE" not in container.environment
            continue
        assert container.item["readinessProbe"]["grpc"]["port"] == container.port_of("SYNERDIFF_HEALTH_LISTEN")


def test_the_documented_worker_certificate_carries_the_name_that_clients_ask_for() -> None:
    assert f"dnsNames: [{WORKER_NAME}]" in (K8S / "README.md").read_text()


def test_a_vae_container_told_to_stop_waits_until_the_unet_worker_beside_it_has_gone() -> None:
    pod = pod_of("overlays/colocated", "Deployment/gpu-worker")
    vae = pod.containers[1]
    interpreter, *arguments = vae.item["lifecycle"]["preStop"]["exec"]["command"]
    assert interpreter == "python"
    (port,) = _numbers(arguments[-1]) & {pod.containers[0].port_of("SYNERDIFF_HEALTH_LISTEN")}
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = arguments[-1].replace(str(port), str(server.getsockname()[1]))
        waiting = subprocess.Popen([sys.executable, *arguments[:-1], here])
        server.settimeout(HANG_S)
        server.accept()[0].close()
        time.sleep(0.2)
        assert waiting.poll() is None
    assert waiting.wait(HANG_S) == 0


def _numbers(text: str) -> set[int]:
    return {int(word) for word in text.replace(")", " ").replace(",", " ").split() if word.isdigit()}


@pytest.mark.parametrize("component", ["mps-device-plugin", "mps-daemon"])
def test_the_device_plugin_is_told_to_hand_each_gpu_out_twice_under_the_name_that_workers_ask_for(
    component: str,
) -> None:
    config = yaml.safe_load((K8S / "components" / component / "device-plugin-config.yaml").read_text())
    ((way, sharing),) = config["sharing"].items()
    assert way == {"mps-device-plugin": "mps", "mps-daemon": "timeSlicing"}[component]
    assert sharing == {"renameByDefault": True, "resources": [{"name": "nvidia.com/gpu", "replicas": 2}]}


def test_redis_loses_nothing_that_it_acknowledged() -> None:
    for name in (name for name in SETS if name != "weights"):
        (redis,) = pod_of(name, "StatefulSet/redis").containers
        words = redis.item["args"]
        arguments = dict(zip(words[::2], words[1::2], strict=True))
        assert arguments["--appendonly"] == "yes"
        assert arguments["--appendfsync"] == "always"
        assert arguments["--maxmemory-policy"] == "noeviction"
        assert redis.volume_at(arguments["--dir"]) == {"name": "data"}
        limit = int(str(redis.limits["memory"]).removesuffix("Gi")) * 1024
        assert int(arguments["--maxmemory"].removesuffix("mb")) <= 0.75 * limit


def test_no_worker_surges_for_a_gpu_and_everyone_else_stays_whole() -> None:
    for name in SETS:
        for deployment in Manifests(rendered(name)).of_kind("Deployment"):
            rolling = deployment.spec["strategy"]["rollingUpdate"]
            needs_gpu = "dev-cpu" not in name and "worker" in deployment.name
            assert rolling == (
                {"maxSurge": 0, "maxUnavailable": 1} if needs_gpu else {"maxSurge": 1, "maxUnavailable": 0}
            )
