"""Private names of ``snello.deploy`` that tests use."""

# The script for devices keeps a copy of the turns of snello.timing, compared with the original.
from snello.deploy import _device_bench as device_bench

# The tolerance is stated per dtype, and lowered by monkeypatching to see an export refused.
from snello.deploy import _verify as verify
from snello.deploy._verify import tolerance_of as tolerance_of

# Models of single operations run in the session of the kit, without a file.
from snello.deploy._device_bench import session_of as session_of
