"""`python -m services.unet_worker`: one UNet worker."""

import sys

from synerdiff.openmp import prepare_openmp

if __name__ == "__main__":
    prepare_openmp()
    from services.unet_worker.process import main

    sys.exit(main())
