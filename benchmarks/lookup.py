"""What looking keys up in clusters loses against scoring every key, over one memory: `python benchmarks/lookup.py --haystack FILE`.

A document with facts is read once by the method, and its memory kept in `--store`. Each question is then asked on forks, with the right
answer forced, twice: with the method as it is, and with every key scored. While the first is read, both choose at every layer for the same
queries, and the share of attention that the tokens of one choice hold is compared with that of the other. `decoded` are tokens of answers,
which choose alone; `groups` those of the questions, which share a choice.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessorList

from agent_memory.attention.methods import make_method
from agent_memory.attention.methods.spec import spec_of, written_options
from agent_memory.attention.selectors import Ask, MassConfig, MassSelector, Selection
from agent_memory.attention.selectors.mass.scan import Scan, Scanned
from agent_memory.evaluate.fidelity.asking import encoder
from agent_memory.evaluate.fidelity.documents import Question
from agent_memory.evaluate.fidelity.needles import NeedleDocuments, NeedleOptions
from agent_memory.evaluate.fidelity.runtimes import fill
from agent_memory.evaluate.forced import ForcedTokens
from agent_memory.evaluate.fork import asked_on_a_fork
from agent_memory.evaluate.json_lines import Measured
from agent_memory.evaluate.statistics import bootstrap_mean
from agent_memory.memory.layer_kv import LayerKV
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import BLOCK_TOKENS, Budget
from agent_memory_kernels import operations

RESULTS = Path(__file__).parent / "results" / "lookup.jsonl"

ROOM = Budget(device="6GiB", host="64MiB")
"""Where Blocks lie changes no figure."""


class Ratios:
    """What choices hold beside those of every key, by kind, and layer and KV head."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, list[float]]] = {"decoded": {}, "groups": {}}

    def add(self, kind: str, place: str, mine: float, theirs: float, scored: float, every: float) -> None:
        """Add one choice: the share of attention that it holds, that of every key, and the keys that each scored."""
        sums = self._sums[kind].setdefault(place, [0.0] * 6)
        for at, value in enumerate((1.0, mine / max(theirs, 1e-9), mine, theirs, scored, every)):
            sums[at] += value

    def to_dict(self) -> dict[str, dict[str, list[float]]]:
        """Of each place: choices, and sums of ratios, of what is held, and of keys scored."""
        return {kind: {place: [round(x, 5) for x in some] for place, some in sums.items()} for kind, sums in self._sums.items()}


class Compared(MassSelector):
    """Chooses as it would, and compares with the choice from every key."""

    def __init__(self, config: MassConfig, ratios: Ratios) -> None:
        super().__init__(config, operations())
        self._every, self._ratios = MassSelector(replace(config, probes=0), operations()), ratios
        self._layers: dict[int, int] = {}

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """See :class:`MassSelector`."""
        chosen = super().select(asks, scaling, layer)
        for one, mine in zip(asks, chosen, strict=True):
            if mine.keys_scored:
                self._compare(one, scaling, layer, mine)
        return chosen

    def _compare(self, one: Ask, scaling: float, layer: LayerKV, mine: Selection) -> None:
        (every,) = self._every.select([one], scaling, layer)
        if mine.keys_scored == every.keys_scored:
            return  # there are too few clusters to look into
        shares = self._shares(one, scaling, layer)
        held = [shares.gather(2, choice.tokens.clamp(min=0)).mul_(choice.tokens >= 0).sum(2) for choice in (mine, every)]
        kind = "decoded" if one.asking == 1 and len(one.queries) == 1 else "groups"
        number = self._layers.setdefault(id(layer), len(self._layers))
        scored = [choice.keys_scored / held[0].numel() for choice in (mine, every)]
        for head, some in enumerate(torch.stack(held, -1).transpose(0, 1).tolist()):
            for part, whole in some:
                self._ratios.add(kind, f"{number}.{head}", part, whole, *scored)

    def _shares(self, one: Ask, scaling: float, layer: LayerKV) -> Tensor:
        """Share of attention of every token, ``[G, Hk, n]``."""
        first = self.config.first(one.positions[:, -1])
        scanned = Scanned(0, one.bounds.candidates.shape[1], first, int(first.min()), int(first.max()))
        scan = Scan(self.config, operations(), one, scaling, layer, scanned)
        found = [_piece(scan, heads, groups) for heads, groups in scan.pieces]
        by_head: dict[int, list[Tensor]] = defaultdict(list)
        for (heads, _), part in zip(scan.pieces, found, strict=True):
            by_head[heads.start].append(part)
        return torch.cat([torch.cat(parts, 1) for parts in by_head.values()]).transpose(0, 1)


def _piece(scan: Scan, heads: slice, groups: slice) -> Tensor:
    weights = scan.weights(heads, groups)
    weights[:, :BLOCK_TOKENS] = 0  # the sink is attended anyway
    return (weights / (1 + weights.sum(1, keepdim=True))).mean(3).transpose(1, 2)


def answered(runtime: Runtime, session: Session, question: Question, every: bool) -> dict[str, Any]:
    """Likelihood of the right answer, whether it is the likeliest throughout, and what the choices hold, beside those of every key."""
    ids, counted = question.tokens(encoder(runtime))
    forced, ratios = ForcedTokens(ids, counted), Ratios()
    with asked_on_a_fork(runtime, session, f"asked {os.getpid()}") as child:
        method = child.engine.method
        if isinstance(method.selector, MassSelector):
            own = replace(method.selector.config, probes=0)
            child.engine.method = replace(
                method, selector=MassSelector(own, operations()) if every else Compared(method.selector.config, ratios)
            )
        child.append("user", question.text, prefill=False)
        for _ in child.generate(max_new_tokens=len(ids), processors=LogitsProcessorList([forced])):
            pass
    rows = torch.stack(forced.rows).double()
    nll = -float(sum(row[token] for row, token in zip(rows, ids[counted:], strict=True)))
    return {"nll": round(nll, 4), "right": all(forced.greedy[counted:]), **ratios.to_dict()}


def written_out(method: str, window: int, every: bool) -> str | None:
    """A method with every option; where every key is scored, it does not depend on how many clusters are looked into otherwise."""
    spec = make_method(method, window).spec or method
    if not every:
        return spec
    name, options, positions = written_options(spec)
    kept = {option: value for option, value in options.items() if option not in ("probes", "probed_share", "most_probes")}
    return make_method(spec_of(name, {**kept, "probes": 0}) + positions, window).spec


def measure(args: argparse.Namespace, rows: Measured) -> dict[bool, list[dict[str, Any]]]:
    """What comes out for each question, with clusters and with every key scored."""
    options: dict[str, Any] = {"method": args.method, "store": args.store, "budget": ROOM, "border": None, "attention_shares": False}
    with Runtime.load(args.model, **options) as runtime:
        encode = encoder(runtime)
        needles = NeedleOptions(length=args.tokens - 384, haystack=args.haystack, keys=args.keys, seed=args.seed, facts=args.questions)
        document = NeedleDocuments(needles, lambda text: len(encode(text))).make(0)
        own = {every: written_out(args.method, runtime.window, every) for every in (False, True)}
        keys = {
            (every, number): {"model": args.model, "method": own[every], "tokens": args.tokens, "keys": args.keys, "seed": args.seed}
            | {"every": every, "question": number}
            for number in range(len(document.questions))
            for every in (False, True)
        }
        missing = [at for at, key in keys.items() if key not in rows]
        with tqdm(total=len(missing), unit="answer", disable=None) as bar:
            if missing:
                with runtime.session(f"{args.tokens}-{args.keys}-{args.seed}", reinterpret=True) as session:
                    fill(session, document, lambda done: bar.set_postfix_str(f"{done:,} tokens read", refresh=False))
                    for every, number in missing:
                        rows.keep(keys[every, number], answered(runtime, session, document.questions[number], every))  # type: ignore[arg-type]
                        bar.update()
    return {every: [rows[key] for (other, _), key in keys.items() if other is every] for every in (False, True)}


def tell(found: dict[bool, list[dict[str, Any]]]) -> None:
    """Print what comes out."""
    right = {every: sum(one["right"] for one in some) for every, some in found.items()}
    nll = {every: np.array([one["nll"] for one in some]) for every, some in found.items()}
    change = nll[False] - nll[True]
    print(f"right: {right[False]} with clusters, {right[True]} with every key")
    print(f"NLL of the right answer: {nll[False].mean():.3f}; with every key {nll[True].mean():.3f}; {change.mean():+.3f}")
    if len(change) > 1:
        print("95% interval of the difference: {:+.3f} to {:+.3f}".format(*bootstrap_mean(change.tolist())))
    for kind in ("decoded", "groups"):
        tell_ratios(kind, [one[kind] for one in found[False]])


def tell_ratios(kind: str, questions: Sequence[dict[str, list[float]]]) -> None:
    """Print what choices of one kind hold."""
    by_place: dict[str, list[list[float]]] = defaultdict(list)
    for one in questions:
        for place, sums in one.items():
            by_place[place].append(sums)
    if not by_place:
        print(f"{kind}: none chose among clusters")
        return
    totals = {place: np.array(some).sum(0) for place, some in by_place.items()}
    ratios = {place: float(some[1] / some[0]) for place, some in totals.items()}
    worst = min(ratios, key=lambda place: ratios[place])
    count, total, mine, theirs, scored, every = np.array(list(totals.values())).sum(0)
    print(
        f"{kind}: clusters lead to {total / count:.4f} of the mass that the choice of every key holds (summed first: {mine / theirs:.4f})"
    )
    print(f"    layer and KV head {worst}: {ratios[worst]:.4f}; {scored / count:,.0f} keys scored, of {every / count:,.0f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", default="recall")
    parser.add_argument("--haystack", type=Path, required=True, help="text, or .jsonl with a text a line")
    parser.add_argument("--keys", default="foods")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--store", type=Path, required=True, help="folder of the memory, which is kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tell(measure(args, Measured(RESULTS, "found", "this is no row of lookup.py; move the file away")))


if __name__ == "__main__":
    main()
