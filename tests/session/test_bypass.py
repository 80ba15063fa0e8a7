"""Attending to everything up to a border: it is measured, kept with the Session, and what is attended is then all there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from agent_memory import bypass
from agent_memory.attention.methods import base, make_method
from agent_memory.bypass import break_even
from agent_memory.errors import ConfigError
from agent_memory.made_up import LayerShape, MadeUpLayer
from agent_memory.session import Session
from tests.session.conftest import MakeRuntime, story

TEXTS = story(21, 14)
SMALL = LayerShape(4, 2, 32)


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attended sets of at most 512 tokens, as if windows were long."""
    monkeypatch.setattr(base, "LARGEST_DEFAULT", 512)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """What a step is said to take: ``recall``, or ``dense`` and ``each`` a token."""
    took = {"recall": 10.0, "dense": 0.0, "each": 1.0}

    def seconds(layer: MadeUpLayer) -> float:
        layer.decode()
        dense = layer.method.border is not None and layer.kv.length <= layer.method.border
        return took["dense"] + took["each"] * layer.kv.length if dense else took["recall"]

    monkeypatch.setattr(bypass, "_seconds", seconds)
    yield took


@pytest.mark.parametrize(("recall", "expected"), [(100.0, 512), (1_500.0, 1024), (3_000.0, 2048), (3_100.0, 3072), (10_000.0, 4000)])
@pytest.mark.usefixtures("small_sets")
def test_the_border_is_where_both_cost_the_same(clock: dict[str, float], recall: float, expected: int) -> None:
    clock["recall"] = recall
    found = break_even(SMALL, make_method("recall:score=max", 4000, 0), 4000)
    assert found is not None
    assert found.border == expected
    assert f"up to {expected:,} tokens" in str(found)


@pytest.mark.usefixtures("small_sets")
def test_what_really_runs_is_timed() -> None:
    found = break_even(SMALL, make_method("recall:score=max", 4096, 0), 4096)
    assert found is not None
    assert 512 <= found.border <= 4096
    assert found.recall > 0 < found.dense


def test_where_everything_is_attended_anyway_nothing_is_measured() -> None:
    assert break_even(SMALL, make_method("recall:score=max", 4096, 0), 4096) is None
    assert break_even(SMALL, make_method("full", 4096, 0), 4096) is None
    assert break_even(SMALL, make_method("streaming", 16_384, 0), 16_384) is None


def fill(session: Session, texts: list[str]) -> None:
    for text in texts:
        session.append("tool", text, name="read", prefill=False)
    session.prefill()


def newest(session: Session) -> torch.Tensor:
    """Keys of the last 100 tokens of every layer."""
    kv = session.engine.kv
    return torch.stack([part.window.view(kv.length - 100, kv.length)[0] for part in kv.layers]).clone()


@pytest.mark.usefixtures("small_sets")
def test_up_to_the_border_everything_is_attended_and_the_session_remembers_it(make_runtime: MakeRuntime, tmp_path: Any) -> None:
    with make_runtime(window=2048, border=2048).session("a") as session:
        fill(session, TEXTS[:4])
        assert session.engine.method.attended == 2048
    with make_runtime(window=2048, border=None).session("a") as session:  # measured elsewhere, or not at all
        assert session.engine.method.attended == 2048
        fill(session, TEXTS[4:11])
        assert 1600 < session.engine.kv.length < 2048
        child = session.fork("child")
        assert child.engine.method.attended == 2048
        child.close(keep=False)
        kept = newest(session)
        fill(session, TEXTS[:6])
        assert session.engine.kv.length > 2048
    with make_runtime(window=2048, method="full", store=tmp_path / "full").session("a") as session:
        fill(session, TEXTS[:11])
        torch.testing.assert_close(kept, newest(session), atol=1e-3, rtol=1e-3)
    with make_runtime(window=2048, border=None, store=tmp_path / "none").session("a") as session:
        fill(session, TEXTS[:11])
        assert session.engine.method.attended == 512
        assert not torch.allclose(kept, newest(session), atol=1e-3)
    with make_runtime(window=2048, border=2048, store=tmp_path / "none").session("a") as session:
        assert session.engine.method.attended == 512  # it was begun without


@pytest.mark.usefixtures("small_sets")
def test_borders_that_cannot_be_are_refused(make_runtime: MakeRuntime) -> None:
    for border in (511, 2049):
        with pytest.raises(ConfigError, match=f"border={border} .* between 512, .* and 2048"):
            make_runtime(window=2048, border=border)
    assert make_runtime(window=2048, border=2048).border == 2048
    assert make_runtime(window=2048, method="streaming", border=1024).border is None
