"""A reply on pages without a Store: captured in a graph where there is a CUDA device, with the plain definition where there is none."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_memory.attention.methods import Method, Sizes
from agent_memory.attention.selectors import RecallSelector
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.attention.trace import Trace
from agent_memory.model.attach import Attachment, attach
from agent_memory.paged_reply import PagedReply
from agent_memory_kernels import operations, paged
from tests.attention.conftest import Driver

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = Sizes(sink=32, recalled=96, local=112, group=16)
IDS = torch.randint(0, 97, (1200,), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def attachment() -> Attachment:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    return attach(LlamaForCausalLM(config).to(DEVICE).eval())  # type: ignore[arg-type]


def memory_of(attachment: Attachment) -> Driver:
    """A Session that is nowhere written."""
    rule = RecallRule(blocks=3, scan="keys", margin=1e9)  # no choice hangs on the last bit of a vote
    return Driver(attachment, Method("recall", SIZES, RecallSelector(rule, operations())))


def both(attachment: Attachment, begin: int) -> tuple[Driver, Driver]:
    """Two memories of the same ``begin`` tokens."""
    pair = memory_of(attachment), memory_of(attachment)
    for memory in pair:
        for at in range(0, begin, 256):
            memory.feed(IDS[at : min(at + 256, begin)])
    return pair


def test_what_attends_to_everything_is_the_step_layer_by_layer(attachment: Attachment) -> None:
    plain, ours = both(attachment, 40)
    reply = PagedReply(attachment, ours.kv, ours.method, paged("auto", DEVICE))
    reply.open(ours.recent, 100)
    for token in IDS[40:180].tolist():
        got, wanted = reply.logits(token, Trace()), plain.feed(torch.tensor([token]))[-1]
        torch.testing.assert_close(got, wanted, atol=2e-2 if DEVICE == "cuda" else 1e-3, rtol=1e-2)
    reply.close()


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device: `make test-gpu` on a machine that has one")
@pytest.mark.parametrize("begin", [40, 240, 1000])
def test_a_step_is_captured_once_and_replayed(attachment: Attachment, begin: int) -> None:
    memories = both(attachment, begin)
    plain, ours = (
        PagedReply(attachment, memory.kv, memory.method, paged(backend, DEVICE), capture=backend == "triton")
        for memory, backend in zip(memories, ("torch", "triton"), strict=True)
    )
    for _ in range(2):  # the second reply uses the tables, and the graphs, of the first
        length = memories[0].kv.length
        for reply, memory in zip((plain, ours), memories, strict=True):
            reply.open(memory.recent, 300)
        for token in IDS[begin : begin + 270].tolist() if begin < 1000 else IDS[:70].tolist():
            got, wanted = ours.logits(token, Trace()), plain.logits(token, Trace())
            torch.testing.assert_close(got, wanted, atol=2e-2, rtol=1e-2)
        for reply, memory in zip((plain, ours), memories, strict=True):
            reply.close()
            memory.kv.truncate(length)
    assert ours.captures <= 4  # everything attended, and recalled; and again where summaries grew
    assert plain.captures == 0


def test_the_measurements_of_a_device_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "device.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--small", "--device", DEVICE, "--json", str(tmp_path / "rows.jsonl")])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    assert "R1e decode step" in capsys.readouterr().out
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) >= 6
