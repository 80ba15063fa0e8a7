"""Choosing by attention mass, the default rule."""

from .config import MassConfig
from .selector import MassSelector

__all__ = ["MassConfig", "MassSelector"]
