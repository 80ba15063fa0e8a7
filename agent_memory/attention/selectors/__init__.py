"""Which keys of memory take part in attention: one Selector a file."""

from .base import Ask, Bounds, Selection, Selector
from .recall import RecallSelector
from .top_k import TopKSelector
from .window import WindowSelector

__all__ = ["Ask", "Bounds", "RecallSelector", "Selection", "Selector", "TopKSelector", "WindowSelector"]
