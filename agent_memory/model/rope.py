"""A model's own rotary tables, asked for at positions of our choice, its own way of applying them, and a faster one of most.

Knows one rotary module and how it was called; nothing of layers, memory or attention.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]

_STEADY = {"default", "linear", "llama3", "yarn", "proportional"}
_TABLES_KEPT = 4
_SMALLEST_TABLE = 256


class Rope:
    """The rotary module that made a layer's pair, with the arguments it was called with.

    Rotary modules of the dynamic and longrope kinds change themselves by the largest position they see. A Rope puts the module
    back as it was after each call, so that equal questions get equal answers and the model stays stock.

    Args:
        module: the rotary module.
        args, kwargs: of the observed call; its integer tensor is the positions, its float tensor only gives dtype and device.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs
        self.device: torch.device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        kinds = getattr(module, "rope_type", None)
        self.steady = set(kinds.values() if isinstance(kinds, dict) else [kinds]) <= _STEADY
        self._tables: OrderedDict[int, Pair] = OrderedDict()
        self._halves: Tensor | None = None

    def same_call(self, other: Rope) -> bool:
        """True if both ask one module in one way (layer type and the like)."""
        return self.module is other.module and _plain(self) == _plain(other)

    def pair(self, positions: Tensor) -> Pair:
        """Cosines and sines ``[1, n, r]`` of the ``[n]`` positions, in one call of the module, on the positions' device."""
        state = self.save()
        cos, sin = self._call(positions.to(self.device))
        self.restore(state)
        return cos.to(positions.device), sin.to(positions.device)

    def table(self, n: int, device: torch.device) -> Pair:
        """The pair of positions 0 to n-1, kept for next time."""
        size = n if not self.steady else max(_SMALLEST_TABLE, 1 << (n - 1).bit_length())
        kept = self._tables.pop(size, None)
        if kept is None or kept[0].device != device:
            kept = self.pair(torch.arange(size, device=device))
        self._tables[size] = kept
        if len(self._tables) > _TABLES_KEPT:
            self._tables.popitem(last=False)
        return kept[0][:, :n], kept[1][:, :n]

    def halves(self, n: int, device: torch.device) -> Tensor | None:
        """``[n, r]``: cosines, then sines, of the first r / 2 dimensions at positions 0 to n-1, kept for next time; None where the other
        r / 2 have others. Of a steady module only."""
        kept = self._halves
        if kept is None or len(kept) < n or kept.device != device:
            cos, sin = (table[0] for table in self.table(max(_SMALLEST_TABLE, 1 << (n - 1).bit_length()), device))
            half = cos.shape[1] // 2
            if not all(torch.equal(table[:, :half], table[:, half:]) for table in (cos, sin)):
                return None
            self._halves = kept = torch.cat([cos[:, :half], sin[:, :half]], dim=1)
        return kept[:n]

    def save(self) -> dict[str, Any]:
        """What the module could change about itself; empty if it never does."""
        if self.steady:
            return {}
        plain = {name: value for name, value in vars(self.module).items() if not name.startswith("_")}
        return {**plain, **{name: buffer.clone() for name, buffer in self.module.named_buffers(recurse=False, remove_duplicate=False)}}

    def restore(self, state: dict[str, Any]) -> None:
        """Put the module back to what ``save`` saw."""
        for name, value in state.items():
            setattr(self.module, name, value)

    def settle(self) -> None:
        """Bring a module that saw long inputs earlier back to its first state."""
        if not self.steady:
            self._call(torch.zeros(1, dtype=torch.long, device=self.device))

    def _call(self, positions: Tensor) -> Pair:
        args = tuple(_substitute(value, positions) for value in self.args)
        kwargs = {name: _substitute(value, positions) for name, value in self.kwargs.items()}
        with torch.no_grad():
            cos, sin = self.module(*args, **kwargs)
        return cos, sin


def _plain(rope: Rope) -> list[Any]:
    values = [*rope.args, *sorted(rope.kwargs.items())]
    return [value for value in values if not isinstance(value, Tensor) and not (isinstance(value, tuple) and isinstance(value[1], Tensor))]


def _substitute(value: Any, positions: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return value.new_zeros(1, 1, 1)
    return positions.expand(*value.shape[:-1], positions.shape[0])


def rotations(module: nn.Module) -> list[Rotate]:
    """The ways the code around attention ``module`` may apply a pair: to whole heads, or to their first r dimensions.

    Each is ``rotate(x [B, H, n, d], cos [B or 1, n, r], sin) -> [B, H, n, d]``, through the model's own function, in the model's
    own dtype. Certifying picks the one that reproduces the module's keys.
    """
    apply = next((found for cls in type(module).__mro__ if (found := _apply_function(cls))), None)
    if apply is None:
        return []

    def whole(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotated: Tensor = apply(x, x[:, :0], cos, sin)[0]
        return rotated

    def first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = cos.shape[-1]
        return torch.cat((whole(x[..., :width], cos, sin), x[..., width:]), dim=-1)

    return [whole, first]


def half_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What most models mean by rotating: dimension i with dimension i + r/2, in the first r of ``x [B, H, n, d]``, by a pair
    ``[B or 1, n, r]`` (the paper's rotary embedding in GPT-NeoX's order). A third of the memory traffic of the usual code, and one
    rounding less."""
    width, half = cos.shape[-1], cos.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]
    rotated = x[..., :width] * cos
    rotated[..., :half].addcmul_(x[..., half:width], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return rotated if width == x.shape[-1] else torch.cat((rotated, x[..., width:]), dim=-1)


def _apply_function(cls: type) -> Callable[..., tuple[Tensor, Tensor]] | None:
    found = getattr(sys.modules.get(cls.__module__), "apply_rotary_pos_emb", None)
    return found if callable(found) else None
