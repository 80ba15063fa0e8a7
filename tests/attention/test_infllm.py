"""InfLLM against its definition (methods.md 10.2) in float64, layer by layer, and what it keeps across cuts, forks and restarts."""

from __future__ import annotations

import math

import pytest
import torch

from agent_memory.attention import step as steps
from agent_memory.attention.methods import make_method
from agent_memory.memory.growing import GrowingRows
from agent_memory.memory.representatives import LayerRepresentatives, RepresentativePlan
from agent_memory.memory.window import LayerWindow

WINDOW, THETA = 512, 10_000.0
SPECS = ["infllm", "infllm:group=16:block=64:topk=2:local=128", "infllm:local=96:topk=1:representatives=3"]


def rotate(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """``x [.., d]`` at real positions that broadcast with its rows, the way Llama pairs dimensions."""
    d = x.shape[-1]
    angle = position.double()[..., None] * THETA ** (-torch.arange(0, d, 2).double() / d)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Definition:
    """One layer of InfLLM in float64, token by token and block by block."""

    def __init__(self, method, q, k, v):
        self.sizes, self.plan, self.border = method.sizes, method.selector.keeps.representatives, method.attended
        self.topk = method.selector.topk
        self.q, self.k, self.v = q.double(), k.double(), v.double()
        self.heads, self.share = q.shape[0], q.shape[0] // k.shape[0]
        self.mass = torch.zeros(self.heads, q.shape[1], dtype=torch.float64)
        self.reps: list[torch.Tensor] = []
        self.gap = math.inf

    def run(self):
        n, group = self.q.shape[1], self.sizes.group
        outputs = []
        for first in [*range(self.border), *range(self.border, n, group)]:
            dense = first < self.border
            stop = first + 1 if dense else min(first + group, n)
            far = None if dense else self.choose(first, stop)
            outputs += [self.attend(i, far, first) for i in range(first, stop)]
            if dense or stop - first == group:
                self.make_blocks(stop)
        return torch.stack(outputs)

    def choose(self, first, stop):
        """Tokens far away: init, chosen blocks, and what has left the window but is in no block."""
        plan = self.plan
        edge = first - plan.local
        made = [b for b in range(len(self.reps)) if plan.first + (b + 1) * plan.block <= edge]
        far = rotate(self.q[:, first:stop], torch.tensor(plan.local - 1.0)).mean(1)
        scores = [float((far * self.reps[b]).sum()) for b in made]
        order = sorted(made, key=lambda b: (-scores[b], b))
        if len(order) > self.topk:
            self.gap = min(self.gap, scores[order[self.topk - 1]] - scores[order[self.topk]])
        tokens = set(range(plan.first))
        for b in order[: self.topk]:
            tokens |= set(range(plan.first + b * plan.block, plan.first + (b + 1) * plan.block))
        return tokens | set(range(plan.first + len(made) * plan.block, edge))

    def attend(self, i, far, first):
        """One query: true distances below ``local``, one distance beyond; and the mass of its local keys."""
        n = self.plan.local
        seen = [j for j in range(i + 1) if far is None or j >= first - n or j in far]
        js = torch.tensor(seen)
        near = js > i - n
        distance = i - js if far is None else torch.where(near, i - js, n - 1)
        out = []
        for h in range(self.heads):
            keys = rotate(self.k[h // self.share, js], -distance.double())
            logits = keys @ self.q[h, i] / math.sqrt(self.q.shape[-1])
            weights = logits.softmax(0)
            self.mass[h].index_add_(0, js[near], weights[near])
            out.append(weights @ self.v[h // self.share, js])
        return torch.stack(out)

    def make_blocks(self, at):
        plan = self.plan
        while plan.first + (len(self.reps) + 1) * plan.block <= at - plan.local:
            start = plan.first + len(self.reps) * plan.block
            rep = []
            for h in range(self.heads):
                mass = self.mass[h, start : start + plan.block]
                best = sorted(range(plan.block), key=lambda m: (-float(mass[m]), m))[: plan.count]  # noqa: B023
                rep.append(self.k[h // self.share, torch.tensor(best) + start].mean(0))
            self.reps.append(torch.stack(rep))


def recorded(monkeypatch, drive, method, ids, cuts):
    """Queries, keys, values and outputs of every layer, as the model makes them on the way."""
    seen: dict[int, list[tuple[torch.Tensor, ...]]] = {}
    inner = steps.MemoryStep.attend

    def attend(self, rule, q, k, v, sliding=None):
        out = inner(self, rule, q, k, v, sliding)
        seen.setdefault(rule.index, []).append((q, k, v, out.transpose(0, 1)))
        return out

    monkeypatch.setattr(steps.MemoryStep, "attend", attend)
    driver = drive(method)
    for part in ids.split(cuts):
        driver.feed(part)
    return [[torch.cat(parts, dim=1) for parts in zip(*seen[layer], strict=True)] for layer in sorted(seen)], driver


@pytest.mark.parametrize("spec", SPECS)
def test_every_layer_is_the_definition(monkeypatch, drive, ids, spec):
    method = make_method(spec, WINDOW)
    layers, driver = recorded(monkeypatch, drive, method, ids[:1120], [256, 256, 256, 256, 96])
    for number, (q, k, v, out) in enumerate(layers):
        definition = Definition(method, q, k, v)
        expected = definition.run()
        assert definition.gap > 1e-6  # no choice was a coin toss
        kept = driver.kv.layers[number].representatives
        assert len(kept) == len(definition.reps) > 0
        assert torch.allclose(kept.rows(len(kept)).double(), torch.stack(definition.reps), atol=1e-5)
        assert float((out.transpose(0, 1) - expected).abs().max()) < 2e-3


def test_the_window_edge_is_counted_once(monkeypatch, drive, ids):
    """The published prefill shows the first query of a block its whole tail at two distances; here every key has one place."""
    method = make_method("infllm", WINDOW)
    layers, _ = recorded(monkeypatch, drive, method, ids[:768], [256, 256, 256])
    q, k, v, _ = layers[0]
    ones = torch.ones_like(v)
    out = Definition(method, q, k, ones).run()
    assert torch.allclose(out, torch.ones_like(out))


def window_of(keys: torch.Tensor) -> LayerWindow:
    window = LayerWindow(keys.shape[0], keys.shape[2], None, None, dtype=keys.dtype, device=keys.device)
    window.append(keys, keys)
    return window


def test_the_tokens_with_most_mass_represent_a_block():
    plan = RepresentativePlan(first=32, block=32, count=2, local=64)
    kept = LayerRepresentatives(plan, heads=2, head_dim=4)
    keys = torch.randn(1, 256, 4)
    mass = torch.zeros(2, 128)
    mass[0, 40], mass[0, 50], mass[1, 33], mass[1, 63] = 1.0, 2.0, 3.0, 0.5
    kept.add(mass, first=0, counted=127)
    kept.cut(window_of(keys))
    assert len(kept) == 0  # one more token has to leave the window
    kept.add(torch.zeros(2, 1), first=127, counted=128)
    kept.cut(window_of(keys))
    assert torch.equal(kept.rows(1)[0, 0], keys[0, [50, 40]].mean(0))
    assert torch.equal(kept.rows(1)[0, 1], keys[0, [33, 63]].mean(0))


def test_blocks_without_a_known_representative_are_never_chosen_and_nothing_is_exact_then(monkeypatch, drive, ids):
    method = make_method("infllm", WINDOW)
    driver = drive(method)
    driver.feed(ids[:1024])
    kept = driver.kv.layers[0].representatives
    rows = kept.rows(len(kept)).clone()
    rows[3] = float("nan")
    kept._rows = GrowingRows(tuple(rows.shape[1:]), rows.dtype)
    kept._rows.append(rows)
    chosen = []
    inner = method.selector.select

    def select(asks, scaling, layer):
        chosen.extend(inner(asks, scaling, layer))
        return chosen[-len(asks) :]

    monkeypatch.setattr(method.selector, "select", select)
    driver.feed(ids[1024:1056])
    first, second = chosen  # of the layer that lost one, and of the other
    block = set(range(32 + 3 * 32, 32 + 4 * 32))
    assert not first.exact and not block & set(first.tokens.flatten().tolist())
    assert second.exact
