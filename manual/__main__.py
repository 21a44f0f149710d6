"""`python -m manual share DIRECTORY`: write man pages and completion scripts below DIRECTORY."""

import sys
from pathlib import Path

from manual import share

match sys.argv[1:]:
    case ["share", directory]:
        share.write(Path(directory))
    case _:
        sys.exit(__doc__)
