"""Training: the runs that recipes describe.

A recipe describes a whole run as data. [`train`][snello.lab.training.train] trains with one of its
methods, [`journey`][snello.lab.training.journey] runs the round trip (train, prune, simplify, code,
export, measure) and [`reproduce`][snello.lab.training.reproduce] runs the rows of a published
table:

    result = journey(load_recipe("digits", ["--epochs=10"]), "runs/digits")

Needs the extra `train`.
"""

from snello.errors import require

require("lightning", "train", "training")
require("jsonargparse", "train", "reading recipes")

from snello.lab.methods import METHODS as METHODS  # noqa: E402
from snello.lab.recipes import TABLES as TABLES  # noqa: E402
from snello.lab.recipes import OptimizerConfig as OptimizerConfig  # noqa: E402
from snello.lab.recipes import PublishedTable as PublishedTable  # noqa: E402
from snello.lab.recipes import Quantity as Quantity  # noqa: E402
from snello.lab.recipes import Recipe as Recipe  # noqa: E402
from snello.lab.recipes import check_option_names as check_option_names  # noqa: E402
from snello.lab.recipes import load_recipe as load_recipe  # noqa: E402
from snello.lab.recipes import published_table as published_table  # noqa: E402
from snello.lab.recipes import recipe_names as recipe_names  # noqa: E402
from snello.lab.recipes import recipe_parser as recipe_parser  # noqa: E402
from snello.lab.recipes import recipe_path as recipe_path  # noqa: E402

from ._classification import Classification as Classification  # noqa: E402
from ._curate import Curated as Curated  # noqa: E402
from ._curate import record_training as record_training  # noqa: E402
from ._data import check_fits as check_fits  # noqa: E402
from ._data import image_input as image_input  # noqa: E402
from ._data import load_data as load_data  # noqa: E402
from ._distributed import world as world  # noqa: E402
from ._evaluate import Answers as Answers  # noqa: E402
from ._evaluate import Evaluation as Evaluation  # noqa: E402
from ._evaluate import answers as answers  # noqa: E402
from ._evaluate import evaluate as evaluate  # noqa: E402
from ._evaluate import evaluate_on as evaluate_on  # noqa: E402
from ._evaluate import evaluate_segmentation as evaluate_segmentation  # noqa: E402
from ._finetune import FineTuning as FineTuning  # noqa: E402
from ._finetune import augmentation_for as augmentation_for  # noqa: E402
from ._finetune import batches_and_optimizer as batches_and_optimizer  # noqa: E402
from ._finetune import finetune as finetune  # noqa: E402
from ._fit import train as train  # noqa: E402
from ._fit import validate as validate  # noqa: E402
from ._flags import flag_of as flag_of  # noqa: E402
from ._folder import finished_epochs as finished_epochs  # noqa: E402
from ._history import EpochRecord as EpochRecord  # noqa: E402
from ._journey import JourneyResult as JourneyResult  # noqa: E402
from ._journey import ShippedRow as ShippedRow  # noqa: E402
from ._journey import TrainedRow as TrainedRow  # noqa: E402
from ._journey import journey as journey  # noqa: E402
from ._reproduce import ReproducedRow as ReproducedRow  # noqa: E402
from ._reproduce import Reproduction as Reproduction  # noqa: E402
from ._reproduce import reproduce as reproduce  # noqa: E402
from ._resting import FineTunedRow as FineTunedRow  # noqa: E402
from ._result import TrainingResult as TrainingResult  # noqa: E402
from ._segmentation import Segmentation as Segmentation  # noqa: E402

# The names left out of __all__ are internal to snello's own packages.
__all__ = [
    "TABLES", "Classification", "Curated", "EpochRecord", "FineTuning", "JourneyResult", "Recipe", "Reproduction",
    "Segmentation", "TrainingResult", "evaluate", "evaluate_segmentation", "finetune", "journey",
    "load_recipe", "published_table", "recipe_names", "record_training", "reproduce", "train", "validate",
]  # fmt: skip
