"""Training of the pocket model on one CPU core, from the circuit laid down by hand.

Knows the stages, the optimisers, checkpoints, and when to export. `python -m agent_memory.pocket.train`.
"""

# ruff: noqa: S311  (generated text, not secrets)

import argparse
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from agent_memory.pocket import attend, batches, checkpoint, circuit, dialogues, exact, path, shapes
from agent_memory.pocket import tokenizer as tokenizers

CHECKPOINT = "checkpoint.safetensors"
LENGTHS = (128, 256, 512)
PROMOTE = 0.85


class Trainer:
    """One model in training, with everything a checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rng = random.Random(args.seed)
        self.tokenizer = self.own_tokenizer()
        self.model = circuit.build(args.seed)
        attend.use(self.model)
        self.renderer = batches.Renderer(self.tokenizer)
        self.pad = self.tokenizer.pad_token_id
        self.stage, self.step, self.spent, self.best, self.late = 0, 0, 0.0, args.floor, 0.0
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=args.muon, weight_decay=0.0, momentum=0.95),
            torch.optim.AdamW(others, lr=args.adam, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.rates = [args.muon, args.adam]
        self.since = 0
        self.mean = [parameter.detach().clone() for parameter in self.model.parameters()]

    def own_tokenizer(self) -> Any:
        """The tokenizer of this run, trained when it is not there."""
        from transformers import PreTrainedTokenizerFast

        folder = self.args.out / "tokenizer"
        if not (folder / "tokenizer.json").exists():
            tokenizers.train().save_pretrained(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def rate(self) -> float:
        """Warm-up, plateau, and a linear decay over the last part of the budget."""
        done = self.spent / (60 * self.args.budget_minutes)
        rate: float = min(1.0, (self.step + 1) / 50, max(0.02, (1 - done) / self.args.decay))
        return rate

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mostly dialogues of the stage's length, some shorter, and always some pure copying."""
        length = LENGTHS[self.stage]
        if self.rng.random() < 0.25:
            length = self.rng.choice(LENGTHS[: self.stage + 1])
        count = self.args.tokens // length
        if self.rng.random() < 0.06:
            return batches.copies(self.rng, count, length, len(tokenizers.SPECIAL), circuit.VOCABULARY)
        return batches.collate([self.sequence(length) for _ in range(count)], self.pad)

    def sequence(self, length: int) -> batches.Sequence:
        """One dialogue; some are longer than the window and have blocks left out."""
        shape = shapes.window(length, self.rng, self.late)
        if self.rng.random() >= self.args.gaps:
            return self.renderer.sequence(dialogues.script(self.rng, shape), length)
        more = dataclasses.replace(shape, facts=round(shape.facts * self.rng.uniform(1, 2)) + 1, noise=0.4)
        return self.renderer.gapped(dialogues.script(self.rng, more), length, self.rng)

    def recalled_batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Dialogues longer than the window, as recall shows them: ids, the tokens shown, and their labels."""
        count = self.args.tokens // LENGTHS[-1]
        scripts = [dialogues.script(self.rng, shapes.history(self.rng)) for _ in range(count)]
        return batches.collate_recalled([self.renderer.recalled(script, LENGTHS[-1]) for script in scripts], self.pad)

    def hidden(self, ids: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """What the model makes of whole windows, or of what is shown of longer dialogues."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
            if keep is not None:
                return attend.as_recalled(self.model.model, ids, keep, circuit.RECALL_LAYERS[0])
            out: torch.Tensor = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        return out

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy at the positions that count; logits are made nowhere else."""
        target = labels[:, 1:]
        wanted = target != batches.IGNORE
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
            logits = self.model.lm_head(hidden[:, :-1][wanted])
        return nn.functional.cross_entropy(logits.float(), target[wanted])

    def update(self) -> tuple[float, int]:
        """One optimiser step: the loss and the tokens read."""
        if self.stage == len(LENGTHS) - 1 and self.rng.random() < self.args.recalled:
            ids, keep, labels = self.recalled_batch()
            loss = self.loss(self.hidden(ids, keep), labels)
        else:
            ids, labels = self.batch()
            loss = self.loss(self.hidden(ids), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * self.rate()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.quiet()
        self.step += 1
        self.since += 1
        keep = min(self.args.average, self.since / (self.since + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, list(self.model.parameters()), 1 - keep)
        return float(loss.detach()), ids.numel()

    @torch.no_grad()
    def quiet(self) -> None:
        """Let what layer 3 holds in fast rotary pairs fade: far away only content in slow pairs is a guide."""
        attention = self.model.model.layers[2].self_attn
        pairs = torch.arange(circuit.QUIET)
        rows = torch.cat([pairs, pairs + circuit.HEAD // 2])
        for matrix in (attention.q_proj, attention.k_proj):
            heads = matrix.weight.view(-1, circuit.HEAD, circuit.HIDDEN)
            heads[:, rows] *= 1 - self.args.fade

    def score(self, count: int = 32) -> dict[str, float]:
        """Exact answers on fixed dialogues: at the stage's length, at the full window, on real records."""
        self.model.eval()
        length = LENGTHS[self.stage]
        rng = random.Random(1)
        out: dict[str, float] = {}
        for name, size, real in (("stage", length, False), ("generated", 512, False), ("real", 512, True)):
            if name == "generated" and length == 512:
                out[name] = out["stage"]
                continue
            shape = dialogues.Shape(
                **(vars(shapes.window(size, rng, self.late)) | {"facts": {128: 2, 256: 5, 512: 10}[size], "noise": 0.1})
            )
            many = count * (512 // size)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
                counts, _ = exact.tally(self.model, exact.sequences(self.renderer, shape, many, size, 7, real), self.pad)
            out[name] = exact.share(exact.merge(counts))
            if name == "generated" or (name == "stage" and length == 512):
                out |= {kind: exact.share(pair) for kind, pair in counts.items()}
        self.model.train()
        return out

    def save(self) -> None:
        """A checkpoint to resume from, written whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.named_parameters()}
        tensors |= {f"mean.{at}": value for at, value in enumerate(self.mean)} | checkpoint.optimiser_tensors(self.optimisers)
        facts = {"since": self.since, "stage": self.stage, "step": self.step, "spent": self.spent, "best": self.best, "late": self.late}
        checkpoint.save(self.args.out / CHECKPOINT, tensors, facts)

    def resume(self, source: Path, fresh: bool) -> None:
        """Go on from a checkpoint; `fresh` takes its weights only, and works with exported weights too."""
        if fresh and source.name != CHECKPOINT:
            self.model.load_state_dict(load_file(source), strict=False)  # tied weights are stored once
            self.mean = [parameter.detach().clone() for parameter in self.model.parameters()]
            return
        tensors, facts = checkpoint.load(source)
        self.model.load_state_dict(checkpoint.part(tensors, "model"), strict=False)
        means = checkpoint.part(tensors, "mean")
        self.mean = [means[str(at)] for at in range(len(means))]
        self.stage, self.late, self.since = facts["stage"], facts["late"], facts["since"]
        if not fresh:
            checkpoint.restore_optimisers(self.optimisers, tensors)
            self.step, self.spent, self.best = facts["step"], facts["spent"], facts["best"]
        self.rng = random.Random(self.args.seed + 1_000_003 * (self.step + 1))

    @torch.no_grad()
    def swap(self) -> None:
        """Put the averaged weights in the place of the latest ones, and the other way round."""
        for mean, parameter in zip(self.mean, self.model.parameters(), strict=True):
            latest = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(latest)

    def export(self, scores: dict[str, float]) -> None:
        """The weights where the package finds them."""
        if not self.args.export:
            return
        temporary = self.args.out / "export"
        self.model.save_pretrained(temporary)
        self.tokenizer.save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps({"step": self.step, "seconds": round(self.spent), **scores}, indent=1))
        for file in sorted(temporary.iterdir()):
            staged = path() / f".{file.name}.tmp"
            shutil.copyfile(file, staged)
            os.replace(staged, path() / file.name)

    def assess(self) -> dict[str, float]:
        """Score, promote, save, and export what is best so far."""
        self.swap()  # the average over the last steps is scored and exported; training goes on from the latest
        scores = self.score()
        total = (scores["generated"] + scores["real"]) / 2
        if total > self.best:
            self.best = total
            self.export(scores)
        if scores["stage"] >= PROMOTE and self.stage + 1 < len(LENGTHS):
            self.stage += 1
        self.swap()
        self.save()
        return scores


def run(args: argparse.Namespace) -> None:
    """Train until the budget is spent."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    start = args.init or args.out / CHECKPOINT
    if (args.resume or args.init) and start.exists():
        trainer.resume(start, fresh=args.init is not None)
    trainer.late = args.late if args.late is not None else trainer.late
    trainer.stage = args.stage if args.stage is not None else trainer.stage
    budget = 60 * args.budget_minutes
    bar = tqdm(total=round(budget), initial=round(trainer.spent), unit="s", mininterval=10)
    mark, tokens, total, steps, read = time.monotonic(), 0, 0.0, 0, time.monotonic()
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    while trainer.spent < budget and not stop:
        loss, count = trainer.update()
        if not math.isfinite(loss):
            raise RuntimeError(f"the loss is {loss} at step {trainer.step}")
        now = time.monotonic()
        trainer.spent += now - mark
        bar.update(round(trainer.spent) - bar.n)
        mark, tokens, total, steps = now, tokens + count, total + loss, steps + 1
        if now - read > args.every or trainer.spent >= budget:
            speed = tokens / (now - read)
            scores = trainer.assess()
            shown = " ".join(f"{key}={value:.3f}" for key, value in scores.items())
            bar.write(
                f"{time.strftime('%H:%M:%S')} step {trainer.step} spent {trainer.spent:.0f} length {LENGTHS[trainer.stage]} "
                f"loss {total / steps:.4f} {speed:.0f} tok/s {shown}"
            )
            tokens, total, steps, read = 0, 0.0, 0, time.monotonic()
    trainer.save()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the pocket model on one CPU core.")
    parser.add_argument("--budget-minutes", type=float, default=90.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--init", type=Path, help="start from the weights of this checkpoint")
    parser.add_argument("--out", type=Path, default=Path(".pocket-train"))
    parser.add_argument("--every", type=float, default=60.0, help="seconds between scores and checkpoints")
    parser.add_argument("--muon", type=float, default=0.001)
    parser.add_argument("--adam", type=float, default=0.0004)
    parser.add_argument("--tokens", type=int, default=4096, help="per step")
    parser.add_argument("--late", type=float, help="share of updated facts; half as many unknown names")
    parser.add_argument("--gaps", type=float, default=0.25, help="share of dialogues with blocks left out")
    parser.add_argument("--recalled", type=float, default=0.5, help="share of steps that imitate recall from long dialogues")
    parser.add_argument("--fade", type=float, default=0.004, help="per step, of what layer 3 holds in fast rotary pairs")
    parser.add_argument("--decay", type=float, default=0.6, help="the part of the budget over which the rate falls")
    parser.add_argument("--floor", type=float, default=0.0, help="export only what scores better than this")
    parser.add_argument("--average", type=float, default=0.99, help="how slowly the average of the weights moves")
    parser.add_argument("--stage", type=int, choices=range(len(LENGTHS)))
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--export", action=argparse.BooleanOptionalAction, default=True, help="write the package's weights")
    args = parser.parse_args()
    attend.keep_memory()
    run(args)


if __name__ == "__main__":
    main()
