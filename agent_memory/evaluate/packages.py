"""Packages that are not required to be there.

Knows how to say what is missing, and nothing else.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import ConfigError


def package(module: str, name: str, purpose: str) -> Any:
    """A module of the package ``name``, wanted for some purpose.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{purpose} needs the package {name}, which is not installed: pip install {name}") from error
