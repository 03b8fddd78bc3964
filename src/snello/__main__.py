"""``python -m snello`` is ``snello``."""

import os
import sys

# 'python -m' puts the working folder on the import path, 'snello' does not. Without it nothing that
# lies there is imported by accident; a factory of the user's own is looked up there by name
# (snello.cli).
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from snello.cli import main

sys.exit(main())
