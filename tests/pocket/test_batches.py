"""Windows as recall shows them: what is kept of a long dialogue, and what a model makes of it."""

from __future__ import annotations

import random

import pytest
import torch

from agent_memory.pocket import attend, batches, dialogues, path, shapes
from agent_memory.pocket.score import load


@pytest.fixture(scope="module")
def loaded():
    return load(path())


@pytest.fixture(scope="module")
def renderer(loaded) -> batches.Renderer:
    return batches.Renderer(loaded[1])


@pytest.mark.parametrize("seed", range(12))
def test_what_is_shown_holds_all_that_is_asked_about(renderer, seed):
    rng = random.Random(seed)
    script = dialogues.script(rng, shapes.history(rng))
    whole = renderer.sequence(script, 1 << 30)
    shown = renderer.recalled(script, 512)
    assert shown.keep == sorted(set(shown.keep)) and len(shown.keep) <= 512
    text = renderer.tokenizer.decode([shown.ids[at] for at in shown.keep])
    answers = [at for start, stop, kind in whole.spans if kind != "close" for at in range(start, stop)]
    if len(whole.ids) <= batches.LONGEST:
        assert set(answers) <= set(shown.keep)
        assert sum(line in text for line in script.needed) == len(script.needed)


def test_likeness_is_what_few_blocks_share_with_a_line():
    blocks = [{1, 2, 3}, {1, 9}, {4, 5}]
    assert batches._likeness(blocks, [{1, 2}, {5}]) == [1 / 2 + 1, 1 / 2, 1]
    assert batches._likeness(blocks, []) == [0.0, 0.0, 0.0]


def test_a_dialogue_shown_whole_is_read_as_it_is(loaded, renderer):
    model = loaded[0]
    before = model.config._attn_implementation
    attend.use(model)
    try:
        rng = random.Random(3)
        ids = torch.tensor([renderer.sequence(dialogues.script(rng, shapes.window(256, rng, 0.0)), 200).ids])
        with torch.no_grad():
            plain = model.model(input_ids=ids, use_cache=False).last_hidden_state
            shown = attend.as_recalled(model.model, ids, torch.arange(ids.shape[1])[None], 2)
            part = attend.as_recalled(model.model, ids, torch.arange(40, ids.shape[1])[None], 2)
        assert torch.allclose(plain, shown, atol=1e-5)
        assert not torch.allclose(plain[:, 40:], part, atol=1e-2)
    finally:
        model.config._attn_implementation = before
