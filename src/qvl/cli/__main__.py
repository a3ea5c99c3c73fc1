"""`python -m qvl.cli` is `qvl`, for where the script is not on the path."""

from __future__ import annotations

import sys

from qvl.cli import main

if __name__ == "__main__":
    sys.exit(main())
