"""Hyper-parameters by Optuna: the lowest cost within a bound on the drop of accuracy.

>>> def train(attempt: Attempt) -> Measured:
...     cost = attempt.values["x"]
...     return Measured(cost, drop=0.04 - cost)  # what is cheaper is worse
>>> study = open_study("memory", "example", Choices(sampler="random"), epochs=1, seed=0)
>>> goal = Goal(max_drop=0.02, penalty=10.0)
>>> search(study, train, (Interval("x", 0.0, 0.1),), goal, trials=20)
>>> 0.02 <= best(study, goal).user_attrs["cost"] < 0.03
True

Samplers, pruners and storages are Optuna's own. This package adds the objective
([`Goal`][snello.search.tune.Goal]), spaces as data ([`dimension`][snello.search.tune.dimension]),
and trials that continue after their process was killed ([`search`][snello.search.tune.search]).
[`bisect`][snello.search.tune.bisect] finds a setting with a monotone effect without a search.

Needs the extra `tune`.
"""

from snello.errors import require

require("optuna", "tune", "tuning")
require("filelock", "tune", "tuning")

from ._attempt import Attempt as Attempt  # noqa: E402
from ._attempt import OutOfTime as OutOfTime  # noqa: E402
from ._bisect import Bisection as Bisection  # noqa: E402
from ._bisect import bisect as bisect  # noqa: E402
from ._choices import PRUNERS as PRUNERS  # noqa: E402
from ._choices import SAMPLERS as SAMPLERS  # noqa: E402
from ._choices import Choices as Choices  # noqa: E402
from ._goal import Goal as Goal  # noqa: E402
from ._goal import Measured as Measured  # noqa: E402
from ._search import best as best  # noqa: E402
from ._search import front as front  # noqa: E402
from ._search import is_shared as is_shared  # noqa: E402
from ._search import search as search  # noqa: E402
from ._space import Interval as Interval  # noqa: E402
from ._space import Options as Options  # noqa: E402
from ._space import Space as Space  # noqa: E402
from ._space import dimension as dimension  # noqa: E402
from ._study import open_study as open_study  # noqa: E402

__all__ = [
    "PRUNERS", "SAMPLERS", "Attempt", "Bisection", "Choices", "Goal", "Interval", "Measured", "Options",
    "OutOfTime", "Space", "best", "bisect", "dimension", "front", "is_shared", "open_study", "search",
]  # fmt: skip
