"""The modules inside a lean network, each with the rule by which it is simplified again.

May import `ops` and `ir`; not `passes`, `bypasses`, `rewrite`. To add one, write one file
here with the module (`snello_leaf = True`) and its rule: every file of this folder is imported,
nothing else lists them.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
