"""The default rule of ``recall``: masses at true distances, each KV head its own tokens, and means for what is not read."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from agent_memory.attention.region import LayerRule, Region, attend, turned
from agent_memory.attention.rotation import Turning, rotated
from agent_memory.attention.selectors import Ask, Bounds, MassConfig, MassSelector
from agent_memory.attention.selectors.mass.scan import _periods
from agent_memory.memory.layer_kv import LayerKV
from agent_memory.memory.parts import PART_TOKENS, LayerParts, alike
from agent_memory.memory.rotated_keys import RotatedKeys
from agent_memory.memory.summary import LayerSummary
from agent_memory_kernels import Span, operations

BLOCK, HEADS, KV, DIM = 32, 6, 2, 32
SCALE: float = DIM**-0.5


class Rotary:
    """Rotation of halves, base 10,000, in fp32."""

    def table(self, layer: int, n: int) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(n).float(), 10_000.0 ** (-torch.arange(0, DIM, 2) / DIM)).repeat(1, 2)
        return angles.cos()[None], angles.sin()[None]

    def cos_sin(self, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.table(layer, int(positions.max()) + 1)
        return cos[:, positions], sin[:, positions]

    def rotate(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos[:, None], sin[:, None]
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-high, low], dim=-1) * sin

    def halves(self, layer: int, n: int) -> None:
        """Whatever turns is turned by the method above."""


ROTARY = Rotary()


def turn(x: Tensor, positions: Tensor) -> Tensor:
    return rotated(x[None], positions, ROTARY, 0)[0]


def layer_of(keys: Tensor, values: Tensor, period: int) -> LayerKV:
    """A layer that holds whole Blocks of ``keys [Hk, n, d]``."""
    layer = object.__new__(LayerKV)
    layer.summary, layer.rotated_keys = LayerSummary(KV, DIM), RotatedKeys(KV, DIM, period, turn)
    layer.parts, layer.clusters = LayerParts(KV, DIM, torch.float32), None
    blocks = keys.unflatten(1, (-1, BLOCK)).transpose(0, 1)
    layer.summary.append(blocks)
    layer.rotated_keys.append(layer.summary.float_keys(0, len(blocks)))
    layer.parts.append(blocks, values.unflatten(1, (-1, BLOCK)).transpose(0, 1))
    return layer


def made(tokens: int, seed: int = 0, sharp: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values ``[Hk, n, d]`` and queries ``[1, H, 1, d]`` of the token after them."""
    random = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn((KV, tokens, DIM), generator=random) for _ in range(2))
    return sharp * keys, values, torch.randn((1, HEADS, 1, DIM), generator=random)


def ask_of(queries: Tensor, position: int, sink: int, stop: int, near: float = 0.0) -> Ask:
    bounds = Bounds(sink, torch.tensor([stop]), np.zeros(-(-stop // BLOCK), bool), BLOCK)
    count = queries.shape[2]
    turned = partial(rotated, rotary=ROTARY, layer=0)
    rows = torch.full((1, KV, HEADS // KV * count), near)
    return Ask(queries, count, bounds, 0, turned, torch.arange(position, position + count)[None], None, lambda: rows)


def weights(keys: Tensor, queries: Tensor, position: int, reach: int) -> Tensor:
    """Unnormalised log weights float64 ``[H, n]`` of one query, keys beyond ``reach`` standing there."""
    distance = (position - torch.arange(keys.shape[1])).clamp(max=reach)
    turned = turn(keys, (reach - distance) + 0 * distance).double()
    query = turn(queries[0], torch.tensor([reach])).double()
    products: Tensor = torch.einsum("hd,hnd->hn", query[:, 0], turned.repeat_interleave(HEADS // KV, 0))
    return products * SCALE


@pytest.mark.parametrize("reach", [2000, 500])
def test_the_tokens_with_the_largest_mass_are_chosen(reach):
    keys, values, queries = made(1600)
    config = MassConfig(tokens=128, blocks=50, window=reach + 1, reach=reach + 1)
    layer = layer_of(keys, values, config.period)
    (chosen,) = MassSelector(config, operations()).select([ask_of(queries, 1600, 32, 1600)], SCALE, layer)
    shares = weights(keys, queries, 1600, reach)[:, 32:].softmax(-1).unflatten(0, (KV, -1)).mean(1)
    for head in range(KV):
        tokens = chosen.tokens[0, head]
        tokens = tokens[tokens >= 0] - 32
        best = shares[head].topk(128).values.sum()
        assert len(tokens) == 128
        assert shares[head, tokens].sum() > 0.97 * best  # in 8 bits tokens that are about equal change places
    assert chosen.certified == "no" and not chosen.exact


def test_each_kv_head_chooses_for_itself_and_from_so_many_blocks():
    keys, values, queries = made(1600)
    for blocks in (4, 8, 40):
        config = MassConfig(tokens=128, blocks=blocks, window=2001, reach=2001)
        ask = ask_of(queries, 1600, 32, 1600)
        (chosen,) = MassSelector(config, operations()).select([ask], SCALE, layer_of(keys, values, config.period))
        heads = [set(row[row >= 0].div(BLOCK, rounding_mode="floor").tolist()) for row in chosen.tokens[0]]
        assert all(len(found) <= blocks for found in heads)
        assert heads[0] != heads[1]
    assert max(map(len, heads)) > 4


def test_what_may_not_be_chosen_has_no_part_in_it():
    keys, values, queries = made(800)
    keys[:, :32] = keys[:, 700:] = 10 * queries[0, ::3]  # sink and local tokens, lost ones and the future: all of the attention
    keys[:, 320:352] = 10 * queries[0, ::3]
    values = torch.zeros_like(values)
    values[:, :32] = values[:, 704:] = values[:, 320:352] = 1.0  # means of the last Block know all of its tokens
    config = MassConfig(tokens=64, blocks=20, window=2001, reach=2001)
    ask = ask_of(queries, 800, 32, 696)
    ask.bounds.lost[10] = True
    (chosen,) = MassSelector(config, operations()).select([ask], SCALE, layer_of(keys, values, config.period))
    tokens = chosen.tokens[chosen.tokens >= 0]
    assert tokens.min() >= 32 and tokens.max() < 696
    assert not ((tokens >= 320) & (tokens < 352)).any()
    assert chosen.unread is not None
    assert not chosen.unread.out.any() and bool(chosen.unread.lse.isfinite().all())


def test_a_query_that_looks_at_its_neighbours_has_little_to_say():
    keys, values, queries = made(1600, sharp=1.0)
    two = torch.cat([queries, made(1, seed=5)[2]], dim=2)[:, ::3].repeat_interleave(3, dim=1)
    keys[:, 100:132], keys[:, 900:932] = 6 * two[0, ::3, 0][:, None], 6 * two[0, ::3, 1][:, None]
    config = MassConfig(tokens=32, blocks=1, window=2, reach=2)  # all at one distance, so that both look as far
    layer = layer_of(keys, values, config.period)
    for near, expected in (([-20.0, 50.0], 3), ([50.0, -20.0], 28)):
        ask = ask_of(two, 1600, 32, 1600)
        rows = torch.tensor(near).repeat(HEADS // KV)[None, None].expand(1, KV, -1)
        shown = Ask(ask.queries, 2, ask.bounds, 0, ask.rotate, ask.positions, None, partial(torch.clone, rows))
        (chosen,) = MassSelector(config, operations()).select([shown], SCALE, layer)
        assert set(chosen.tokens.div(BLOCK, rounding_mode="floor").unique().tolist()) <= {expected, expected + 1}


def test_where_values_are_alike_in_every_part_nothing_is_lost():
    """Chosen tokens and the means of parts give what attention over everything gives."""
    keys, values, queries = made(1600, sharp=1.0)
    order = alike(keys.unflatten(1, (-1, BLOCK)))
    part = torch.zeros_like(order).scatter_(2, order, torch.arange(BLOCK).expand_as(order)) // PART_TOKENS
    values = values.unflatten(1, (-1, BLOCK)).gather(2, part[..., None].expand(-1, -1, -1, DIM)).flatten(1, 2)
    config = MassConfig(tokens=128, blocks=50, window=2001, reach=2001)
    (chosen,) = MassSelector(config, operations()).select([ask_of(queries, 1600, 32, 1600)], SCALE, layer_of(keys, values, config.period))
    assert chosen.unread is not None
    tokens = torch.cat([torch.arange(32).expand(1, KV, -1), chosen.tokens], dim=2)
    heads = torch.arange(KV)[None, :, None]
    region = Region(keys[heads, tokens], values[heads, tokens], torch.tensor([1600]), tokens)
    rule = LayerRule(0, SCALE)
    near = turned(queries, [region], Turning(ROTARY, 0))
    out = attend(queries, near, rule, operations(), [chosen.unread])
    whole = Region(keys[None], values[None], torch.tensor([1600]), torch.arange(1600))
    expected = attend(queries, turned(queries, [whole], Turning(ROTARY, 0)), rule, operations())
    assert (out - expected).abs().max() < 0.02
    alone = attend(queries, near, rule, operations())
    assert (alone - expected).abs().max() > 0.2


def test_far_blocks_are_not_estimated():
    keys, values, queries = made(1600)
    config = MassConfig(tokens=64, blocks=20, window=501, reach=501)
    first = (1600 - 500 + BLOCK) // BLOCK * BLOCK
    values[:, :first], values[:, first:] = 1.0, 0.0
    (chosen,) = MassSelector(config, operations()).select([ask_of(queries, 1600, 32, 1600)], SCALE, layer_of(keys, values, config.period))
    assert chosen.unread is not None
    assert not chosen.unread.out.any() and bool(chosen.unread.lse.isfinite().all())


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_weights_are_relative_to_a_reference(softcap, integers):
    """Of two spans, which queries meet turned otherwise, and two KV heads."""
    random = torch.Generator().manual_seed(1)
    codes = torch.randint(-127, 128, (KV, 7, BLOCK, DIM), generator=random, dtype=torch.int8)
    steps = torch.rand((KV, 7), generator=random) / 40
    queries = torch.randn((2, KV, 5, DIM), generator=random)
    offset, reference = torch.randn((2, KV, 5), generator=random)
    spans = [
        Span(queries[0], [(codes[head, :3], steps[head, :3]) for head in range(KV)], offset),
        Span(queries[1], [(codes[head, 3:], steps[head, 3:]) for head in range(KV)]),
    ]
    made = torch.empty(KV, 7 * BLOCK, 5)
    operations().key_weights(spans, SCALE, reference, made, softcap, integers=integers)
    keys = codes.double() * steps[..., None, None]
    turned = torch.cat([queries[0, :, None].expand(-1, 3, -1, -1), queries[1, :, None].expand(-1, 4, -1, -1)], 1).double()
    logits = torch.einsum("hnrd,hnkd->hnkr", turned, keys) * SCALE
    logits[:, :3] += offset[:, None, None].double()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = (logits.flatten(1, 2) - reference[:, None].double()).exp()
    torch.testing.assert_close(made.double(), expected, rtol=2e-3 if integers else 1e-4, atol=0)


@pytest.mark.parametrize("integers", [False, True])
def test_weights_that_would_overflow_stay_numbers(integers):
    codes, made = torch.full((2, BLOCK, DIM), 127, dtype=torch.int8), torch.empty(1, 2 * BLOCK, 1)
    operations().key_weights([Span(torch.ones(1, 1, DIM), [(codes, torch.ones(2))])], 1.0, torch.zeros(1, 1), made, integers=integers)
    assert bool(made.isfinite().all()) and bool(made.sum().isfinite())


@pytest.mark.parametrize("reach", [2000, 500, 40])
def test_groups_choose_as_they_do_alone(reach, monkeypatch):
    """However many are looked at together, and wherever the border of what is far lies for each."""
    keys, values, _ = made(1600)
    queries = torch.cat([made(1, seed=seed)[2] for seed in range(5)])
    config = MassConfig(tokens=128, blocks=20, window=reach + 1, reach=reach + 1)
    layer, stops = layer_of(keys, values, config.period), torch.tensor([1000, 1100, 1210, 1330, 1600])
    bounds = Bounds(32, stops, np.zeros(50, bool), BLOCK)
    turned, near = partial(rotated, rotary=ROTARY, layer=0), torch.zeros(5, KV, HEADS // KV)

    def chosen(groups: slice, held: int):
        monkeypatch.setattr("agent_memory.attention.selectors.mass.scan.WEIGHTS_HELD", held)
        some = Bounds(32, stops[groups], bounds.lost, BLOCK)
        ask = Ask(queries[groups], 1, some, 0, turned, stops[groups, None], None, lambda: near[groups])
        return MassSelector(config, operations()).select([ask], SCALE, layer)[0]

    together, by_two = chosen(slice(0, 5), 1 << 30), chosen(slice(0, 5), 2 * 1600 * (HEADS // KV))
    assert torch.equal(together.tokens, by_two.tokens)
    for group in range(5):
        alone = chosen(slice(group, group + 1), 1 << 20)
        assert torch.equal(alone.tokens[0], together.tokens[group])
        assert alone.unread is not None and together.unread is not None
        torch.testing.assert_close(alone.unread.out[0], together.unread.out[group], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.unread.lse[0], together.unread.lse[group], rtol=1e-4, atol=1e-4)


def test_rotated_keys_are_the_keys_at_their_places():
    keys = made(1600)[0].unflatten(1, (-1, BLOCK)).transpose(0, 1)
    kept = RotatedKeys(KV, DIM, 512, turn)
    kept.append(keys[:20])
    twin = kept.fork(12)
    kept.append(keys[20:])
    twin.append(keys[12:14])
    assert len(kept) == 50 and len(twin) == 14
    kept.truncate(33)
    positions = torch.arange(33 * BLOCK) % 512
    for head in kept.heads:
        codes, steps = kept.span(head, 0, 33)
        expected = turn(keys[:33, head].flatten(0, 1)[None], positions)[0].view(33, BLOCK, DIM)
        assert (codes.float() * steps[:, None, None] - expected).abs().max() <= steps.max() / 2 + 1e-5
        assert torch.equal(twin.span(head, 0, 14)[0], codes[:14])


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (3, 16), (16, 17), (15, 33)])
def test_periods_cover_every_block_once(start, stop):
    pieces = _periods(start, stop, 512)
    assert [block for a, b, _ in pieces for block in range(a, b)] == list(range(start, stop))
    for a, b, origin in pieces:
        assert origin % 512 == 0 and a * BLOCK >= origin and b * BLOCK <= origin + 512


def test_options_are_checked():
    config = MassConfig(tokens=128, blocks=3, window=11, reach=11)
    with pytest.raises(Exception, match=r"blocks=3 .* at least 4"):
        config.check()
    assert math.log2(config.period).is_integer() and config.period >= 32
