"""`python -m services.gateway`: one gateway."""

import sys

from synerdiff.stopping import exit_at_stop_signal

if __name__ == "__main__":
    exit_at_stop_signal()
    from services.gateway.process import main

    sys.exit(main())
