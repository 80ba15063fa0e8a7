"""Compiles the kernels for GPUs that are not there, exactly as the paged operations would launch them, and says what they need.

Run as a program: a JSON line for each kernel with its registers, spills and shared memory. Imports torch, triton and the kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource

from agent_memory_kernels import (
    Codes,
    LogitRule,
    Pages,
    Pool,
    Regions,
    Rotation,
    Timeline,
    attend,
    device,
    place,
    score,
    score_int8,
    select,
    summarize,
)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int8: "*i8"
}  # fmt: skip
SIZES = (32, 64, 80, 96, 128, 256)
BLOCK, PAGES, BLOCKS, HEADS = 32, 8, 4096, 8
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches that were asked for, instead of running them."""
    seen: list[Launch] = []
    modules = (attend, place, score, score_int8, select, summarize)

    def record(kernel: Any, grid: object, arguments: tuple[Any, ...], workspace: object, **options: Any) -> None:
        seen.append((kernel, arguments, options))

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "launch", record))
        yield seen


def variants(dims: tuple[int, ...], dtypes: tuple[str, ...], rows: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Calls that launch each kernel, by name."""
    calls: dict[str, Callable[[], object]] = {}
    table = torch.zeros((1, BLOCKS), dtype=torch.int32)
    ints = torch.zeros(1, dtype=torch.int32)
    pages = Pages(table, ints, ints)
    for dim, dtype, m in itertools.product(dims, dtypes, rows):
        q, keys = torch.zeros((1, HEADS, m, dim), dtype=DTYPES[dtype]), torch.zeros((PAGES, HEADS, BLOCK, dim), dtype=DTYPES[dtype])
        name = f"{dtype} d{dim} m{m}"
        means = torch.zeros((PAGES, HEADS, 1, dim), dtype=DTYPES[dtype])
        steps = torch.zeros((PAGES, HEADS, BLOCK))
        codes = Codes(keys.to(torch.int8), steps, steps)
        by_row = torch.zeros((1, HEADS, m, 64), dtype=torch.int32)
        calls |= {
            f"score {name}": partial(device.score, q, keys, pages),
            f"score each {name}": partial(device.score, q, keys, pages, each=True),
            f"score means {name}": partial(device.score, q, means, pages),
            f"score_codes {name}": partial(device.score_codes, q, codes, pages),
            f"score_int8 {name}": partial(device.score_int8, q, codes, pages),
            f"rescore {name}": partial(device.rescore, q, keys, pages, by_row[:, :, 0]),
            f"rescore each {name}": partial(device.rescore, q, keys, pages, by_row, by_token=True),
            f"attend {name}": partial(attended, q, keys, dim, False),
            f"attend partial rotary, host pool {name}": partial(attended, q, keys, dim // 4 * 2, True),
            f"summarize {dtype} d{dim}": partial(device.summarize, keys, ints, torch.zeros((PAGES, HEADS, dim)), codes),
        }
    for n in (4096, 32768, 327680):
        scores = torch.zeros((1, HEADS, n))
        line = Timeline(torch.zeros((1, n), dtype=torch.int32), ints, ints, ints, 1, 1, 128)
        calls |= {
            f"select {n} Blocks": partial(device.select, scores, 64, lengths=ints),
            f"select_and_place {n} Blocks": partial(device.select_and_place, scores, 64, line, BLOCK),
            f"certify {n} Blocks": partial(device.certify, scores, scores, 64, 256, lengths=ints),
        }
    listed = torch.zeros((1, HEADS, 64), dtype=torch.int32)
    return calls | {
        "select of counts": partial(device.select, torch.zeros((1, 131072), dtype=torch.int32), 127),
        "place": partial(device.place, listed, line, BLOCK),
        "tally": partial(device.tally, listed, 131072),
    }


def attended(queries: torch.Tensor, keys: torch.Tensor, rotated: int, host: bool) -> object:
    """``attend`` with everything there is, or with the least."""
    entries = torch.zeros((1, HEADS, 194, 4), dtype=torch.int32)
    asked = 1 if queries.shape[2] <= 16 else 16
    turns = torch.zeros((4096, rotated), dtype=queries.dtype)
    positions = torch.zeros((3 if host else 1, 1, HEADS, asked), dtype=torch.int32)
    pool = Pool(keys, keys, keys, keys) if host else Pool(keys, keys)
    ends, bands = ((64, 128, 194), ((0, 4096), (0, 64), (64, 4096))) if host else ((194,), ((0, 4096),))
    factors = torch.zeros((3, 1, asked)) if host else None
    sinks = torch.zeros(HEADS * queries.shape[2] // asked) if host else None
    rule = LogitRule(0.125, 30.0 if host else None, sinks)
    return device.attend(queries, pool, Regions(entries, ends, positions, bands, factors), Rotation(turns, turns), rule)


def source(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> ASTSource:
    """What Triton would make of a launch: types, constants, and which numbers are divisible by 16."""
    names = [parameter.name for parameter in kernel.params]
    signature, constants, attributes = {}, {}, {}
    for at, (name, value) in enumerate(zip(names, arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(at,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(at,)] = [["tt.divisibility", 16]]
    for name in names[len(arguments) :]:
        signature[name], constants[name] = "constexpr", options[name]
    return ASTSource(kernel, signature, constants, attributes)


def compiled(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], arch: int) -> dict[str, Any]:
    """Registers, instructions that spill or fetch one, and shared memory of a launch on ``sm_<arch>``."""
    start = time.perf_counter()
    own = {name: value for name, value in options.items() if name in ("num_warps", "num_stages")}
    made = triton.compile(source(kernel, arguments, options), target=GPUTarget("cuda", arch, 32), options=own)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        told = disassembled(file.name, "--dump-resource-usage")
        found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
        stack = found["STACK"] + found["LOCAL"]
        spills = len(re.findall(r"\b(?:STL|LDL)\b", disassembled(file.name, "--dump-sass"))) if stack else 0
    ptx = made.asm["ptx"]
    return {
        "registers": found["REG"],
        "spilled": spills,
        "stack": stack,
        "shared": made.metadata.shared,
        "warps": made.metadata.num_warps,
        "mma": len(re.findall(r"\bmma\.sync|wgmma\.mma_async", ptx)),
        "async_copies": len(re.findall(r"cp\.async\.c[ag]", ptx)),
        "seconds": round(time.perf_counter() - start, 2),
    }


def disassembled(file: str, what: str) -> str:
    """What the bundled disassembler says of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, what, file], capture_output=True, text=True, check=True).stdout


def numbers(text: str) -> tuple[int, ...]:
    """Integers between commas."""
    return tuple(int(x) for x in text.split(","))


def main() -> None:
    """Compile what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=numbers, default=(80, 90), help="compute capabilities")
    parser.add_argument("--dims", type=numbers, default=SIZES, help="head sizes")
    parser.add_argument("--dtypes", type=lambda text: tuple(text.split(",")), default=tuple(DTYPES), help="of queries and keys")
    parser.add_argument("--rows", type=numbers, default=(4, 64, 320), help="query rows")
    parser.add_argument("--only", default="", help="part of a variant's name, as a regular expression")
    chosen = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("the interpreter compiles nothing; unset TRITON_INTERPRET")
    for name, call in variants(chosen.dims, chosen.dtypes, chosen.rows).items():
        if not re.search(chosen.only, name):
            continue
        with recorded() as launches:
            call()
        for (kernel, arguments, options), arch in itertools.product(launches, chosen.arch):
            line = {"variant": name, "kernel": kernel.__name__, "arch": arch, "triton": triton.__version__}
            try:
                line |= compiled(kernel, arguments, options, arch)
            except Exception as error:  # one that does not compile is a result too
                line |= {"error": f"{type(error).__name__}: {str(error)[-600:]}", "spilled": math.inf}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
