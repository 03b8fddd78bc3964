"""Names of tensors, as the stream may hold them.

The stream ends a name with a zero byte, and nncodec reads meaning into ``_G`` and ``_H`` (the
factors of a decomposed weight). Those, and the percent sign that escapes them, are written as
``%00``, ``%5FG``, ``%5FH`` and ``%25``; every other name is written as it is.
"""

from __future__ import annotations

import re

from snello.errors import ConfigError

_RESERVED = re.compile(r"%|\0|_(?=[GH])")
_ESCAPE = re.compile(r"%(25|00|5F)")


def escape(name: str) -> str:
    """The name as it stands in the stream.

    Raises:
        ConfigError: for a name that is no string or has no UTF-8 form (a lone surrogate).
    """
    if not isinstance(name, str):
        raise ConfigError(f"tensor name {name!r}: names are strings, not {type(name).__name__}")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"tensor name {name!r} has no UTF-8 form ({error.reason}); rename it"
        ) from error
    return _RESERVED.sub(lambda match: f"%{ord(match[0]):02X}", name)


def unescape(name: str) -> str:
    """The inverse of :func:`escape`."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)
