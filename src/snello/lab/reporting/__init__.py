"""Tables, plots and report pages of results.

The results are frozen dataclasses of other packages. A [`Table`][snello.lab.reporting.Table] has a
title, a header and rows of text, and is printed on the terminal with rich or written as Markdown.
[`write_report`][snello.lab.reporting.write_report] writes the report of a journey.
"""

from ._curation import contact_sheet as contact_sheet
from ._curation import plot_scores as plot_scores
from ._equilibrium import cost_table as cost_table
from ._equilibrium import plot_costs as plot_costs
from ._equilibrium import plot_equilibrium as plot_equilibrium
from ._equilibrium import plot_updated as plot_updated
from ._journey import finetuning_table as finetuning_table
from ._journey import round_trip_table as round_trip_table
from ._journey import shipping_table as shipping_table
from ._journey import training_table as training_table
from ._journey import write_report as write_report
from ._plots import plot_potential as plot_potential
from ._progress import busy as busy
from ._progress import progress as progress
from ._reproduce import reproduction_tables as reproduction_tables
from ._reproduce import write_reproduction as write_reproduction
from ._shrink import shrink_table as shrink_table
from ._tables import Table as Table
from ._tables import markdown as markdown
from ._tables import show as show
from ._tuning import epsilon_table as epsilon_table
from ._tuning import finals_table as finals_table
from ._tuning import ramp_table as ramp_table
from ._tuning import trials_table as trials_table
from ._values import as_json as as_json
from ._values import flops as flops
from ._values import megabytes as megabytes
from ._values import milliseconds as milliseconds
from ._values import number as number
from ._values import percent as percent

# The names left out of __all__ are internal to snello's own packages.
__all__ = [
    "Table", "contact_sheet", "cost_table", "epsilon_table", "finals_table", "finetuning_table", "markdown",
    "plot_costs", "plot_equilibrium", "plot_potential", "plot_scores", "plot_updated", "ramp_table",
    "reproduction_tables", "round_trip_table", "shipping_table", "show", "training_table",
    "trials_table", "write_report", "write_reproduction",
]  # fmt: skip
