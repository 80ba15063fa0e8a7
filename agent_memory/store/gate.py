"""Whether a Session may be opened with the model at hand.

Knows fingerprints and layouts as fields to compare; nothing of models.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from agent_memory.errors import ModelMismatch
from agent_memory.store.index import SessionRow
from agent_memory.types import KVLayout, ModelId


def check_model(row: SessionRow, model: ModelId, layout: KVLayout) -> None:
    """Raise ModelMismatch, naming the first field of the fingerprint or the layout that differs."""
    stored = _fields(json.loads(row.model), json.loads(row.layout))
    given = _fields(model.to_dict(), asdict(layout))
    for field in [*given, *(field for field in stored if field not in given)]:
        if stored.get(field) != given.get(field):
            raise ModelMismatch(row.label, field, stored.get(field), given.get(field))


def _fields(model: dict[str, Any], layout: dict[str, Any]) -> dict[str, Any]:
    lists_for_tuples = json.loads(json.dumps(layout))
    return {**model, **{f"layout.{field}": value for field, value in lists_for_tuples.items()}}
