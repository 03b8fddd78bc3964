"""``python -m snello`` is ``snello``."""

import sys

from snello.cli import main

sys.exit(main())
