"""`python -m services.unet_worker`: a UNet worker."""

from services.unet_worker.settings import UnetWorkerSettings
from synerdiff.worker.main import main

if __name__ == "__main__":
    main("unet_worker", UnetWorkerSettings)
