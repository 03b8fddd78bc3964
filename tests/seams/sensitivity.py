"""Private names of ``snello.sensitivity`` that tests use."""

# The estimate is unbiased only if the classes are drawn uniformly.
from snello.sensitivity._outputs import draw_classes as draw_classes
