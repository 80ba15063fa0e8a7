"""Selections against brute force in float64, and what they say of themselves."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from agent_memory.attention.methods import make_method
from agent_memory.attention.selectors import Ask, Bounds, RecallSelector, Selection, TopKSelector, WindowSelector
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.errors import SelectionError
from agent_memory.memory.growing import GrowingRows
from agent_memory.memory.layer_kv import LayerKV
from agent_memory.memory.summary import LayerSummary
from agent_memory_kernels import operations
from tests.attention import oracles

SINK, BLOCK = 32, 32


def layer_of(keys: torch.Tensor, dtype: torch.dtype = torch.float32) -> LayerKV:
    """A layer holding ``keys [Hk, tokens, d]``, all of it in whole Blocks."""
    heads, tokens, dim = keys.shape
    layer = object.__new__(LayerKV)
    layer.summary, layer.clusters = LayerSummary(heads, dim), None
    layer.every_key = GrowingRows((heads, BLOCK, dim), dtype)
    blocks = keys.unflatten(1, (tokens // BLOCK, BLOCK)).transpose(0, 1)
    layer.summary.append(blocks)
    layer.every_key.append(blocks)
    return layer


def bounds_of(stops: list[int], tokens: int, lost: tuple[int, ...] = ()) -> Bounds:
    gone = np.zeros(tokens // BLOCK, dtype=bool)
    gone[list(lost)] = True
    return Bounds(SINK, torch.tensor(stops), gone, BLOCK)


def choose(selector, queries, scaling, bounds, layer):
    """One choice of all queries ``[G, H, T, d]``."""
    return selector.select([Ask(queries, queries.shape[2], bounds)], scaling, layer)[0]


@pytest.mark.parametrize(("k", "clip", "span", "seed"), [(4, 7, 32, 0), (1, 3, 8, 1), (8, -1, 16, 2), (4, 5, 7, 3), (64, 9, 32, 4)])
def test_reattention_equals_the_oracle(k, clip, span, seed):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, 640, 16, generator=g)
    queries = torch.randn(3, 6, 16, 16, generator=g)
    stops = [640, 500, 33]
    chosen = choose(TopKSelector(k, clip, span, operations()), queries, 1.0, bounds_of(stops, 640), layer_of(keys))
    assert chosen.exact
    for group, stop in enumerate(stops):
        tokens = chosen.tokens[group, 0]
        assert tokens[tokens >= 0].tolist() == oracles.reattention(queries[group], keys, stop, k, clip, span)[0]


def test_reattention_equal_scores_go_to_the_lower_index():
    keys = torch.ones(1, 128, 4)
    chosen = choose(TopKSelector(2, 2, 1, operations()), torch.ones(1, 1, 1, 4), 1.0, bounds_of([128], 128), layer_of(keys))
    assert chosen.tokens[0, 0].tolist() == [32, 33]


def selected_blocks(tokens: torch.Tensor) -> list[list[int]]:
    return [sorted({t // BLOCK for t in row.tolist() if t >= 0}) for row in tokens]


@pytest.mark.parametrize("seed", range(5))
def test_exact_recall_is_the_rule_over_every_key(seed):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, 4096, 32, generator=g)
    queries = torch.randn(2, 4, 16, 32, generator=g) * 2
    selector = RecallSelector(RecallRule(blocks=7, scan="exact", scope="kv_head", pool=False), operations())
    chosen = choose(selector, queries, 32**-0.5, bounds_of([4096, 3001], 4096), layer_of(keys))
    assert chosen.exact and chosen.certified == "memory"
    assert selected_blocks(chosen.tokens[0]) == oracles.recall(queries[0], keys, 4096, 7, 32**-0.5)[0]
    assert selected_blocks(chosen.tokens[1]) == oracles.recall(queries[1], keys, 3001, 7, 32**-0.5)[0]


def test_int8_certificate_holds_where_it_is_given_and_is_given_where_keys_differ_clearly():
    given = 0
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        keys = torch.randn(1, 1024, 32, generator=g) * 0.3
        queries = torch.randn(1, 2, 16, 32, generator=g)
        for block in range(7):  # seven clear answers
            keys[0, 64 + 100 * block] = queries[0, 0, block] * 4
        chosen = choose(
            RecallSelector(RecallRule(blocks=7, scan="means", survivors=64, scope="kv_head", pool=False), operations()),
            queries,
            1.0,
            bounds_of([1024], 1024),
            layer_of(keys),
        )
        if chosen.exact:
            given += 1
            assert selected_blocks(chosen.tokens[0]) == oracles.recall(queries[0], keys, 1024, 7, 1.0)[0]
    assert given > 0


def test_prefiltered_recall_does_not_call_itself_exact():
    g = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(1, 4096, 32, generator=g), torch.randn(1, 4, 16, 32, generator=g)
    for survivors, certificates in ((0, {"no"}), (16, {"no", "survivors"})):
        rule = RecallRule(blocks=7, scan="means", survivors=survivors)
        chosen = choose(RecallSelector(rule, operations()), queries, 1.0, bounds_of([4096], 4096), layer_of(keys))
        assert not chosen.exact
        assert chosen.certified in certificates


def test_everything_fits_is_exact_and_keeps_out_local_tokens():
    keys = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(0))
    selector = RecallSelector(RecallRule(blocks=7), operations())
    chosen = choose(selector, torch.randn(1, 2, 16, 8), 1.0, bounds_of([112], 256), layer_of(keys))
    tokens = chosen.tokens[0, 0]
    assert tokens[tokens >= 0].tolist() == list(range(32, 112))
    assert chosen.exact


def test_lost_blocks_are_never_chosen_and_nothing_is_exact_then():
    keys = torch.zeros(1, 1024, 8)
    keys[:, 320:352] = 5.0
    queries = torch.ones(1, 2, 16, 8)
    for selector in (RecallSelector(RecallRule(blocks=2), operations()), TopKSelector(4, 7, 32, operations())):
        assert 10 in selected_blocks(choose(selector, queries, 1.0, bounds_of([1024], 1024), layer_of(keys)).tokens[0])[0]
        chosen = choose(selector, queries, 1.0, bounds_of([1024], 1024, lost=(10,)), layer_of(keys))
        assert not chosen.exact
        if isinstance(selector, RecallSelector):
            assert 10 not in selected_blocks(chosen.tokens[0])[0]


@pytest.mark.parametrize("vote", ["softmax", "max"])
def test_one_sharp_query_is_heard_only_when_votes_are_normalised(vote):
    dim = 16
    keys = torch.zeros(1, 2048, dim)
    keys[:, :, 0] = 3.0  # every key answers the vague query, and better than ...
    keys[:, 1000, 1] = 2.5  # ... the one key of the sharp query does
    queries = torch.zeros(1, 1, 2, dim)
    queries[0, 0, 0, 0], queries[0, 0, 1, 1] = 1.0, 1.0
    keys[:, ::7, 0] += 0.1
    rule = RecallRule(blocks=1, vote=vote)
    chosen = choose(RecallSelector(rule, operations()), queries, 4.0, bounds_of([2048], 2048), layer_of(keys))
    assert (selected_blocks(chosen.tokens[0])[0] == [31]) == (vote == "softmax")


def test_asks_are_answered_together_as_they_are_apart():
    g = torch.Generator().manual_seed(2)
    layer = layer_of(torch.randn(2, 4096, 32, generator=g))
    whole = Ask(torch.randn(3, 4, 16, 32, generator=g), 16, bounds_of([3000, 3016, 3032], 4096))
    broken = Ask(torch.randn(1, 4, 19, 32, generator=g), 7, bounds_of([3048], 4096))
    early = Ask(torch.randn(1, 4, 16, 32, generator=g), 16, bounds_of([200], 4096))
    selector = RecallSelector(RecallRule(blocks=7), operations())
    together = selector.select([early, whole, broken], 0.3, layer)
    for ask, chosen in zip([early, whole, broken], together, strict=True):
        assert torch.equal(selector.select([ask], 0.3, layer)[0].tokens, chosen.tokens)
    assert together[0].exact and together[0].certified == "memory"  # everything was taken
    assert not together[1].exact and together[1].certified == "no"  # chosen in 8 bits: never called exact
    assert together[0].keys_scored == 0 and together[1].keys_scored > together[2].keys_scored > 0


def test_queries_that_two_asks_share_are_scored_once():
    g = torch.Generator().manual_seed(4)
    layer = layer_of(torch.randn(2, 4096, 32, generator=g))
    queries = torch.randn(3, 4, 16, 32, generator=g)
    whole = Ask(queries[:2], 16, bounds_of([3000, 3016], 4096))
    heard = torch.cat([queries[1:2, :, -12:], queries[2:, :, :5]], dim=2)
    apart = RecallSelector(RecallRule(blocks=7), operations()).select([whole, Ask(heard, 5, bounds_of([3032], 4096))], 0.3, layer)

    class Counting:
        rows: list[int] = []

        def __getattr__(self, name):
            return getattr(operations(), name)

        def block_maxima(self, queries, keys, scale):
            self.rows.append(queries.shape[1])
            return operations().block_maxima(queries, keys, scale)

    counting = Counting()
    broken = Ask(heard, 5, bounds_of([3032], 4096), shared=12)
    together = RecallSelector(RecallRule(blocks=7), counting).select([whole, broken], 0.3, layer)
    assert counting.rows == [37]  # two groups of 16, and five queries
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one.tokens, other.tokens)


def facts(layouts: list[tuple[int, int]], dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys ``[1, 2048, dim]`` in which name ``a`` (dimension 0) and field ``b`` (dimension 1) stand at the given tokens."""
    keys = torch.randn(1, 2048, dim, generator=torch.Generator().manual_seed(0)) * 0.1
    keys[..., :2] = 0.0
    queries = torch.zeros(1, 1, 2, dim)
    queries[0, 0, 0, 0], queries[0, 0, 1, 1] = 10.0, 10.0
    for name, field in layouts:
        if name >= 0:
            keys[0, name, 0] = 1.0
        keys[0, field, 1] = 1.0
    return keys, queries


def asked_last(keys, queries, **rule):
    """Blocks of the last query, which hears the one before."""
    selector = RecallSelector(RecallRule(blocks=1, **rule), operations())
    chosen = selector.select([Ask(queries, 1, bounds_of([2048], 2048))], 1.0, layer_of(keys))[0]
    return selected_blocks(chosen.tokens[0])[0]


def test_a_query_hears_what_those_before_it_found():
    keys, queries = facts([(1290, 1300), (-1, 400), (-1, 700)])
    assert asked_last(keys, queries) == [40]
    assert asked_last(keys, queries, echo=0.0) == [400 // BLOCK]  # the field alone stands in three places


def test_what_was_found_at_the_end_of_a_block_is_heard_in_the_next():
    keys, queries = facts([(1311, 1312), (-1, 400), (-1, 700)])  # the name ends Block 40, the field begins Block 41
    assert asked_last(keys, queries) == [41]
    keys, queries = facts([(1312, 1311), (-1, 400), (-1, 700)])  # the other way round nothing is heard
    assert asked_last(keys, queries) != [1311 // BLOCK]


@pytest.mark.parametrize("rule", [{"vote": "max"}, {"echo": 0.0}, {"pool": False}])
def test_queries_before_have_no_vote_of_their_own(rule):
    keys, queries = facts([(1290, 1400), (-1, 400), (-1, 700)])
    queries[0, 0, 0] *= 10  # whoever is only heard would win, were it asked
    assert asked_last(keys, queries, **rule) == [400 // BLOCK]


def refused(tokens: list[list[int]]) -> str:
    with pytest.raises(SelectionError) as caught:
        Selection(torch.tensor([tokens]), True, "memory", 0).check(bounds_of([512], 1024))
    return str(caught.value)


def test_a_selector_that_chooses_what_it_may_not_is_refused_by_name():
    Selection(torch.tensor([[[32, 40, -1, 511, -1], [100, 101, 102, -1, 103]]]), True, "memory", 0).check(bounds_of([512], 1024))
    assert re.search(r"token 40 after token 40.*duplicates", refused([[32, 40, 40]]))
    assert re.search(r"token 39 after token 40", refused([[32, 40, -1, 39]]))
    assert re.search(r"token 512.*\[32, 512\)", refused([[32, 512]]))
    assert re.search(r"token 31.*\[32, 512\)", refused([[31]]))


def test_a_step_refuses_what_a_selector_may_not_choose(drive, ids):
    class Ahead(WindowSelector):
        """Chooses a token of the future."""

        def select(self, asks, scaling, layer):
            none = super().select(asks, scaling, layer)
            return [Selection(one.tokens.new_full((len(one.tokens), 1, 1), 900), True, "memory", 0) for one in none]

    method = make_method("recall", 512)
    driver = drive(dataclasses.replace(method, selector=Ahead()))
    with pytest.raises(SelectionError, match="token 900"):
        driver.feed(ids[:600])


def test_a_query_may_be_scored_at_an_angle():
    g = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(1, 2048, 16, generator=g), torch.randn(1, 1, 1, 16, generator=g)
    turned = torch.randn(1, 1, 1, 16, generator=g)
    asked: list[int] = []

    def rotate(x, position):
        asked.append(position)
        return turned.expand_as(x)

    selector = RecallSelector(RecallRule(blocks=3, angle=255), operations())
    chosen = selector.select([Ask(queries, 1, bounds_of([2048], 2048), rotate=rotate)], 1.0, layer_of(keys))[0]
    plain = RecallSelector(RecallRule(blocks=3), operations()).select([Ask(turned, 1, bounds_of([2048], 2048))], 1.0, layer_of(keys))[0]
    assert asked == [255] and torch.equal(chosen.tokens, plain.tokens)
