"""The paged operations as Triton kernels. Importing it imports triton."""

from .attend import attend
from .place import place
from .score import rescore, score
from .score_int8 import score_codes, score_int8
from .select import certify, select, select_and_place, tally
from .summarize import summarize

__all__ = [
    "attend",
    "certify",
    "place",
    "rescore",
    "score",
    "score_codes",
    "score_int8",
    "select",
    "select_and_place",
    "summarize",
    "tally",
]
