"""Sessions whose evicted Blocks stay in memory packed: replies say what was approximate, and what is kept is as if there were none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent_memory.attention.trace import Trace
from agent_memory.pocket import data
from agent_memory.recall import TIERS, make_recall
from agent_memory.types import Budget, ColdKind
from tests.session.conftest import MakeRuntime, story
from tests.session.test_session import kv_of

QUESTION = data.question("foo-bar", "version")
DEVICE = "10MiB"  # hardly more than one step needs


@pytest.mark.parametrize("cold", ["int8", "int4"])
def test_replies_name_it_and_nothing_kept_is_made_from_it(make_runtime: MakeRuntime, tmp_path: Path, cold: ColdKind) -> None:
    kept: dict[str, list[torch.Tensor]] = {}
    for kind in ("exact", cold):
        runtime = make_runtime(store=tmp_path / kind, budget=Budget(device=DEVICE, host="64MiB", cold=kind))
        with runtime.session("a") as session:
            for text in story(1, 40):
                session.append("tool", text, name="read", prefill=False)
            session.prefill()
            child = session.fork("asked")
            child.reply(QUESTION, max_new_tokens=6)
            recall = child.last_recall
            assert recall is not None
            approximate = {tier for tier in recall.tiers if tier.startswith("host-")}
            assert approximate == (set() if kind == "exact" else {f"host-{cold}"})
            assert (runtime.cache.stats()["approximate"] > 0) == (kind != "exact")
            assert kind == "exact" or not recall.exact
            assert {hit.tier for hit in recall.turns} <= {"device", "disk", *approximate}
            stored = runtime.store.recalls("asked", "default")[-1]["recall"]
            assert set(stored["tiers"]) == set(recall.tiers) and stored["exact"] == recall.exact
            child.close()
            runtime.cache.check()
            kept[kind] = [kv_of(session.engine.kv, layer) for layer in range(4)]
        assert runtime.store.verify().ok
    for one, other in zip(kept["exact"], kept[cold], strict=True):
        assert torch.equal(one, other)


def test_a_recall_with_an_approximate_block_is_not_exact(make_runtime: MakeRuntime) -> None:
    with make_runtime().session("a") as session:
        session.append("tool", story(1, 1)[0], name="read")
        for tiers, exact in (([0, 2], True), ([1], True), ([3], False), ([0, 4, 2], False)):
            trace = Trace()
            for tier in tiers:
                trace.read(np.array([0]), np.array([tier], np.uint8))
            recall = make_recall(trace, session.timeline)
            assert (recall.exact, list(recall.tiers)) == (exact, [TIERS[max(tiers)]])
