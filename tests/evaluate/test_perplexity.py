"""Perplexity by position: the report, going on after a stop, intervals, the picture, and what cannot be measured."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.evaluate.perplexity import PerplexityOptions, Text, read_texts, run_perplexity
from agent_memory.evaluate.perplexity_plot import draw_perplexity, highest, label
from agent_memory.evaluate.readings import Reading, buckets, history
from agent_memory.evaluate.statistics import bootstrap_mean
from agent_memory.runtime import Runtime
from agent_memory.types import Budget
from tests.evaluate.tiny import WINDOW, MakeRuntime, stock_losses, story

LENGTH = 768


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    """Three files that are long enough, and one that is not."""
    for name, lines in (("a", 80), ("b", 80), ("c", 1), ("d", 80)):
        (tmp_path / f"{name}.txt").write_text(story(ord(name), lines))
    return tuple(sorted(tmp_path.glob("*.txt")))


def test_buckets() -> None:
    assert buckets(256, 1024) == [(1, 128), (128, 256), (256, 512), (512, 1024)]
    assert buckets(255, 600) == [(1, 127), (127, 255), (255, 510), (510, 600)]
    assert buckets(256, 256) == [(1, 128), (128, 256)]


def options(files: tuple[Path, ...], **more: Any) -> PerplexityOptions:
    return PerplexityOptions(**{"methods": ("recall", "streaming", "full"), "files": files, "length": LENGTH, "reach": 2, **more})


def test_the_report(make: MakeRuntime, files: tuple[Path, ...], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    chosen = options(files, alone=16)
    report = json.loads(json.dumps(run_perplexity(make, chosen, lambda done, total, what: told.append((done, total)))))
    facts = {name: report[name] for name in ("task", "model", "window", "length", "texts", "skipped", "alone", "plot")}
    assert facts == {
        "task": "perplexity", "model": "LlamaForCausalLM", "window": 256, "length": 768, "texts": 3, "skipped": 1, "alone": 16, "plot": None
    }  # fmt: skip
    assert report["buckets"] == [[1, 128], [128, 256], [256, 512], [512, 768]]
    assert [(cell["method"], cell["stop"]) for cell in report["cells"]] == [
        *(("recall", stop) for stop in (128, 256, 512, 768)), *(("streaming", stop) for stop in (128, 256, 512, 768)),
        *(("full", stop) for stop in (128, 256, 512)),
    ]  # fmt: skip
    texts = [text.ids for text in read_texts(make().tokenizer, chosen, LENGTH)[0]]
    runtime = make(method="recall")
    losses = torch.stack([runtime.score(text, of=range(1, LENGTH), alone=LENGTH - 16) for text in texts])
    plain = torch.stack([stock_losses(runtime.model, text[-WINDOW:])[-128:].mean() for text in texts])
    for cell, (start, stop) in zip(report["cells"], report["buckets"], strict=False):
        expected = losses[:, start - 1 : stop - 1]
        assert cell["tokens"] == expected.numel() and cell["loss"] == pytest.approx(float(expected.mean()), abs=1e-4)
        assert cell["perplexity"] == pytest.approx(float(expected.mean().exp()), rel=1e-3)
    history = report["history"]["recall"]
    assert set(report["history"]) == {"recall", "streaming"} and history["texts"] == 3
    difference = losses[:, -128:].mean(1) - plain
    low, high = bootstrap_mean(difference.tolist())
    assert history["with_history"] == pytest.approx(float(losses[:, -128:].mean()), abs=1e-4)
    assert history["window_only"] == pytest.approx(float(plain.mean()), abs=1e-4)
    assert history["difference"] == pytest.approx(float(difference.mean()), abs=1e-4)
    assert history["interval"] == pytest.approx([low, high], abs=1e-4)
    assert (history["not_worse"], history["better"]) == (low <= 0, high < 0)
    assert report["counters"]["recall"]["tokens"] == 3 * LENGTH and report["counters"]["full"]["tokens"] == 3 * 2 * WINDOW
    assert report["counters"]["recall"]["keys_scored"] > 0 == report["counters"]["streaming"]["keys_scored"]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == 3 * (WINDOW + 3 * LENGTH)
    assert draw_perplexity(report, tmp_path / "plots" / "perplexity.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_was_killed_while_writing_goes_on(make: MakeRuntime, files: tuple[Path, ...], tmp_path: Path) -> None:
    resume, scored = tmp_path / "done.jsonl", list[str]()

    def counted(**given: Any) -> Runtime:
        runtime = make(**given)
        score = runtime.score

        def noted(*args: Any, **more: Any) -> torch.Tensor:
            scored.append(given["method"])
            return score(*args, **more)

        runtime.score = noted  # type: ignore[method-assign]
        return runtime

    chosen = options(files, methods=("streaming",), texts=2, resume=resume)
    report = run_perplexity(counted, chosen)
    assert scored == ["full", "full", "streaming", "streaming"] and report["alone"] == 128
    assert run_perplexity(counted, chosen) == report and len(scored) == 4
    resume.write_text(resume.read_text()[:-20])
    again = run_perplexity(counted, chosen)
    assert len(scored) == 5 and again["cells"] == report["cells"] and again["history"] == report["history"]
    assert run_perplexity(counted, chosen) == again and len(scored) == 5
    run_perplexity(counted, dataclasses.replace(chosen, alone=0))
    assert len(scored) == 9 and len(resume.read_text().splitlines()) == 8


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"key": {"a": 1}, "answers": []}\n', '{"key": "k"}\n', "[]\n"])
def test_a_file_to_go_on_with_that_is_something_else_is_left_alone(
    make: MakeRuntime, files: tuple[Path, ...], tmp_path: Path, content: str
) -> None:
    other = tmp_path / "other"
    other.write_text(content)
    with pytest.raises(ConfigError, match="other, line 1: no line of a run"):
        run_perplexity(make, options(files, resume=other))
    assert other.read_text() == content


def test_one_text_has_no_interval(make: MakeRuntime, files: tuple[Path, ...]) -> None:
    report = run_perplexity(make, options(files, methods=("streaming",), texts=1))
    verdict = {name: report["history"]["streaming"][name] for name in ("interval", "not_worse", "better", "texts")}
    assert verdict == {"interval": None, "not_worse": None, "better": None, "texts": 1}


@pytest.mark.parametrize(
    ("differences", "not_worse", "better"),
    [([0.1, 0.2, 0.15, 0.1], False, False), ([-0.1, 0.2, -0.2, 0.1], True, False), ([-0.1, -0.2, -0.15, -0.1], True, True)],
)
def test_verdicts(differences: list[float], not_worse: bool, better: bool) -> None:
    plain = [Reading((), 2.0 + i, 256, 0, 0.0) for i in range(len(differences))]
    found = history([Reading((), one.last + d, 768, 0, 0.0) for one, d in zip(plain, differences, strict=True)], plain)
    assert (found["not_worse"], found["better"]) == (not_worse, better)
    assert found["difference"] == pytest.approx(sum(differences) / 4) and found["window_only"] == pytest.approx(3.5)
    assert found["with_history"] == pytest.approx(3.5 + sum(differences) / 4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"files": ()}, r"files=\(\)"),
        ({"length": 256}, "length=256 cannot be used: it must be at least 257"),
        ({"length": 1_000_000}, r"length=1000000 is more than the \d+ tokens of the longest of 4 files"),
        ({"texts": 0}, "texts=0"),
        ({"reach": 0}, "reach=0"),
        ({"alone": 769}, "alone=769 cannot be used: it must be between 0 and 768"),
        ({"methods": ("streaming", "nonsense")}, "nonsense"),
        ({"budget": Budget(device="1MiB")}, "budget"),
    ],
)
def test_what_cannot_be_measured(make: MakeRuntime, files: tuple[Path, ...], more: dict[str, Any], said: str) -> None:
    told: list[int] = []
    with pytest.raises(ConfigError, match=said) as caught:
        run_perplexity(make, options(**{"files": files, **more}), lambda done, total, what: told.append(done))
    assert "\n" not in str(caught.value) and not told


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00garbage"])
def test_a_file_that_is_no_text_is_named(make: MakeRuntime, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "bad.bin"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="bad.bin"):
        run_perplexity(make, options((file,)))


def test_a_model_that_changes_meanwhile_is_noticed(make: MakeRuntime, files: tuple[Path, ...]) -> None:
    def other(**given: Any) -> Runtime:
        runtime = make(**given)
        if given["method"] != "full":
            runtime.model_id = dataclasses.replace(runtime.model_id, weights="others")
        return runtime

    with pytest.raises(ConfigError, match="the model changed"):
        run_perplexity(other, options(files, texts=1))


class Bos:
    """A tokenizer that begins every text with token 9."""

    bos_token_id = 9

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> Any:
        ids = [9] * add_special_tokens + [ord(letter) for letter in text]
        return type("Encoded", (), {"input_ids": ids})


def test_what_a_tokenizer_puts_first_is_first_in_the_window_too(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abcdefgh")
    (text,), skipped = read_texts(Bos(), PerplexityOptions(files=(tmp_path / "t.txt",)), 7)
    assert skipped == 0 and text.ids.tolist() == [9, *map(ord, "abcdef")]
    assert text.end(4).tolist() == [9, *map(ord, "def")]
    assert Text("t", 0, text.ids).end(4).tolist() == [*map(ord, "cdef")]


def test_texts_are_drawn_by_seed_and_keep_their_order(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(20)]
    for file in files:
        file.write_text(file.name * 4)
    drawn = {}
    for seed in (0, 1):
        chosen = PerplexityOptions(files=tuple(files), texts=5, seed=seed)
        drawn[seed] = [text.name for text in read_texts(Bos(), chosen, 8)[0]]
        assert drawn[seed] == [text.name for text in read_texts(Bos(), chosen, 8)[0]]
        assert len(drawn[seed]) == 5 and drawn[seed] == sorted(drawn[seed], key=[file.name for file in files].index)
    assert drawn[0] != drawn[1]


def test_bootstrap() -> None:
    rng = random.Random(0)
    values = [rng.gauss(1.0, 2.0) for _ in range(400)]
    low, high = bootstrap_mean(values)
    mean, error = sum(values) / 400, statistics.stdev(values) / 20
    assert low == pytest.approx(mean - 1.96 * error, abs=0.05 * error) and high == pytest.approx(mean + 1.96 * error, abs=0.05 * error)
    assert bootstrap_mean(values) == (low, high) != bootstrap_mean(values, seed=1)
    assert bootstrap_mean([3.0, 3.0]) == (3.0, 3.0)
    with pytest.raises(ConfigError, match="1 texts"):
        bootstrap_mean([1.0])


def test_a_curve_that_leaves_the_picture_says_so() -> None:
    cells = [
        {"method": "full", "start": stop // 2, "stop": stop, "perplexity": value} for stop, value in ((128, 10), (256, 8), (512, 9000))
    ]
    assert highest(cells, 256) == 25 and highest(cells[:2], 256) == pytest.approx(10.5)
    assert label("full", cells, 25) == "full (above from 256, up to 9,000)"
    assert label("full", cells[:2], 25) == "full"
