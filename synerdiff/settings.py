"""Settings at the edge: flags, then SYNERDIFF_* variables, then a TOML file; frozen once loaded."""

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from synerdiff.tls import WORKER_NAME, BadTlsFiles, ClientTls, ServerTls, check_pem_files

# The exit status of a process with unusable settings or an unusable model: starting it again cannot help.
EXIT_BAD_SETTINGS = 2

_HOST_PORT = re.compile(r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d{1,5})$")


def _host_port(value: str) -> str:
    match = _HOST_PORT.match(value)
    if value and (not match or int(match[2]) > 65535):
        raise ValueError(f"{value!r} is not HOST:PORT (a port from 0 to 65535)")
    return value


def is_loopback(listen: str) -> bool:
    """Whether HOST:PORT is reached from this machine alone."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


HostPort = Annotated[str, AfterValidator(_host_port)]
OptionalFile = Annotated[Path | None, BeforeValidator(_none_if_empty)]


class ProcessSettings(BaseSettings):
    """Settings of every process."""

    model_config = SettingsConfigDict(
        env_prefix="SYNERDIFF_", frozen=True, extra="forbid", cli_kebab_case=True, cli_implicit_flags=True
    )

    listen: HostPort = Field("127.0.0.1:0", description="HOST:PORT to serve gRPC on; port 0 takes a free one")
    metrics_port: int = Field(0, ge=0, le=65535, description="port of the Prometheus metrics; 0: not served")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="least level that is logged")
    drain_grace_s: float = Field(30.0, gt=0, le=3600, description="seconds that work in hand gets after SIGTERM")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (passed as init values by `load`) before variables before the file."""
        path = os.environ.get("SYNERDIFF_CONFIG")
        file = (TomlConfigSettingsSource(settings_cls, Path(path)),) if path else ()
        return init_settings, env_settings, *file


class ServiceSettings(ProcessSettings):
    """Settings of every service of a pool: the schedulers and the workers."""

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis that holds the queue, events and images")
    advertise: HostPort = Field("", description="HOST:PORT at which others reach this process; empty: as it listens")
    health_listen: HostPort = Field("", description="HOST:PORT of a plaintext health port of its own; empty: none")
    pool: str = Field("default", min_length=1, description="the pool of workers this process belongs to")
    tls_certificate: OptionalFile = Field(None, description="PEM file of this process's certificate; none: plaintext")
    tls_key: OptionalFile = Field(None, description="PEM file of its key")
    tls_ca: OptionalFile = Field(
        None, description="PEM file of the CA of this system's processes; workers obey only holders of its certificates"
    )

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key: one is of no use without the other")
        if self.tls_ca and not self.tls_certificate:
            raise ValueError("--tls-ca: is of no use without --tls-certificate and --tls-key")
        try:
            check_pem_files(self.tls_certificate, self.tls_key, self.tls_ca)
        except BadTlsFiles as error:
            raise ValueError(f"TLS: {error}") from error
        return self

    def server_tls(self) -> ServerTls | None:
        """The TLS files of this server; None: plaintext."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return ServerTls(self.tls_certificate, self.tls_key, client_ca=self.tls_ca)

    def worker_tls(self) -> ClientTls | None:
        """The TLS files for calls to workers, which know this process by its certificate; None: plaintext."""
        if self.tls_ca is None:
            return None
        return ClientTls(self.tls_ca, self.tls_certificate, self.tls_key, server_name=WORKER_NAME)


S = TypeVar("S", bound=ProcessSettings)


def load(settings_cls: type[S], argv: Sequence[str] | None = None) -> S:
    """Settings of `argv`, SYNERDIFF_* and `--config`'s file. Prints a line per bad one and exits with status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("--config", default=os.environ.get("SYNERDIFF_CONFIG", ""))
    found, rest = config.parse_known_args(arguments)
    if found.config:
        if not Path(found.config).is_file():
            raise SystemExit(f"--config: {found.config!r} is not a file")
        os.environ["SYNERDIFF_CONFIG"] = found.config
    try:
        return CliApp.run(settings_cls, cli_args=rest)
    except ValidationError as error:
        print("\n".join(_line(e["loc"], e["msg"]) for e in error.errors()), file=sys.stderr)
        raise SystemExit(EXIT_BAD_SETTINGS) from None


def _line(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"--{'.'.join(map(str, location)).replace('_', '-')}: {message}" if location else message
