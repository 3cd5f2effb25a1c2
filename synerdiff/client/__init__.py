"""The client SDK: `Client` blocks, `AsyncClient` is for asyncio; both follow jobs through broken connections."""

from synerdiff.client.aio import AsyncClient, AsyncJobHandle
from synerdiff.client.options import GenerateOptions
from synerdiff.client.results import (
    Event,
    Finished,
    GeneratedImage,
    GenerateResult,
    ImageReady,
    Job,
    Model,
    Progress,
    Queued,
    Started,
    Timings,
)
from synerdiff.client.sync import Client, JobHandle
from synerdiff.tls import ClientTls

__all__ = [
    "AsyncClient",
    "AsyncJobHandle",
    "Client",
    "ClientTls",
    "Event",
    "Finished",
    "GenerateOptions",
    "GenerateResult",
    "GeneratedImage",
    "ImageReady",
    "Job",
    "JobHandle",
    "Model",
    "Progress",
    "Queued",
    "Started",
    "Timings",
]
