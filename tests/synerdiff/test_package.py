"""Importing the package costs next to nothing; the client SDK comes with its first use."""

import subprocess
import sys

import synerdiff
from synerdiff.client import AsyncClient, Client


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, synerdiff; print([m for m in ('grpc', 'PIL', 'numpy', 'redis', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_client_needs_no_torch_and_no_redis() -> None:
    code = "import sys, synerdiff; synerdiff.Client; print([m for m in ('redis', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_clients_are_exported() -> None:
    assert synerdiff.Client is Client
    assert synerdiff.AsyncClient is AsyncClient
    assert not hasattr(synerdiff, "Nonsense")
