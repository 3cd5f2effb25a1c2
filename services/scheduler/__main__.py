"""`python -m services.scheduler`: one scheduler."""

import sys

from synerdiff.stopping import exit_at_stop_signal

if __name__ == "__main__":
    exit_at_stop_signal()
    from services.scheduler.process import main

    sys.exit(main())
