"""``python -m vfio_user`` is the command ``vfio-user``."""

from __future__ import annotations

import sys

from vfio_user.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
