"""Private names of ``snello.cli`` that tests use."""

# Every command is walked, and the words of one are told apart without running it.
from snello.cli._main import COMMANDS as COMMANDS
from snello.cli._words import UsageError as UsageError
from snello.cli._words import divided as divided

# The tables of ``snello measure`` from measurements that are made up.
from snello.cli._profiles import clock_table as clock_table
from snello.cli._profiles import paper_table as paper_table

# Options of ``snello compress`` and their effect, on a search that is watched.
from snello.cli._rate import add_rate_arguments as add_rate_arguments
from snello.cli._rate import search as search
