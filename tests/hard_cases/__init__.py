"""Hard cases of simplification: one small network for each thing that a shrinking tool gets wrong.

One file per topic; each registers its cases in ``CASES`` when it is imported. A quick run takes the
cases by turns, in the order in which they are registered.
"""

from . import architectures as architectures
from . import constants as constants
from . import depthwise as depthwise
from . import gates as gates
from . import heads as heads
from . import in_place as in_place
from . import operations as operations
from . import outputs as outputs
from . import slices as slices
from . import sums as sums
from . import tokens as tokens
from .base import CASES as CASES
from .base import REFUSED as REFUSED
from .base import Case as Case
from .base import Net as Net
from .base import blind as blind
from .base import conv as conv
from .base import kill as kill
from .base import neurons_of as neurons_of
from .base import random_dead as random_dead
