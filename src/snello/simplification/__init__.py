"""Simplification: take dead neurons out of a network; the outputs stay the same.

A neuron is *dead* when its value does not depend on the input (every weight that feeds it is zero,
or everything it reads is constant), or when no output of the network depends on it. The value of a
dead neuron is a known constant; :func:`simplify` removes the neuron and folds that constant into
its readers::

    lean = simplify(model, example_inputs)       # an ordinary nn.Module with the original layer names
    print(plan_of(lean))                         # what was kept, what was left alone, and why

Channels travel along the edges of the graph under a *layout*: the channels that are physically
present, and the constant value of the others. An operation without a rule receives its inputs at
full width, so that it costs savings and never correctness. The rooms, from the bottom up:

- ``ir``: signals, layouts, the plan and its edits, as data;
- ``ops``: the rules of operations, a public registry (:func:`rule_for`);
- ``bypasses``: ways to skip channels that are not constant;
- ``runtime``: the modules inside a lean network;
- ``passes``: match, constants, liveness, layout, widen, overwrite, lower, report; for a result of
  the model's own class also without_edits and attributes;
- ``rewrite``: applies a plan to a model, the only room that edits;
- ``cost``, ``verify``, ``batchnorm``, ``simplify``: cost models, the check in float64, folding of
  BatchNorm, and the sequence of all of it.

This package may import ``snello.graph``, ``snello.neurons`` and ``snello.errors``. To teach it an
operation, see :func:`rule_for`; inside, add one file to ``ops``.
"""

from .batchnorm import apply_folds as apply_folds
from .batchnorm import fold_batchnorm as fold_batchnorm
from .batchnorm import folds_of as folds_of
from .cost import BytesCost as BytesCost
from .cost import CostModel as CostModel
from .cost import LatencyCost as LatencyCost
from .cost import PlainCost as PlainCost
from .cost import Timings as Timings
from .ir.plan import LayerPlan as LayerPlan
from .ir.plan import SimplificationPlan as SimplificationPlan
from .ops.registry import register_rule as register_rule
from .ops.registry import rule_for as rule_for
from .rewrite import apply as apply
from .rewrite import plan_of as plan_of
from .simplify import make_plan as make_plan
from .simplify import simplify as simplify

# Other names are for the packages of snello.
__all__ = [
    "BytesCost", "CostModel", "LatencyCost", "PlainCost", "SimplificationPlan", "Timings",
    "fold_batchnorm", "plan_of", "register_rule", "rule_for", "simplify",
]  # fmt: skip
