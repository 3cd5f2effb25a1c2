"""The Helm chart, rendered by Helm's own engine: the overlays with a user's values, and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.checks.run import findings
from deploy.helm.make_chart import main
from deploy.kustomize import overlays
from tests.deploy.rendered import rendered

helm = pytest.importorskip("helm_python", reason="no Helm: `pip install helm-python-sdk` has it for Linux, x86-64")

OVERLAYS = [overlay.name for overlay in overlays()]


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chart") / "synerdiff"
    main(folder)
    return folder


def template(chart: Path, namespace: str = "synerdiff", **values: Any) -> list[Any]:
    """What `helm template` would print."""
    with helm.Chart.load(str(chart)) as loaded:
        texts = loaded.render(values, name="release", namespace=namespace)
    return [item for name, text in texts.items() if name.endswith(".yaml") for item in yaml.safe_load_all(text) if item]


def plain(manifests: list[Any]) -> dict[tuple[str, str], Any]:
    """Manifests by kind and name, less what Helm does in another way: hashes in names, the namespace itself."""
    found = {}
    for item in manifests:
        text = yaml.safe_dump(item)
        for name in ("services", "scheduler", "gateway", "workers"):
            text = re.sub(rf"\b{name}-[0-9a-z]{{10}}\b", name, text)
        item = yaml.safe_load(text)
        item["metadata"].pop("annotations", None)
        if "template" in item.get("spec", {}):
            item["spec"]["template"]["metadata"].pop("annotations", None)
        found[item["kind"], item["metadata"]["name"]] = item
    found.pop(("Namespace", "synerdiff"), None)
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_with_its_own_values_it_is_the_overlay(chart: Path, overlay: str) -> None:
    assert plain(template(chart, overlay=overlay)) == plain(rendered(f"overlays/{overlay}"))


def test_with_a_users_values_every_check_still_passes(chart: Path) -> None:
    manifests = template(
        chart,
        namespace="team",
        overlay="split-keda",
        images={"registry": "r.example/team", "tag": "1.2", "pullSecrets": ["pull"]},
        model={"name": "sd15", "path": "/models/sd15"},
        settings={"scheduler": {"SYNERDIFF_RETENTION_S": 600}},
        replicas={"scheduler": 3},
        resources={"vae-worker": {"limits": {"memory": "8Gi"}, "requests": {"memory": "8Gi"}}},
        redis={"storageClassName": "fast"},
        workers={"runtimeClassName": "nvidia"},
        monitoring={"release": "prom", "runbooks": "https://git.example/operations.md"},
    )
    assert findings(manifests) == []
    by_name = plain(manifests)
    scheduler = by_name["Deployment", "scheduler"]["spec"]
    assert scheduler["replicas"] == 3
    assert scheduler["template"]["spec"]["containers"][0]["image"] == "r.example/team/synerdiff/scheduler:1.2"
    assert scheduler["template"]["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert by_name["ConfigMap", "scheduler"]["data"]["SYNERDIFF_RETENTION_S"] == "600"
    assert by_name["Deployment", "vae-worker"]["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    assert "synerdiff.svc" not in yaml.safe_dump_all(by_name.values()).replace(".team.svc", "")


@pytest.mark.parametrize(
    ("overlay", "pictures", "composition"),
    [
        ("dev-cpu", {"claim": "images"}, "dev-cpu with images in a claim"),
        ("split-keda", {"s3": "s3://synerdiff/images"}, "split-keda with images in a bucket"),
    ],
)
def test_a_place_for_pictures_is_the_component(
    chart: Path, overlay: str, pictures: dict[str, str], composition: str
) -> None:
    assert plain(template(chart, overlay=overlay, pictures=pictures)) == plain(rendered(composition))


def test_a_changed_setting_makes_new_pods(chart: Path) -> None:
    def annotations(**values: Any) -> Any:
        (item,) = (
            m for m in template(chart, **values) if (m["kind"], m["metadata"]["name"]) == ("Deployment", "scheduler")
        )
        return item["spec"]["template"]["metadata"]["annotations"]

    assert annotations() == annotations()
    assert annotations() != annotations(settings={"services": {"SYNERDIFF_LOG_LEVEL": "debug"}})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"overlay": "splitt"}, "overlay"),
        ({"images": {"registry": "team"}}, "registry"),
        ({"settings": {"services": {"LOG_LEVEL": "info"}}}, "LOG_LEVEL"),
        ({"replica": {"scheduler": 3}}, "replica"),
        ({"pictures": {"s3": "gs://bucket"}}, "s3"),
        ({"pictures": {"claim": "images", "s3": "s3://bucket"}}, "pictures"),
    ],
)
def test_values_that_mean_nothing_are_refused(chart: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(helm.HelmError, match=says):
        template(chart, **values)


def test_helm_finds_nothing_to_say_about_it(chart: Path) -> None:
    found = helm.lint(str(chart))
    assert not [line for line in str(found).splitlines() if "ERROR" in line], found
