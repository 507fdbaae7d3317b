"""`python -m foundation`: the same as the command `foundation`; launchers start it this way."""

from __future__ import annotations

import sys

from foundation.cli import main

if __name__ == "__main__":
    sys.exit(main())
