"""Train a small model on plain text files, the second model of docs/methods.md: `python benchmarks/text_model.py FILE... --out DIR`.

It is to the methods what the pocket model is to recall: a real stock checkpoint with a short trained window, so that what a method does
beyond the window is measured and not argued. With `--sliding N` it is a Gemma 3 with grouped heads, of whose layers every other one sees
the last N tokens only. It learns from every file but those it holds out, which are copied to DIR/held-out for `agent-memory eval
perplexity`. A tenth of the steps is pure copying, as in the pocket model's training. It resumes from its checkpoint.
"""

# ruff: noqa: S311  (samples, not secrets)

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agent_memory.pocket import attend, batches, checkpoint

END, PAD = "<|end|>", "<|pad|>"
LONG_ENOUGH = 230
"""Characters of a held-out file for each token of the window: 64 windows, and some."""


def tokenizer(texts: list[str], vocabulary: int, window: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[PAD, END], show_progress=False, initial_alphabet=alphabet)
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=END, model_max_length=window)


def model(args: argparse.Namespace) -> LlamaForCausalLM | Gemma3ForCausalLM:
    """A stock Llama, or Gemma 3, with random weights."""
    torch.manual_seed(args.seed)
    sizes: dict[str, Any] = {
        "vocab_size": args.vocabulary, "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": args.window, "tie_word_embeddings": True,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
    }  # fmt: skip
    plain = {"rope_theta": 10_000.0, "rope_type": "default"}
    if args.sliding is None:
        made = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=plain))
        attend.use(made)  # it knows causal attention only
        return made
    kinds = ["sliding_attention", "full_attention"] * 2
    rope = {kind: plain for kind in kinds}
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**sizes, rope_parameters=rope, layer_types=kinds, sliding_window=args.sliding, query_pre_attn_scalar=64)
    )


def split(files: list[Path], held_out: int, window: int, seed: int) -> tuple[list[Path], list[Path]]:
    """Files to learn from, and files held out: drawn from those that are long enough."""
    long = [file for file in files if file.stat().st_size > LONG_ENOUGH * window]
    if len(long) < held_out:
        raise SystemExit(f"only {len(long)} of {len(files)} files have {LONG_ENOUGH * window} characters; --held-out {held_out} wants more")
    chosen = set(random.Random(seed).sample(long, held_out))
    return [file for file in files if file not in chosen], sorted(chosen)


class Run:
    """One training run and all that its checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        read, held = split(sorted(args.files), args.held_out, args.window, args.seed)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in read]
        self.tokenizer = tokenizer(texts, args.vocabulary, args.window)
        ids = [[*self.tokenizer(text, add_special_tokens=False).input_ids, 1] for text in texts]
        self.ids = torch.tensor([token for part in ids for token in part])
        shutil.rmtree(args.out / "held-out", ignore_errors=True)
        (args.out / "held-out").mkdir(parents=True)
        for file in held:
            shutil.copyfile(file, args.out / "held-out" / file.name)
        self.model = model(args)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.rates = [args.muon, args.adam]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=args.muon, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(others, lr=args.adam, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.step, self.spent = 0, 0.0

    def batch(self, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels ``[B, window]``: text, or now and then random tokens of which each is said twice."""
        count = self.args.tokens // self.args.window
        if rng.random() < self.args.copies:
            return batches.copies(rng, count, self.args.window, 2, self.args.vocabulary)
        starts = [rng.randrange(len(self.ids) - self.args.window) for _ in range(count)]
        ids = torch.stack([self.ids[start : start + self.args.window] for start in starts])
        return ids, ids

    def update(self) -> float:
        """One optimiser step; the loss of its text."""
        ids, labels = self.batch(random.Random(self.args.seed * 1_000_003 + self.step))
        target = labels[:, 1:]
        wanted = target != batches.IGNORE
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[:, :-1][wanted])
        loss = nn.functional.cross_entropy(logits.float(), target[wanted])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        done = self.spent / (60 * self.args.budget_minutes)
        factor = min(1.0, (self.step + 1) / 100, max(0.01, (1 - done) / 0.7))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """A checkpoint, and the model as users load it."""
        tensors = {f"model.{name}": value for name, value in self.model.named_parameters()}
        facts: dict[str, Any] = {"step": self.step, "spent": self.spent}
        checkpoint.save(self.args.out / "checkpoint.safetensors", tensors | checkpoint.optimiser_tensors(self.optimisers), facts)
        self.model.save_pretrained(self.args.out / "model")
        self.tokenizer.save_pretrained(self.args.out / "model")
        (self.args.out / "model" / "training.json").write_text(json.dumps(facts | {"tokens": self.step * self.args.tokens}))

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        file = self.args.out / "checkpoint.safetensors"
        if file.exists():
            tensors, facts = checkpoint.load(file)
            self.model.load_state_dict(checkpoint.part(tensors, "model"), strict=False)
            checkpoint.restore_optimisers(self.optimisers, tensors)
            self.step, self.spent = facts["step"], facts["spent"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="UTF-8 text")
    parser.add_argument("--out", type=Path, default=Path(".text-model"))
    parser.add_argument("--window", type=int, default=256, help="tokens, default 256")
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--sliding", type=int, help="width of the sliding layers of a Gemma 3; a Llama without them by default")
    parser.add_argument("--held-out", type=int, default=32, help="long files that are not learned from")
    parser.add_argument("--budget-minutes", type=float, default=90.0)
    parser.add_argument("--tokens", type=int, default=4096, help="per step")
    parser.add_argument("--copies", type=float, default=0.1, help="share of steps that are pure copying")
    parser.add_argument("--muon", type=float, default=0.01)
    parser.add_argument("--adam", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    attend.keep_memory()
    torch.set_num_threads(1)
    run = Run(args)
    run.resume()
    budget = 60 * args.budget_minutes
    bar = tqdm(total=round(budget), initial=round(run.spent), unit="s", mininterval=10)
    mark = saved = time.monotonic()
    losses: list[float] = []
    while run.spent < budget:
        losses.append(run.update())
        now = time.monotonic()
        run.spent, mark = run.spent + now - mark, now
        bar.update(round(run.spent) - bar.n)
        if now - saved > 300 or run.spent >= budget:
            run.save()
            bar.write(f"step {run.step}, loss {sum(losses) / len(losses):.4f}, {len(losses) * args.tokens / (now - saved):.0f} tokens/s")
            saved, losses = now, []


if __name__ == "__main__":
    main()
