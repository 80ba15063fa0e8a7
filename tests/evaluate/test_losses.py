"""Losses of a text read through a method: stock where it should be, a reply's where that is asked for, and no trace afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory import pocket
from agent_memory.engine import Counters
from agent_memory.errors import ConfigError
from agent_memory.model.load import load
from agent_memory.runtime import Runtime
from agent_memory.types import Budget
from tests.evaluate.tiny import MakeRuntime, stock_losses, story, tiny


@pytest.fixture(scope="module")
def real() -> tuple[Any, Any]:
    return load(pocket.path())


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 500, (1000,), generator=torch.Generator().manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance


@pytest.mark.parametrize("method", ["full", "reattention", "recall", "streaming"])
def test_inside_the_window_losses_are_those_of_stock(real: tuple[Any, Any], tmp_path: Path, method: str) -> None:
    model, tokenizer = real
    text = torch.tensor(tokenizer(story(0), add_special_tokens=False).input_ids)
    with Runtime(model, tokenizer, store=tmp_path / "store", method=method) as runtime:
        text = text[: runtime.window]
        assert len(text) == runtime.window
        losses = runtime.score(text, of=range(1, len(text)), alone=300)
        assert losses.dtype == torch.float32 and close(losses, stock_losses(model, text))
        with torch.no_grad():
            assert abs(float(losses.mean()) - float(model(text[None], labels=text[None]).loss)) < 1e-4


def test_full_beyond_the_window_is_stock_and_any_range_of_it(make: MakeRuntime, ids: torch.Tensor) -> None:
    expected = stock_losses(tiny()[0], ids)
    told, counters = list[int](), Counters()
    runtime = make(method="full")
    assert close(runtime.score(ids, of=range(1, 1000), alone=500, counters=counters, progress=told.append), expected, 1e-3)
    assert told == [256, 512, 768, 999] and counters.forwards == 4  # it chooses nothing, so no token needs a forward of its own
    for of in (range(1, 2), range(256, 258), range(257, 513), range(999, 1000)):
        assert close(runtime.score(ids, of=of), expected[of.start - 1 : of.stop - 1], 1e-3)


def test_a_method_forgets_what_plain_attention_sees(make: MakeRuntime, ids: torch.Tensor) -> None:
    scored = {}
    for method in ("recall", "streaming"):
        counters = Counters()
        scored[method] = make(method=method).score(ids, of=range(500, 900), counters=counters)
        assert (counters.keys_scored > 0) == (method == "recall")
    assert not close(scored["recall"], scored["streaming"], 1e-2)


def test_tokens_scored_alone_are_scored_as_a_reply_is_made(real: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = real
    seen: list[torch.Tensor] = []

    def watch(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(scores[0].clone())
        scores[:, list(runtime.chat.end_ids)] = -torch.inf
        return scores

    with Runtime(model, tokenizer, store=tmp_path / "store", method="recall") as runtime, runtime.session("s") as session:
        for seed in range(3):
            session.append("tool", story(seed, 15), name="read")
        session.append("user", "What was that?", prefill=False)
        start = session.tokens + len(runtime.chat.generation_prompt())
        list(session.generate(max_new_tokens=24, processors=[watch]))
        text = torch.from_numpy(session.timeline.tokens(0, session.tokens).astype("int64"))[: start + 24]
        losses = runtime.score(text, of=range(start, len(text)), alone=start)
        together = runtime.score(text, of=range(start, len(text)))
    assert start > runtime.window + 256 and len(seen) == 24
    expected = torch.nn.functional.cross_entropy(torch.stack(seen), text[start:], reduction="none")
    assert close(losses, expected, 1e-3)
    assert not close(together, expected, 1e-3)


@pytest.mark.parametrize(("method", "alone"), [("recall", 0), ("recall", 505), ("reattention", 505)])
def test_nothing_after_a_token_that_is_scored_alone_changes_its_loss(make: MakeRuntime, ids: torch.Tensor, method: str, alone: int) -> None:
    runtime, other = make(method=method), ids.clone()
    other[525:] = (other[525:] + 7) % 500
    first, second = (runtime.score(text, of=range(505, 540), alone=alone) for text in (ids, other))
    assert close(first[:20], second[:20], 1e-5)
    assert not close(first[20:], second[20:], 1e-1)


def test_what_was_fed_alone_is_read_again_before_the_text_goes_on(make: MakeRuntime, ids: torch.Tensor) -> None:
    runtime = make(method="reattention")
    before, after = (runtime.score(ids, of=range(530, 545), alone=alone) for alone in (450, 512))  # 512 ends a forward
    assert close(before, after, 1e-5)


def test_a_shared_choice_does_hear_the_rest_of_its_group(make: MakeRuntime, ids: torch.Tensor) -> None:
    """Why tokens are scored alone at all: should this fail one day, they need not be."""
    runtime, other = make(method="reattention"), ids.clone()
    other[860:] = (other[860:] + 7) % 500  # of the group [848, 864)
    first, second = (runtime.score(text, of=range(800, 900)) for text in (ids, other))
    assert close(first[:49], second[:49], 1e-5)
    assert not close(first[49:60], second[49:60], 1e-3)


@pytest.mark.parametrize("of", [range(5), range(5, 5), range(1, 1001), range(1, 9, 2)])
def test_tokens_that_cannot_be_scored(make: MakeRuntime, ids: torch.Tensor, of: range) -> None:
    with pytest.raises(ConfigError, match=r"choose from range\(1, 1000\)"):
        make(method="recall").score(ids, of=of)


@pytest.mark.parametrize("method", ["recall", "full"])
def test_a_text_that_does_not_fit_is_refused_with_the_bytes_that_do(make: MakeRuntime, ids: torch.Tensor, method: str) -> None:
    text = ids.repeat(4)
    small = make(method=method, budget=Budget(device="3MiB"))
    with pytest.raises(ConfigError, match=r"4000 tokens does not fit Budget.device='3MiB'; it takes (\d+) bytes") as caught:
        small.score(text, of=range(1, 4000))
    assert small.cache.stats()["blocks"] == 0
    enough = int(str(caught.value).split()[-2])
    runtime = make(method=method, budget=Budget(device=enough))
    assert len(runtime.score(text, of=range(3999, 4000))) == 1
    assert runtime.cache.stats()["blocks"] == 0
    with pytest.raises(ConfigError, match="does not fit"):
        make(method=method, budget=Budget(device=enough - 64 * 1024)).score(text, of=range(3999, 4000))


def test_without_a_chat_template_texts_are_scored_but_there_are_no_sessions(make: MakeRuntime, ids: torch.Tensor) -> None:
    runtime = make(method="streaming")
    with pytest.raises(ConfigError, match="has no chat template"):
        runtime.session("s")
    assert runtime.store.sessions() == []
    assert len(runtime.score(ids, of=range(1, 10))) == 9
