"""One self-contained page of HTML per run: figures, interactive charts, tables, the numbers.

A [`Page`][snello.lab.reporting.pages.Page] is data; `write_page` draws it. Charts are Vega-Lite
specifications, whose scripts are part of the file: no page loads anything from a network.
"""

from .comparison import comparison as comparison
from .devices import measured_on as measured_on
from .layers import layer_charts as layer_charts
from .page import Chart as Chart
from .page import Figure as Figure
from .page import Page as Page
from .page import add_to_page as add_to_page
from .page import check_libraries as check_libraries
from .page import read_figures as read_figures
from .page import write_page as write_page
from .runs import curation_page as curation_page
from .runs import journey_page as journey_page
from .runs import measurement_page as measurement_page
from .runs import pruning_page as pruning_page
from .runs import sweep_page as sweep_page
from .runs import training_page as training_page
from .runs import with_layers as with_layers
from .shrink import shrink_data as shrink_data
from .shrink import shrink_page as shrink_page
from .tuning import epsilon_page as epsilon_page
from .tuning import ramp_page as ramp_page
from .tuning import tuning_page as tuning_page

__all__ = [
    "Chart", "Figure", "Page", "add_to_page", "check_libraries", "comparison", "curation_page", "epsilon_page",
    "journey_page", "layer_charts", "measured_on", "measurement_page", "pruning_page", "ramp_page", "read_figures",
    "shrink_data", "shrink_page",
    "sweep_page", "training_page", "tuning_page", "with_layers", "write_page",
]  # fmt: skip
