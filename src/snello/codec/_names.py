"""Names of tensors, escaped for the stream.

In the stream a name ends with a zero byte, and nncodec interprets `_G` and `_H` as the factors
of a decomposed weight. These, and the percent sign used to escape them, are written as `%00`,
`%5FG`, `%5FH` and `%25`; all other characters are unchanged.
"""

from __future__ import annotations

import re

from snello.errors import ConfigError

_RESERVED = re.compile(r"%|\0|_(?=[GH])")
_ESCAPE = re.compile(r"%(25|00|5F)")


def escape(name: str) -> str:
    """The name as it is written in the stream.

    Raises:
        ConfigError: for a name that is not a string or has no UTF-8 form (a lone surrogate).
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
    """The inverse of `escape`."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)
