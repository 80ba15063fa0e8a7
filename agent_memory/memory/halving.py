"""Groups of keys split in two until none is too large.

Knows keys and group numbers; nothing of tokens or where keys come from.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 5
"""Rounds of 2-means when a group is halved."""


def halve(keys: Tensor, group: Tensor, count: int, limit: int) -> tuple[Tensor, int]:
    """Split groups of more than ``limit`` keys in two by 2-means, until there are none.

    Args:
        keys: fp32 ``[n, d]``.
        group: int64 ``[n]``, the group of each, ``0`` to ``count - 1``.
        count: number of groups.
        limit: keys of a group at most.

    Returns:
        Groups int64 ``[n]`` and their number; one of the halves keeps the old number, the others follow after ``count``.
    """
    group = group.clone()
    while True:
        large = (torch.bincount(group, minlength=count) > limit).nonzero()[:, 0]
        if not len(large):
            return group, count
        among = torch.full((count,), -1, dtype=torch.int64, device=keys.device)
        among[large] = torch.arange(len(large), device=keys.device)
        rows = (among[group] >= 0).nonzero()[:, 0]
        local = among[group[rows]]
        second = _two_means(keys[rows], local, len(large))
        group[rows[second]] = count + local[second]
        count += len(large)


def _two_means(keys: Tensor, group: Tensor, count: int) -> Tensor:
    """Bool ``[n]``: the half of its group each key belongs to; neither half is empty."""
    offset = keys - _means(keys, group, count)[group]
    axis = offset[_last_of(group, count)]
    for _ in range(3):  # towards the direction in which the group is longest
        axis = torch.zeros_like(axis).index_add_(0, group, offset * (offset * axis[group]).sum(1, keepdim=True))
        axis /= axis.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    side = (offset * axis[group]).sum(1) > 0
    for _ in range(ROUNDS):
        centres = _means(keys, 2 * group + side, 2 * count)
        apart, middle = centres[1::2] - centres[0::2], (centres[1::2] + centres[0::2]) / 2
        side = ((keys - middle[group]) * apart[group]).sum(1) > 0
    sizes = torch.bincount(2 * group + side, minlength=2 * count).reshape(-1, 2)
    alike = (sizes.amin(1) == 0)[group]
    return torch.where(alike, _every_other(group), side) if bool(alike.any()) else side


def _every_other(group: Tensor) -> Tensor:
    """Bool ``[n]``: every second key of each group, for keys that cannot be told apart."""
    order = group.argsort(stable=True)
    return torch.empty_like(group, dtype=torch.bool).index_copy_(0, order, rank(group[order]) % 2 == 1)


def _means(keys: Tensor, group: Tensor, count: int) -> Tensor:
    sums = keys.new_zeros((count, keys.shape[1])).index_add_(0, group, keys)
    return sums / torch.bincount(group, minlength=count).clamp(min=1)[:, None]


def _last_of(group: Tensor, count: int) -> Tensor:
    """A key of each group, the same one every time."""
    place = torch.arange(len(group), device=group.device)
    return torch.zeros(count, dtype=torch.int64, device=group.device).scatter_reduce_(0, group, place, "amax")


def rank(sorted_groups: Tensor) -> Tensor:
    """How many of the same group stand before each, int64, in a sorted list of group numbers."""
    place = torch.arange(len(sorted_groups), device=sorted_groups.device)
    begins = torch.ones_like(sorted_groups, dtype=torch.bool)
    begins[1:] = sorted_groups[1:] != sorted_groups[:-1]
    return place - place.masked_fill(~begins, 0).cummax(0).values if len(place) else place
