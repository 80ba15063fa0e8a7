"""Files and rows that are whole, with contents that cannot be: never attended, never a bare error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agent_memory.errors import StoreCorrupt
from agent_memory.kv_files import SegmentFiles
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from tests.session.conftest import MakeRuntime, story


def filled(runtime: Runtime) -> None:
    with runtime.session("a") as session:
        for text in story(1, 20):
            session.append("tool", text, name="read", prefill=False)
        session.prefill()


def rewrite(session: Session, change: Any) -> None:
    """Write the second Segment again with other tensors, as a sound one."""
    row = session.timeline.segments()[1]
    tensors = session.engine.kv.stored(row.first_block, row.stop)
    change(tensors)
    SegmentFiles(session.timeline).write(row.first_block, tensors, repair=True)


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.2.kv"] = tensors["layers.2.kv"].clone()
    tensors["layers.2.kv"][3, 0, 0, 5, 1] = float("nan")


def without_a_layer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["layers.1.kv"]


def of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.1.kv"] = tensors["layers.1.kv"][:, :, :, :16].contiguous()


def summaries_of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if not name.endswith(".kv")]:
        tensors[name] = torch.full((*tensors[name].shape, 2), float("inf")) if tensors[name].is_floating_point() else tensors[name] * 0 + 99


@pytest.mark.parametrize("change", [not_a_number, without_a_layer, of_another_shape, summaries_of_another_shape])
def test_contents_that_cannot_be_are_not_attended(make_runtime: MakeRuntime, change: Any) -> None:
    runtime = make_runtime()
    filled(runtime)
    with runtime.session("a") as session:
        rewrite(session, change)
    if change is not summaries_of_another_shape:  # those are made again from the Blocks
        assert not runtime.store.verify("a", "default").ok
    with make_runtime().session("a") as session:
        said = session.reply("What is the version of foo-bar?", max_new_tokens=8)
        assert isinstance(said, str) and session.last_recall is not None
        for layer in range(4):
            kv = session.engine.kv
            assert bool(kv.layers[layer].window.view(kv.length - 64, kv.length)[0].isfinite().all())


def test_token_ids_the_model_does_not_know(make_runtime: MakeRuntime) -> None:
    session = make_runtime().session("a")
    session.append("tool", "x", name="read")
    session.timeline.append_turn("user", "y", [10**6], chain="c")
    with pytest.raises(StoreCorrupt, match="token id 1000000, the model knows"):
        session.prefill()
    session.close(keep=False)
