"""The method a Session's memory was made with: written with its first turn, and kept for as long as it lives.

Knows methods and how they are written on a line; nothing of Stores or engines. Keys and values of a later layer are made of what an earlier
layer attended to, so memory made by one method and continued by another would be neither's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .attention.methods import Method
from .attention.methods.spec import spec_of, written_options

FIRST_VERSION = "recall:score=max"
"""The only default the first version had, which wrote no method down."""

BY_MASS = "recall:score=mass:"
"""How a method begins that is written without ``reach`` where it was made before there was one: then it reached as far as the window, and
scored every key."""


def what_is_recorded(method: Method, window: int, border: int | None) -> dict[str, Any]:
    """What a new Session writes down; nothing of a method that cannot be written on a line."""
    facts = {"method": method.spec, "window": window if method.spec else None, "border": border}
    return {name: value for name, value in facts.items() if value is not None}


def method_of(
    session: str, recorded: Mapping[str, Any], mine: Method, window: int, make: Callable[[str, int], Method], *, reinterpret: bool = False
) -> Method:
    """The method of a Session, with its border.

    Args:
        session: its name, for the warning.
        recorded: what it wrote down; without a method, the first version's.
        mine: the method of the Runtime.
        window: the Runtime's.
        make: ``make(spec, window)`` makes a method for the model and the Session's head.
        reinterpret: take ``mine``, whatever was written down: to measure how a method reads what another one made.
    """
    method = mine
    if mine.spec is not None and not reinterpret:
        before = int(recorded.get("window", window))
        written = make(_as_it_was(str(recorded.get("method") or FIRST_VERSION), before), before)
        if (written.spec, before) != (mine.spec, window):
            method = written
            logging.getLogger(__name__).warning(
                "session %r keeps the method its memory was made with, %s (window %s), and is not read with %s (window %s); "
                "only a new session takes that",
                session, written.spec, f"{before:,}", mine.spec, f"{window:,}",
            )  # fmt: skip
    border = recorded.get("border")
    if border is not None and method.attended is not None:
        method = replace(method, border=max(int(border), method.attended))
    return method


def _as_it_was(spec: str, window: int) -> str:
    """A method as it was written down, with what has become an option since at the value that it had before."""
    if not spec.startswith(BY_MASS):
        return spec
    name, options, positions = written_options(spec)
    if "reach" not in options:
        options |= {"reach": str(window), "probes": "0"}
    if "cluster_tokens" not in options:
        options |= {"cluster_tokens": "128", "probed_share": "0.125"}
    return spec_of(name, {"most_probes": options["probes"], "focus": "0", **options}) + positions
