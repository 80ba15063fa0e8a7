"""Parts of Blocks: which tokens share one, and their means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agent_memory.memory.parts import BLOCKS_AT_ONCE, PART_TOKENS, PARTS, LayerParts, alike

KV, BLOCK, DIM = 2, 32, 16


def made(blocks: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values ``[n, Hk, 32, d]``."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn((blocks, KV, BLOCK, DIM), generator=random), torch.randn((blocks, KV, BLOCK, DIM), generator=random)


def test_tokens_with_like_keys_share_a_part():
    random = torch.Generator().manual_seed(0)
    centres = torch.randn((PARTS, DIM), generator=random)
    kind = torch.randperm(BLOCK, generator=random) % PARTS
    keys = centres[kind] + 0.01 * torch.randn((BLOCK, DIM), generator=random)
    parts = kind[alike(keys[None])[0]].view(PARTS, PART_TOKENS)
    assert all(len(set(part.tolist())) == 1 for part in parts)


def test_keys_of_a_part_lie_closer_than_those_of_neighbours():
    keys, _ = made(50)
    keys = keys.cumsum(-2)[..., ::7, :].repeat(1, 1, 7, 1)[..., :BLOCK, :] + 0.3 * keys  # five kinds of keys, mixed

    def spread(parts: Tensor) -> float:
        each = parts.unflatten(2, (PARTS, PART_TOKENS))
        return float((each - each.mean(3, keepdim=True)).square().sum())

    order = alike(keys)
    assert spread(keys.gather(2, order[..., None].expand_as(keys))) < 0.25 * spread(keys)


def test_every_token_is_in_one_part_whatever_its_keys_are():
    for keys in (torch.zeros(3, BLOCK, DIM), torch.ones(3, BLOCK, DIM) * 1e20, made(3)[0][:, 0], torch.full((3, BLOCK, DIM), 1e-30)):
        assert torch.equal(alike(keys).sort(-1).values, torch.arange(BLOCK).expand(3, -1))


def test_means_are_those_of_the_members():
    keys, values = made(BLOCKS_AT_ONCE + 3)
    parts = LayerParts(KV, DIM, torch.float32)
    parts.append(keys[:7], values[:7])
    parts.append(keys[7:], values[7:])
    for head in range(KV):
        members = parts.members(slice(head, head + 1), 0, len(keys))[0]
        assert torch.equal(members.flatten().sort().values, torch.arange(len(keys) * BLOCK))
        expected = values[:, head].reshape(-1, DIM)[members].mean(1)
        torch.testing.assert_close(parts.means(slice(head, head + 1), 0, len(keys))[0], expected)


def test_what_was_kept_is_taken_up_and_forks_stay_apart():
    keys, values = made(20)
    parts = LayerParts(KV, DIM, torch.bfloat16)
    parts.append(keys[:12], values[:12].bfloat16())
    twin = parts.fork(9)
    parts.append(keys[12:], values[12:].bfloat16())
    twin.append(keys[:4], values[:4].bfloat16())
    again = LayerParts(KV, DIM, torch.bfloat16)
    assert not again.load({"part_mean": torch.zeros(1)}) and len(again) == 0
    assert again.load(parts.state(0, 5)) and again.load(parts.state(5, 20))
    again.append_blank(2)
    assert (len(parts), len(twin), len(again)) == (20, 13, 22)
    for head in range(KV):
        assert torch.equal(again.members(slice(head, head + 1), 0, 20), parts.members(slice(head, head + 1), 0, 20))
        assert torch.equal(again.means(slice(head, head + 1), 0, 20), parts.means(slice(head, head + 1), 0, 20))
        assert torch.equal(twin.means(slice(head, head + 1), 0, 9), parts.means(slice(head, head + 1), 0, 9))
        assert torch.equal(twin.means(slice(head, head + 1), 0, 13)[:, 9 * PARTS :], parts.means(slice(head, head + 1), 0, 4))
        assert not again.means(slice(head, head + 1), 0, 22)[:, 20 * PARTS :].any()
        assert torch.equal(again.members(slice(head, head + 1), 0, 22)[:, 20 * PARTS :].flatten(), torch.arange(20 * BLOCK, 22 * BLOCK))
    parts.truncate(3)
    assert len(parts) == 3 and parts.nbytes >= 3 * (KV * BLOCK + PARTS * KV * DIM * 2)


def test_rows_of_another_shape_leave_nothing_behind():
    parts = LayerParts(KV, DIM, torch.float32)
    keys, values = made(2)
    parts.append(keys, values)
    state = parts.state(0, 2)
    with pytest.raises(RuntimeError):
        parts.load({**state, "part_mean": state["part_mean"][:, :, :, :-1]})
    assert len(parts) == 2
    parts.append(keys, values)
    assert torch.equal(parts.means(slice(None), 0, 4)[:, 2 * PARTS :], parts.means(slice(None), 0, 2))
