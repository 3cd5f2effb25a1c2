"""`python -m services.scheduler`: one scheduler."""

import sys

from services.scheduler.process import main

if __name__ == "__main__":
    sys.exit(main())
