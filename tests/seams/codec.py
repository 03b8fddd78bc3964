"""Private names of ``snello.codec`` that tests use."""

# The child process is replaced by scripts that hang, lie or die, and the worker run under limits.
from snello.codec import _child as child
from snello.codec import _worker as worker

# The requirement is replaced by wheels that a test makes, and the folder by one of its own.
from snello.codec import _install as installation

# A container with a valid digest and a wrong manifest cannot be made with the public writer.
from snello.codec._container import _FIXED as FIXED
from snello.codec._container import MAGIC as MAGIC

# Limits are lowered by monkeypatching: files that reach the real ones take gigabytes.
from snello.codec import _manifest as manifest

# The law "every dtype survives" has to walk all dtypes that a manifest can name.
from snello.codec._manifest import DTYPES as DTYPES

# Escaping must be invertible for every name, the ones that no tensor has included.
from snello.codec._names import escape as escape
from snello.codec._names import unescape as unescape
