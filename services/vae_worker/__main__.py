"""`python -m services.vae_worker`: a VAE worker."""

from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.worker.main import main

if __name__ == "__main__":
    main("vae_worker", VaeWorkerSettings)
