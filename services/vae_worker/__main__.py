"""`python -m services.vae_worker`: one VAE worker as a process of its own."""

import asyncio
import os

from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.settings import load
from synerdiff.telemetry import configure_logging, serve_metrics


def main() -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    settings = load(VaeWorkerSettings)
    configure_logging("vae_worker", settings.log_level)
    # OpenMP reads this when torch is imported: threads that spin while idle would take the cores from the UNet worker.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from services.vae_worker.worker import serve

    serve_metrics(settings.metrics_port)
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    raise SystemExit(main())
