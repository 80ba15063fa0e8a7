"""``agent-memory eval`` on files: perplexity of texts, a benchmark's questions, and files that are something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluate.tiny import Words


def texts(folder: Path) -> list[str]:
    """Options that name two texts of some 900 tokens."""
    for name in "ab":
        (folder / f"{name}.txt").write_text("\n".join(f"{name} port-{number} is {number * 7 % 1000}." for number in range(120)))
    return ["--file", "a.txt", "--file", "b.txt"]


def test_perplexity_of_texts_with_a_picture_and_on_the_same_answers_after_a_stop(cli: Words, tmp_path: Path) -> None:
    words = ["eval", "perplexity", *texts(tmp_path), "--method", "streaming,dca", "--lengths", "800", "--resume", "done.jsonl"]
    code, out, err = cli(*words, "--plot", "p.png", "--json")
    report = json.loads(out)
    told = [line for line in err.splitlines() if "on average so far" in line]
    assert len(told) == 6 and told[-1].startswith("dca: b.txt: loss of the last tokens ") and told[-1].endswith("so far (2)")
    assert code == 0 and report["task"] == "perplexity" and report["texts"] == 2 and set(report["history"]) == {"streaming", "dca"}
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = cli(*words)
    assert code == 0 and "last 256 tokens, 800 of history" in out and "to 512" in out


def test_a_benchmark_file_is_asked(cli: Words, tmp_path: Path) -> None:
    row = {
        "input": "What is the port of web?",
        "context": "web port: 8080",
        "answers": ["8080"],
        "dataset": "hotpotqa",
        "all_classes": None,
    }
    (tmp_path / "hotpotqa.jsonl").write_text(json.dumps({**row, "length": 3, "language": "en", "_id": "0"}) + "\n")
    words = ["eval", "longbench", "--file", "hotpotqa.jsonl", "--method", "recall", "--samples", "1"]
    code, out, err = cli(*words, "--json")
    report = json.loads(out)
    assert err.splitlines()[-1].startswith("recall: hotpotqa ") and err.splitlines()[-1].endswith(" after 1")
    assert code == 0 and report["counts"] == {"hotpotqa": 1} and 0 <= report["summary"]["recall"]["hotpotqa"] <= 100
    code, out, _ = cli(*words)
    assert code == 0 and "hotpotqa" in out and "recall" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("perplexity",), "--file PATH"),
        (("perplexity", "--file", "bad.jsonl", "--lengths", "1k,2k"), "texts of one length"),
        (("perplexity", "--file", "bad.jsonl"), "length=32768 is more than the 8 tokens"),
        (("longbench", "--file", "bad.jsonl"), "bad.jsonl, line 1"),
        (("infinitebench", "--file", "nowhere.jsonl"), "nowhere.jsonl"),
        (("locomo", "--file", "bad.jsonl"), "bad.jsonl"),
    ],
)
def test_a_mistake_is_one_line(cli: Words, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "?"}\n')
    code, out, err = cli("eval", *words)
    assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1 and message in err
