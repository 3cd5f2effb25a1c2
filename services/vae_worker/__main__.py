"""`python -m services.vae_worker`: one VAE worker as a process of its own."""

import asyncio

from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.openmp import prepare_openmp
from synerdiff.settings import load
from synerdiff.telemetry import configure_logging, serve_metrics


def main() -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    settings = load(VaeWorkerSettings)
    configure_logging("vae_worker", settings.log_level)
    prepare_openmp()
    from services.vae_worker.worker import serve

    serve_metrics(settings.metrics_port)
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    raise SystemExit(main())
