"""Plain-torch definitions: ``dense`` for tensors that lie in one piece, ``paged`` for pools of pages. Re-exports the dense ones."""

from .dense import (
    EMPTY,
    LEAST_SHARE,
    RUN,
    attend,
    attend_alone,
    column_mass,
    echo,
    merge,
    score,
    select,
    vote,
)
from .scan import BLOCKS_AT_ONCE, block_bounds, block_maxima
from .weights import LARGEST, Span, key_weights

__all__ = [
    "BLOCKS_AT_ONCE",
    "EMPTY",
    "LARGEST",
    "LEAST_SHARE",
    "RUN",
    "Span",
    "attend",
    "attend_alone",
    "block_bounds",
    "block_maxima",
    "column_mass",
    "echo",
    "key_weights",
    "merge",
    "score",
    "select",
    "vote",
]
