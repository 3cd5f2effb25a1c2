"""`python -m services.unet_worker`: one UNet worker."""

from synerdiff.allocator import keep_freed_memory
from synerdiff.openmp import prepare_openmp
from synerdiff.stopping import exit_at_stop_signal

if __name__ == "__main__":
    exit_at_stop_signal()
    keep_freed_memory()
    prepare_openmp()
    from services.unet_worker.process import main

    main()
