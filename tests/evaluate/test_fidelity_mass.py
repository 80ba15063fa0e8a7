"""Mass: against attention computed directly in float64, and against what can only be so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agent_memory.attention.methods import Method, Sizes, make_method
from agent_memory.attention.selectors.recall import RecallRule, RecallSelector
from agent_memory.evaluate.fidelity import mass
from agent_memory.evaluate.fidelity.documents import Document
from agent_memory.evaluate.fidelity.mass import MassTally, Weighed, opened_probe, weigh
from agent_memory.evaluate.fidelity.mass_report import summarize_mass
from agent_memory.evaluate.fidelity.rows import FIGURES, MassRow
from agent_memory.evaluate.fidelity.runtimes import Memories
from agent_memory.types import Budget
from agent_memory_kernels import operations
from tests.evaluate.fidelity_runs import RECALL, loaded, make_runtime

TOKENS, PROMPT, ANSWER = 333, 7, 4
SINK, LOCAL, GROUP = 32, 64, 16


def method(blocks: int, scope: Any = "kv_head") -> Method:
    """Every layer chooses so many Blocks of what is beyond 128 tokens."""
    rule = RecallRule(blocks=blocks, scope=scope, echo=0.0, margin=1000.0, pool=False)
    return Method("test", Sizes(SINK, 32 * blocks, LOCAL, GROUP), RecallSelector(rule, operations()), border=128)


@pytest.fixture(scope="module")
def memories(tmp_path_factory: pytest.TempPathFactory) -> Memories:
    return Memories(make_runtime, tmp_path_factory.mktemp("mass"), Budget(device="24MiB"))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(5, 900, (TOKENS + PROMPT + ANSWER,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor, Tensor, Weighed]]]:
    """Of every choice that is weighed: the masses, the chosen tokens, where the local tokens begin, and the shares."""
    found: list[tuple[Tensor, Tensor, Tensor, Weighed]] = []

    def spy(weights: Tensor, tokens: Tensor, first: int, stops: Tensor, block: int) -> Weighed:
        shares = weigh(weights, tokens, first, stops, block)
        found.append((weights, tokens, stops, shares))
        return shares

    monkeypatch.setattr(mass, "weigh", spy)
    yield found


def probed(memories: Memories, ids: Tensor, made: Method) -> MassTally:
    """All choices of an answer and of the document's last groups."""
    document = Document("text", ids=tuple(ids[:TOKENS].tolist()))
    with memories.by_full_attention(document, made) as (runtime, session):
        tally = MassTally(runtime.layout.kv_heads)
        with opened_probe(runtime, session, tally) as probe:
            assert probe is not None
            probe.answer(ids[:PROMPT].tolist(), ids[PROMPT : PROMPT + ANSWER].tolist())  # another answer leaves nothing behind
            probe.answer(ids[TOKENS : TOKENS + PROMPT].tolist(), ids[TOKENS + PROMPT :].tolist())
            probe.groups(1)
        return tally


def attention(ids: Tensor) -> list[Tensor]:
    """Weights of stock transformers in float64, averaged over the query heads of each KV head: ``[KV heads, n, n]`` a layer."""
    model, _ = loaded()
    before = model.config._attn_implementation
    model.double().set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = model(ids[None], output_attentions=True).attentions
    finally:
        model.float().set_attn_implementation(before)
    return [layer[0].unflatten(0, (model.config.num_key_value_heads, -1)).mean(1) for layer in weights]


def test_mass_is_full_attentions_in_float64_and_shares_are_sums_of_it(memories: Memories, ids: Tensor, seen: list[Any]) -> None:
    tally = probed(memories, ids, method(2))
    reference, layers = attention(ids), loaded()[0].config.num_hidden_layers
    del seen[: layers * (ANSWER - 1)]  # of the other answer
    alone = [[TOKENS + PROMPT + at] for at in range(ANSWER - 1)]
    grouped = [list(range(128, 256, GROUP)), list(range(256, TOKENS - GROUP + 1, GROUP))]  # forwards end at multiples of 256
    assert len(seen) == layers * (len(alone) + len(grouped))
    for number, (weights, tokens, stops, shares) in enumerate(seen):
        starts, layer = (alone + grouped)[number // layers], number % layers
        assert stops.tolist() == [start - start % GROUP - LOCAL for start in starts] and len(starts) == weights.shape[1]
        for group, start in enumerate(starts):
            rows = reference[layer][:, start : start + (1 if len(starts) == 1 else GROUP), : weights.shape[2]].mean(1)
            assert torch.allclose(weights[:, group].double(), rows, rtol=1e-3, atol=1e-5)
            stop = int(stops[group])
            blocks = [rows[:, max(at, SINK) : min(at + 32, stop)].sum(1) for at in range(0, stop, 32)]
            assert torch.allclose(shares.available[:, group].double(), rows[:, SINK:stop].sum(1), atol=1e-4)
            for head in range(rows.shape[0]):
                chosen = [token for token in tokens[group, head].tolist() if token >= 0]
                assert float(shares.chosen[head, group]) == pytest.approx(float(rows[head, chosen].sum()), abs=1e-4)
                touched = len({token // 32 for token in chosen})
                best = sorted((float(block[head]) for block in blocks), reverse=True)[:touched]
                assert float(shares.oracle[head, group]) == pytest.approx(sum(best), abs=1e-4) and 1 <= touched <= 2
    sums = tally.sums["groups"]
    grouped_shares = [one[3].chosen.sum() for one in seen[layers * len(alone) + 2 :: layers]]
    assert float(sums["chosen"][2].sum()) == pytest.approx(float(sum(grouped_shares)))
    sums = tally.sums["decoded"]
    assert [heads.tolist() for heads in sums["queries"]] == [[2 * (ANSWER - 1.0)] * 2] * layers


@pytest.mark.parametrize("scope", ["kv_head", "layer"])
def test_an_oracle_never_holds_less_and_all_holds_all(memories: Memories, ids: Tensor, seen: list[Any], scope: str) -> None:
    probed(memories, ids, method(1, scope))
    assert all(bool((one.oracle >= one.chosen - 1e-6).all()) for *_, one in seen)
    assert any(bool((one.oracle > one.chosen + 1e-3).any()) for *_, one in seen)
    seen.clear()
    probed(memories, ids, method(8, scope))
    assert all(torch.allclose(one.chosen, one.available) and torch.allclose(one.oracle, one.available) for *_, one in seen)


def test_the_rule_by_mass_is_weighed_too(memories: Memories, ids: Tensor, seen: list[Any]) -> None:
    made = replace(make_method("recall:score=mass:attended=480:local=64", 512), border=128)
    probed(memories, ids, made)
    assert len(seen) > 0 and all(torch.allclose(one.chosen, one.available, atol=1e-6) for *_, one in seen)  # there is room for all
    seen.clear()
    probed(memories, ids, replace(make_method("recall:score=mass:attended=160:local=64", 512), border=128))
    shares = [(float(one.chosen.sum()), float(one.oracle.sum()), float(one.available.sum())) for *_, one in seen]
    chosen, oracle, available = (sum(column) for column in zip(*shares, strict=True))
    assert 0.7 * oracle < chosen < 0.95 * available


def test_reading_leaves_the_memory_as_it_is(memories: Memories, ids: Tensor) -> None:
    document = Document("text", ids=tuple(ids[:TOKENS].tolist()))
    probed(memories, ids, method(2))
    with memories.by_full_attention(document, RECALL) as (_, session):
        assert session.engine.final < TOKENS  # it would make the last tokens again
    with memories.by_full_attention(document) as (_, session):
        assert session.engine.kv.length == TOKENS and session.engine.counters.forwards == 0


def test_shares_of_tokens_that_are_no_whole_blocks() -> None:
    weights = torch.arange(1.0, 101).view(1, 1, 100) / 5050
    found = weigh(weights, torch.tensor([[[40, 41, 70, -1]]]), 32, torch.tensor([80]), 32)
    expected = [sum(range(33, 81)) / 5050, (41 + 42 + 71) / 5050, sum(range(33, 65)) / 5050]  # three tokens: one Block
    assert [float(part) for part in (found.available, found.chosen, found.oracle)] == pytest.approx(expected)


def test_masses_are_summed_over_documents_and_the_worst_place_is_named() -> None:
    def row(chosen: list[list[float]]) -> MassRow:
        figures = {"queries": [[10.0, 10.0], [10.0]], "available": [[5.0, 2.0], [4.0]], "chosen": chosen, "oracle": [[4.0, 2.0], [4.0]]}
        return MassRow("a", {"decoded": figures, "groups": {name: [[0.0, 0.0], [0.0]] for name in FIGURES}}, 1.0)

    found = summarize_mass([row([[3.0, 2.0], [1.0]]), row([[4.0, 2.0], [0.0]]), MassRow("b", None, 1.0)])
    assert found is not None and found["groups"] is None
    decoded = found["decoded"]
    assert decoded["available"] == [[0.5, 0.2], [0.4, None]] and decoded["chosen"] == [[0.35, 0.2], [0.05, None]]
    assert decoded["of_oracle"] == {"value": 0.6, "interval": pytest.approx([0.6, 0.6])}
    assert decoded["chosen_share"]["value"] == pytest.approx(12 / 22) and decoded["available_share"]["value"] == pytest.approx(22 / 60)
    assert decoded["worst"] == {"layer": 1, "kv_head": 0, "of_oracle": 0.125, "available": 0.4}
    assert summarize_mass([MassRow("b", None, 1.0)]) is None
    assert np.isfinite(decoded["queries"])
