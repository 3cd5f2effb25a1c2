"""TLS between processes: PEM files as gRPC's credentials, and the name in every worker's certificate.

A server reads the files anew for every connection, a client for every channel that it opens. So a certificate that
is renewed on disk, as Kubernetes does with a mounted secret, needs no restart.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from synerdiff.errors import SynerDiffError

# Workers are reached by the addresses of their pods, which no certificate can name in advance: all carry this one.
WORKER_NAME = "worker.synerdiff"


class BadTlsFiles(SynerDiffError):
    """PEM files that are absent, unreadable, no PEM or do not belong together; the message names the file."""


@dataclass(frozen=True)
class ServerTls:
    """PEM files of a server's own certificate and key; with `client_ca`, clients must show a certificate of it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """gRPC's form of these files, updated when they change to a valid set. Raises BadTlsFiles at the start."""
        check_pem_files(self.certificate, self.key, self.client_ca)
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._configuration, require_client_authentication=self.client_ca is not None
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=self.client_ca.read_bytes() if self.client_ca else None,
        )


@dataclass(frozen=True)
class ClientTls:
    """A client's PEM files: CA (none: the system's), own certificate and key. `server_name`; empty: the host called."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC's form of these files as they are now. Raises BadTlsFiles."""
        check_pem_files(self.certificate, self.key, self.ca)
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )


def check_pem_files(certificate: Path | None, key: Path | None, ca: Path | None) -> None:
    """Raise BadTlsFiles for unusable files: gRPC itself would only fail to connect, without a reason."""
    for path in filter(None, (certificate, key, ca)):
        try:
            path.read_bytes()
        except OSError as error:
            raise BadTlsFiles(f"{path}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate and key:
        try:
            context.load_cert_chain(certificate, key, password="")
        except (ssl.SSLError, OSError) as error:
            raise BadTlsFiles(f"{certificate} and {key} are no certificate and its key, in PEM") from error
    if ca:
        try:
            context.load_verify_locations(ca)
        except (ssl.SSLError, OSError) as error:
            raise BadTlsFiles(f"{ca} is no CA certificate, in PEM") from error
