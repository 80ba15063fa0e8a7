"""The comparison of ways to answer in a long conversation, small: what is counted and how it is told. Times are never asserted."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from benchmarks import agents
from benchmarks.agents_methods import CONTEXT, ROOM, trimmed
from benchmarks.agents_plot import draw
from benchmarks.agents_talk import WINDOW, Meter, Plain, Talk, load_plain, make_talk

TOKENS, QUESTIONS, FULL_QUESTIONS = 1500, 2, 1


@pytest.fixture(scope="module")
def plain() -> Plain:
    agents.quiet()
    return load_plain()


@pytest.fixture(scope="module")
def talk(plain: Plain) -> Talk:
    return make_talk(TOKENS, QUESTIONS, 0, plain.rendering)


@pytest.fixture(scope="module")
def found(talk: Talk, plain: Plain) -> dict[str, Any]:
    for needed in ("bm25s", "langchain"):
        pytest.importorskip(needed)
    rows = list(agents.compare(talk, plain, FULL_QUESTIONS))
    return agents.payload(talk, rows, argparse.Namespace(seed=0))


@pytest.fixture(scope="module")
def rows(found: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in found["rows"]}


def test_a_conversation_is_as_long_as_asked_and_tells_each_fact_once(talk: Talk, plain: Plain) -> None:
    assert talk.tokens == len(plain.rendering.ids(talk.messages)) >= TOKENS
    lines = [line for message in talk.messages for line in message.text.split("\n")]
    assert [lines.count(line) for _, line in talk.told] == [1] * QUESTIONS
    for number, (_, line) in enumerate(talk.told):
        assert talk.until_told(number)[-1].text.endswith(line)
    assert make_talk(TOKENS, QUESTIONS, 0, plain.rendering).messages == talk.messages


def test_every_message_is_counted_as_it_is_rendered(talk: Talk, plain: Plain) -> None:
    for length in (1, 2, 5, len(talk.messages)):
        assert plain.rendering.count(talk.messages[:length]) == len(plain.rendering.ids(talk.messages[:length]))


def test_full_re_prefill_reads_the_rendered_conversation(rows: dict[str, Any], talk: Talk, plain: Plain) -> None:
    full = rows[agents.FULL]
    assert full["asked"] == FULL_QUESTIONS
    question = talk.needles[0].question
    assert full["turns"][0]["prefilled"] == len(plain.rendering.ids([*talk.messages, HumanMessage(question)]))


def test_memory_reads_the_history_once_and_then_what_is_new(rows: dict[str, Any], found: dict[str, Any], talk: Talk) -> None:
    ours, full = rows[agents.OURS], rows[agents.FULL]
    assert 0.95 * talk.tokens < ours["read_tokens"] < 1.2 * talk.tokens
    assert 5 * ours["prefill_tokens"] < full["prefill_tokens"]
    assert found["prefill_ratio"] == full["prefill_tokens"] / ours["prefill_tokens"]
    assert ours["kept_bytes"] > talk.text_bytes
    assert ours["counted_by"] in ("engine", "appended")


def test_what_fits_the_window_stays_in_it(rows: dict[str, Any], talk: Talk, plain: Plain) -> None:
    for name in ("trim_messages", "BM25, whole messages", "BM25, four lines", agents.REFERENCE):
        assert all(0 < turn["prefilled"] <= ROOM for turn in rows[name]["turns"]), name
        assert rows[name]["read_tokens"] == 0
    assert all(turn["prefilled"] > CONTEXT / 2 for turn in rows[agents.REFERENCE]["turns"])
    assert plain.rendering.count(trimmed(plain.rendering)(talk.messages)) <= ROOM


def test_what_is_read_for_summaries_counts(rows: dict[str, Any]) -> None:
    summaries = rows["SummarizationMiddleware"]
    assert summaries["read_tokens"] > WINDOW
    assert summaries["kept_bytes"] < rows["trim_messages"]["kept_bytes"]


def test_a_plain_chat_model_reads_everything_each_time(plain: Plain, talk: Talk) -> None:
    meter = Meter()
    chat = plain.chat(meter, max_tokens=1)
    for _ in range(2):
        chat.invoke(talk.messages[:3])
    assert (meter.prefilled, meter.generated) == (2 * plain.rendering.count(talk.messages[:3]), 2)


def test_figures_are_told_in_every_shape(found: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(json.dumps(found)) == found
    assert [row["name"] for row in found["rows"]] == list(agents.WAYS)
    agents.write_csv(found, tmp_path / "deep" / "agents.csv")
    told = list(csv.DictReader((tmp_path / "deep" / "agents.csv").read_text().splitlines()))
    assert [row["name"] for row in told] == list(agents.WAYS)
    assert tuple(told[0]) == agents.COLUMNS
    assert agents.table(found).row_count == len(agents.WAYS)
    assert draw(found, tmp_path / "pictures" / "agents.png").stat().st_size > 10_000


def test_an_answer_is_judged_and_what_it_took_is_counted(talk: Talk) -> None:
    class Knows:
        meter = Meter()

        def read(self, talk: Talk) -> None:
            self.meter.prefilled += 100

        def ask(self, question: str) -> str:
            self.meter.prefilled, self.meter.generated = self.meter.prefilled + 7, self.meter.generated + 2
            needle = talk.needles[0]
            return f"{needle.stem} {needle.value}"

        def kept(self) -> int:
            return 5

    asked: list[int] = []
    row = agents.measure("knows", Knows(), talk, QUESTIONS, lambda: asked.append(1)).to_dict()
    assert (row["exact"], row["asked"], len(asked)) == (1, QUESTIONS, QUESTIONS)
    assert (row["read_tokens"], row["prefill_tokens"], row["generated_tokens"], row["kept_bytes"]) == (100, 7, 2, 5)
