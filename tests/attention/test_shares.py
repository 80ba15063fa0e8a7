"""Attention shares equal softmax weights by their definition, in float64 over exactly what was attended to (``dense.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from agent_memory.attention.methods import Method, make_method
from agent_memory.attention.positions import Attended
from agent_memory.attention.region import LayerRule, attend, attend_with_last_weights
from agent_memory.attention.selectors import Ask, Selection
from agent_memory.attention.shares import AttentionShares, SharedOut
from agent_memory.attention.step import MemoryStep, RecentQueries
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
PACKED = dense.full()
"""Keys stand at their ranks."""
LAYERS = [
    (dense.Rule(DIM**-0.5), None),
    (dense.Rule(0.3, softcap=4.0, sinks=torch.tensor([-1.0, 0.0, 1.0, 3.0])), None),
    (dense.Rule(DIM**-0.5), SLIDING),
]
"""What each layer does to its logits, and the width of its own window: plain, with a bound and extra logits, and a sliding one."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("scope", "count"), [(1, 1), (SCOPE, 1), (SCOPE, 16)])
@pytest.mark.parametrize("spec", PLACED)
def test_weights_of_the_last_query_are_the_formula_and_the_output_is_untouched(spec, scope, count, rule):
    tokens, asked = dense.sparse(scope, count, seed=scope + count)
    queries, attended = case(tokens, asked)
    regions = make_method(spec, dense.WINDOW).positions.regions(attended)
    layer = LayerRule(0, RULES[rule].scaling, RULES[rule].sinks, RULES[rule].softcap)
    given = (queries, regions, dense.Rotations(queries.shape[-1]), layer, operations())
    out, weights = attend_with_last_weights(*given, tokens.shape[-1])
    expected = dense.weights(queries, attended.keys, tokens, asked, PLACED[spec], RULES[rule])[-1, :, -1]
    assert torch.equal(out, attend(*given))
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
        plan = KVPlan(32 if sizes is None else sizes.sink, keep, recalling, self.noted.keeps, keep, (HEADS,) * len(LAYERS))
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
            at = torch.arange(len(tokens)) if how is PACKED else tokens
            heads = slice(head * 2, head * 2 + 2)
            part = replace(rule, sinks=None if rule.sinks is None else rule.sinks[heads])
            keys = self.keys[index][None, head : head + 1, tokens]
            weights = dense.weights(query[None, heads], keys, at[None, None], at[None, -1:], how, part)[0, :, 0]
            recalled, sink = torch.isin(tokens, own), tokens < (0 if sizes is None else sizes.sink)
            self.recalled.index_add_(0, tokens[recalled], weights.sum(0)[recalled])
            self.peaks[tokens[recalled]] = torch.maximum(self.peaks[tokens[recalled]], weights.mean(0)[recalled])
            self.sink += float(weights[:, sink].sum()) + len(weights) - float(weights.sum())
            self.local += float(weights[:, ~sink & ~recalled].sum())


PLACES = {
    "recall": PACKED,
    "recall:pool=false:scope=kv_head:echo=0:vote=max:angle=64": PACKED,
    "reattention": PACKED,
    "streaming": PACKED,
    "infllm": dense.infllm(WINDOW // 2),
    "full": dense.full(),
    "dca": dense.MAPS["dca"],
    "rerope": dense.MAPS["rerope"],
    "self_extend:neighbours=24:group=4": dense.MAPS["self_extend:neighbours=24:group=4"],
    "string:shift=30:window=8": dense.MAPS["string:shift=30:window=8"],
    "recall+rerope": dense.MAPS["rerope"],
    "recall:pool=false:scope=kv_head:echo=0+dca": dense.MAPS["dca"],
}
"""Methods for the window, and where their keys stand."""


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
        timeline = Timeline(make_method("recall", WINDOW), PACKED)
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


def test_the_replys_own_tokens_are_local_where_they_are_recalled():
    def added(tokens: int) -> SharedOut:
        shares = AttentionShares(tokens, torch.device("cpu"))
        keys = torch.zeros(1, 1, 4, DIM)
        attended = Attended(keys, keys, torch.tensor([[[0, 2, 40, 41]]]), torch.tensor([[41]]), sink=1, recalled=2)
        region = make_method("recall", WINDOW).positions.regions(attended)
        rotary, rule = dense.Rotations(DIM), LayerRule(0, 1.0)
        _, weights = attend_with_last_weights(torch.zeros(1, 1, 1, DIM), region, rotary, rule, operations(), 4)
        shares.add(weights, attended, 1)
        found = shares.result()
        assert found is not None
        return found

    assert (added(41).sink, added(41).local, added(41).recalled[[2, 40]].tolist()) == (0.25, 0.25, [0.25, 0.25])
    assert (added(40).local, added(40).recalled.sum()) == (0.5, 0.25)
    assert AttentionShares(3, torch.device("cpu")).result() is None
