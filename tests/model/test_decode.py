"""A reply's tokens and text: chosen as generate() chooses them, cut at stop strings, never half a character."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TextIteratorStreamer,
)

from agent_memory.errors import ConfigError
from agent_memory.model.decode import NextLogits, decode
from agent_memory.model.text import StopGuard, TextStream
from agent_memory.types import GenerationRequest, Piece, Sampling
from tests.model.conftest import byte_tokenizer
from tests.model.zoo import tiny

TEXT = "hello 👩‍🚀 STOP żółw\nhellSTO ST"
TOKENIZER = byte_tokenizer()


def saying(ids: list[int]) -> NextLogits:
    """Logits that make greedy choice say ``ids``, and check that each is fed back."""
    said: list[int | None] = [None, *ids]
    position = itertools.count()

    def next_logits(token: int | None) -> Tensor:
        at = next(position)
        assert token == said[at]
        logits = torch.zeros(len(TOKENIZER))
        logits[ids[at]] = 5.0
        return logits

    return next_logits


def finish(pieces: Generator[Piece, None, str]) -> tuple[list[int], str, str]:
    """All ids, the whole text, and the finish reason."""
    ids, text = list[int](), ""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return ids, text, end.value
        ids.append(piece.token)
        text += piece.text


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
    return ids


def say(text: str, **request: Any) -> tuple[list[int], str, str]:
    ids = ids_of(text)
    return finish(decode(saying(ids), TOKENIZER, GenerationRequest(**{"max_new_tokens": len(ids), **request})))


def test_pieces_are_the_text_and_never_half_a_character() -> None:
    ids = ids_of(TEXT)
    pieces = list(decode(saying(ids), TOKENIZER, GenerationRequest(max_new_tokens=len(ids))))
    assert [piece.token for piece in pieces] == ids
    assert "".join(piece.text for piece in pieces) == TEXT
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert len([piece for piece in pieces if not piece.text]) > 8, "the emoji should have been split over tokens"


def test_a_reply_cut_inside_a_character_says_so_once() -> None:
    ids = ids_of("a👩")[:3]
    assert finish(decode(saying(ids), TOKENIZER, GenerationRequest(max_new_tokens=3))) == (ids, TOKENIZER.decode(ids), "length")


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_ids_stream_to_what_decode_gives(ids: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    assert "".join(stream.push(token) for token in ids) + stream.finish() == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_a_space_after_special_tokens_is_kept() -> None:
    """Decoders of the Metaspace kind strip the space of whatever comes first, which must only ever be the reply's first token."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "▁a": 1, "▁b": 2}, unk_token="<s>"))  # noqa: S106
    backend.decoder = decoders.Metaspace()
    spaced = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")  # noqa: S106
    stream = TextStream(spaced)
    assert [stream.push(token) for token in (1, 0, 0, 2, 0, 1)] == ["a", "", "", " b", "", " a"]


@given(st.lists(st.text("abST", max_size=4), max_size=12), st.lists(st.text("abST", min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_text_is_cut_before_the_first_stop_string_however_it_arrives(parts: list[str], stops: list[str]) -> None:
    guard, shown = StopGuard(stops), ""
    for part in parts:
        shown += guard.push(part)
        assert not any(stop in shown for stop in stops)
        if guard.hit:
            break
    shown += guard.finish()
    whole = "".join(parts)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    assert guard.hit == bool(ends)
    if not ends:
        assert shown == whole
    else:
        assert whole.startswith(shown) and any(whole.startswith(shown + stop) for stop in stops)


CUTS = {
    "one word": (("STOP",), "hello 👩‍🚀 "),
    "two bytes a character": (("żó",), "hello 👩‍🚀 STOP "),
    "the first of several": (("STO ST!", "ll", "llo"), "he"),
    "half a joined emoji": (("🚀",), "hello 👩‍"),
    "never": (("nowhere",), TEXT),
}


@pytest.mark.parametrize("cut", CUTS)
def test_stop_strings_over_several_tokens_are_cut(cut: str) -> None:
    stop, text = CUTS[cut]
    ids, said, reason = say(TEXT, stop=stop)
    assert said == text
    assert reason == ("length" if cut == "never" else "stop")
    assert str(TOKENIZER.decode(ids)).startswith(text)


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    pieces = list(decode(saying(ids_of("xSTO")), TOKENIZER, GenerationRequest(max_new_tokens=len(ids_of("xSTO")), stop=("STOP",))))
    assert [piece.text for piece in pieces][-1] == "STO" and "".join(piece.text for piece in pieces) == "xSTO"


def test_an_end_id_ends_the_reply_without_its_text() -> None:
    end = ids_of("\n")[0]
    ids, text, reason = say(TEXT, end_ids=(2, end))
    assert (ids[-1], text, reason) == (end, "hello 👩‍🚀 STOP żółw", "stop")
    pieces = decode(saying([*ids_of("hi"), 2]), TOKENIZER, GenerationRequest(end_ids=(2,)))
    assert finish(pieces) == ([*ids_of("hi"), 2], "hi", "stop")


def test_stop_wins_over_length_on_the_last_token() -> None:
    assert say("abSTOP", stop=("STOP",))[1:] == ("ab", "stop")
    assert finish(decode(saying([2]), TOKENIZER, GenerationRequest(max_new_tokens=1, end_ids=(2,))))[2] == "stop"


def test_cancelled_is_asked_before_each_token() -> None:
    answers = iter([False, False, True])
    pieces = decode(saying(ids_of("abcdef")), TOKENIZER, GenerationRequest(), cancelled=lambda: next(answers))
    assert finish(pieces) == (ids_of("ab"), "ab", "cancelled")


class Ears:
    """A streamer that remembers."""

    def __init__(self) -> None:
        self.heard: list[list[Any]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


def test_closing_the_generator_ends_the_streamer() -> None:
    ears: Any = Ears()
    pieces = decode(saying(ids_of("abcdef")), TOKENIZER, GenerationRequest(prompt=(7, 8)), streamer=ears)
    next(pieces)
    pieces.close()
    assert ears.heard == [[[7, 8]], ids_of("a")] and ears.ended == 1


def test_a_transformers_streamer_hears_the_text() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True)
    list(decode(saying(ids_of(TEXT)), TOKENIZER, GenerationRequest(max_new_tokens=len(ids_of(TEXT))), streamer=streamer))
    assert "".join(streamer) == TEXT


def logits_of(model: PreTrainedModel, prompt: list[int]) -> NextLogits:
    """Logits by running the whole row each time."""
    row = list(prompt)

    @torch.no_grad()
    def next_logits(token: int | None) -> Tensor:
        row.extend([] if token is None else [token])
        logits: Tensor = model(torch.tensor([row])).logits[0, -1]
        return logits

    return next_logits


CHOICES: dict[str, tuple[Sampling, dict[str, Any]]] = {
    "greedy": (Sampling(), {}),
    "greedy, penalised": (Sampling(repetition_penalty=1.5), {"repetition_penalty": 1.5}),
    "sampled": (Sampling(temperature=1.0, seed=5), {"temperature": 1.0}),
    "all warpers": (
        Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=11),
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_tokens_are_those_of_generate(choice: str) -> None:
    sampling, options = CHOICES[choice]
    model, prompt = tiny("qwen2", vocab_size=len(TOKENIZER)), [5, 9, 31, 60]
    torch.manual_seed(sampling.seed or 0)
    defaults = {"top_k": 0, "top_p": 1.0} if sampling.temperature else {}
    row = torch.tensor([prompt])
    expected = model.generate(  # type: ignore[operator]
        row, attention_mask=torch.ones_like(row), max_new_tokens=64, do_sample=sampling.temperature > 0, **{**defaults, **options}
    )
    request = GenerationRequest(prompt=tuple(prompt[2:]), max_new_tokens=64, sampling=sampling)
    assert finish(decode(logits_of(model, prompt), TOKENIZER, request, history=prompt[:2]))[0] == expected[0, 4:].tolist()


def test_seeds_are_reproducible_and_differ() -> None:
    def sampled(seed: int | None) -> list[int]:
        request = GenerationRequest(max_new_tokens=32, sampling=Sampling(temperature=1.0, seed=seed))
        return finish(decode(lambda token: torch.zeros(len(TOKENIZER)), TOKENIZER, request))[0]

    assert sampled(3) == sampled(3)
    assert sampled(3) != sampled(4)
    assert sampled(None) != sampled(None)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    request = GenerationRequest(max_new_tokens=4, sampling=Sampling(temperature=1.0))
    list(decode(lambda token: torch.zeros(len(TOKENIZER)), TOKENIZER, request))
    assert torch.equal(torch.get_rng_state(), before)


def test_processors_and_criteria_see_the_ids_they_see_in_generate() -> None:
    seen: list[list[int]] = []

    def watch(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids[0].tolist())
        return scores

    ids = ids_of("abcd")
    processors = LogitsProcessorList([watch, SuppressTokensLogitsProcessor([0])])
    stopping = StoppingCriteriaList([EosTokenCriteria(ids[2])])
    request = GenerationRequest(prompt=(7,), max_new_tokens=9)
    pieces = decode(saying(ids), TOKENIZER, request, history=(5, 6), processors=processors, stopping=stopping)
    assert finish(pieces) == (ids[:3], "abc", "stop")
    assert seen == [[5, 6, 7, *ids[:n]] for n in range(3)]


def test_logits_are_not_written_to() -> None:
    logits = torch.ones(len(TOKENIZER))
    processors = LogitsProcessorList([lambda ids, scores: scores.mul_(0)])
    list(decode(lambda token: logits, TOKENIZER, GenerationRequest(max_new_tokens=2), processors=processors))
    assert torch.equal(logits, torch.ones(len(TOKENIZER)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GenerationRequest(max_new_tokens=0),
        lambda: GenerationRequest(stop=("",)),
        lambda: GenerationRequest(stop="STOP"),  # type: ignore[arg-type]
        lambda: GenerationRequest(sampling=Sampling(temperature=-0.1)),
        lambda: GenerationRequest(sampling=Sampling(temperature=math.nan)),
        lambda: GenerationRequest(sampling=Sampling(temperature=math.inf)),
        lambda: GenerationRequest(sampling=Sampling(top_p=0.0)),
        lambda: GenerationRequest(sampling=Sampling(top_p=1.1)),
        lambda: GenerationRequest(sampling=Sampling(top_k=-1)),
        lambda: GenerationRequest(sampling=Sampling(min_p=-0.1)),
        lambda: GenerationRequest(sampling=Sampling(min_p=1.1)),
        lambda: GenerationRequest(sampling=Sampling(repetition_penalty=0.0)),
        lambda: GenerationRequest(sampling=Sampling(seed=2**64)),
    ],
)
def test_what_cannot_be_asked_is_refused_at_the_call(make: Callable[[], GenerationRequest]) -> None:
    def never(token: int | None) -> Tensor:
        raise AssertionError("no logits should be made")

    with pytest.raises(ConfigError, match="cannot be used; it must be"):
        decode(never, TOKENIZER, make())


def test_the_tokenizer_fixture_splits_characters(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer.encode("👩")) == 4
