"""What only a GPU can show: bandwidth of the kernels, recall against products and topk, a layer and a decode step against torch.

Knows kernels, an 8B-shaped layer and model with random weights, and clocks. Needs torch, triton and transformers only. Calls are captured
in a graph, ten of them, so that what is timed is the device and not Python; ours and the baseline in turns, the baseline against itself as
noise.

    python benchmarks/device.py --lengths 131072,1048576 --json device.jsonl       # R1 to R4, R11 on one layer
    python benchmarks/device.py --step 131072,524288 --json step.jsonl              # R1e: a whole decode step against DynamicCache
    python benchmarks/device.py --offloaded 65536                                   # R13: against an offloaded cache
    python benchmarks/device.py --small --device cpu                                # that it runs, anywhere
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from agent_memory.attention.methods import Method, Sizes
from agent_memory.attention.recent_queries import RecentQueries
from agent_memory.attention.selectors import RecallSelector
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.attention.trace import Trace
from agent_memory.bench.compare import Ratio, compare
from agent_memory.memory.block import NoDisk
from agent_memory.memory.cache import TieredCache
from agent_memory.memory.session_kv import SessionKV
from agent_memory.model.attach import attach
from agent_memory.paged_reply import PagedReply
from agent_memory.plans import kv_plan, layout_of
from agent_memory.types import BLOCK_TOKENS, Budget
from agent_memory_kernels import (
    Codes,
    LogitRule,
    PagedOperations,
    Pages,
    Pool,
    Rotation,
    Timeline,
    Workspace,
    certified_blocks,
    operations,
    paged,
)

REPEATS = 10
"""Calls in one graph."""

BLOCKS = 64
"""Blocks recalled."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer of Llama-3.1-8B, or a small one."""

    query_heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    layers: int = 32
    hidden: int = 4096
    inner: int = 14336
    dtype: torch.dtype = torch.bfloat16


SMALL = Shape(4, 2, 32, 2, 64, 64, torch.float32)


def replayed(call: Callable[[], object], device: str) -> Callable[[], None]:
    """``call``, ten times, as one launch; on a CPU, where there are no graphs, ten times."""

    def plain() -> None:
        for _ in range(REPEATS):
            call()

    if device == "cpu":
        return plain
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plain()

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return run


class Layer:
    """Keys and values of one Session in pages, all of them on the device."""

    def __init__(self, tokens: int, shape: Shape, device: str, ops: PagedOperations) -> None:
        self.tokens, self.shape, self.device, self.ops, self.workspace = tokens, shape, device, ops, Workspace()
        blocks, (heads, dim) = tokens // BLOCK_TOKENS, (shape.kv_heads, shape.dim)
        kv = torch.randn((2, blocks, heads, BLOCK_TOKENS, dim), device=device).to(shape.dtype)
        self.keys, self.values = kv[0], kv[1]
        self.queries = torch.randn((1, heads, shape.query_heads // heads, dim), device=device).to(shape.dtype)
        ints = [torch.tensor([n], dtype=torch.int32, device=device) for n in (blocks, BLOCK_TOKENS, tokens - 512, tokens)]
        table = torch.randperm(blocks, device=device).to(torch.int32)[None]
        self.pages = Pages(table, ints[0])
        self.line = Timeline(table, ints[1], ints[2], ints[3], 1, 1, 18)
        angles = torch.outer(torch.arange(8192), 500_000.0 ** (-torch.arange(0, dim, 2) / dim)).repeat(1, 2).to(device)
        self.rotation = Rotation(angles.cos(), angles.sin())
        self.means = torch.empty((blocks, heads, dim), device=device)
        self.codes = Codes(
            torch.empty((blocks, heads, BLOCK_TOKENS, dim), dtype=torch.int8, device=device),
            *(torch.empty((blocks, heads, BLOCK_TOKENS), device=device) for _ in range(2)),
        )
        everything = torch.arange(blocks, dtype=torch.int32, device=device)
        ops.summarize(self.keys, everything, self.means, self.codes, workspace=self.workspace)
        self.mean_keys = self.means[:, :, None].to(shape.dtype)

    def score(self) -> Tensor:
        return self.ops.score(self.queries, self.keys, self.pages, workspace=self.workspace)

    def recall(self) -> Tensor:
        return self.ops.select(self.score(), BLOCKS, workspace=self.workspace)

    def certified(self) -> Tensor:
        stored = self.keys, self.codes
        return certified_blocks(self.ops, self.queries, stored, self.pages, BLOCKS, capacity=512, workspace=self.workspace)[0]

    def attend(self, pool: Pool | None = None, line: Timeline | None = None) -> Tensor:
        """Means, selection and attention: three launches."""
        scores = self.ops.score(self.queries, self.mean_keys, self.pages, workspace=self.workspace)
        _, placed = self.ops.select_and_place(scores, BLOCKS, line or self.line, BLOCK_TOKENS, workspace=self.workspace)
        rule = LogitRule(self.shape.dim**-0.5)
        pool = pool or Pool(self.keys, self.values)
        return self.ops.attend(self.queries, pool, placed.region(), self.rotation, rule, workspace=self.workspace)[0]


def of_layer(tokens: int, shape: Shape, device: str, ops: PagedOperations) -> Iterator[Ratio]:
    """R1 to R4 and R11."""
    layer = Layer(tokens, shape, device, ops)
    key_bytes = layer.keys.nbytes
    copy = torch.empty_like(layer.keys)
    about = {"tokens": tokens, "dtype": str(shape.dtype), "repeats": REPEATS, "key_bytes": key_bytes}

    def timed(name: str, ours: Callable[[], object], baseline: Callable[[], object], target: str, growth: bool = False) -> Ratio:
        return compare(name, replayed(ours, device), replayed(baseline, device), about, target=target, growth=growth)

    # A copy reads and writes: half of its time is what reading as many bytes takes.
    yield timed(f"R3 score, of copying the keys (x2) {tokens:,}", layer.score, lambda: copy.copy_(layer.keys), "1.7x")
    yield timed(f"R3 exact recall, of copying the keys (x2) {tokens:,}", layer.recall, lambda: copy.copy_(layer.keys), "1.5x")
    flat = layer.keys[layer.pages.table[0].long()].transpose(0, 1).flatten(1, 2).contiguous()
    yield timed(f"R2 exact recall {tokens:,}", layer.recall, lambda: _matmul_topk(layer.queries[0], flat), "2.5x")
    yield timed(f"R4 certified, of exact {tokens:,}", layer.certified, layer.recall, "1.4x")
    dense_keys, dense_values = flat[None], torch.randn_like(flat)[None]
    attention = torch.nn.functional.scaled_dot_product_attention
    target = "4x" if tokens < 500_000 else "15x"
    yield timed(f"R1 layer by means {tokens:,}", layer.attend, lambda: attention(layer.queries, dense_keys, dense_values), target)
    if device != "cpu":
        far = Pool(layer.keys, layer.values, layer.keys.cpu().pin_memory(), layer.values.cpu().pin_memory())
        host = replace(layer.line, table=-layer.line.table - 2)
        yield timed(f"R11 all from the host, without a hot buffer {tokens:,}", lambda: layer.attend(far, host), layer.attend, "1.15x", True)


def _matmul_topk(queries: Tensor, keys: Tensor) -> Tensor:
    scores = torch.matmul(queries, keys.transpose(1, 2))
    best: Tensor = scores.unflatten(2, (-1, BLOCK_TOKENS)).amax((1, 3)).topk(BLOCKS).indices
    return best


def model_of(shape: Shape, device: str) -> LlamaForCausalLM:
    """Random weights: only how long it takes is asked."""
    config = LlamaConfig(
        vocab_size=32_000,
        max_position_embeddings=131_072,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.dim,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    try:
        with torch.device(device):
            made: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    return made


class Decoding:
    """A model with a memory of made-up keys, decoding one token after another as a reply is."""

    def __init__(self, model: LlamaForCausalLM, tokens: int, shape: Shape, device: str, ops: PagedOperations) -> None:
        attachment = attach(model)
        rule = RecallRule(blocks=BLOCKS, scan="keys")
        method = Method("recall", Sizes(32, BLOCKS * BLOCK_TOKENS, 464, 16), RecallSelector(rule, operations("torch")))
        layout = layout_of(attachment)
        room = 2 * sum(layout.kv_heads) * shape.dim * shape.dtype.itemsize * (tokens + 16_384)
        cache = TieredCache(layout, Budget(device=room), device, min_blocks=256, unsaved_blocks=64, host_bytes=0)
        self.kv = SessionKV(layout, kv_plan(attachment, method, 256), cache, NoDisk())
        for at in range(0, tokens, 2048):
            for layer in range(shape.layers):
                k, v = torch.randn((2, shape.kv_heads, min(2048, tokens - at), shape.dim), device=device).to(shape.dtype)
                self.kv.append(layer, k, v)
        self.reply, self._trace = PagedReply(attachment, self.kv, method, ops), Trace()
        self.reply.open(RecentQueries(), 1024)

    def step(self) -> None:
        self.reply.logits(5, self._trace)


def stock(model: LlamaForCausalLM, tokens: int, shape: Shape, device: str, cache: DynamicCache) -> Callable[[], None]:
    """A decode step of transformers over a cache of made-up keys."""
    for layer in range(shape.layers):
        k, v = torch.randn((2, 1, shape.kv_heads, tokens, shape.dim), device=device).to(shape.dtype)
        cache.update(k, v, layer)
    token = torch.full((1, 1), 5, device=device)

    def step() -> None:
        with torch.no_grad():
            model(token, past_key_values=cache, use_cache=True)
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def of_step(tokens: int, shape: Shape, device: str, ops: PagedOperations, offloaded: bool) -> Ratio:
    """R1e, or R13: the baseline first, and let go, since both do not fit beside each other."""
    model = model_of(shape, device)
    ours = Decoding(model, tokens, shape, device, ops)
    baseline = stock(model, tokens, shape, device, DynamicCache(offloading=offloaded and device != "cpu"))
    name, target = ("R13 offloaded cache", "30x") if offloaded else ("R1e decode step", "1.5x" if tokens < 500_000 else "5x")
    about = {"tokens": tokens, "layers": shape.layers, "dtype": str(shape.dtype), "captured": device != "cpu"}
    return compare(f"{name} {tokens:,}", ours.step, baseline, about, target=target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="", help="tokens of one layer, separated by commas")
    parser.add_argument("--step", default="", help="tokens a whole model decodes over")
    parser.add_argument("--offloaded", default="", help="tokens, against OffloadedCache")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small shape, 4,096 tokens, the plain definition on a CPU")
    parser.add_argument("--json", type=Path, help="file to append a line to for each ratio")
    args = parser.parse_args(arguments)
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; run it on a machine that has one, or with --small --device cpu")
    shape, every = (SMALL, "4096") if args.small else (Shape(), "")
    ops = paged("torch" if args.device == "cpu" else "triton", args.device)
    with torch.no_grad():
        for ratio in _all(args, shape, every, ops):
            noise = " (noisy)" if ratio.noisy else ""
            print(f"{ratio.name:48} {ratio.ours:.6f} s, baseline {ratio.baseline:.6f} s: {ratio.ratio:.2f}{noise}")
            if args.json is not None:
                with args.json.open("a") as file:
                    file.write(json.dumps(ratio.to_dict()) + "\n")
    return 0


def _all(args: argparse.Namespace, shape: Shape, every: str, ops: PagedOperations) -> Iterator[Ratio]:
    for tokens in _numbers(args.lengths or every):
        yield from of_layer(tokens, shape, args.device, ops)
    for tokens in _numbers(args.step or every):
        yield of_step(tokens, shape, args.device, ops, offloaded=False)
    for tokens in _numbers(args.offloaded):
        yield of_step(tokens, shape, args.device, ops, offloaded=True)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


if __name__ == "__main__":
    raise SystemExit(main())
