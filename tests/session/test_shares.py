"""What a Recall says of attention: whose it was, that it adds up, that hiding what got most hurts most, and that it can be off."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from agent_memory import recall as recalls
from agent_memory.attention.positions import Attended
from agent_memory.attention.region import Weights
from agent_memory.attention.shares import AttentionShares
from agent_memory.attention.trace import Trace
from agent_memory.engine import CHUNK_TOKENS
from agent_memory.pocket import data
from agent_memory.recall import make_recall
from agent_memory.session import Session
from agent_memory.types import GenerationRequest, Recall, RecalledTurn
from agent_memory_kernels import paged
from benchmarks.hiding import Question, hide
from tests.session.conftest import MakeRuntime, story
from tests.session.test_paged_reply import PROMPT, on_pages, replies

QUESTION = data.question("foo-bar", "version")
METHODS = [
    "recall",
    "recall:score=mass",
    "recall:pool=false:scope=kv_head:echo=0",
    "reattention",
    "infllm",
    "streaming",
    "rerope",
    "recall+dca",
]


def fill(session: Session, turns: int = 8) -> Session:
    for text in story(1, turns):
        session.append("tool", text, name="read", prefill=False)
    session.prefill()
    return session


def reply(session: Session) -> tuple[Recall, torch.Tensor, list[int]]:
    """The Recall of a reply, the logits of its tokens, and the tokens."""
    logits: list[torch.Tensor] = []

    def watch(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits.append(scores.clone())
        return scores

    session.append("user", QUESTION, prefill=False)
    for _ in session.generate(max_new_tokens=12, processors=[watch]):
        pass
    assert session.last_recall is not None and session.last_turn is not None
    made = session.last_turn.meta["generated"]
    return session.last_recall, torch.cat(logits), session.timeline.tokens(session.tokens - made - 2, session.tokens).tolist()


def total(recall: Recall) -> float:
    assert recall.sink_share is not None and recall.local_share is not None and recall.other_share is not None
    assert recall.unread_share is not None
    return recall.sink_share + recall.local_share + recall.other_share + recall.unread_share + sum(hit.score or 0.0 for hit in recall.turns)


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_the_other_shares_add_up_to_one(make_runtime: MakeRuntime, method: str) -> None:
    with fill(make_runtime(method=method).session("a")) as session:
        recall, _, _ = reply(session)
        assert total(recall) == pytest.approx(1, abs=1e-5)
        scores = [hit.score for hit in recall.turns]
        assert scores == sorted(scores, key=lambda score: -(score or 0.0))
        assert bool(scores) == session.engine.method.recalls and (not scores or (scores[0] or 0.0) > 0.01)
        stored = session.timeline.recalls()[-1]["recall"]
        assert [hit["score"] for hit in stored["turns"]] == scores
        assert (stored["sink_share"], stored["local_share"]) == (recall.sink_share, recall.local_share)


def test_every_token_of_a_reply_counts_once_in_every_layer(make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    add = AttentionShares.add

    def watched(self: AttentionShares, weights: Weights, attended: Sequence[Attended], query_heads: int) -> None:
        added.append(int(attended[0].queries[-1, -1]))
        add(self, weights, attended, query_heads)

    monkeypatch.setattr(AttentionShares, "add", watched)
    with fill(make_runtime().session("a")) as session:
        count, layers = session.tokens, range(session.engine.kv.layout.layers)
        for prompt in (3, CHUNK_TOKENS - count % CHUNK_TOKENS + 5):  # the second is read in two forwards, of which one makes logits
            added.clear()
            request = GenerationRequest(prompt=tuple(range(20, 20 + prompt)), max_new_tokens=4, end_ids=())
            tokens = [piece.token for piece in session.engine.generate(count, request, Trace())]
            assert len(tokens) == 4
            assert added == [token for token in range(count + prompt - 1, count + prompt + 3) for _ in layers]


def test_a_turn_has_the_share_of_its_own_tokens(make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    with fill(make_runtime(method="reattention").session("a")) as session:
        trace, request = Trace(), GenerationRequest(prompt=tuple(PROMPT), max_new_tokens=8, end_ids=())
        for _ in session.engine.generate(session.tokens, request, trace):
            pass
        recall = make_recall(trace, session.timeline)
        assert trace.shares is not None
        found = trace.shares.result()
        assert found is not None and len(recall.turns) > 4
        for hit in recall.turns:
            turn = session.timeline.turns(hit.turn, hit.turn + 1)[0]
            assert turn.start % 32 or not turn.index, "its first Block is the turn's before it, too"
            assert hit.score == pytest.approx(found.recalled[turn.start : turn.stop].sum(), abs=1e-12)
            assert hit.peak == max(found.peaks[turn.start : turn.stop])
        assert recall.other_share == pytest.approx(0, abs=1e-12)
        monkeypatch.setattr(recalls, "MOST_TURNS", 2)
        two = make_recall(trace, session.timeline)
        peaked = max(recall.turns[1:], key=lambda hit: hit.peak or 0.0)
        assert two.turns == (recall.turns[0], peaked) == recall.foremost(2)
        assert two.other_share == pytest.approx(sum(hit.score or 0.0 for hit in recall.turns if hit not in two.turns), abs=1e-12)
        assert total(two) == pytest.approx(1, abs=1e-5)


def test_the_foremost_turns_are_those_with_the_highest_scores_and_peaks() -> None:
    peaks = [0.1, 0.0, 0.3, 0.9, 0.0, 0.5]
    turns = tuple(RecalledTurn(turn, "tool", None, 1, 1 - turn / 8, "disk", "", peak) for turn, peak in enumerate(peaks))
    recall = Recall(turns)
    assert [[hit.turn for hit in recall.foremost(most)] for most in (0, 1, 2, 3, 4, 5, 9)] == [
        [], [0], [0, 3], [0, 1, 3], [0, 1, 3, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5],
    ]  # fmt: skip
    unknown = tuple(dataclasses.replace(hit, peak=None) for hit in turns)
    assert Recall(unknown).foremost(4) == unknown[:4]


@pytest.mark.parametrize("method", ["recall", "infllm", "recall+rerope"])
def test_without_shares_the_same_is_said_and_the_same_turns_are_listed(make_runtime: MakeRuntime, method: str) -> None:
    found = []
    for name, on in (("on", True), ("off", False)):
        with fill(make_runtime(method=method, attention_shares=on).session(name)) as session:
            found.append(reply(session))
    (on_recall, on_logits, on_tokens), (off_recall, off_logits, off_tokens) = found
    assert on_tokens == off_tokens
    torch.testing.assert_close(on_logits, off_logits, atol=1e-3, rtol=1e-4)
    assert {hit.turn for hit in on_recall.turns} == {hit.turn for hit in off_recall.turns}
    assert {(hit.score, hit.peak) for hit in off_recall.turns} == {(None, None)}
    assert (off_recall.sink_share, off_recall.local_share, off_recall.other_share) == (None, None, None)
    assert (on_recall.selections, on_recall.tiers) == (off_recall.selections, off_recall.tiers)


def test_without_shares_turns_are_ranked_by_how_often_they_were_selected(make_runtime: MakeRuntime) -> None:
    with fill(make_runtime(attention_shares=False).session("a")) as session:
        trace = Trace()
        for turn, times in ((3, 2), (7, 5), (5, 1)):
            block = (session.timeline.turns(turn, turn + 1)[0].start + 40) // 32
            for _ in range(times):
                trace.choose_blocks(np.array([[block]]), True, "memory", 0)
        assert [hit.turn for hit in make_recall(trace, session.timeline).turns] == [7, 3, 5]


def test_a_reply_on_pages_has_no_shares(make_runtime: MakeRuntime) -> None:
    with fill(make_runtime().session("a")) as session:
        _, _, layer_by_layer = replies(session, PROMPT, 4)
        assert layer_by_layer.shares is not None and layer_by_layer.shares.result() is not None
        on_pages(session, paged("torch"))
        _, _, trace = replies(session, PROMPT, 4)
        assert trace.shares is None
        assert {hit.score for hit in make_recall(trace, session.timeline).turns} == {None}


def test_a_reply_that_recalls_itself_is_committed_and_its_own_tokens_are_local(make_runtime: MakeRuntime) -> None:
    """A reply longer than the local tokens is memory before it is a turn."""
    with fill(make_runtime(method="reattention:local=64", window=256).session("a"), 3) as session:
        end = list(session._conversation.end_ids)

        def on_and_on(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.index_fill(1, torch.tensor(end), float("-inf"))

        before = session.tokens
        session.append("user", QUESTION, prefill=False)
        for _ in session.generate(max_new_tokens=120, processors=[on_and_on]):
            pass
        recall = session.last_recall
        assert recall is not None and session.tokens > before + 120
        assert all(hit.tokens_ago >= 0 for hit in recall.turns)
        assert total(recall) == pytest.approx(1, abs=1e-5)


def test_hiding_the_turn_with_the_highest_score_hurts_most(make_runtime: MakeRuntime) -> None:
    rng = random.Random(7)
    records = [data.make_record(rng) for _ in range(10)]
    runtime = make_runtime(budget=None)
    with runtime.session("a") as session:
        for record in records:
            session.append("tool", data.render(record, rng.choice(data.LAYOUTS)) + "\n" + data.noise(rng, 6), name="read", prefill=False)
        session.prefill()
        found = []
        for record in records[:4]:
            field, value = rng.choice(sorted(record.fields.items()))
            question = Question(data.question(record.name, field), data.answer(record.name, field, value))
            found.append(hide(runtime, session, question, rng))
    assert [each.scored for each in found] == [each.peaked for each in found] == list(range(len(found))), "the turn that holds the record"
    top, others = (np.mean([getattr(each, name) for each in found]) for name in ("scored_adds", "others_add"))
    assert top > 5 and top > 5 * abs(others), found
