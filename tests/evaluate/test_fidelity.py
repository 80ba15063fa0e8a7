"""Fidelity on the pocket model: full attention against itself, what is kept and taken up again, and losses of text."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.evaluate.fidelity import measuring
from agent_memory.evaluate.fidelity.asking import Response, divergence
from agent_memory.evaluate.fidelity.documents import Continuation, Document, Question, digest
from agent_memory.evaluate.fidelity.reference import Reference, References
from agent_memory.evaluate.fidelity.run import FidelityOptions, run_fidelity
from agent_memory.evaluate.fidelity.runtimes import Memories
from agent_memory.types import Budget
from tests.evaluate.fidelity_runs import RECALL, STREAMING, loaded, make_runtime, measure, record_documents

METHODS = ("full", RECALL, STREAMING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one measurement left: a cache of memories, and rows."""
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return measure(folder / "cache", METHODS, mass=True, resume=folder / "rows.jsonl")


def without_seconds(report: dict[str, Any]) -> dict[str, Any]:
    for modes in report["methods"].values():
        for figures in modes.values():
            figures.pop("seconds", None)
    return report


def rows_of(report: dict[str, Any], method: str, mode: str) -> list[dict[str, Any]]:
    wanted = [row for row in report["rows"] if (row["method"], row["mode"]) == (method, mode)]
    return [{name: value for name, value in row.items() if name not in ("method", "mode")} for row in wanted]


def test_full_attention_is_like_itself_and_reading_is_like_making(report: dict[str, Any]) -> None:
    assert (report["documents"], report["questions"], report["full"]["right_answers"]) == (2, 4, 4)
    for mode in ("read", "made"):
        figures = report["methods"]["full"][mode]
        assert figures["nll_change"] == {"value": 0.0, "interval": [0.0, 0.0]}
        assert 0 <= figures["kl_per_token"]["value"] < 1e-8
        assert (figures["kept"], figures["lost"], figures["won"], figures["kept_share"]["value"]) == (4, 0, 0, 1.0)
    assert rows_of(report, "full", "read") == rows_of(report, "full", "made")


def test_what_a_method_leaves_out_is_told_and_so_is_what_it_made_otherwise(report: dict[str, Any]) -> None:
    read, made = (report["methods"][STREAMING][mode] for mode in ("read", "made"))
    assert read["nll_change"]["value"] > 1 and read["kl_per_token"]["value"] > 0.1 and (read["kept"], read["lost"]) == (3, 1)
    assert rows_of(report, STREAMING, "read") != rows_of(report, STREAMING, "made")
    assert made["nll_change"]["value"] == pytest.approx(read["nll_change"]["value"], rel=0.1)
    changes = [row["nll_change"] for row in rows_of(report, STREAMING, "made")]
    assert made["nll_change"]["value"] == pytest.approx(np.mean(changes))
    by_document = [np.mean(changes[:2]), np.mean(changes[2:])]
    assert made["nll_change"]["interval"] == pytest.approx(sorted(by_document))  # two documents can be drawn twice, or once each
    assert made["right_change"]["value"] == -0.25 and report["methods"][RECALL]["made"]["kept"] == 4


def test_mass_is_weighed_where_something_is_chosen(report: dict[str, Any]) -> None:
    assert report["mass"]["full"] is None and report["mass"][STREAMING] is None
    for kind in ("decoded", "groups"):
        row = report["mass"][RECALL][kind]
        assert [heads[0] is None for heads in row["available"]] == [True, True, False, False]  # the pocket model names its third layer
        assert 0 < row["chosen_share"]["value"] <= row["chosen_share"]["interval"][1] <= 1 and row["worst"]["layer"] in (2, 3)


def test_nothing_is_measured_twice(folder: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    again = [json.loads(line)["key"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(again) == len({digest(key) for key in again}) == 2 * 3 * 3

    def never(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(measuring, "ask", never)
    monkeypatch.setattr(measuring, "opened_probe", never)
    assert measure(folder / "cache", METHODS, mass=True, resume=folder / "rows.jsonl") == report


def test_without_free_replies_an_answer_is_right_if_it_is_the_most_likely_one(folder: Path, report: dict[str, Any]) -> None:
    found = measure(folder / "cache", [STREAMING], modes=("made",), replies=False, resume=folder / "rows.jsonl")
    rows, replied = rows_of(found, STREAMING, "made"), rows_of(report, STREAMING, "made")
    assert all(row["reply"] is None for row in rows) and [row["right_full"] for row in rows] == [True] * 4
    assert [row["right"] for row in rows] == [row["right"] for row in replied]  # here a reply that is not the gold answer is wrong
    assert [row["nll_change"] for row in rows] == [row["nll_change"] for row in replied]


def test_the_truth_is_asked_once_for_all_methods(folder: Path, report: dict[str, Any]) -> None:
    for file in (folder / "cache" / "reference").rglob("*.npz"):
        with np.load(file) as arrays:
            np.savez(file, **{**arrays, "nll": arrays["nll"] + 1})
    try:
        figures = measure(folder / "cache", ["full"], modes=("read",))["methods"]["full"]["read"]
    finally:
        for file in (folder / "cache" / "reference").rglob("*.npz"):
            file.unlink()
    assert figures["nll_change_per_token"]["value"] == pytest.approx(-1)


def test_a_truth_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    references, document, question = References(tmp_path), Document("a"), Question("Who?", "Ann", expected=("Ann",))
    assert references.get(document, question) is None
    kept = references.keep(document, question, Response((0.5, 1.5), torch.tensor([[-0.1, -2.5], [-3.0, -0.05]]), True, "Ann Ø"))
    found = references.get(document, question)
    assert found is not None and (found.greedy, found.reply) == (True, "Ann Ø") and found.nll.tolist() == [0.5, 1.5]
    assert (found.log_probabilities == kept.log_probabilities).all() and found.log_probabilities.dtype == np.float16
    [file] = tmp_path.rglob("*.npz")
    whole = file.read_bytes()
    for damaged in (b"", b"PK\x03\x04 cut", b"not arrays", whole[:-40], whole[:100]):
        file.write_bytes(damaged)
        assert references.get(document, question) is None
    for changed in (
        {"nll": np.zeros(3)},
        {"log_probabilities": np.zeros((2, 2))},
        {"reply": np.array("3")},
        {"reply": np.array("[true, 3]")},
        {"reply": np.array("Ann")},
    ):
        with file.open("wb") as out:
            np.savez(out, **{**vars_of(found), **changed})
        assert references.get(document, question) is None
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".npz"]


def vars_of(reference: Reference) -> dict[str, Any]:
    return {
        "nll": reference.nll,
        "log_probabilities": reference.log_probabilities,
        "reply": np.array(json.dumps([reference.greedy, reference.reply])),
    }


def test_rows_that_are_something_else_are_refused_and_left_alone(folder: Path, report: dict[str, Any], tmp_path: Path) -> None:
    line = (folder / "rows.jsonl").read_text().splitlines()[0]
    wrong = [
        "notes\n", "{}\n", line.replace('"nll": [', '"nll": [NaN, '), line.replace('"kl": [', '"kl": ["1", '),
        '{"key": {}, "document": "a", "mass": {"decoded": {"queries": [[1.0]]}}, "seconds": 1.0}',
    ]  # fmt: skip
    for number, text in enumerate(wrong):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(text if text.endswith("\n") else text + "\n")
        before = file.read_bytes()
        with pytest.raises(ConfigError, match=f"{number}.jsonl, line 1: this is no row of eval fidelity"):
            measure(tmp_path / "cache", ["full"], resume=file)
        assert file.read_bytes() == before


def test_a_run_that_was_stopped_goes_on_with_the_same_figures(folder: Path, report: dict[str, Any], tmp_path: Path) -> None:
    """Stopped between two documents, and by a kill in the middle of a row."""

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    options = FidelityOptions((STREAMING,), ("made",), tmp_path / "cache", Budget(device="24MiB"), False, resume=tmp_path / "rows.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run_fidelity(make_runtime, record_documents(2), options, None, stop)
    first = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(first + first[:200])
    told: list[tuple[int, int, str]] = []
    after = run_fidelity(make_runtime, record_documents(2), options, lambda *work: told.append(work))
    assert (tmp_path / "rows.jsonl").read_bytes().startswith(first) and len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert rows_of(after, STREAMING, "made") == rows_of(report, STREAMING, "made")
    assert told[-1][0] == told[-1][1] and all(one[0] <= two[0] for one, two in zip(told, told[1:], strict=False))


def test_forks_that_a_killed_run_left_are_dropped(tmp_path: Path) -> None:
    memories, document = Memories(make_runtime, tmp_path, Budget(device="24MiB")), Document("talk", (("user", "web port: 80"),))
    with memories.by_full_attention(document) as (_, session):
        session.fork(f"{session.name}/0").close()
    with memories.by_full_attention(document, STREAMING) as (runtime, session):
        assert [info.name for info in runtime.store.sessions(branches=True)] == [document.key]
        session.fork(f"{session.name}/0").close()


def test_memories_that_a_killed_run_was_making_are_dropped(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for maker in (str(ended.pid), str(os.getpid()), "1", "nobody"):
        (tmp_path / f"made-{maker}-x" / "store").mkdir(parents=True)
    Memories(make_runtime, tmp_path, Budget())
    assert {folder.name for folder in tmp_path.iterdir()} == {f"made-{maker}-x" for maker in (os.getpid(), 1, "nobody")}


def test_a_document_beyond_the_window_is_refused(tmp_path: Path) -> None:
    document = Document("long", ids=tuple(range(600)), questions=(Continuation((1, 2)),))
    with pytest.raises(
        ConfigError, match="'long' takes 602 tokens with its longest question and reply, more than the trained window of 512"
    ):
        run_fidelity(make_runtime, lambda _: [document], FidelityOptions(("full",), cache=tmp_path, mass=False))


def test_divergence_is_that_of_the_formula_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 300, generator=generator, dtype=torch.float64) * 4
    full, method = logits.log_softmax(-1)
    expected = torch.nn.functional.kl_div(method, full, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(divergence(full, method), expected)
    assert torch.allclose(divergence(full.half(), method.float()), expected, rtol=2e-3)
    assert (divergence(full.half(), full.float()) >= 0).all() and divergence(full.half(), full.float()).max() < 1e-5
    never = torch.tensor([[0.0, -math.inf]])
    assert divergence(never, never).tolist() == [0.0]


@pytest.mark.parametrize("method", ["full", f"{RECALL}:echo=0"])
def test_losses_of_a_text_are_those_of_the_engine(tmp_path: Path, method: str) -> None:
    ids = torch.randint(5, 900, (420,), generator=torch.Generator().manual_seed(1))
    document = Document("text", ids=tuple(ids[:379].tolist()), questions=(Continuation(tuple(ids[379:].tolist())),))
    report = run_fidelity(
        make_runtime, lambda _: [document], FidelityOptions((method, "full"), cache=tmp_path, mass=False, budget=Budget(device="24MiB"))
    )
    with make_runtime(method=method, store=tmp_path / "other", budget=Budget(device="24MiB")) as runtime:
        losses = runtime.score(ids, of=range(380, 420), alone=380)
    with torch.no_grad():
        plain = loaded()[0](ids[None]).logits[0, 379:-1].log_softmax(-1)
    full = -plain[torch.arange(40), ids[380:]].mean()
    figures = report["methods"][method]
    assert figures["made"]["nll_per_token"]["value"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert report["full"]["nll_per_token"]["value"] == pytest.approx(float(full), abs=1e-4)
    if method == "full":
        assert figures["read"]["nll_change"]["value"] == figures["made"]["nll_change"]["value"] == 0
        assert 0 <= figures["read"]["kl_per_token"]["value"] < 1e-6
    else:
        assert figures["read"]["nll_per_token"]["value"] != figures["made"]["nll_per_token"]["value"]
        assert figures["read"]["kl_per_token"]["value"] > 1e-4
    parts = figures["made"]["by_position"]
    assert [part["start"] for part in parts] == list(range(0, 40, 5)) and "right" not in figures["made"]
    assert np.mean([part["nll_change"] for part in parts]) == pytest.approx(figures["made"]["nll_change_per_token"]["value"], abs=1e-9)
