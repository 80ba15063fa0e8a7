"""``full``: everything, at true positions. Plain rotary attention, which fails beyond the trained window."""

from __future__ import annotations

from dataclasses import dataclass

from ..positions import TruePositions
from ..selectors import WindowSelector
from .base import Given, Method


@dataclass(frozen=True)
class Full:
    """No parameters."""

    def make(self, given: Given) -> Method:
        """Everything at true positions."""
        return Method("full", None, WindowSelector(), TruePositions())
