"""Reads sizes as people write them (``"8GiB"``) into bytes. Knows nothing of what the bytes are for."""

from __future__ import annotations

import re

from ..errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]{0,3})\s*", re.ASCII)


def parse_size(size: int | str) -> int:
    """Bytes meant by ``size``.

    Args:
        size: whole bytes as an int, or a number with an optional unit: ``B``, ``KiB`` to ``TiB`` (1024), ``KB`` to ``TB`` (1000);
            case does not matter.

    Raises:
        ConfigError: if it is negative or no size.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _SIZE.fullmatch(size.lower()) if isinstance(size, str) else None
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{size!r} is not a size; write bytes as a number, or a number with a unit such as '8GiB' or '500MB'")
    unit = _UNITS[match[2]]
    # Whole numbers stay integers: a float would lose bytes above 2**53.
    return int(match[1]) * unit if "." not in match[1] else int(float(match[1]) * unit)
