"""Sessions so long that keys are looked up through clusters: what is kept still depends on the tokens alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from agent_memory import kv_files
from agent_memory.attention.trace import Trace
from agent_memory.memory.clusters import Fetch, KeyClusters
from agent_memory.pocket import data
from agent_memory.session import Session
from agent_memory.types import GenerationRequest
from tests.session.conftest import MakeRuntime, story

BY_VOTES, BY_MASS = "recall:clusters_from=2048", "recall:score=mass:probes=2"
TEXTS = story(5, 30)


def append(session: Session, texts: list[str], prefill: bool = False) -> None:
    for text in texts:
        session.append("tool", text, name="read", prefill=prefill)


def newest(session: Session) -> torch.Tensor:
    """Keys of the last 300 tokens of every layer."""
    session.prefill()
    kv = session.engine.kv
    assert any(part.clusters is not None and part.clusters.blocks for part in kv.layers)
    return torch.stack([part.window.view(kv.length - 300, kv.length)[0] for part in kv.layers]).clone()


def clusters(session: Session) -> list[torch.Tensor]:
    """Everything that is known of the clusters."""
    parts = [part.clusters for part in session.engine.kv.layers if part.clusters is not None]
    heads = [head for part in parts for head in part.heads if head.tokens]
    return [rows.clone() for head in heads for rows in (*head.state().values(), head.centres, head.reach)]


@pytest.fixture(params=[BY_VOTES, BY_MASS])
def method(request: pytest.FixtureRequest) -> str:
    """A rule that looks keys up."""
    return str(request.param)


@pytest.fixture
def expected(make_runtime: MakeRuntime, tmp_path: Path, method: str) -> torch.Tensor:
    """What one long prefill makes."""
    with make_runtime(method=method, store=tmp_path / "whole").session("a") as session:
        append(session, TEXTS)
        return newest(session)


def test_cut_into_appends_with_replies_on_forks(make_runtime: MakeRuntime, expected: torch.Tensor, method: str) -> None:
    with make_runtime(method=method).session("a") as session:
        for at, text in enumerate(TEXTS):
            append(session, [text], prefill=True)
            if at % 10 == 9:
                child = session.fork(f"b{at}")
                child.reply(data.question("foo-bar", "version"), max_new_tokens=30)
                child.close(keep=False)
        torch.testing.assert_close(newest(session), expected, atol=1e-3, rtol=1e-3)


def test_a_clean_reopening_takes_the_clusters_up_as_they_were(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    with make_runtime(method=method).session("a") as session:
        append(session, TEXTS, prefill=True)
        before = clusters(session)
    made: list[int] = []
    add = KeyClusters.add

    def counted(self: KeyClusters, stop: int, fetch: Fetch) -> None:
        made.append(stop)
        add(self, stop, fetch)

    monkeypatch.setattr(KeyClusters, "add", counted)
    with make_runtime(method=method).session("a") as session:
        after = clusters(session)  # before any forward
        assert len(before) == len(after) > 0
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert made == []  # read, not made again
    with make_runtime(method="recall:clusters_from=65536").session("a", reinterpret=True) as session:
        assert clusters(session) == []  # those of another start are not these
    with make_runtime(method="recall:scan=keys").session("a", reinterpret=True) as session:
        session.append("tool", TEXTS[0], name="read")


def test_clusters_that_have_to_be_made_again_are_announced(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    monkeypatch.setattr(kv_files, "MANY_TOKENS", 1024)
    with make_runtime(method=method).session("a") as session:
        append(session, TEXTS, prefill=True)
    with make_runtime(method=method).session("a") as session:
        session.prefill()
        assert not caplog.records
        append(session, TEXTS[:8], prefill=True)
        session.close(keep=False)
    with make_runtime(method=method).session("a") as session:
        session.prefill()
    (record,) = caplog.records
    assert "session 'a' was not closed" in record.message
    assert "sorted into clusters again" in record.message


def test_reopened_and_killed_half_way(make_runtime: MakeRuntime, expected: torch.Tensor, method: str, tmp_path: Path) -> None:
    with make_runtime(method=method).session("a") as session:
        append(session, TEXTS[:20])
        session.prefill()
    runtime = make_runtime(method=method)
    session = runtime.session("a")
    append(session, TEXTS[20:])
    session.prefill()
    shutil.copytree(tmp_path / "store", tmp_path / "as it was")
    torch.testing.assert_close(newest(session), expected, atol=1e-3, rtol=1e-3)
    session.close()
    with make_runtime(method=method, store=tmp_path / "as it was").session("a") as again:
        torch.testing.assert_close(newest(again), expected, atol=1e-3, rtol=1e-3)


def test_a_reply_does_not_depend_on_what_was_fed_just_before(make_runtime: MakeRuntime) -> None:
    request = GenerationRequest(prompt=(5, 6, 7), max_new_tokens=12, end_ids=())
    with make_runtime().session("a") as session:
        append(session, story(9, 6))
        session.prefill()
        count = session.engine.kv.length
        assert count % 16 == 0  # the last group is whole: nothing of it is fed again for a reply
        first, second = ([piece.token for piece in session.engine.generate(count, request, Trace())] for _ in range(2))
    assert first == second
