"""`python -m jaxem`: see `python -m jaxem --help`."""

import sys

from .cli.command import main

if __name__ == "__main__":
    sys.exit(main())
