"""Bypasses: ways to skip input channels of a 1x1 convolution that are not constant.

May import `ops` and `ir`. To add one, write one file here with a class derived from
`Bypass` and a search for it under `@finder`: every file of this folder is imported,
nothing else lists them.
"""

import importlib
import pkgutil

from .bypass import Accepted as Accepted
from .bypass import Bypass as Bypass
from .bypass import Skipped as Skipped
from .bypass import candidates as candidates

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
