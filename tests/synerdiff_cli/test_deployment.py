"""What `up` starts, from its options alone: no process is started here."""

from pathlib import Path

import pytest

from services.scheduler.settings import SchedulerSettings
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess, find_redis_server
from synerdiff.settings import load
from synerdiff.worker_settings import WorkerSettings
from synerdiff_cli.deployment import (
    BUNDLED_MODEL,
    Deployment,
    LocalOptions,
    ModelSource,
    OptionError,
    model_sources,
    plan_deployment,
)
from synerdiff_cli.local import check_redis


def model_directory(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "model_index.json").write_text("{}")
    return path


def options(tmp_path: Path, **changes: object) -> LocalOptions:
    settings: dict[str, object] = {"data_dir": tmp_path / "data", "models": (ModelSource("emoji", BUNDLED_MODEL),)}
    return LocalOptions(**{**settings, **changes})  # type: ignore[arg-type]


def flag(deployment: Deployment, child: str, name: str) -> str:
    command = next(c.command for c in deployment.children if c.name == child)
    return command[command.index(name) + 1]


def test_everything_is_one_redis_one_scheduler_and_two_workers(tmp_path: Path) -> None:
    deployment = plan_deployment(options(tmp_path))
    redis, *others = deployment.children
    assert (redis.name, redis.stage, redis.command[0]) == ("redis", 0, find_redis_server())
    assert [(c.name, c.stage) for c in others] == [("scheduler-0", 1), ("unet-emoji-0", 1), ("vae-emoji-0", 1)]
    assert {flag(deployment, child.name, "--redis-url") for child in others} == {deployment.redis_url}


def test_a_gateway_comes_last_is_waited_for_by_none_and_calls_every_scheduler(tmp_path: Path) -> None:
    deployment = plan_deployment(options(tmp_path, gateway="0.0.0.0:8000", schedulers=2))
    last = deployment.children[-1]
    assert (last.name, last.stage, last.awaited) == ("gateway", 2, False)
    assert flag(deployment, "gateway", "--listen") == "0.0.0.0:8000"
    assert flag(deployment, "gateway", "--scheduler") == f"ipv4:{','.join(deployment.addresses)}"
    assert deployment.gateway == "http://127.0.0.1:8000"
    alone = plan_deployment(options(tmp_path, gateway="127.0.0.1:0", listen="localhost:7"))
    assert flag(alone, "gateway", "--scheduler") == "localhost:7"
    with pytest.raises(OptionError, match=r"--gateway: 'nowhere' is not HOST:PORT"):
        plan_deployment(options(tmp_path, gateway="nowhere"))


def test_a_given_redis_is_used_and_none_started(tmp_path: Path) -> None:
    deployment = plan_deployment(options(tmp_path, redis_url="redis://elsewhere:6379/3"))
    assert "redis" not in {c.name for c in deployment.children}
    assert flag(deployment, "unet-emoji-0", "--redis-url") == "redis://elsewhere:6379/3"


def test_every_model_has_workers_of_its_own(tmp_path: Path) -> None:
    models = (ModelSource("a", BUNDLED_MODEL), ModelSource("b", BUNDLED_MODEL))
    deployment = plan_deployment(options(tmp_path, models=models, unet_workers=2, schedulers=2))
    names = [c.name for c in deployment.children]
    assert names == [
        *("redis", "scheduler-0", "scheduler-1"),
        *("unet-a-0", "unet-a-1", "vae-a-0", "unet-b-0", "unet-b-1", "vae-b-0"),
    ]
    listening = [flag(deployment, name, "--listen") for name in names[1:]]
    assert len(set(listening)) == len(listening)


def test_workers_of_a_kind_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synerdiff_cli.deployment.usable_cores", lambda: 8)
    deployment = plan_deployment(options(tmp_path, unet_workers=2))
    assert flag(deployment, "unet-emoji-1", "--threads") == "4"
    assert flag(deployment, "vae-emoji-0", "--threads") == "8"
    assert flag(plan_deployment(options(tmp_path, threads=3)), "unet-emoji-0", "--threads") == "3"


def test_workers_of_a_kind_share_the_memory_that_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = (ModelSource("a", BUNDLED_MODEL), ModelSource("b", BUNDLED_MODEL))
    deployment = plan_deployment(options(tmp_path, models=models, unet_workers=2))
    workers = [child.name for child in deployment.children if child.name.startswith(("unet", "vae"))]
    shares = [float(flag(deployment, name, "--memory-share")) for name in workers]
    assert shares == [0.15] * 6
    assert sum(shares) <= 0.9, "on one GPU the rest is for what no worker counts"
    monkeypatch.setenv("SYNERDIFF_MEMORY_SHARE", "0.4")
    assert flag(plan_deployment(options(tmp_path, unet_workers=2)), "unet-emoji-0", "--memory-share") == "0.2000"
    alone = next(c for c in plan_deployment(options(tmp_path)).children if c.name == "unet-emoji-0")
    assert "--memory-share" not in alone.command


def test_the_vae_worker_alone_is_told_what_a_vae_computes_in(tmp_path: Path) -> None:
    deployment = plan_deployment(options(tmp_path, dtype="float16", vae_dtype="bfloat16"))
    assert flag(deployment, "vae-emoji-0", "--vae-dtype") == "bfloat16"
    assert {flag(deployment, name, "--dtype") for name in ("unet-emoji-0", "vae-emoji-0")} == {"float16"}
    unet = next(child for child in deployment.children if child.name == "unet-emoji-0")
    assert "--vae-dtype" not in unet.command


def test_further_schedulers_listen_on_the_next_ports(tmp_path: Path) -> None:
    deployment = plan_deployment(options(tmp_path, listen="0.0.0.0:50051", schedulers=2))
    assert flag(deployment, "scheduler-1", "--listen") == "0.0.0.0:50052"
    assert deployment.addresses == ("127.0.0.1:50051", "127.0.0.1:50052")


@pytest.mark.parametrize("listen", ["50051", ":50051", "localhost:", "localhost:http", "localhost:65536"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, listen: str) -> None:
    with pytest.raises(OptionError, match=r"--listen: .* is not HOST:PORT"):
        plan_deployment(options(tmp_path, listen=listen))


def test_models_are_named_or_take_their_directorys_name(tmp_path: Path) -> None:
    first, second = model_directory(tmp_path / "sd15"), model_directory(tmp_path / "other")
    assert model_sources([str(first), f"sdxl={second}"]) == (ModelSource("sd15", first), ModelSource("sdxl", second))
    assert model_sources([]) == (ModelSource("emoji", BUNDLED_MODEL),)


def test_a_directory_without_a_model_and_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no model_index\.json"):
        model_sources([str(tmp_path)])
    first, second = model_directory(tmp_path / "1" / "sd15"), model_directory(tmp_path / "2" / "sd15")
    with pytest.raises(OptionError, match="'sd15' is the name of two models"):
        model_sources([str(first), str(second)])


def test_profiles_are_measured_when_idle_only_where_that_is_asked_for(tmp_path: Path) -> None:
    command = plan_deployment(options(tmp_path)).children[1].command
    assert "--no-profile-when-idle" in command
    assert "--profile" not in command
    told = plan_deployment(options(tmp_path, profile=tmp_path / "p.json", idle_profile=True))
    assert "--profile-when-idle" in told.children[1].command
    assert flag(told, "scheduler-0", "--profile") == str(tmp_path / "p.json")


def test_what_clients_of_a_deployment_with_tls_have_set_does_not_reach_one_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNERDIFF_TLS_CA", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SYNERDIFF_TLS_CLIENT_CA", str(tmp_path / "ca.pem"))
    for child in plan_deployment(options(tmp_path)).children[1:]:
        for name, value in child.environment.items():
            monkeypatch.setenv(name, value)
        settings = load(SchedulerSettings if child.name == "scheduler-0" else WorkerSettings, [])
        assert settings.server_tls() is None
        assert settings.worker_tls() is None


async def test_a_redis_that_evicts_is_refused_before_anything_starts(own_redis: RedisProcess) -> None:
    await check_redis(own_redis.url)
    async with connect(own_redis.url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(OptionError, match=r"--redis-url: .*maxmemory-policy is allkeys-lru"):
        await check_redis(own_redis.url)
