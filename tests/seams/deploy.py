"""Private names of ``snello.deploy`` that tests use."""

# Calls that reach the clock are recorded by monkeypatching, to see in which order they are timed.
from snello.deploy import _compare as compare_module

# A hostile .pt2 archive must be refused by the check alone, before torch reads it.
from snello.deploy._program import load_program as load_program
from snello.deploy._program_check import check_program as check_program

# Calibration batches are counted by monkeypatching onnxruntime's quantiser.
from snello.deploy import _quantise as quantise_module

# The tolerance is stated per dtype, and lowered by monkeypatching to see an export refused.
from snello.deploy import _verify as verify
from snello.deploy._verify import tolerance_of as tolerance_of
