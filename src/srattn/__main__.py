"""``python -m srattn`` is the command ``srattn``."""

import sys

from srattn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
