"""Entry point of `python -m snello`, the same as the command `snello`."""

import os
import sys

# 'python -m' puts the working folder on the import path, the command 'snello' does not. It is taken
# off so that no file there is imported by accident; snello.cli looks up users' factories there by
# name.
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from .cli import main

sys.exit(main())
