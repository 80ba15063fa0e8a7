"""Selections on the keys and queries of a real model reading real text, against brute force in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from agent_memory.attention.methods import Method, derive_sizes
from agent_memory.attention.selectors import Ask, RecallSelector, Selection, Selector, TopKSelector
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.evaluate.haystack import make_haystack
from agent_memory.memory.layer_kv import Keeps, LayerKV
from agent_memory.runtime import Runtime
from agent_memory_kernels import operations
from tests.attention.oracles import BLOCK, reattention, recall

TOKENS = 2400
CLEAR = 1e-5
"""Decisions by less than this (fp32 rounds further off) are nobody's."""


class Checked:
    """A Selector that passes on another's choices, and keeps what it was asked and what it answered."""

    keeps = Keeps(every_key=True)

    def __init__(self, inner: Selector) -> None:
        self.inner = inner
        self.seen: list[tuple[torch.Tensor, torch.Tensor, int, float, torch.Tensor, bool]] = []

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        chosen = self.inner.select(asks, scaling, layer)
        assert layer.every_key is not None
        for ask, selection in zip(asks, chosen, strict=True):
            for group, stop in enumerate(ask.bounds.stops.tolist()):
                if stop > TOKENS - 700:  # a few groups of every layer; brute force is slow
                    blocks = torch.cat(layer.every_key.views()).transpose(0, 1).flatten(1, 2)
                    keys = torch.cat([blocks, layer.window.view(blocks.shape[1], max(stop, blocks.shape[1]))[0]], 1)[:, : stop + BLOCK]
                    scope = selection.tokens[group].clone()
                    self.seen.append((ask.queries[group, :, -ask.asking :].clone(), keys.clone(), stop, scaling, scope, selection.exact))
        return chosen


def read(store, selector: Selector) -> Checked:
    """Have the pocket model read a history of records with this selection at every layer."""
    checked = Checked(selector)
    with Runtime.load(store=store, method=Method("checked", derive_sizes(512, 0), checked)) as runtime:
        tokenizer = runtime.tokenizer
        stack = make_haystack(random.Random(0), TOKENS, [0.2, 0.7], lambda text: len(tokenizer.encode(text, add_special_tokens=False)))
        with runtime.session("hay") as session:
            for piece in stack.pieces:
                session.append("tool", piece, name="read")
            session.reply(stack.needles[0].question, max_new_tokens=4)
    return checked


def test_reattention_equals_the_oracle_on_real_keys(tmp_path):
    k, clip, span = 4, 7, 32
    seen = read(tmp_path, TopKSelector(k, clip, span, operations())).seen
    clear = 0
    for queries, keys, stop, _, tokens, exact in seen[::3]:
        expected, gap = reattention(queries, keys, stop, k, clip, span)
        if gap > CLEAR:
            clear += 1
            assert exact and tokens[tokens >= 0].tolist() == expected
    assert clear >= 20


def test_exact_recall_equals_the_oracle_on_real_keys(tmp_path):
    rule = RecallRule(blocks=7, scan="exact", scope="kv_head", pool=False)
    clear = 0
    for queries, keys, stop, scaling, tokens, exact in read(tmp_path, RecallSelector(rule, operations())).seen:
        last = -(-stop // BLOCK) * BLOCK
        if keys.shape[1] < last:
            continue
        expected, gap = recall(queries, keys, stop, 7, scaling)
        if gap > CLEAR:
            clear += 1
            assert exact and [sorted({t // BLOCK for t in row.tolist() if t >= 0}) for row in tokens] == expected
    assert clear >= 20
