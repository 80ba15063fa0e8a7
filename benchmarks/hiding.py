"""What an answer loses when a turn is hidden: the one with the highest score, the one with the highest peak, and others that were recalled.

Puts facts into prose, appends it piece by piece, has the model say the right answer to each question, and hides the Blocks of one turn as
damage does. `python benchmarks/hiding.py --model MODEL --haystack FILE --tokens 6000 --window 1024 --documents 3`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from agent_memory.evaluate.fork import asked_on_a_fork
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import BLOCK_TOKENS, Budget, Recall

PIECE = 900
"""Characters of a turn."""
TOLD_BEFORE = 0.7
"""Part of a document that holds the facts; what comes after it is at hand without memory."""
CITIES = ("Athens", "Dublin", "London", "Madrid", "Oslo", "Paris", "Rome", "Vienna")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and what the model is made to answer."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Hidden:
    """One question: the likelihood of its answer with everything there, and what hiding a turn adds to it.

    Attributes:
        nll: negative log-likelihood of the answer, in nats.
        scored, peaked: the turns with the highest score and the highest peak.
        scored_adds, peaked_adds: nats that hiding them adds.
        others_add: nats that hiding another recalled turn adds, on average.
    """

    nll: float
    scored: int
    peaked: int
    scored_adds: float
    peaked_adds: float
    others_add: float


class Forced(LogitsProcessor):
    """Lets the model say ``ids`` only, and adds up their negative log-likelihood in nats."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._left, self.nll = list(ids), 0.0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Count the next of the ids, and leave no other."""
        token = self._left.pop(0)
        self.nll -= float(scores[0].float().log_softmax(-1)[token])
        forced = torch.full_like(scores, float("-inf"))
        forced[0, token] = 0.0
        return forced  # type: ignore[return-value]


def answered(runtime: Runtime, session: Session, question: Question, hidden: Collection[int] = ()) -> tuple[float, Recall]:
    """Negative log-likelihood of the answer where Blocks are hidden, and what was recalled for it; on a fork."""
    ids = runtime.tokenizer.encode(question.answer, add_special_tokens=False)
    with asked_on_a_fork(runtime, session, "asked") as child:
        child.append("user", question.text, prefill=False)
        child.engine.kv.lost[list(hidden)] = True
        forced = Forced(ids)
        for _ in child.generate(max_new_tokens=len(ids), processors=LogitsProcessorList([forced])):
            pass
        if child.last_recall is None:
            raise RuntimeError("the reply was not committed")
        return forced.nll, child.last_recall


def blocks_of(session: Session, turn: int) -> set[int]:
    """The whole Blocks in memory that hold tokens of a turn."""
    found = session.timeline.turns(turn, turn + 1)[0]
    last = min(-(-found.stop // BLOCK_TOKENS), session.engine.kv.blocks)
    return set(range(found.start // BLOCK_TOKENS, last))


def hide(runtime: Runtime, session: Session, question: Question, rng: random.Random, others: int = 2) -> Hidden:
    """Ask with everything there, and without one turn after the other. Of other turns the Blocks they share with those two stay."""
    nll, recall = answered(runtime, session, question)
    if not recall.turns:
        raise SystemExit(f"nothing was recalled: all of {session.tokens:,} tokens are attended to")
    by_score, by_peak = (max(recall.turns, key=lambda hit: getattr(hit, name)).turn for name in ("score", "peak"))
    best = {turn: blocks_of(session, turn) for turn in (by_score, by_peak)}
    adds = {turn: answered(runtime, session, question, blocks)[0] - nll for turn, blocks in best.items()}
    rest = [hit.turn for hit in recall.turns if hit.turn not in best]
    sampled = [blocks_of(session, turn) - set().union(*best.values()) for turn in rng.sample(rest, min(others, len(rest)))]
    more = [answered(runtime, session, question, blocks)[0] - nll for blocks in sampled]
    return Hidden(nll, by_score, by_peak, adds[by_score], adds[by_peak], float(np.mean(more)) if more else 0.0)


def document(runtime: Runtime, prose: str, tokens: int, rng: random.Random) -> tuple[list[str], list[Question]]:
    """About so many tokens of prose with eight facts in it, in pieces, and a question for each fact."""
    lines = prose[rng.randrange(len(prose) // 2) :].splitlines()
    counted, kept = 0, list[str]()
    for line in lines:
        counted += len(runtime.tokenizer.encode(line + "\n", add_special_tokens=False))
        if counted > tokens:
            break
        kept.append(line)
    facts = {city: str(rng.randrange(100_000, 1_000_000)) for city in rng.sample(CITIES, len(CITIES))}
    places = sorted(rng.sample(range(int(TOLD_BEFORE * len(kept))), len(facts)), reverse=True)
    for place, (city, number) in zip(places, facts.items(), strict=True):
        kept.insert(place, f"The special magic number for {city} is {number}.")
    pieces = [""]
    for line in kept:
        if len(pieces[-1]) > PIECE:
            pieces.append("")
        pieces[-1] += line + "\n"
    name = "The special magic number for {} mentioned in the text is {}."
    asked = "What is the special magic number for {} mentioned in the text?"
    return pieces, [Question(asked.format(city), name.format(city, number)) for city, number in facts.items()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--haystack", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--window", type=int)
    parser.add_argument("--method", default="recall")
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prose, found = args.haystack.read_text(encoding="utf-8"), []
    options = {"method": args.method, "window": args.window, "budget": Budget(device="1GiB"), "border": None}
    with tempfile.TemporaryDirectory() as folder, Runtime.load(args.model, store=folder, **options) as runtime:
        for seed in range(args.seed, args.seed + args.documents):
            rng = random.Random(seed)  # noqa: S311 - reproducible
            pieces, questions = document(runtime, prose, args.tokens, rng)
            with runtime.session(f"document {seed}") as session:
                for piece in pieces:
                    session.append("user", piece, prefill=False)
                session.prefill()
                for question in tqdm(questions, desc=session.name):
                    found.append(hide(runtime, session, question, rng))
                    print(json.dumps(dataclasses.asdict(found[-1])), flush=True)
    means = {name: float(np.mean([getattr(each, name) for each in found])) for name in ("nll", "scored_adds", "peaked_adds", "others_add")}
    print(json.dumps({"questions": len(found), **means}))


if __name__ == "__main__":
    main()
