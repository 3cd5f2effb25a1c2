"""Settings of a gateway."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from synerdiff.client.aio import DEFAULT_ADDRESS
from synerdiff.settings import HostPort, OptionalFile, ProcessSettings
from synerdiff.tls import BadTlsFiles, ClientTls, check_pem_files

# Instead of a file's name: the CAs that this machine trusts by default.
SYSTEM_CAS = Path("system")


class GatewaySettings(ProcessSettings):
    """Settings of `python -m services.gateway`."""

    listen: HostPort = Field("127.0.0.1:8000", description="HOST:PORT to serve HTTP on; port 0 takes a free one")
    scheduler: str = Field(
        DEFAULT_ADDRESS, min_length=1, description="HOST:PORT of a scheduler, or a gRPC target that names several"
    )
    patience_s: float = Field(
        20.0, ge=0, le=600, description="seconds that a request waits for schedulers that do not answer"
    )
    default_model: str = Field("", description="the model of requests that name none; empty: the only one there is")
    model_aliases: dict[str, str] = Field(
        {}, description="further names of models, as gpt-image-2.5-flare=sdxl; may be repeated"
    )
    max_open_requests: int = Field(
        4096, ge=1, le=1_000_000, description="requests answered at once before further ones are told to come back"
    )
    tls_ca: OptionalFile = Field(
        None,
        description="PEM file of the schedulers' CA; `system`: those of this machine; none: they speak plaintext",
    )
    tls_certificate: OptionalFile = Field(None, description="PEM file of a certificate for schedulers that ask for one")
    tls_key: OptionalFile = Field(None, description="PEM file of its key")
    https_certificate: OptionalFile = Field(
        None, description="PEM file of the certificate to serve HTTPS with; none: HTTP"
    )
    https_key: OptionalFile = Field(None, description="PEM file of its key")

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        for kind in ("tls", "https"):
            if (getattr(self, f"{kind}_certificate") is None) != (getattr(self, f"{kind}_key") is None):
                raise ValueError(f"--{kind}-certificate and --{kind}-key: one is of no use without the other")
        if self.tls_certificate and not self.tls_ca:
            raise ValueError("--tls-certificate: is of no use without --tls-ca")
        try:
            check_pem_files(self.tls_certificate, self.tls_key, self._ca())
            check_pem_files(self.https_certificate, self.https_key, None)
        except BadTlsFiles as error:
            raise ValueError(f"TLS: {error}") from error
        return self

    def scheduler_tls(self) -> ClientTls | None:
        """The TLS to call schedulers with; None: plaintext."""
        if self.tls_ca is None:
            return None
        return ClientTls(self._ca(), self.tls_certificate, self.tls_key)

    def _ca(self) -> Path | None:
        return None if self.tls_ca == SYSTEM_CAS else self.tls_ca
