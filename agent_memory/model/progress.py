"""Progress bars and warnings of transformers: one bar for what it does in several, and on a terminal only.

Knows where transformers makes its bars; nothing of what takes so long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


class Bar:
    """A bar that says what is being done and follows what is iterated over. Made by :func:`progress_bar`."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def say(self, doing: str) -> None:
        """Say what is being done now."""
        self._bar.set_description_str(doing)

    def follow(self, items: Iterable[Any]) -> Iterator[Any]:
        """The ``items``, while the bar grows from its beginning to its end."""
        listed = list(items)
        self._bar.total, self._bar.n = len(listed), 0
        for item in listed:
            yield item
            self._bar.update()

    @contextmanager
    def of_transformers(self) -> Iterator[None]:
        """Meanwhile transformers' own bars go to this one. One thread at a time."""

        def instead(make: Callable[..., Any], items: tuple[Any, ...], options: dict[str, Any]) -> Any:
            return self.follow(items[0]) if items else make(**options)

        before = logging.set_tqdm_hook(instead)
        try:
            # The loader of older architectures asks no hook: it draws its bar in any case, into logs and beside the JSON of a command.
            with _replaced("transformers.modeling_gguf_pytorch_utils", "tqdm", lambda items, **_: self.follow(items)):
                yield
        finally:
            logging.set_tqdm_hook(before)


@contextmanager
def progress_bar(doing: str) -> Iterator[Bar]:
    """A bar on standard error, silent if that is no terminal."""
    with tqdm(desc=doing, total=1, disable=None, file=sys.stderr, leave=False, bar_format=_FORMAT) as shown:
        yield Bar(shown)


@contextmanager
def _replaced(module: str, name: str, value: object) -> Iterator[None]:
    """Another value for a name of a module, if there is such a module."""
    try:
        loaded = import_module(module)
    except ImportError:
        yield
        return
    before = getattr(loaded, name)
    setattr(loaded, name, value)
    try:
        yield
    finally:
        setattr(loaded, name, before)


@contextmanager
def bars_on_a_terminal() -> Iterator[None]:
    """transformers and the hub draw their bars wherever standard error goes; in a log or a notebook they are in the way."""
    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says errors only: what it warns of is told by an error of ours, or is meant to be so."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
