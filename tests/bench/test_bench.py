"""Ratios: how they are made of times, what counters they report, and where they go. Times themselves are never asserted."""

from __future__ import annotations

import csv
import json
from itertools import cycle
from pathlib import Path

import pytest
import torch

from agent_memory.attention.shares import AttentionShares
from agent_memory.attention.trace import Trace
from agent_memory.bench import compare as timing
from agent_memory.bench import disk, far_keys, layer
from agent_memory.bench.compare import Ratio, compare, counted
from agent_memory.bench.layer import ALONE, LongProof, long_layer
from agent_memory.bench.plot import draw_ratios
from agent_memory.bench.run import COLUMNS, keep
from agent_memory.bench.session import decoding, filled, heap, prefilling, summing
from agent_memory.cli.main import main
from agent_memory.runtime import Runtime
from agent_memory.types import Budget


def nothing() -> None:
    """A thing to time."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Time passes as told: ours takes 2 s, the baseline 6 s, now and then 60; returns who was called."""
    called: list[str] = []
    slow = cycle([6.0, 60.0, 6.0])

    def seconds(call: object) -> float:
        called.append("ours" if call is nothing else "baseline")
        return 2.0 if call is nothing else next(slow)

    monkeypatch.setattr(timing, "_seconds", seconds)
    return called


def test_ours_and_baseline_take_turns_and_the_fastest_round_counts(clock: list[str]) -> None:
    made = compare("a", nothing, lambda: None, {"k": 1}, target="2x", rounds=6)
    assert clock[:4] == ["ours", "baseline", "ours", "baseline"]
    assert (made.ours, made.baseline, made.ratio) == (2.0, 6.0, 3.0)
    assert compare("a", nothing, lambda: None, {}, growth=True, rounds=6).ratio == pytest.approx(1 / 3)
    assert not made.noisy
    assert made.to_dict()["detail"] == {"k": 1}


def test_a_baseline_that_differs_from_itself_is_measured_again_and_named_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    times = cycle([1.0, 1.0, 2.0])  # of three rounds the first warms up, so that one parity always takes twice as long
    monkeypatch.setattr(timing, "_seconds", lambda call: 1.0 if call is nothing else next(times))
    calls: list[int] = []
    made = compare("a", nothing, lambda: None, {}, rounds=2, tries=2, before=lambda: calls.append(1))
    assert made.noisy
    assert (made.noise_low, made.noise_high) == (0.5, 2.0)
    assert len(calls) == 2 * 2 * 3  # before each call of both tries


def test_figures_are_appended_with_machine_and_commit(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "figures.csv"
    where = {"gpu": None, "processor": "a machine", "threads": 1, "torch": "2.13"}
    ratios = [counted("R8", 3.0, 2.0, {"n": 1}, target="", unit="B", growth=True), Ratio("R1", 1.0, 4.0, 4.0)]
    keep(file, ratios[:1], where, "abc")
    keep(file, ratios[1:], where, "abc")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["name"], row["ratio"], row["commit"]) for row in rows] == [("R8", "1.5", "abc"), ("R1", "4.0", "abc")]
    assert json.loads(rows[0]["detail"]) == {"n": 1}
    assert draw_ratios([ratio.to_dict() for ratio in ratios], tmp_path / "p" / "ratios.png").stat().st_size > 1000


def test_segments_cost_hardly_more_bytes_than_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LAYERS", 2)
    monkeypatch.setattr(disk, "BYTES_PER_TOKEN", disk.BYTES_PER_TOKEN // 16)
    found = {ratio.name: ratio for ratio in disk.appends(lambda doing: None, rounds=2)}
    assert 1.0 < found["R8 bytes of Segments"].ratio < 1.02


def test_the_layer_that_is_timed_attends_to_what_it_says() -> None:
    long = long_layer(4096, torch.float32, ALONE)
    assert long.kv.length == 4096
    out = long.decode()
    assert out.shape == (1, layer.HEADS, layer.DIM)
    assert torch.isfinite(out).all()
    assert long.kv.length == 4097
    assert long.trace.attended == layer.SIZES.sink + layer.SIZES.recalled + layer.SIZES.local + 1
    shares = AttentionShares(4096, torch.device("cpu"))
    long.decode(shares)
    found = shares.result()
    assert found is not None and found.sink + found.local + found.recalled.sum() == pytest.approx(1, abs=1e-5)
    packed, as_used = layer.dense(64, torch.float32)
    assert packed().numel() == as_used().numel()


def test_what_is_read_to_choose_grows_slowly_with_the_memory() -> None:
    two, eight = (far_keys.bytes_to_choose(far_keys.layer_of(windows * far_keys.WINDOW)) for windows in (2, 8))
    assert eight < 2 * two
    assert eight < 0.5 * far_keys.bytes_to_choose(far_keys.layer_of(8 * far_keys.WINDOW, "recall:probes=0"))


def test_a_prefill_that_is_timed_leaves_the_layer_as_it_was() -> None:
    layer = far_keys.layer_of(9000)
    layer.prefill(far_keys.PREFILLED)
    group = layer.method.sizes.group if layer.method.sizes else 0
    assert layer.kv.length == 9000 - 9000 % group
    layer.prefill(far_keys.PREFILLED)
    assert layer.kv.length == 9000 - 9000 % group


def test_what_is_compared_as_certified_finds_the_same() -> None:
    proof = LongProof(8192, 16)
    for _ in range(3):
        proof.ask()
        choice = proof.ours()
        assert choice.proven
        assert torch.equal(choice.blocks[0], proof.baseline().sort(-1).values)


def test_measuring_a_session_leaves_it_as_it_was(tmp_path: Path) -> None:
    with Runtime.load(store=tmp_path, budget=Budget(device="64MiB")) as runtime, filled(runtime, 1500, lambda doing: None) as session:
        before, final = session.tokens, session.engine.final
        decoding(session)()
        prefilling(session, list(range(20, 320)))()
        traces: list[Trace] = []

        def traced() -> Trace:
            traces.append(summing(session))
            return traces[-1]

        decoding(session, traced)()
        shares = traces[0].shares
        assert shares is not None and (found := shares.result()) is not None
        assert found.sink + found.local + found.recalled.sum() == pytest.approx(1, abs=1e-5)
        assert (session.tokens, session.engine.final, session.engine.kv.length) == (before, final, final)
        assert session.reply("What is the owner of foo?", max_new_tokens=4) is not None


def test_pythons_heap_hardly_grows() -> None:
    (made,) = heap(6000, lambda doing: None)
    assert made.ours < 30  # bytes a token: an object a token would be over 50; the rest is caches that fill up


def test_what_is_not_there_to_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "everything"])
    assert left.value.code == 1
    assert "nothing named 'everything'" in capsys.readouterr().err
