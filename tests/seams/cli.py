"""Private names of ``snello.cli`` that tests use."""

# Every command is walked, and the words of one are told apart without running it.
from snello.cli._main import COMMANDS as COMMANDS
from snello.cli._main import _arguments as arguments
from snello.cli._words import UsageError as UsageError
from snello.cli._words import command_in as command_in
from snello.cli._words import divided as divided

# What the commands share, each part without a command: a journey would take minutes.
from snello.cli._calibration import BATCH as BATCH
from snello.cli._calibration import add_calibration_arguments as add_calibration_arguments
from snello.cli._calibration import calibration as calibration
from snello.cli.bench_device import _shared as shared_images
from snello.cli._data import load_images as load_images
from snello.cli._data import use_recipe_beside as use_recipe_beside
from snello.cli._inputs import add_model_arguments as add_model_arguments
from snello.cli._inputs import device as device
from snello.cli._inputs import read_model as read_model
from snello.cli._own_code import import_own_code as import_own_code
from snello.cli._own_code import import_path_restored as import_path_restored
from snello.cli._own_code import named_code as named_code
from snello.cli._recipes import run_folder as run_folder
from snello.cli._saving import save_or_rescue as save_or_rescue
from snello.cli._subjects import subjects as subjects

# Spellings of a time, without a study.
from snello.cli.tune import _seconds as seconds_of

# Signals are sent to this process, within the block that handles them.
from snello.cli._signals import is_speaker as is_speaker
from snello.cli._signals import sigterm_raised as sigterm_raised

# The tables of ``snello measure`` from measurements that are made up.
from snello.cli._profiles import clock_table as clock_table
from snello.cli._profiles import paper_table as paper_table

# Options of ``snello compress`` and their effect, on a search that is watched.
from snello.cli._rate import add_rate_arguments as add_rate_arguments
from snello.cli._rate import search as search
from snello.cli._rate import search_images as search_images

# A command is replaced by monkeypatching, to end as no command does on purpose.
from snello.cli import decompress as decompress_command
from snello.cli import prune as prune_command

# Answers of models that return no tensor, without a search.
from snello.cli._samples import Samples as Samples

# Names in help, read from sources, are compared with the tables.
from snello.cli import _names as names
