"""Damaged Blocks: seen, never attended, named, and made again from the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory.pocket import data
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from tests.session.conftest import MakeRuntime, story
from tests.session.test_session import kv_of

QUESTION = data.question("foo-bar", "version")


def filled(runtime: Runtime) -> None:
    with runtime.session("a") as session:
        for text in story(1, 20):
            session.append("tool", text, name="read", prefill=False)
        session.prefill()


def segments(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.safetensors") if "tail" not in path.name)


def flip(file: Path, share: float) -> None:
    """Change one byte of a file."""
    raw = bytearray(file.read_bytes())
    raw[int(len(raw) * share)] ^= 0xFF
    file.write_bytes(raw)


def reply(session: Session) -> str:
    return session.reply(QUESTION, max_new_tokens=10)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named_never_attended_and_repaired(make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    runtime = make_runtime()
    filled(runtime)
    with runtime.session("a") as session:
        sound = [kv_of(session.engine.kv, layer) for layer in range(4)]
        probe = session.fork("probe")
        expected = reply(probe)
        probe.close(keep=False)
    file = segments(runtime.store.root)[1]
    if damage == "flip":
        flip(file, 0.35)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    else:
        file.unlink()
    again = make_runtime()
    report = again.store.verify("a", "default")
    assert not report.ok and all(found.session.endswith("a") for found in report.damage)
    with again.session("a") as session:
        _every_block_read_is_sound(session, sound, monkeypatch)
        assert reply(session) is not None
        turns = [turn.text for turn in session.turns()]
        assert len(turns) == 22, "the text of every turn is still readable"
        fixed = session.repair()
        assert set(fixed) == {found.block for found in report.damage if found.block is not None}
    assert again.store.verify("a", "default").ok
    with again.session("a") as session:
        child = session.fork("after", at=20)
        assert reply(child) == expected
        child.close(keep=False)
        for layer, kv in enumerate(sound):
            assert float((kv_of(session.engine.kv, layer)[: len(kv)] - kv).abs().max()) < 1e-3


def _every_block_read_is_sound(session: Session, sound: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A spy on what is gathered for attention: every valid row equals what was written."""
    kv = session.engine.kv
    gather = kv.gather

    def spy(layer: int, tokens: torch.Tensor, out: torch.Tensor, **options: Any) -> Any:
        found = gather(layer, tokens, out, **options)
        valid = found.valid.expand(-1, out.shape[2], -1)
        chosen = tokens.expand(-1, out.shape[2], -1)
        for group, head, slot in valid.nonzero().tolist():
            token = int(chosen[group, head, slot])
            if 0 <= token // 32 < len(sound[layer]):
                assert torch.equal(out[:, group, head, slot], sound[layer][token // 32, :, head, token % 32])
        assert not out.masked_fill(valid[None, ..., None], 0.0).any()
        return found

    monkeypatch.setattr(kv, "gather", spy)


def test_a_lost_block_is_in_the_recall(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    filled(runtime)
    segments(runtime.store.root)[1].unlink()
    again = make_runtime()
    with again.session("a") as session:
        reply(session)
        assert session.last_recall is not None
        assert session.last_recall.damaged and not session.last_recall.exact
