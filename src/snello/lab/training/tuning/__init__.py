"""Tuning of recipes: trials by epochs, the winner as a recipe, and its training with other seeds.

    settings = TuneSettings(method="lobster", trials=20, max_drop=0.01)
    found = tune(load_recipe("digits"), "runs/digits-tune", settings)
    found.recipe                                      # runs/digits-tune/winner.yaml

[`tune`][snello.lab.training.tuning.tune] searches with Optuna,
[`epsilon`][snello.lab.training.tuning.epsilon] finds NEq's ε for a wished share of updated neurons
by bisection, and [`ramp`][snello.lab.training.tuning.ramp] gets the curve of accuracy against
sparsity of LOBSTER or SeReNe from one training.

Needs the extras `train` and `tune`.
"""

from ._costs import COSTS as COSTS
from ._epsilon import Epsilon as Epsilon
from ._epsilon import epsilon as epsilon
from ._ramp import RampPoint as RampPoint
from ._ramp import RampResult as RampResult
from ._ramp import ramp as ramp
from ._result import FinalRow as FinalRow
from ._result import TrialRow as TrialRow
from ._result import Tuned as Tuned
from ._settings import TuneSettings as TuneSettings
from ._space import space_of as space_of
from ._space import with_values as with_values
from ._tune import tune as tune

__all__ = [
    "COSTS", "Epsilon", "FinalRow", "RampPoint", "RampResult", "TrialRow", "TuneSettings", "Tuned",
    "epsilon", "ramp", "space_of", "tune", "with_values",
]  # fmt: skip
