"""Training: the callbacks that bring snello's methods into Lightning, and the runs that recipes describe.

Any Lightning project can use the callbacks; they are thin and drive only the public API::

    trainer = L.Trainer(callbacks=[
        SensitivityPruning(lambda model: SeReNe(model, 1e-4), evaluate=validation_loss, granularity="neuron"),
    ])

A recipe describes a whole run as data. :func:`train` runs one method of it, :func:`journey` the round trip::

    result = journey(load_recipe("digits", ["--epochs=10"]), "runs/digits")

Needs the extra ``train``.
"""

from snello.errors import require

require("lightning", "train", "training")
require("jsonargparse", "train", "reading recipes")

from ._callbacks import NEq as NEq  # noqa: E402
from ._callbacks import SensitivityPruning as SensitivityPruning  # noqa: E402
from ._evaluate import Evaluation as Evaluation  # noqa: E402
from ._evaluate import evaluate as evaluate  # noqa: E402
from ._fit import TrainingResult as TrainingResult  # noqa: E402
from ._fit import load_data as load_data  # noqa: E402
from ._fit import train as train  # noqa: E402
from ._history import EpochRecord as EpochRecord  # noqa: E402
from ._journey import JourneyResult as JourneyResult  # noqa: E402
from ._journey import ShippedRow as ShippedRow  # noqa: E402
from ._journey import TrainedRow as TrainedRow  # noqa: E402
from ._journey import journey as journey  # noqa: E402
from ._recipe import METHODS as METHODS  # noqa: E402
from ._recipe import Recipe as Recipe  # noqa: E402
from ._recipe import load_recipe as load_recipe  # noqa: E402
from ._recipe import recipe_names as recipe_names  # noqa: E402
from ._recipe import recipe_parser as recipe_parser  # noqa: E402
from ._recipe import recipe_path as recipe_path  # noqa: E402
from ._task import Classification as Classification  # noqa: E402

__all__ = [
    "METHODS", "Classification", "EpochRecord", "Evaluation", "JourneyResult", "NEq", "Recipe",
    "SensitivityPruning", "ShippedRow", "TrainedRow", "TrainingResult", "evaluate", "journey", "load_data",
    "load_recipe", "recipe_names", "recipe_parser", "recipe_path", "train",
]  # fmt: skip
