"""Simplification: take the dead neurons out; the outputs stay the same.

A neuron is *dead* when its value does not depend on the input (every weight that feeds it is zero, or
everything it reads is constant), or when nothing that reaches the output reads it. A dead neuron's value is a
known constant; :func:`simplify` removes the neuron and folds that constant into whoever reads it::

    lean = simplify(model, example_inputs)       # an ordinary nn.Module with the original layer names
    print(plan_of(lean))                         # what was kept, what was left alone, and why

Four parts: *liveness* (which channels are constant, which are never read), *plan* (a frozen record that
serialises to JSON), *rewrite* (applies a plan to a model or to a freshly built one, so that a lean model is
loaded without pickled code), *verify* (float64 on the example inputs, before anything is returned).

Channels travel along the edges of the graph under a *layout*: which of them are physically present, and the
constant value of those that are not. An operation without a rule receives its inputs at full width, so that
it costs savings and never correctness.
"""

from . import _torchvision as _torchvision  # registers leaves of the graph
from ._batchnorm import apply_folds as apply_folds
from ._batchnorm import fold_batchnorm as fold_batchnorm
from ._batchnorm import folds_of as folds_of
from ._plan import LayerPlan as LayerPlan
from ._plan import SimplificationPlan as SimplificationPlan
from ._rewrite import apply as apply
from ._rewrite import plan_of as plan_of
from ._simplify import make_plan as make_plan
from ._simplify import simplify as simplify

__all__ = [
    "LayerPlan", "SimplificationPlan", "apply", "apply_folds", "fold_batchnorm", "folds_of", "make_plan", "plan_of",
    "simplify",
]  # fmt: skip
