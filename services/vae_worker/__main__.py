"""`python -m services.vae_worker`: one VAE worker as a process of its own."""

import asyncio
from typing import NoReturn

from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.allocator import keep_freed_memory
from synerdiff.openmp import prepare_openmp
from synerdiff.settings import load
from synerdiff.stopping import StoppedWhileLoading, exit_at_stop_signal, leave_now
from synerdiff.telemetry import configure_logging, get_logger, serve_metrics


def main() -> NoReturn:
    """Serve until SIGTERM or SIGINT, and leave with the exit status."""
    exit_at_stop_signal()
    settings = load(VaeWorkerSettings)
    configure_logging("vae_worker", settings.log_level)
    keep_freed_memory()
    prepare_openmp()
    from services.vae_worker.worker import serve

    serve_metrics(settings.metrics_port)
    try:
        status = asyncio.run(serve(settings))
    except StoppedWhileLoading:
        get_logger("process").info("stopped while loading")
        status = 0
    leave_now(status)


if __name__ == "__main__":
    main()
