"""The parts of each Block: tokens with like keys, whose mean value stands for them where they are not read.

Knows keys and values of one layer; nothing of selection, Tiers or files. Queries give like keys like weights, so that a mean with their
whole mass is nearly what each value with its own weight would be; of tokens that only follow each other it is not. RetroInfer (arXiv
2505.02922, section 4) estimates by clusters of like keys for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..types import BLOCK_TOKENS
from .growing import GrowingRows

PART_TOKENS = 4
"""Tokens of a part."""

PARTS = BLOCK_TOKENS // PART_TOKENS
"""Parts of a Block."""

BLOCKS_AT_ONCE = 1024
"""Divided into parts at a time."""

STEPS = 8
"""Of power iteration, towards the direction in which keys differ most."""

ORDER, MEAN = "part_order", "part_mean"
"""Names of the tensors in a Segment."""


class LayerParts:
    """Parts of every whole Block of one layer, each KV head its own.

    Args:
        kv_heads: KV heads of the layer (``Hk``).
        head_dim: head dimension (``d``).
        dtype: of the mean values.
        device: where the rows lie.
    """

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self._order = GrowingRows((kv_heads, BLOCK_TOKENS), torch.int8, device=device)
        self._means = GrowingRows((PARTS, kv_heads, head_dim), dtype, device=device)

    def __len__(self) -> int:
        return len(self._means)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Divide the next ``n`` Blocks by their unrotated ``keys [n, Hk, 32, d]``, and note the means of ``values [n, Hk, 32, d]``."""
        for some, theirs in zip(keys.split(BLOCKS_AT_ONCE), values.split(BLOCKS_AT_ONCE), strict=True):
            order = alike(some.float())
            sorted_values = theirs.gather(2, order[..., None].expand_as(theirs))
            self._extend(order, sorted_values.float().unflatten(2, (PARTS, PART_TOKENS)).mean(3).transpose(1, 2))

    def members(self, heads: slice, start: int, stop: int) -> Tensor:
        """Tokens int64 ``[s, parts, 4]``, counted from the first of them, of each part of Blocks ``[start, stop)`` of some KV heads, in the
        order of :meth:`means`."""
        order = self._order.slice(start, stop)[:, heads].transpose(0, 1).contiguous().long()
        order += torch.arange(0, (stop - start) * BLOCK_TOKENS, BLOCK_TOKENS, device=order.device)[:, None]
        return order.view(len(order), -1, PART_TOKENS)

    def means(self, heads: slice, start: int, stop: int) -> Tensor:
        """Mean values fp32 ``[s, parts, d]`` of Blocks ``[start, stop)`` of some KV heads."""
        return self._means.slice(start, stop)[:, :, heads].movedim(2, 0).flatten(1, 2).float()

    @property
    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape, a Block, of what :meth:`state` gives."""
        return {name: (rows.dtype, tuple(rows.row_shape)) for name, rows in ((ORDER, self._order), (MEAN, self._means))}

    def truncate(self, n: int) -> None:
        """Forget every Block from ``n`` on."""
        self._order.truncate(n)
        self._means.truncate(n)

    def fork(self, n: int) -> LayerParts:
        """A child that knows Blocks ``[0, n)``, sharing their rows; neither disturbs the other afterwards."""
        child = object.__new__(LayerParts)
        child._order, child._means = self._order.fork(n), self._means.fork(n)
        return child

    def state(self, start: int, stop: int) -> dict[str, Tensor]:
        """Rows of Blocks ``[start, stop)`` by name, to be kept."""
        return {ORDER: self._order.slice(start, stop), MEAN: self._means.slice(start, stop)}

    def load(self, known: Mapping[str, Tensor]) -> bool:
        """Append rows that :meth:`state` gave earlier; False, and nothing is appended, where they are missing."""
        if ORDER not in known or MEAN not in known:
            return False
        self._extend(known[ORDER], known[MEAN])
        return True

    def append_blank(self, n: int) -> None:
        """Append ``n`` Blocks of which nothing is known: their means are 0."""
        order = torch.arange(BLOCK_TOKENS, dtype=torch.int8).expand(n, *self._order.row_shape)
        self._extend(order, torch.zeros((n, *self._means.row_shape)))

    @property
    def nbytes(self) -> int:
        """Bytes reserved; rows inherited by a fork are counted by the object that made them."""
        return self._order.nbytes + self._means.nbytes

    def _extend(self, order: Tensor, means: Tensor) -> None:
        start = len(self)
        try:
            self._order.append(order)
            self._means.append(means)
        except BaseException:
            self.truncate(start)  # both grow, or none
            raise


def alike(keys: Tensor) -> Tensor:
    """An order int64 ``[..., 32]`` of ``keys`` fp32 ``[..., 32, d]`` in which each run of 4 holds like ones.

    Keys are halved across the direction in which they differ most, and each half again: a principal direction divisive partitioning
    (Boley 1998) into parts of one size.
    """
    *outer, tokens, dim = keys.shape
    keys = keys.reshape(-1, tokens, dim)
    order = torch.arange(tokens, device=keys.device).expand(len(keys), -1)
    for size in _sizes(tokens):
        place = _along(keys.view(-1, size, dim)).argsort(dim=1, stable=True).view(len(keys), -1, size)
        place = (place + torch.arange(0, tokens, size, device=keys.device)[:, None]).flatten(1)
        order, keys = order.gather(1, place), keys.gather(1, place[..., None].expand_as(keys))
    return order.reshape(*outer, tokens)


def _sizes(tokens: int) -> list[int]:
    return [tokens >> halvings for halvings in range((tokens // PART_TOKENS).bit_length() - 1)]


def _along(keys: Tensor) -> Tensor:
    """Where each of ``keys [n, size, d]`` lies along the direction in which its set differs most, fp32 ``[n, size]``."""
    centred = keys - keys.mean(1, keepdim=True)
    products = centred @ centred.transpose(1, 2)
    farthest = products.diagonal(dim1=1, dim2=2).argmax(1)
    at = products[torch.arange(len(keys), device=keys.device), farthest][..., None]
    for _ in range(STEPS):
        at = products @ (at / at.norm(dim=1, keepdim=True).clamp_(min=1e-12))
    return at[..., 0]
