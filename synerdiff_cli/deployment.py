"""The processes of `up` and `demo` on this machine, their settings, and their readiness."""

import asyncio
import contextlib
import http.client
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.unet_worker.settings import UnetWorkerSettings
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.host import usable_cores
from synerdiff.redis_process import answers, find_redis_server, free_port, redis_command, redis_url
from synerdiff.rpc import READINESS, open_channel, serving
from synerdiff.settings import load
from synerdiff.worker_settings import CompileMode
from synerdiff_cli.console import EXIT_INVALID, CommandError
from synerdiff_cli.supervisor import ChildSpec

GATEWAY = "gateway"
BUNDLED_MODEL = Path(__file__).parents[1] / "models" / "emoji" / "model"

_SETTINGS: Mapping[str, type[UnetWorkerSettings | VaeWorkerSettings]] = {
    "unet": UnetWorkerSettings,
    "vae": VaeWorkerSettings,
}

# The longest wait for jobs in progress at Ctrl-C: the next `up` takes up the rest, from Redis.
DRAIN_GRACE_S = 3.0


@dataclass(frozen=True)
class ModelSource:
    """A model directory in diffusers layout and the name that requests call it by."""

    name: str
    path: Path


@dataclass(frozen=True)
class LocalOptions:
    """The options of `up`. `threads`: CPU threads of each worker, 0 for an equal share; no `redis_url`: a Redis of
    its own; no `gateway`: no HTTP. `profile`: a profile file, absolute; `idle_profile`: measure one while idle where
    there is none. `worker_threads`, `worker_environment`: threads, and further variables, by kind of worker (unet,
    vae). `compile`: as workers take it; packages are kept in the user's cache folder."""

    data_dir: Path
    models: tuple[ModelSource, ...]
    policy: str = ""
    unet_workers: int = 1
    vae_workers: int = 1
    schedulers: int = 1
    listen: str = "127.0.0.1:0"
    gateway: str = ""
    redis_url: str = ""
    dtype: str = "auto"
    vae_dtype: str = "auto"
    threads: int = 0
    profile: Path | None = None
    idle_profile: bool = False
    compile: CompileMode = "off"
    worker_threads: Mapping[str, int] = field(default_factory=dict)
    worker_environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class OptionError(CommandError):
    """An option that cannot work; the message names it."""

    code = EXIT_INVALID


@dataclass(frozen=True)
class Deployment:
    """The processes to start, and the addresses of the schedulers among them; `gateway`: its URL, or empty."""

    children: tuple[ChildSpec, ...]
    addresses: tuple[str, ...]
    redis_url: str
    gateway: str = ""


def model_sources(values: list[str]) -> tuple[ModelSource, ...]:
    """`--model` options, each NAME=PATH or PATH (named as its directory), as models; none: the bundled one.

    Raises OptionError where a directory is none of a model, or a name comes twice.
    """
    sources = tuple(map(_model_source, values)) or (ModelSource("emoji", BUNDLED_MODEL),)
    for source in sources:
        if not (source.path / "model_index.json").is_file():
            raise OptionError(f"--model: {source.path} is no model directory: it has no model_index.json")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"--model: {name!r} is the name of two models; name them apart with NAME=PATH")
    return sources


def plan_deployment(options: LocalOptions) -> Deployment:
    """The processes that `options` ask for, on ports that are free just now.

    Raises OptionError for an address that is not HOST:PORT, RedisStartError when there is no Redis to start.
    """
    ports = _free_ports()
    children: list[ChildSpec] = []
    redis = options.redis_url
    if not redis:
        port = next(ports)
        redis = redis_url(port)
        children.append(_redis_child(options, port))
    addresses = _scheduler_addresses(options, ports)
    children += [_scheduler_child(options, i, address, redis) for i, address in enumerate(addresses)]
    for source in options.models:
        for kind, count in (("unet", options.unet_workers), ("vae", options.vae_workers)):
            for i in range(count):
                children.append(_worker_child(options, kind, source, i, f"127.0.0.1:{next(ports)}", redis))
    reachable, url = tuple(map(_reachable, addresses)), ""
    if options.gateway:
        host, port = _host_and_port("--gateway", options.gateway)
        address = f"{host}:{port or next(ports)}"
        children.append(_gateway_child(options, address, reachable))
        url = f"http://{_reachable(address)}"
    return Deployment(tuple(children), reachable, redis, url)


def _model_source(value: str) -> ModelSource:
    name, separator, path = value.partition("=")
    directory = Path(path if separator else value).expanduser().resolve()
    return ModelSource(name if separator else directory.name, directory)


def _redis_child(options: LocalOptions, port: int) -> ChildSpec:
    directory = options.data_dir / "redis"
    directory.mkdir(parents=True, exist_ok=True)

    async def ready() -> bool:
        return await asyncio.to_thread(answers, port)

    command = redis_command(find_redis_server(), port, directory)
    return ChildSpec("redis", tuple(command), _log(options, "redis"), ready, stage=0)


def _scheduler_child(options: LocalOptions, index: int, address: str, redis: str) -> ChildSpec:
    name = f"scheduler-{index}"
    arguments = ["--listen", address, "--redis-url", redis, "--instance-id", name]
    if options.policy:
        arguments += ["--policy", options.policy]
    if options.profile:
        arguments += ["--profile", str(options.profile)]
    arguments.append("--profile-when-idle" if options.idle_profile else "--no-profile-when-idle")
    return _service(options, name, "services.scheduler", arguments, address)


def _gateway_child(options: LocalOptions, address: str, schedulers: tuple[str, ...]) -> ChildSpec:
    """Starts after all others, and nothing waits for it: the processes that draw must not be delayed by it."""
    several = len(schedulers) > 1 and all(_is_ipv4(address.rpartition(":")[0]) for address in schedulers)
    target = f"ipv4:{','.join(schedulers)}" if several else schedulers[0]
    child = _service(options, GATEWAY, "services.gateway", ["--listen", address, "--scheduler", target], address)
    return replace(child, probe=_http_probe(_reachable(address)), stage=2, awaited=False)


def _worker_child(
    options: LocalOptions, kind: str, source: ModelSource, index: int, address: str, redis: str
) -> ChildSpec:
    name = f"{kind}-{source.name}-{index}"
    arguments = ["--listen", address, "--redis-url", redis, "--worker-id", name]
    arguments += ["--model", str(source.path), "--model-name", source.name]
    arguments += ["--dtype", options.dtype, "--threads", str(_threads(options, kind)), "--compile", options.compile]
    if (workers := _workers_of_a_kind(options, kind)) > 1:
        share = load(_SETTINGS[kind], []).memory_share / workers  # as the environment has it, else the default
        arguments += ["--memory-share", f"{share:.4f}"]
    if kind == "vae":
        arguments += ["--vae-dtype", options.vae_dtype]
    child = _service(options, name, f"services.{kind}_worker", arguments, address)
    return replace(
        child, group=source.name, environment={**child.environment, **options.worker_environment.get(kind, {})}
    )


def _service(options: LocalOptions, name: str, module: str, arguments: list[str], address: str) -> ChildSpec:
    # -P: a folder named "services" in the current directory must not shadow ours.
    command = (sys.executable, "-P", "-m", module, *arguments, "--drain-grace-s", str(DRAIN_GRACE_S))
    environment = {
        # Models are local directories; nothing is to be looked up on a network.
        "HF_HUB_OFFLINE": "1",
        # Otherwise torch leaves a cache in the folder for temporary files.
        "TORCHINDUCTOR_CACHE_DIR": str(options.data_dir / "cache"),
        # On one machine they use plaintext; such variables were set for clients of another deployment.
        **{f"SYNERDIFF_TLS_{name}": "" for name in ("CERTIFICATE", "KEY", "CA", "CLIENT_CA")},
    }
    return ChildSpec(name, command, _log(options, name), _health_probe(_reachable(address)), environment, stage=1)


def _health_probe(address: str) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        # A new channel for each probe: one that failed would wait before it connects again.
        async with open_channel(address) as channel:
            return await serving(channel, READINESS)

    return ready


def _http_probe(address: str) -> Callable[[], Awaitable[bool]]:
    def asked() -> bool:
        connection = http.client.HTTPConnection(address, timeout=1.0)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        return False

    async def ready() -> bool:
        return await asyncio.to_thread(asked)

    return ready


def _threads(options: LocalOptions, kind: str) -> int:
    """CPU threads for one worker of `kind`: workers of one kind divide the cores, a UNet and a VAE worker share them.

    With one worker of each kind both get every core: the VAE is idle most of the time, and waiting threads sleep.
    """
    if threads := options.worker_threads.get(kind, options.threads):
        return threads
    return max(1, usable_cores() // _workers_of_a_kind(options, kind))


def _workers_of_a_kind(options: LocalOptions, kind: str) -> int:
    """They share this machine's device."""
    return len(options.models) * (options.unet_workers if kind == "unet" else options.vae_workers)


def _scheduler_addresses(options: LocalOptions, ports: Iterator[int]) -> list[str]:
    """The first scheduler listens at the given address, each further one a port higher; port 0: free ones."""
    host, first = _host_and_port("--listen", options.listen, options.schedulers)
    return [f"{host}:{first + i if first else next(ports)}" for i in range(options.schedulers)]


def _host_and_port(flag: str, address: str, ports: int = 1) -> tuple[str, int]:
    """HOST:PORT, of the first of so many ports. Raises OptionError."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) + ports - 1 > 65535:
        raise OptionError(f"{flag}: {address!r} is not HOST:PORT (a port from 0 to 65535)")
    return host, int(port)


def _is_ipv4(host: str) -> bool:
    return host.replace(".", "").isdecimal()


def _reachable(address: str) -> str:
    """Where this machine reaches a process that listens at `address`."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]") else address


def _free_ports() -> Iterator[int]:
    given: set[int] = set()
    while True:
        port = free_port()
        if port not in given:
            given.add(port)
            yield port


def _log(options: LocalOptions, name: str) -> Path:
    return options.data_dir / "logs" / f"{name}.log"
