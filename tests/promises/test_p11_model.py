"""P11: a Session of another model is refused, naming the field and both values, with nothing read or written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent_memory.errors import ModelMismatch
from agent_memory.store.store import Store
from tests.store.support import LAYOUT, MODEL, fill, folder_digest, open_session

CHANGES: list[tuple[str, Any]] = [
    ("architecture", "Other"),
    ("config", "config-2"),
    ("weights", "weights-2"),
    ("weights", ""),
    ("dtype", "bfloat16"),
    ("rope", "rope-2"),
    ("tokenizer", "tokenizer-2"),
    ("chat_template", "template-2"),
    ("chat_template", "template-1 "),
    ("block_tokens", 64),
    ("format", 2),
    ("layout.kv_heads", (1, 1)),
    ("layout.kv_heads", (1, 2, 2)),
    ("layout.head_dim", (8, 8)),
    ("layout.dtype", "bfloat16"),
    ("layout.block_tokens", 16),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_another_model_is_refused(field: str, value: Any, fresh: Callable[[], Path]) -> None:
    root = fresh()
    with Store.open(root) as store:
        fill(open_session(store), 2)
    before = folder_digest(root)
    model, layout = MODEL, LAYOUT
    if field.startswith("layout."):
        layout = replace(LAYOUT, **{field.removeprefix("layout."): value})
        stored = getattr(LAYOUT, field.removeprefix("layout."))
    else:
        model, stored = replace(MODEL, **{field: value}), getattr(MODEL, field)
    with Store.open(root) as store:
        for read_only in (False, True):
            with pytest.raises(ModelMismatch) as refused:
                store.session("s", model=model, layout=layout, read_only=read_only)
            listed = [list(item) if isinstance(item, tuple) else item for item in (stored, value)]
            assert (refused.value.field, refused.value.stored, refused.value.given) == (field, *listed)
            assert all(str(item) in str(refused.value) for item in (field, *listed))
    assert folder_digest(root) == before


def test_the_same_model_is_let_in(store: Store) -> None:
    fill(open_session(store), 1)
    again = open_session(store, read_only=True)
    assert (again.model, again.layout) == (MODEL, LAYOUT)
