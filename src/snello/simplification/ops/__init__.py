"""Rules of operations: one operation, one class, pure.

May import `ir`, `snello.graph`, `snello.neurons`; not `runtime`, `passes`, `rewrite`.
To add an operation, write one file here with a class derived from `Operation` (or use one
that is here) and a matcher under [`rule_for`][snello.simplification.rule_for]: every file of this
folder is imported, nothing else lists them.
"""

import importlib
import pkgutil

from .call import Call as Call
from .operation import Operation as Operation
from .registry import register_pattern as register_pattern
from .registry import register_rule as register_rule
from .registry import rule_for as rule_for

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
