"""Recipes: one YAML file describes one run, without code.

`snello recipes ls` lists them, `snello recipes cp` copies one.

A [`Recipe`][snello.lab.training.Recipe] is typed and validates its own values;
[`load_recipe`][snello.lab.training.load_recipe] reads one and applies options as on the command
line. Needs no torch; reading a file needs the extra `train`.
"""

from ._config import CurationConfig as CurationConfig
from ._config import OptimizerConfig as OptimizerConfig
from ._config import Recipe as Recipe
from ._names import recipe_folder as recipe_folder
from ._names import recipe_names as recipe_names
from ._names import recipe_path as recipe_path
from ._names import recipe_summary as recipe_summary
from ._published import TABLES as TABLES
from ._published import PublishedRow as PublishedRow
from ._published import PublishedTable as PublishedTable
from ._published import Quantity as Quantity
from ._published import published_table as published_table
from ._recipe import check_option_names as check_option_names
from ._recipe import declared_space as declared_space
from ._recipe import epoch_overrides as epoch_overrides
from ._recipe import load_recipe as load_recipe
from ._recipe import option_names as option_names
from ._recipe import recipe_parser as recipe_parser
from ._scale import value_of as value_of
from ._text import recipe_text as recipe_text
