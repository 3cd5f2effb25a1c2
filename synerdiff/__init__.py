"""SynerDiff: serving latent diffusion models with step-level continuous batching.

`synerdiff.Client`, `synerdiff.AsyncClient` and `synerdiff.ClientTls` are the client SDK; they are loaded on first use,
so that importing the package stays cheap for the services.
"""

import os
from typing import TYPE_CHECKING, Any

# gRPC's C core reads this once, when it is loaded. Otherwise it writes lines about each connection that a restarting
# server closes into the terminals of its clients.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

if TYPE_CHECKING:
    from synerdiff.client import AsyncClient, Client, ClientTls

__all__ = ["AsyncClient", "Client", "ClientTls"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from synerdiff import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
