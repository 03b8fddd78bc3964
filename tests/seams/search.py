"""Private names of ``snello.search`` that tests use."""

# The allocation is arithmetic on tables: optimal among all tables, which no network can show.
from snello.search.rate._allocation import OCTAVE as OCTAVE
from snello.search.rate._allocation import allocate as allocate
from snello.search.rate._allocation import byte_table as byte_table
from snello.search.rate._allocation import candidate_qps as candidate_qps
from snello.search.rate._allocation import coarsest_qp as coarsest_qp
from snello.search.rate._allocation import curvature_costs as curvature_costs
from snello.search.rate._allocation import probed_costs as probed_costs

# Each estimate that steers the search is compared with its definition.
from snello.search.rate._correct import Correction as Correction
from snello.search.rate._fisher import fisher as fisher
from snello.search.rate._probe import Probe as Probe
from snello.search.rate._probe import distance as distance

# The tensors that a trial codes, and a model that holds decoded ones: to repeat a trial by hand.
from snello.search.rate._trial import coded_tensors as coded_tensors
from snello.search.rate._trial import with_tensors as with_tensors

# Bisection is a function of numbers, tested on functions that no network has.
from snello.search.rate._workbench import first_below as first_below

# What a branch is decides what may be removed: its parameters are compared one by one.
from snello.search.prune._branches import find_branches as find_branches
from snello.search.prune._branches import without as without

# Folders of searches are told apart by the names of their options.
from snello.search.identity import name_of as name_of

# Parts of shrink whose laws do not need a whole search.
from snello.search.shrink._costs import OperationCost as OperationCost
from snello.search.output_distance import OutputDistance as OutputDistance
from snello.search.shrink._front import FrontPoint as FrontPoint
from snello.search.shrink._front import front as front
from snello.search.shrink._judge import Judge as Judge
from snello.search.shrink._lanes import Bounds as Bounds
from snello.search.shrink._lanes import lane as lane
from snello.search.shrink._log import Log as Log
from snello.search.shrink._networks import Networks as Networks
from snello.search.shrink._point import Group as Group
from snello.search.shrink._point import Point as Point
from snello.search.shrink._shapes import ShapeModel as ShapeModel
