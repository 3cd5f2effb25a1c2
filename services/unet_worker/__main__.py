"""`python -m services.unet_worker`: one UNet worker."""

import os
import sys

# Idle OpenMP threads would otherwise spin on cores that other processes of this host need. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from services.unet_worker.process import main

if __name__ == "__main__":
    sys.exit(main())
