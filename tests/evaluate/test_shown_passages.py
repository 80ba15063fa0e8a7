"""What a memory is compared with on public benchmarks: evidence alone, and the passages that BM25 finds; and losses of right answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.evaluate.benchmarks import locomo
from agent_memory.evaluate.benchmarks.base import Context, Item, Section
from agent_memory.evaluate.benchmarks.run import BenchmarkOptions, run_benchmark
from agent_memory.evaluate.benchmarks.shown import PASSAGE_CHARACTERS, Shown, by_lines, has_evidence, ranked, shown_by
from agent_memory.evaluate.benchmarks.tally import Losses
from agent_memory.evaluate.forced import answer_loss
from agent_memory.runtime import Runtime

pytest.importorskip("bm25s")
pytest.importorskip("nltk")

SECTIONS = (
    Section("Monday\n", (("D1:1", "the cat sleeps\n"), ("D1:2", "rain all day\n"))),
    Section("Tuesday\n", (("D2:1", "a blue kettle arrived\n"), ("D2:2", "the cat broke the kettle\n"))),
)
CONTEXT = Context("A diary.\n", SECTIONS)


def item(query: str, *evidence: str) -> Item:
    return Item("x/1", "x", CONTEXT.pieces(), query, ("a",), "f1", 4, context=CONTEXT, evidence=evidence, query=query)


def words(text: str) -> int:
    return len(text.split())


def test_a_context_shows_some_passages_under_their_headings() -> None:
    assert "".join(CONTEXT.pieces()) == (
        "A diary.\nMonday\nthe cat sleeps\nrain all day\nTuesday\na blue kettle arrived\nthe cat broke the kettle\n"
    )
    assert CONTEXT.pieces({3}) == ("A diary.\nTuesday\nthe cat broke the kettle\n",)
    assert CONTEXT.pieces({0, 2}) == ("A diary.\nMonday\nthe cat sleeps\n", "Tuesday\na blue kettle arrived\n")
    assert CONTEXT.pieces(set()) == ()


def test_evidence_is_what_a_question_names() -> None:
    assert Shown("evidence").passages(item("?", "D2:1", "D1:1"), words) == CONTEXT.pieces({0, 2})
    assert [has_evidence(item("?", *named)) for named in (("D1:1",), (), ("D1:1", "D9:9"))] == [True, False, False]
    with pytest.raises(ConfigError, match="x/1 does not say which passages"):
        Shown("evidence").passages(item("?"), words)


def test_bm25_ranks_by_words_and_takes_what_has_room() -> None:
    assert ranked("Who broke the kettle?", CONTEXT)[0] == 3 and set(ranked("kettle", CONTEXT)) == {2, 3}
    assert ranked("xylophone", CONTEXT) == [] == ranked("the", CONTEXT)
    asked = item("Who broke the blue kettle?")
    assert Shown("bm25", 8).passages(asked, words) == CONTEXT.pieces({3}), "opening, heading and one passage"
    assert Shown("bm25", 12).passages(asked, words) == CONTEXT.pieces({2, 3}), "the heading counts once"
    assert Shown("bm25", 3).passages(asked, words) == () == Shown("bm25", 50).passages(item("xylophone"), words)


def test_passages_of_a_context_that_has_none_are_whole_lines() -> None:
    piece = "".join(f"line {number} {'x' * 90}\n" for number in range(10)) + "y" * 900
    (section,) = by_lines((piece,)).sections
    assert "".join(text for _, text in section.passages) == piece and len(section.passages) == 4
    assert all(len(text) <= PASSAGE_CHARACTERS for _, text in section.passages[:3])


@pytest.mark.parametrize("spec", ["bm25:tokens=0", "bm25:k=3", "evidence:tokens=5", "bm25:"])
def test_an_option_there_is_not_is_refused(spec: str) -> None:
    if spec == "bm25:":
        assert shown_by(spec) == Shown("bm25")
        return
    with pytest.raises(ConfigError, match="write evidence, bm25, or bm25:tokens=N"):
        shown_by(spec)


def test_names_of_memory_are_left_alone() -> None:
    assert shown_by("recall:attended=64") is None
    assert shown_by("bm25:tokens=300") == Shown("bm25", 300)
    assert shown_by("evidence") == Shown("evidence")


def test_losses_are_paired_and_their_interval_knows_contexts() -> None:
    losses = Losses()
    for method, shift in (("recall", 0.0), ("bm25", 1.0)):
        for number, context in enumerate("aabbcc"):
            losses.add(method, "xy"[number % 2], context, number + shift * (1 + (context == "c")))
    assert losses.means()["recall"] == {"x": 2.0, "y": 3.0, "all": 2.5}
    found = losses.against("recall")["bm25"]
    assert found["difference"] == pytest.approx(4 / 3) and found["contexts"] == 3
    assert found["interval"] == (pytest.approx(1.0), pytest.approx(2.0))
    alone = Losses()
    for method in ("recall", "bm25"):
        alone.add(method, "x", "a", 1.0)
    assert alone.against("recall")["bm25"] == {"difference": 0.0, "interval": None, "contexts": 1}


def talk(name: str) -> dict[str, Any]:
    turns = [{"speaker": "Ann", "dia_id": f"D1:{n}", "text": f"Record {n} of {name}: shelf {n} holds {n * 7} cups."} for n in range(1, 9)]
    questions = [
        {"question": f"What does shelf {n} hold?", "answer": f"{n * 7} cups", "evidence": [f"D1:{n}"], "category": 4} for n in (2, 5)
    ]
    questions.append({"question": "Why?", "answer": "because", "evidence": [], "category": 3})
    spoken = {"speaker_a": "Ann", "speaker_b": "Bob", "session_1_date_time": "1 May", "session_1": turns}
    return {"sample_id": name, "conversation": spoken, "qa": questions}


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    path = tmp_path / "talks.json"
    path.write_text(json.dumps([talk("conv-1"), talk("conv-2")]))
    return path


def load(**options: Any) -> Runtime:
    torch.set_num_threads(1)
    return Runtime.load(window=1024, **options)


def test_a_run_with_evidence_asks_what_names_it_and_goes_on_without_words(conversations: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    options = BenchmarkOptions("locomo", (conversations,), ("recall", "evidence", "bm25:tokens=150"), max_new_tokens=3, resume=kept)
    report = run_benchmark(load, options)
    assert report["counts"] == {"single-hop": 4}, "the one without evidence is not asked"
    assert set(report["losses"]) == set(report["summary"]) == {"recall", "evidence", "bm25:tokens=150"}
    assert all(set(losses) == {"single-hop", "all"} and losses["all"] > 0 for losses in report["losses"].values())
    assert set(report["against"]) == {"evidence", "bm25:tokens=150"} and report["against"]["evidence"]["contexts"] == 2
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    kept.write_text("".join(json.dumps(row | {"answer": None}) + "\n" for row in rows))
    assert run_benchmark(_none, options) == report, "numbers alone are enough to go on"


def _none(**options: Any) -> Runtime:
    """A Runtime that is only asked who it is."""
    runtime = load(**options)
    runtime.session = None  # type: ignore[assignment, method-assign]
    return runtime


def test_the_loss_is_that_of_the_answer_alone(conversations: Path, tmp_path: Path) -> None:
    """As in one forward over prompt and answer, which transformers scores."""
    asked = next(locomo.read(conversations))
    with load(method="full", store=tmp_path / "store") as runtime:
        session = runtime.session("x")
        for piece in asked.pieces:
            session.append("user", piece, prefill=False)
        loss = answer_loss(runtime, session, asked.question, asked.answers[0], "fork")
        told = [*asked.pieces, asked.question]
        prompt = runtime.tokenizer.apply_chat_template(
            [{"role": "user", "content": t} for t in told], add_generation_prompt=True, tokenize=False
        )
        ids = [runtime.tokenizer.encode(text, add_special_tokens=False) for text in (prompt, asked.answers[0])]
        logits = runtime.model(torch.tensor([ids[0] + ids[1]])).logits[0].log_softmax(-1).detach()
    expected = -sum(float(logits[len(ids[0]) - 1 + at, token]) for at, token in enumerate(ids[1]))
    assert loss == pytest.approx(expected, rel=1e-3) and expected > 0


def test_questions_are_drawn_by_seed_from_named_data_sets(conversations: Path) -> None:
    def ids(**options: Any) -> Any:
        return run_benchmark(load, BenchmarkOptions("locomo", (conversations,), ("streaming",), max_new_tokens=1, **options))["counts"]

    assert ids(datasets=("open-domain",)) == {"open-domain": 2}
    assert sum(ids(drawn=3, seed=1).values()) == 3
    assert sum(ids(drawn=100).values()) == 6
    with pytest.raises(ConfigError, match="limit, drawn and"):
        ids(drawn=0)
    with pytest.raises(ConfigError, match="no questions to ask"):
        ids(datasets=("nothing",))
