"""Rewriting: the only package that edits graphs or weights.

May import `runtime`, `ops` and `ir`; never `passes`. A new kind of edit needs one applier
in `appliers.py`, registered by the type of its record under `@applies`.
"""

from .apply import CONFIG_KEY as CONFIG_KEY
from .apply import apply as apply
from .apply import in_modes_of as in_modes_of
from .apply import narrow_in_place as narrow_in_place
from .apply import plan_of as plan_of
from .apply import sharing_parameters as sharing_parameters
from .apply import write_values as write_values
from .arguments import wake_dropout as wake_dropout
from .optimizer import rebind as rebind
