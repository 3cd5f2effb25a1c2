"""A worker process, from its start to its exit status. Sets the variables of OpenMP before torch is imported."""

import asyncio
from importlib import import_module
from typing import NoReturn

from synerdiff.allocator import keep_freed_memory
from synerdiff.openmp import prepare_openmp
from synerdiff.settings import load
from synerdiff.stopping import exit_at_stop_signal, leave_now
from synerdiff.telemetry import configure_logging
from synerdiff.worker_settings import WorkerSettings


def main(service: str, settings_cls: type[WorkerSettings]) -> NoReturn:
    """Serve `service` (its module `stage` has a `STAGE`) until SIGTERM or SIGINT; leave with `process.run`'s status."""
    exit_at_stop_signal()
    settings = load(settings_cls)
    configure_logging(service, settings.log_level)
    keep_freed_memory()
    prepare_openmp()
    stage = import_module(f"services.{service}.stage").STAGE
    process = import_module("synerdiff.worker.process")
    leave_now(asyncio.run(process.run(stage(settings))))
