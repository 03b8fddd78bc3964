"""Training methods as data: name, label, colour, constructor and options of each.

Recipes, runs, tables, plots and the command line all read the table
[`METHOD_SPECS`][snello.lab.methods.METHOD_SPECS]. Adding a row to it makes a new sensitivity or
selection available by name:

    METHOD_SPECS["serene"].label                      # 'SeReNe'
    method_of("serene+stochastic-0.2").share          # 0.2

Needs no torch: what a method is made of is imported when it is built.
"""

from ._names import JOURNEY_METHODS as JOURNEY_METHODS
from ._names import METHODS as METHODS
from ._names import Method as Method
from ._names import label_of as label_of
from ._names import method_of as method_of
from ._options import NEqConfig as NEqConfig
from ._options import PruningConfig as PruningConfig
from ._spaces import SPACES as SPACES
from ._spaces import Around as Around
from ._table import METHOD_SPECS as METHOD_SPECS
from ._table import MethodSpec as MethodSpec
from ._table import Setting as Setting

# The names left out of __all__ are internal to snello's own packages.
__all__ = [
    "METHODS", "METHOD_SPECS", "SPACES", "Around", "MethodSpec", "NEqConfig", "PruningConfig", "label_of",
    "method_of",
]  # fmt: skip
