"""Replies decoded on pages are those that are decoded layer by layer, wherever Blocks lie and whatever moves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.attention.selectors.recall.scan import best_of_blocks
from agent_memory.attention.selectors.recall.votes import Votes
from agent_memory.attention.trace import Trace
from agent_memory.engine import MemoryEngine
from agent_memory.errors import ConfigError
from agent_memory.paged_reply import PagedReply
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import Budget, Certificate, GenerationRequest
from agent_memory_kernels import Codes, Pages, Workspace, operations, paged
from tests.session.conftest import MakeRuntime, story

TEXTS = story(9, 16)
LONG = story(9, 32)
SMALL = Budget(device="10MiB", prefetch=False)
PROMPT = [5, 6, 7]


class SameScores:
    """The plain definition, but for scores: those the scan of a CPU gives, so that all that follows has to be the same too."""

    def __init__(self, session: Session) -> None:
        self._plain, self._session = paged("torch"), session
        self.during: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def score_codes(self, queries: torch.Tensor, codes: Codes, pages: Pages, *, workspace: Workspace | None = None) -> torch.Tensor:
        if self.during is not None:
            self.during()
        for summary in [part.summary for part in self._session.engine.kv.layers if part.summary is not None]:
            start = 0
            for held, _, _, count in summary.sketches():
                if held.data_ptr() == codes.codes.data_ptr():
                    pairs = [[summary.span_keys(head, start, start + count)] for head in range(queries.shape[1])]
                    scores = best_of_blocks(Votes(RecallRule(1, vote="max"), operations()), queries[0], pairs, summary, 1.0)[None]
                    return torch.nn.functional.pad(scores, (0, len(codes.codes) - count), value=float("-inf"))
                start += count
        raise AssertionError("these are no codes of the Session")


def on_pages(session: Session, ops: Any = None) -> PagedReply:
    """Have the Session's replies decoded on pages, with the operations given."""
    engine = session.engine
    engine.replies = PagedReply(engine._attachment, engine.kv, engine.method, ops or SameScores(session))
    return engine.replies


@contextmanager
def logits_of(engine: MemoryEngine) -> Iterator[list[torch.Tensor]]:
    """The logits of every token decoded meanwhile."""
    seen: list[torch.Tensor] = []
    decoded = engine._decoded

    def watched(token: int, trace: Trace) -> torch.Tensor | None:
        made = decoded(token, trace)
        assert made is not None
        seen.append(made.detach().reshape(-1).clone())
        return made

    engine._decoded = watched  # type: ignore[method-assign]
    yield seen
    del engine._decoded


class Choices(Trace):
    """Remembers every choice."""

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[list[int]] = []

    def choose_blocks(self, blocks: np.ndarray, exact: bool, certified: Certificate, keys_scored: int) -> None:
        """The Blocks of each, in order."""
        super().choose_blocks(blocks, exact, certified, keys_scored)
        self.choices += [sorted({*row} - {-1}) for row in blocks.tolist()]


def replies(session: Session, prompt: list[int], count: int) -> tuple[list[int], list[torch.Tensor], Choices]:
    """Tokens of a reply that nothing ends, and logits after each."""
    session.prefill()
    trace, request = Choices(), GenerationRequest(prompt=tuple(prompt), max_new_tokens=count, end_ids=())
    with logits_of(session.engine) as seen:
        tokens = [piece.token for piece in session.engine.generate(session.engine.kv.length, request, trace)]
    return tokens, seen, trace


def filled(runtime: Runtime, texts: list[str], name: str = "a") -> Session:
    session = runtime.session(name)
    for text in texts:
        session.append("tool", text, name="read", prefill=False)
    session.prefill()
    return session


def read_all(session: Session) -> None:
    """Read every Block, so that those last read for a reply leave a small device."""
    kv = session.engine.kv
    for layer in range(kv.layout.layers):
        for _ in kv._read_in_order(layer, 0, kv.saved):
            pass


def agree(
    session: Session, ops: Any = None, count: int = 70, between: Callable[[Session], None] | None = None
) -> tuple[PagedReply, Choices]:
    """A reply on pages is the one layer by layer: tokens, logits, what was chosen, attended and read."""
    expected, wanted, before = replies(session, PROMPT, count)
    pages = on_pages(session, ops)
    if between is not None:
        between(session)
    tokens, got, trace = replies(session, PROMPT, count)
    assert tokens == expected
    torch.testing.assert_close(torch.stack(got), torch.stack(wanted), atol=1e-3, rtol=1e-3)
    assert trace.choices == before.choices
    assert (trace.selections, trace.attended) == (before.selections, before.attended)
    # Where as many as may be chosen are all there are, torch need not score them; a step of fixed shapes does.
    assert trace.keys_scored == before.keys_scored or not before.keys_scored
    assert trace.blocks() == before.blocks()
    assert (trace.exact, trace.certified) == (before.exact, before.certified)
    return pages, trace


@pytest.mark.parametrize("texts", [1, 2])
def test_inside_the_attended_set(make_runtime: MakeRuntime, texts: int) -> None:
    with filled(make_runtime(), TEXTS[:texts]) as session:
        agree(session, paged("torch"))


def test_from_the_attended_set_into_memory(make_runtime: MakeRuntime) -> None:
    with filled(make_runtime(), TEXTS[:2]) as session:
        assert session.engine.kv.length < 512 < session.engine.kv.length + 240
        agree(session, count=250)


@pytest.mark.parametrize("method", ["recall", "recall:echo=0", "recall:scope=kv_head", "recall:vote=max:pool=False", "recall:blocks=3"])
def test_in_memory_under_every_rule_there_are_kernels_for(make_runtime: MakeRuntime, method: str) -> None:
    with filled(make_runtime(method=method, budget=Budget(device="64MiB")), TEXTS) as session:
        pages, trace = agree(session)
        assert pages.again == 0
        assert trace.blocks()


@pytest.mark.parametrize(("texts", "lost"), [(3, [3, 5]), (16, [*range(10, 40)])])
def test_lost_blocks_are_not_chosen_and_of_few_all_are(make_runtime: MakeRuntime, texts: int, lost: list[int]) -> None:
    with filled(make_runtime(budget=Budget(device="64MiB")), TEXTS[:texts]) as session:
        session.engine.kv.lost[lost] = True
        _, trace = agree(session, count=20)
        assert not set(lost) & trace.blocks()
        assert set(lost) <= trace.damaged


def test_with_the_definitions_own_scores_tokens_are_the_same(make_runtime: MakeRuntime) -> None:
    with filled(make_runtime(budget=Budget(device="64MiB")), TEXTS) as session:
        expected, _, _ = replies(session, PROMPT, 40)
        on_pages(session, paged("torch"))
        assert replies(session, PROMPT, 40)[0] == expected


def test_blocks_on_disk_are_brought_and_the_step_made_again(make_runtime: MakeRuntime) -> None:
    with filled(make_runtime(budget=SMALL), LONG) as session:
        pages, trace = agree(session, between=read_all)
        assert pages.again > 0
        assert 2 in trace.tiers.values()


def test_approximate_copies_are_named_for_as_long_as_they_are_there(make_runtime: MakeRuntime) -> None:
    with filled(make_runtime(budget=Budget(device="10MiB", host="64MiB", cold="int8", prefetch=False)), LONG) as session:
        read_all(session)
        on_pages(session)
        for _ in range(2):  # read from the host, and found on the device
            trace = replies(session, PROMPT, 20)[2]
            assert 3 in trace.tiers.values()
            assert not trace.exact


@pytest.mark.parametrize("every", [1, 9])
def test_what_moves_blocks_in_the_middle_of_a_step_is_noticed(make_runtime: MakeRuntime, every: int) -> None:
    runtime = make_runtime(budget=SMALL)
    with filled(runtime, LONG, "other") as other, filled(runtime, TEXTS) as session:
        ops, steps = SameScores(session), iter(range(1000))

        def move() -> None:
            if next(steps) % every == every // 2:
                read_all(other)

        expected, wanted, _ = replies(session, PROMPT, 40)
        pages, ops.during = on_pages(session, ops), move
        tokens, got, _ = replies(session, PROMPT, 40)
        assert tokens == expected
        torch.testing.assert_close(torch.stack(got), torch.stack(wanted), atol=1e-3, rtol=1e-3)
        assert 39 / every - 1 < pages.again <= 2 * 39  # and however often they move, what a step needs is held the second time


def test_on_a_fork_of_a_fork(make_runtime: MakeRuntime) -> None:
    with filled(make_runtime(budget=Budget(device="64MiB")), TEXTS[:9]) as session:
        child = session.fork("child")
        for text in TEXTS[9:12]:
            child.append("tool", text, name="read")
        again = child.fork("grandchild")
        for text in TEXTS[12:]:
            again.append("tool", text, name="read")
        again.prefill()
        assert max(len(part.summary.sketches()) for part in again.engine.kv.layers if part.summary is not None) == 2
        agree(again)
        agree(again)  # and once more, with the tables of the reply before
        again.close(keep=False)
        child.close(keep=False)


def test_a_reply_leaves_nothing_behind(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(budget=Budget(device="64MiB"))
    with filled(runtime, TEXTS) as session:
        on_pages(session)
        session.engine.kv.truncate(session.engine.final)
        before = runtime.cache.stats()["blocks"], session.engine.kv.length
        replies(session, PROMPT, 70)
        assert (runtime.cache.stats()["blocks"], session.engine.kv.length) == before
        request = GenerationRequest(prompt=tuple(PROMPT), max_new_tokens=70, end_ids=())
        reply = session.engine.generate(session.engine.kv.length, request, Trace())
        for _ in range(40):
            next(reply)
        reply.close()  # broken off
        assert (runtime.cache.stats()["blocks"], session.engine.kv.length) == before
        runtime.cache.check()


def test_a_damaged_block_is_named_and_does_without(make_runtime: MakeRuntime) -> None:
    with filled(make_runtime(budget=SMALL), LONG) as session:
        pages, trace = agree(session, between=read_all)
        victim = next(block for block, tier in trace.tiers.items() if tier == 2)
        kv = session.engine.kv
        source = kv.source

        class Broken:
            def read_kv(self, layer: int, blocks: np.ndarray, out: torch.Tensor) -> np.ndarray:
                read: np.ndarray = source.read_kv(layer, blocks, out) & (blocks != victim)
                return read

        kv.source = Broken()
        before = pages.again
        for layer in range(kv.layout.layers):
            for _ in kv._read_in_order(layer, victim + 1, kv.saved):
                pass
        tokens, logits, trace = replies(session, PROMPT, 70)
        assert len(tokens) == 70
        assert kv.lost[victim]
        assert victim in trace.damaged
        assert not trace.exact
        assert all(made.isfinite().all() for made in logits)
        assert pages.again > before


def test_a_device_that_has_no_room_for_a_step_is_named(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(budget=SMALL)
    with filled(runtime, LONG) as session:
        on_pages(session)
        kv = session.engine.kv
        with ExitStack() as held:
            for layer in range(kv.layout.layers):
                blocks = np.arange(min(kv.saved, runtime.cache.max_read(layer) - 4))
                held.enter_context(runtime.cache.reading(layer, kv.uids[blocks], blocks, kv.source))
            with pytest.raises(ConfigError, match=r"raise Budget\.device to at least"):
                replies(session, PROMPT, 40)
        assert len(replies(session, PROMPT, 5)[0]) == 5


def test_what_has_no_kernels_says_so(make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="runs on a CUDA device, not on 'cpu'"):
        make_runtime(backend="triton")
    for method, reason in {"reattention": "of its own", "recall:scan=certified": "certified", "dca": "of its own"}.items():
        with pytest.raises(ConfigError, match=reason):
            make_runtime(backend="triton", method=method)
    with pytest.raises(ConfigError, match="choose one of auto, torch, triton"):
        make_runtime(backend="cuda")


def test_kernels_decode_what_the_definition_does(make_runtime: MakeRuntime) -> None:
    pytest.importorskip("triton", reason="triton is not installed: `make test` installs it")
    with filled(make_runtime(budget=Budget(device="64MiB")), TEXTS[:6]) as session:
        on_pages(session, paged("torch"))
        expected, wanted, before = replies(session, PROMPT, 3)
        pages = on_pages(session, paged("triton", "cpu"))
        tokens, got, trace = replies(session, PROMPT, 3)
        assert tokens == expected
        assert trace.choices == before.choices
        torch.testing.assert_close(torch.stack(got), torch.stack(wanted), atol=1e-3, rtol=1e-3)
        layer = {"score_codes_kernel": 1, "select_and_place_kernel": 1, "place_kernel": 3, "attend_kernel": 4}  # one of four chooses
        assert pages.launches == {name: count * 2 for name, count in layer.items()}
