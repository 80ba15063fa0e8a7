"""Attention shares equal softmax weights by their definition, in float64 over exactly what was attended to (``dense.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from agent_memory.attention.methods import Method, make_method
from agent_memory.attention.positions import Attended, TruePositions, WindowPositions
from agent_memory.attention.recent_queries import RecentQueries
from agent_memory.attention.region import Attention, LayerRule, attend, attend_with_last_weights, turned
from agent_memory.attention.rotation import Turning, rotate_keys
from agent_memory.attention.selectors import Ask, Selection
from agent_memory.attention.shares import AttentionShares, SharedOut
from agent_memory.attention.step import MemoryStep
from agent_memory.attention.trace import Trace
from agent_memory.memory.block import NoDisk
from agent_memory.memory.cache import TieredCache
from agent_memory.memory.layer_kv import KVPlan, LayerKV
from agent_memory.memory.session_kv import SessionKV
from agent_memory.types import Budget, KVLayout
from agent_memory_kernels import operations
from tests.attention import dense
from tests.attention.test_maps import KV_HEADS as SCOPE
from tests.attention.test_maps import PLACED, RULES, case

HEADS, KV_HEADS, DIM, WINDOW, SLIDING = 4, 2, 32, 256, 50
REACH = WINDOW // 2
"""Of ``recall`` for so small a window."""
PACKED, WINDOWED, CLIPPED = dense.full(), dense.full(), dense.full()
"""Keys stand at their ranks; where they are in a room of ``REACH`` tokens that ends with the query, or at their ranks where that is more;
the same, but that only the sink has ranks."""
LAYERS = [
    (dense.Rule(DIM**-0.5), None),
    (dense.Rule(0.3, softcap=4.0, sinks=torch.tensor([-1.0, 0.0, 1.0, 3.0])), None),
    (dense.Rule(DIM**-0.5), SLIDING),
]
"""What each layer does to its logits, and the width of its own window: plain, with a bound and extra logits, and a sliding one."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("scope", "count"), [(1, 1), (SCOPE, 1), (SCOPE, 16)])
@pytest.mark.parametrize("spec", PLACED)
def test_weights_of_the_last_query_and_the_output_are_the_formula(spec, scope, count, rule):
    tokens, asked = dense.sparse(scope, count, seed=scope + count, starts=(2, 700) if count > 1 else (1203,))
    queries, attended = case(tokens, asked)
    regions = make_method(spec, dense.WINDOW).positions.regions(attended)
    layer = LayerRule(0, RULES[rule].scaling, RULES[rule].sinks, RULES[rule].softcap)
    given = (queries, turned(queries, regions, Turning(dense.Rotations(queries.shape[-1]), 0)), layer, operations())
    out, weights = attend_with_last_weights(*given, tokens.shape[-1])
    by_formula = tokens, asked, PLACED[spec], RULES[rule]
    expected = dense.weights(queries, attended.keys, *by_formula)[-1, :, -1]
    torch.testing.assert_close(out.double(), dense.attention(queries, attended.keys, attended.values, *by_formula), atol=1e-4, rtol=0)
    if count > 1:
        assert torch.equal(out, attend(*given)), "made as without the weights"
    by_kv_head = expected.unflatten(0, (SCOPE, -1)).sum(1)
    torch.testing.assert_close(weights.keys.double(), by_kv_head, atol=2e-5, rtol=0)
    assert (weights.sinks is None) == (RULES[rule].sinks is None)
    if weights.sinks is not None:
        assert float(weights.sinks) == pytest.approx(float(len(expected) - expected.sum()), abs=2e-5)


class Noted:
    """A Selector whose choices are remembered."""

    def __init__(self, inner) -> None:
        self.inner, self.keeps = inner, inner.keeps
        self.last: list[Selection] = []

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        self.last = self.inner.select(asks, scaling, layer)
        return self.last


@dataclass
class Timeline:
    """A Session of three layers over random queries, keys and values: ours, and what was fed."""

    method: Method
    place: dense.Map

    def __post_init__(self) -> None:
        self.noted = Noted(self.method.selector)
        self.method = replace(self.method, selector=self.noted)
        layout = KVLayout((KV_HEADS,) * len(LAYERS), (DIM,) * len(LAYERS), "float32")
        cache = TieredCache(layout, Budget(device="64MiB"), torch.device("cpu"), min_blocks=64, unsaved_blocks=64)
        sizes = self.method.sizes
        keep = None if sizes is None else sizes.attended + 1024
        recalling = tuple(self.method.recalls and width is None for _, width in LAYERS)
        plan = KVPlan(
            32 if sizes is None else sizes.sink,
            keep,
            recalling,
            self.noted.keeps,
            keep,
            (HEADS,) * len(LAYERS),
            partial(rotate_keys, dense.Rotations(DIM)),
        )
        self.kv, self.recent = SessionKV(layout, plan, cache, NoDisk()), RecentQueries()
        self.generator = torch.Generator().manual_seed(5)
        self.keys = [torch.empty(KV_HEADS, 0, DIM) for _ in LAYERS]
        self.sink, self.local = 0.0, 0.0
        self.recalled, self.peaks = torch.zeros(2, 4096, dtype=torch.float64)

    def feed(self, count: int, shares: AttentionShares | None = None) -> None:
        """So many tokens in one forward; with ``shares``, the last one's attention is added to them, and to what is expected."""
        start = self.kv.length
        trace, since = (Trace(), start - start % 16) if shares is not None else (None, 0)
        step = MemoryStep(
            self.kv, self.method, dense.Rotations(DIM), operations(), (start, start + count), self.recent, trace, since, shares=shares
        )
        for index, (rule, width) in enumerate(LAYERS):
            q = torch.randn(HEADS, count, DIM, generator=self.generator) * 2
            k, v = torch.randn(2, KV_HEADS, count, DIM, generator=self.generator)
            self.keys[index] = torch.cat([self.keys[index], k], dim=1)
            self.noted.last = []
            step.attend(LayerRule(index, rule.scaling, rule.sinks, rule.softcap), q, k, v, width)
            if shares is not None:
                self._expect(index, rule, q[:, -1:], width)

    def _expect(self, index: int, rule: dense.Rule, query: torch.Tensor, width: int | None) -> None:
        """Add the weights of the query of the newest token, by definition."""
        i, sizes = self.keys[index].shape[1] - 1, self.method.sizes
        first = 0 if sizes is None else sizes.sink
        chosen = self.noted.last[-1].tokens[-1] if self.noted.last else torch.empty(1, 0, dtype=torch.int64)
        if width is not None:
            near, how = torch.arange(max(0, i - width + 1), i + 1)[None], dense.full()
        elif sizes is None:
            near, how = torch.arange(i + 1)[None], self.place
        elif i < (self.method.attended or 0):
            near, how = torch.arange(i + 1)[None], dense.full()
        else:
            near = torch.cat([torch.arange(sizes.sink), torch.arange(i - i % sizes.group - sizes.local, i + 1)])[None]
            how = self.place
        for head in range(KV_HEADS):
            own = chosen[head % len(chosen)]
            tokens = torch.cat([near[0], own[own >= 0]]).sort().values
            at = torch.arange(len(tokens)) if how is PACKED or how is WINDOWED else tokens
            room = tokens - max(0, i - (REACH if i >= WINDOW else WINDOW) + 1)
            at = torch.maximum(at, room) if how is WINDOWED else at
            at = torch.where(tokens < first, tokens, room.clamp(min=0)) if how is CLIPPED else at
            heads = slice(head * 2, head * 2 + 2)
            part = replace(rule, sinks=None if rule.sinks is None else rule.sinks[heads])
            keys = self.keys[index][None, head : head + 1, tokens]
            weights = dense.weights(query[None, heads], keys, at[None, None], at[None, -1:], how, part)[0, :, 0]
            recalled, sink = torch.isin(tokens, own), tokens < first
            self.recalled.index_add_(0, tokens[recalled], weights.sum(0)[recalled])
            self.peaks[tokens[recalled]] = torch.maximum(self.peaks[tokens[recalled]], weights.mean(0)[recalled])
            self.sink += float(weights[:, sink].sum()) + len(weights) - float(weights.sum())
            self.local += float(weights[:, ~sink & ~recalled].sum())


PLACES = {
    "recall:score=max:attended=256:local=112": PACKED,
    "recall:score=max:pool=false:scope=kv_head:echo=0:vote=max:angle=64": PACKED,
    "recall:score=mass:attended=128:positions=true:estimate_unread=false": WINDOWED,
    "recall:score=mass:estimate_unread=false": CLIPPED,
    "recall:score=mass:estimate_unread=false+dca": dense.MAPS["dca"],
    "reattention": PACKED,
    "streaming": PACKED,
    "infllm": dense.infllm(WINDOW // 2),
    "full": dense.full(),
    "dca": dense.MAPS["dca"],
    "rerope": dense.MAPS["rerope"],
    "self_extend:neighbours=24:group=4": dense.MAPS["self_extend:neighbours=24:group=4"],
    "string:shift=30:window=8": dense.MAPS["string:shift=30:window=8"],
    "recall:score=max+rerope": dense.MAPS["rerope"],
    "recall:score=max:pool=false:scope=kv_head:echo=0+dca": dense.MAPS["dca"],
}
"""Methods for the window, and where their keys stand."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("spec", ["recall:score=max", "rerope"])
def test_what_stands_for_keys_that_were_not_read_takes_its_part(spec, count, rule):
    """One of the KV heads reads everything, so that nothing stands for what it left out."""
    queries, attended = case(*dense.sparse(1, count, seed=9, starts=(1203,)))
    generator = torch.Generator().manual_seed(3)
    rows = (1, SCOPE, len(queries[0]) // SCOPE * count)
    unread = Attention(torch.randn(*rows, queries.shape[-1], generator=generator), torch.randn(rows, generator=generator))
    unread.lse[:, 0], unread.out[:, 0] = float("-inf"), 0.0
    regions = make_method(spec, dense.WINDOW).positions.regions(attended)
    layer = LayerRule(0, RULES[rule].scaling, RULES[rule].sinks, RULES[rule].softcap)
    given = (queries, turned(queries, regions, Turning(dense.Rotations(queries.shape[-1]), 0)), layer, operations())
    out, weights = attend_with_last_weights(*given, attended.tokens.shape[-1], unread)
    torch.testing.assert_close(out, attend(*given, [unread]), atol=2e-5, rtol=0)
    _, alone = attend_with_last_weights(*given, attended.tokens.shape[-1])
    assert weights.unread is not None and float(weights.unread) > 1e-3
    torch.testing.assert_close(weights.keys[0], alone.keys[0])
    shares = [part for part in (weights.keys.sum(), weights.sinks, weights.unread) if part is not None]
    assert float(sum(shares)) == pytest.approx(len(queries[0]), abs=1e-5)


def test_a_single_query_in_16_bits_is_attended_to_as_without_the_weights():
    """Its logits would be rounded to 16 bits on the way."""
    queries, attended = case(*dense.sparse(1, 1, seed=2, starts=(700,)))
    half = Attended(attended.keys.bfloat16(), attended.values.bfloat16(), attended.tokens, attended.queries)
    regions = make_method("recall", WINDOW).positions.regions(half)
    parts = turned(queries.bfloat16(), regions, Turning(Rounded(queries.shape[-1]), 0))
    given = (queries.bfloat16(), parts, LayerRule(0, 0.25), operations())
    out, weights = attend_with_last_weights(*given, half.tokens.shape[-1])
    assert torch.equal(out, attend(*given))
    assert weights.keys.dtype == torch.float32 and float(weights.keys.sum()) == pytest.approx(len(queries[0]), abs=1e-5)


class Rounded(dense.Rotations):
    """Rotations of bfloat16."""

    def cos_sin(self, layer, positions):
        cos, sin = super().cos_sin(layer, positions)
        return cos.bfloat16(), sin.bfloat16()

    def halves(self, layer, n):
        return None


@pytest.mark.parametrize("spec", PLACES)
def test_shares_of_a_reply_are_the_average_over_layers_heads_and_tokens(spec):
    timeline = Timeline(make_method(spec, WINDOW), PLACES[spec])
    timeline.feed(200)
    shares = AttentionShares(1000, torch.device("cpu"))
    timeline.feed(1, shares)  # everything is attended to
    for count in (199, 256, 256, 88):
        timeline.feed(count)
    timeline.feed(21, shares)  # a prompt that ends within a group
    for _ in range(12):
        timeline.feed(1, shares)
    got, rows = shares.result(), len(LAYERS) * HEADS * 14
    assert got is not None
    assert got.sink == pytest.approx(timeline.sink / rows, abs=1e-5)
    assert got.local == pytest.approx(timeline.local / rows, abs=1e-5)
    torch.testing.assert_close(torch.from_numpy(got.recalled), timeline.recalled[:1000] / rows, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.from_numpy(got.peaks).double(), timeline.peaks[:1000], atol=1e-5, rtol=0)
    assert got.sink + got.local + got.recalled.sum() == pytest.approx(1, abs=1e-5)
    assert (got.recalled.sum() > 0.01) == timeline.method.recalls


def test_a_lost_block_has_no_share():
    totals = []
    for lose in (False, True):
        timeline = Timeline(make_method("recall:score=max", WINDOW), PACKED)
        for count in (256, 256, 40):
            timeline.feed(count)
        timeline.kv.lost[5] = lose
        shares = AttentionShares(552, torch.device("cpu"))
        for _ in range(16):
            timeline.feed(1, shares)
        found = shares.result()
        assert found is not None and found.sink + found.local + found.recalled.sum() == pytest.approx(1, abs=1e-5)
        totals.append(found.recalled[160:192].sum())
    assert totals[0] > 0 == totals[1]


def test_keys_that_no_region_has_get_no_weight():
    tokens = torch.tensor([[[-1, 3, 4, 5, -1, 9]]])
    queries, attended = case(tokens, torch.tensor([[9]]))
    regions = TruePositions(6).regions(attended)
    assert [region.first for region in regions] == [2]
    parts = turned(queries, regions, Turning(dense.Rotations(queries.shape[-1]), 0))
    _, weights = attend_with_last_weights(queries, parts, LayerRule(0, 0.25), operations(), 6)
    assert (weights.keys > 0).any(0).tolist() == [False, False, True, True, False, True]


@pytest.mark.parametrize("count", [1, 16])
def test_recalled_tokens_that_are_missing_are_missing_for_every_query(count):
    """One row says so for all queries and query heads."""
    tokens = torch.tensor([[[-1, 40, 41, 70, -1], [33, 40, 52, 71, 90], [-1, -1, 35, 36, 99]]])
    queries, attended = case(tokens, torch.arange(200, 200 + count)[None])
    regions = WindowPositions(4096).regions(replace(attended, recalled=5))
    (region,) = regions
    assert region.visible is not None and region.visible.shape[2] == 1
    spread = [replace(region, visible=region.visible.expand(-1, -1, count, -1))]
    turning = Turning(dense.Rotations(queries.shape[-1]), 0)
    one, other = (attend(queries, turned(queries, some, turning), LayerRule(0, 0.25), operations()) for some in (regions, spread))
    torch.testing.assert_close(one, other)


def test_what_is_not_read_has_a_share_where_it_is_estimated():
    found = {}
    for estimate in ("true", "false"):
        timeline = Timeline(make_method(f"recall:attended=128:estimate_unread={estimate}", WINDOW), PACKED)
        timeline.feed(200)
        shares = AttentionShares(1000, torch.device("cpu"))
        timeline.feed(1, shares)
        got = shares.result()
        assert got is not None
        found[estimate] = got
        assert got.sink + got.local + got.recalled.sum() + got.unread == pytest.approx(1, abs=1e-5)
    assert found["true"].unread > 0.01 and found["false"].unread == 0
    assert found["true"].recalled.sum() < found["false"].recalled.sum()


def test_the_replys_own_tokens_are_local_where_they_are_recalled():
    def added(tokens: int) -> SharedOut:
        shares = AttentionShares(tokens, torch.device("cpu"))
        keys = torch.zeros(1, 1, 4, DIM)
        attended = Attended(keys, keys, torch.tensor([[[0, 2, 40, 41]]]), torch.tensor([[41]]), sink=1, recalled=2)
        region = make_method("recall", WINDOW).positions.regions(attended)
        queries = torch.zeros(1, 1, 1, DIM)
        parts = turned(queries, region, Turning(dense.Rotations(DIM), 0))
        _, weights = attend_with_last_weights(queries, parts, LayerRule(0, 1.0), operations(), 4)
        shares.add(weights, [attended], 1)
        found = shares.result()
        assert found is not None
        return found

    assert (added(41).sink, added(41).local, added(41).recalled[[2, 40]].tolist()) == (0.25, 0.25, [0.25, 0.25])
    assert (added(40).local, added(40).recalled.sum()) == (0.5, 0.25)
    assert AttentionShares(3, torch.device("cpu")).result() is None
