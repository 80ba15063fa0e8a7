"""Argument checks of the paged operations. Reads shapes, dtypes and devices; never a value on a device, except where it says so."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import KernelError
from .paging import Codes, Pages, Pool, Regions, Rotation, Timeline

HEAD_SIZES = (32, 64, 80, 96, 128, 256)
BLOCK_SIZES = (1, 16, 32, 64, 128)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MOST_REGIONS = 3


def need(holds: bool, message: str) -> None:
    """Raise ``KernelError`` unless it holds."""
    if not holds:
        raise KernelError(message)


def _dtype(name: str, x: Tensor, *allowed: torch.dtype) -> None:
    need(x.dtype in allowed, f"{name} is {x.dtype}; allowed are {', '.join(map(str, allowed))}")


def _shape(name: str, x: Tensor, *shape: int | None) -> None:
    fits = x.dim() == len(shape) and all(want is None or got == want for got, want in zip(x.shape, shape, strict=True))
    wanted = ", ".join("any" if want is None else str(want) for want in shape)
    need(fits, f"{name} has shape {tuple(x.shape)}; needed is [{wanted}]")


def _together(**tensors: Tensor | None) -> None:
    """All on one device, with rows that lie in one piece."""
    there = {name: x for name, x in tensors.items() if x is not None}
    first, *others = there.items()
    for name, x in others:
        need(x.device == first[1].device, f"{name} is on {x.device}, {first[0]} on {first[1].device}; all must be on one device")
    for name, x in there.items():
        need(x.dim() == 0 or x.shape[-1] <= 1 or x.stride(-1) == 1, f"{name} has stride {x.stride(-1)} in its last dimension; needed is 1")


def _pool(name: str, keys: Tensor, heads: int, dim: int) -> None:
    _shape(name, keys, None, heads, None, dim)
    need(keys.shape[2] in BLOCK_SIZES, f"{name} has Blocks of {keys.shape[2]} tokens; allowed are {', '.join(map(str, BLOCK_SIZES))}")


def check_queries(queries: Tensor) -> None:
    """``[R, S, m, d]`` of a head size and dtype there are kernels for."""
    _shape("queries", queries, None, None, None, None)
    _dtype("queries", queries, *FLOATS)
    need(queries.shape[-1] in HEAD_SIZES, f"head size {queries.shape[-1]} has no kernel; allowed are {', '.join(map(str, HEAD_SIZES))}")
    need(queries.shape[2] > 0, "queries has no rows (m = 0); at least 1 is needed")


def check_pages(queries: Tensor, pages: Pages) -> None:
    """Tables of as many rows as there are queries."""
    rows = queries.shape[0]
    _dtype("table", pages.table, torch.int32)
    _dtype("counts", pages.counts, torch.int32)
    _shape("table", pages.table, rows, None)
    _shape("counts", pages.counts, rows)
    if pages.tokens is not None:
        _dtype("tokens", pages.tokens, torch.int32)
        _shape("tokens", pages.tokens, rows)
    _together(queries=queries, table=pages.table, counts=pages.counts, tokens=pages.tokens)


def check_score(queries: Tensor, keys: Tensor, pages: Pages) -> None:
    """Arguments of ``score`` and ``rescore``."""
    check_queries(queries)
    check_pages(queries, pages)
    _pool("keys", keys, queries.shape[1], queries.shape[3])
    need(keys.dtype == queries.dtype, f"keys are {keys.dtype}, queries {queries.dtype}; both must be the same")
    _together(queries=queries, keys=keys)


def check_codes(heads: int, dim: int, codes: Codes, like: Tensor) -> None:
    """8-bit keys beside ``like``."""
    _dtype("codes", codes.codes, torch.int8)
    _pool("codes", codes.codes, heads, dim)
    for name, x in (("scale", codes.scale), ("residual", codes.residual)):
        _dtype(name, x, torch.float32)
        _shape(name, x, *codes.codes.shape[:3])
        need(x.stride() == codes.scale.stride(), f"{name} has strides {x.stride()}; needed are those of scale, {codes.scale.stride()}")
    _together(queries=like, codes=codes.codes, scale=codes.scale, residual=codes.residual)


def check_score_codes(queries: Tensor, codes: Codes, pages: Pages) -> None:
    """Arguments of ``score_int8`` and ``score_codes``."""
    check_queries(queries)
    check_pages(queries, pages)
    check_codes(queries.shape[1], queries.shape[3], codes, queries)


def check_listed(queries: Tensor, listed: Tensor, by_token: bool) -> None:
    """Lists of Blocks of each KV head, or of each query row."""
    rows, heads, m, _ = queries.shape
    _dtype("listed", listed, torch.int32)
    _shape("listed", listed, *((rows, heads, m, None) if by_token and listed.dim() == 4 else (rows, heads, None)))
    _together(queries=queries, listed=listed)


Limits = tuple[Tensor | None, Tensor | None]


def check_select(scores: Tensor, count: int, limits: Limits, names: Tensor | None, size: int = 1) -> None:
    """Scores ``[R, ..., n]``, how many to take, and what limits or names them."""
    _dtype("scores", scores, torch.float32, torch.int32)
    need(scores.dim() >= 2, f"scores has shape {tuple(scores.shape)}; needed is [R, ..., n]")
    need(count >= 1, f"count={count}; at least 1 is needed")
    for name, x in zip(("starts", "lengths"), limits, strict=True):
        if x is not None:
            _dtype(name, x, torch.int32)
            _shape(name, x, scores.shape[0])
    if names is not None:
        _dtype("names", names, torch.int32)
        need(size >= 1 and scores.shape[-1] % size == 0, f"{scores.shape[-1]} scores are no whole Blocks of size={size}")
        _shape("names", names, *scores.shape[:-1], scores.shape[-1] // size)
    _together(scores=scores, starts=limits[0], lengths=limits[1], names=names)


def check_certify(lower: Tensor, upper: Tensor, count: int, capacity: int, limits: Limits) -> None:
    """Bounds of the same shape, and room for at least what is wanted."""
    check_select(lower, count, limits, None)
    _dtype("upper", upper, torch.float32)
    _dtype("lower", lower, torch.float32)
    _shape("upper", upper, *lower.shape)
    need(capacity >= count, f"capacity={capacity} holds fewer than count={count}; it must be at least that")
    _together(lower=lower, upper=upper)


def check_tally(named: Tensor, width: int) -> None:
    """Names ``[R, ...]`` below ``width``."""
    _dtype("named", named, torch.int32)
    need(named.dim() >= 2, f"named has shape {tuple(named.shape)}; needed is [R, ...]")
    need(width >= 1, f"width={width}; at least 1 is needed")


def check_blocks(blocks: Tensor, timeline: Timeline, size: int) -> None:
    """Chosen Blocks ``[R, S or 1, n]`` of as many timelines."""
    _dtype("blocks", blocks, torch.int32)
    _shape("blocks", blocks, None, None, None)
    check_timeline(len(blocks), timeline, size)
    _together(blocks=blocks, table=timeline.table)


def check_select_and_place(scores: Tensor, count: int, timeline: Timeline, size: int, names: Tensor | None) -> None:
    """Scores of Blocks ``[R, S or 1, n]`` of as many timelines."""
    _shape("scores", scores, None, None, None)
    _dtype("scores", scores, torch.float32)
    check_select(scores, count, (None, None), names)
    check_timeline(len(scores), timeline, size)
    _together(scores=scores, table=timeline.table)


def check_timeline(rows: int, timeline: Timeline, size: int) -> None:
    """Tables and lengths of ``rows`` timelines."""
    _dtype("table", timeline.table, torch.int32)
    _shape("table", timeline.table, rows, None)
    for name in ("sinks", "stops", "lengths"):
        x: Tensor = getattr(timeline, name)
        _dtype(name, x, torch.int32)
        _shape(name, x, rows)
    need(size in BLOCK_SIZES, f"size={size} tokens of a Block; allowed are {', '.join(map(str, BLOCK_SIZES))}")
    for name, least in (("queries", 1), ("sink_blocks", 0), ("local_blocks", 1)):
        value: int = getattr(timeline, name)
        need(value >= least, f"{name}={value}; at least {least} is needed")
    _together(table=timeline.table, sinks=timeline.sinks, stops=timeline.stops, lengths=timeline.lengths)


def check_attend(queries: Tensor, pool: Pool, regions: Regions, rotation: Rotation | None, sinks: Tensor | None) -> None:
    """Arguments of ``attend``."""
    check_queries(queries)
    rows, heads, m, dim = queries.shape
    _pool("keys", pool.keys, heads, dim)
    _pool("values", pool.values, heads, pool.values.shape[-1])
    need(pool.values.shape[-1] in HEAD_SIZES, f"value size {pool.values.shape[-1]} has no kernel; allowed are {HEAD_SIZES}")
    _shape("values", pool.values, *pool.keys.shape[:3], None)
    for name, x in (("keys", pool.keys), ("values", pool.values)):
        need(x.dtype == queries.dtype, f"{name} are {x.dtype}, queries {queries.dtype}; all must be the same")
    _host(pool)
    _regions(rows, heads, m, regions)
    _together(queries=queries, keys=pool.keys, values=pool.values, entries=regions.entries, positions=regions.positions, sinks=sinks)
    if rotation is not None:
        _shape("cos", rotation.cos, None, None)
        _shape("sin", rotation.sin, *rotation.cos.shape)
        _dtype("cos", rotation.cos, *FLOATS)
        need(rotation.sin.dtype == rotation.cos.dtype, f"sin is {rotation.sin.dtype}, cos {rotation.cos.dtype}; both must be the same")
        r = rotation.cos.shape[1]
        need(0 < r <= dim and r % 2 == 0, f"{r} dimensions are rotated of a head of {dim}; it must be an even number, at most that")
        need(len(rotation.cos) > 0, "cos has no positions; at least 1 is needed")
        need(rotation.cos.stride() == rotation.sin.stride(), "cos and sin have other strides; both must be the same")
        _together(queries=queries, cos=rotation.cos, sin=rotation.sin)
    if sinks is not None:
        _dtype("sinks", sinks, torch.float32)
        need(sinks.numel() * regions.positions.shape[3] == heads * m, f"{sinks.numel()} sinks; needed is one a query head")


def _host(pool: Pool) -> None:
    need((pool.host_keys is None) == (pool.host_values is None), "a host pool needs both keys and values; one of them is None")
    for name, host, own in (("host_keys", pool.host_keys, pool.keys), ("host_values", pool.host_values, pool.values)):
        if host is None:
            continue
        _shape(name, host, None, *own.shape[1:])
        need(host.dtype == own.dtype, f"{name} are {host.dtype}, those of the device {own.dtype}; both must be the same")
        need(host.stride() == own.stride(), f"{name} have strides {host.stride()}; needed are those of the device, {own.stride()}")
        for where, x in ((name, host), (name[5:], own)):
            aligned = x.data_ptr() % 16 == 0 and all(step * x.element_size() % 16 == 0 for step in x.stride()[:3])
            need(
                aligned,
                f"{where} begin at {x.data_ptr():#x} with strides {x.stride()}; beside a host pool, both must be multiples of 16 bytes",
            )
        pinned = own.device.type != "cuda" or host.device.type == "cuda" or host.is_pinned()
        need(pinned, f"{name} are in pageable memory; a kernel reads pinned memory only")


def _regions(rows: int, heads: int, m: int, regions: Regions) -> None:
    _dtype("entries", regions.entries, torch.int32)
    _shape("entries", regions.entries, rows, None, None, 4)
    count = len(regions.ends)
    need(1 <= count <= MOST_REGIONS, f"{count} Regions; allowed are 1 to {MOST_REGIONS}")
    need(len(regions.bands) == count, f"{len(regions.bands)} bands for {count} Regions; needed is one each")
    ordered = all(a <= b for a, b in zip((0, *regions.ends), regions.ends, strict=False)) and regions.ends[-1] == regions.entries.shape[2]
    need(ordered, f"ends={regions.ends}; they must ascend to {regions.entries.shape[2]}, the number of entries")
    need(regions.entries.shape[1] in (1, heads), f"entries of {regions.entries.shape[1]} heads; allowed are 1 and {heads}")
    _dtype("positions", regions.positions, torch.int32)
    _shape("positions", regions.positions, count, rows, regions.entries.shape[1], None)
    queries = regions.positions.shape[3]
    need(queries > 0 and m % queries == 0, f"{m} query rows are no multiple of {queries} queries with positions")
    if regions.factors is not None:
        _dtype("factors", regions.factors, torch.float32)
        _shape("factors", regions.factors, count, rows, queries)
        _together(entries=regions.entries, factors=regions.factors)


def check_summarize(keys: Tensor, pages: Tensor, means: Tensor, codes: Codes | None) -> None:
    """Arguments of ``summarize``."""
    _shape("keys", keys, None, None, None, None)
    _dtype("keys", keys, *FLOATS)
    need(keys.shape[-1] in HEAD_SIZES, f"head size {keys.shape[-1]} has no kernel; allowed are {', '.join(map(str, HEAD_SIZES))}")
    _pool("keys", keys, keys.shape[1], keys.shape[3])
    _dtype("pages", pages, torch.int32)
    _shape("pages", pages, None)
    _dtype("means", means, torch.float32)
    _shape("means", means, keys.shape[0], keys.shape[1], keys.shape[3])
    _together(keys=keys, pages=pages, means=means)
    if codes is not None:
        _shape("codes", codes.codes, *keys.shape)
        check_codes(keys.shape[1], keys.shape[3], codes, keys)


def unfit(x: Tensor) -> Tensor:
    """Bool ``[]`` on the device: whether ``x`` has a number that is not finite. Reads all of ``x``; does not wait for it."""
    return ~x.isfinite().all()


def check_finite(name: str, x: Tensor) -> None:
    """Raise ``KernelError`` for a number that is not finite. Waits for the device: not for use in a step."""
    need(not bool(unfit(x)), f"{name} has a number that is not finite; clean it, or leave the check out: such keys are never chosen")


def check_missed(missed: Tensor) -> None:
    """Raise ``KernelError`` where ``Placed.missed`` says that sink or local tokens had no room. Waits for the device."""
    most = int(missed.max()) if missed.numel() else 0
    need(most == 0, f"{most} sink or local tokens have no room; make sink_blocks or local_blocks larger")
