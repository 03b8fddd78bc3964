"""Private names of ``snello.lab.reporting`` that tests use."""

# Figures are caught before they become pixels, to compare the numbers that they draw.
from snello.lab.reporting import _equilibrium as figures
from snello.lab.reporting import _plots as plots

# The period of signs of life is shortened by monkeypatching.
from snello.lab.reporting import _progress as progress_module
