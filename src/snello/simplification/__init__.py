"""Simplification: remove dead neurons from a network without changing its outputs.

A neuron is *dead* if its value does not depend on the input (all its input weights are zero, or all
its inputs are constant), or if no output of the network depends on it. In the first case its value
is a known constant; [`simplify`][snello.simplification.simplify] removes the neuron and folds the
constant into the layers that read it:

    lean = simplify(model, example_inputs)       # an ordinary nn.Module with the original layer names
    print(plan_of(lean))                         # what was kept, what was left alone, and why

Every edge of the graph has a *layout*: the channels that are present in the lean network, and the
constant value of the others. An operation without a rule receives its inputs at full width: less is
removed, but the result is correct. The subpackages and modules, from the bottom up:

- `ir`: signals, layouts, the plan and its edits, as data;
- `ops`: the rules of operations, a public registry ([`rule_for`][snello.simplification.rule_for]);
- `bypasses`: ways to skip channels that are not constant;
- `runtime`: the modules inside a lean network;
- `passes`: match, constants, liveness, layout, widen, overwrite, lower, report; for a result of the
  model's own class also without_edits, attributes, head_dimensions, faults and coupled;
- `rewrite`: applies a plan to a model; no other part edits graphs or weights;
- `cost`, `verify`, `batchnorm`: cost models, the check in float64, folding of BatchNorm;
- `sequence`, `candidate`, `candidates`, `simplify`: the passes in order, a way to simplify a model,
  all ways, best first, and the choice of the first that holds.

To add the rule of an operation, see [`rule_for`][snello.simplification.rule_for]; for a rule of snello's own, add
one file to `ops`.
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
from .passes.coupled import coupled_plan as coupled_plan
from .rewrite import apply as apply
from .rewrite import plan_of as plan_of
from .simplify import make_plan as make_plan
from .simplify import simplify as simplify

# Other names are for the packages of snello.
__all__ = [
    "BytesCost", "CostModel", "LatencyCost", "PlainCost", "SimplificationPlan", "Timings",
    "fold_batchnorm", "plan_of", "register_rule", "rule_for", "simplify",
]  # fmt: skip
