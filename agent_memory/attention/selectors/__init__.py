"""Which keys of memory take part in attention: one Selector a file."""

from .base import Ask, Bounds, Selection, Selector
from .blocks import BlockSelector
from .mass import MassConfig, MassSelector
from .recall import RecallSelector
from .top_k import TopKSelector
from .window import WindowSelector

__all__ = [
    "Ask",
    "BlockSelector",
    "Bounds",
    "MassConfig",
    "MassSelector",
    "RecallSelector",
    "Selection",
    "Selector",
    "TopKSelector",
    "WindowSelector",
]
