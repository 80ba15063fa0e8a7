"""Triton kernel that summarises new Blocks: their mean keys, and their keys in 8 bits with what that lost.

``reference.paged`` defines the operation. Codes may differ by one from it where a quotient lies between two of them; the residual
is always that of the codes that are written.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .paging import Codes, Workspace, launch
from .reference.paged import ROUNDING

LEAST = 2.0**-120
"""Covers what underflows."""


@triton.jit
def summarize_kernel(
    keys, pages, means, codes, scales, residuals, heads, k_page, k_head, k_token, m_page, m_head, c_page, c_head, c_token, s_page, s_head,
    s_token, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, CODES: tl.constexpr, EPSILON: tl.constexpr, SLACK: tl.constexpr,
    LEAST: tl.constexpr,
):  # fmt: skip
    """Program (page, head)."""
    page = tl.load(pages + tl.program_id(0)).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    if page >= 0:
        token = tl.arange(0, SIZE)
        dim = tl.arange(0, D)
        real = (dim < DIM)[None, :]
        at = keys + page * k_page + head * k_head + token[:, None] * k_token + dim[None, :]
        k = tl.load(at, mask=(token < SIZE)[:, None] & real, other=0.0).to(tl.float32)
        tl.store(means + page * m_page + head * m_head + dim, tl.sum(k, axis=0) / SIZE, mask=dim < DIM)
        if CODES:
            largest = tl.max(tl.where(k == k, tl.abs(k), float("inf")), axis=1)
            finite = largest < float("inf")
            scale = tl.where(finite, largest / 127, 0.0)
            k = tl.where(finite[:, None], k, 0.0)
            code = tl.floor(k / tl.where(scale > 0, scale, 1.0)[:, None] + 0.5)
            code = tl.where((scale > 0)[:, None], tl.minimum(tl.maximum(code, -127.0), 127.0), 0.0)
            lost = k - scale[:, None] * code
            most = tl.max(tl.abs(lost), axis=1)
            share = lost / tl.where(most > 0, most, 1.0)[:, None]
            norm = most * tl.sqrt(tl.sum(share * share, axis=1)) * (1 + (D + 16) * EPSILON)
            residual = tl.where(largest > 0, norm + scale * SLACK + LEAST, 0.0)
            at = page * s_page + head * s_head + token * s_token
            tl.store(scales + at, scale)
            tl.store(residuals + at, tl.where(finite, residual, float("inf")))
            at = page * c_page + head * c_head + token[:, None] * c_token + dim[None, :]
            tl.store(codes + at, code.to(tl.int8), mask=(token < SIZE)[:, None] & real)


def summarize(keys: Tensor, pages: Tensor, means: Tensor, codes: Codes | None, *, workspace: Workspace | None = None) -> None:
    """See :func:`.reference.paged.summarize`."""
    checks.check_summarize(keys, pages, means, codes)
    heads, size, dim = keys.shape[1:]
    if not pages.numel() or not heads:
        return
    told = (means, means, means, 0, 0, 0, 0, 0, 0) if codes is None else _codes(codes)
    arguments = (keys, pages, means, *told[:3], heads, *keys.stride()[:3], *means.stride()[:2], *told[3:])
    # The difference of a key and its code is off by a rounding of the product and one of the difference.
    slack = 127 * math.sqrt(dim) * 4 * ROUNDING
    bound = {"EPSILON": ROUNDING, "SLACK": slack, "LEAST": LEAST}
    padded = 1 << (dim - 1).bit_length()
    launch(summarize_kernel, (len(pages), heads), arguments, workspace, DIM=dim, D=padded, SIZE=size, CODES=codes is not None, **bound)


def _codes(codes: Codes) -> tuple[Tensor | int, ...]:
    return (codes.codes, codes.scale, codes.residual, *codes.codes.stride()[:3], *codes.scale.stride())
