"""Summaries: the mean is the mean, the bound of the sketch is a bound, and rows survive being kept, shared and cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from agent_memory.errors import ConfigError
from agent_memory.memory.grid import quantise
from agent_memory.memory.growing import GrowingRows
from agent_memory.memory.summary import LayerSummary

HEADS, DIM = 2, 16


def keys(n: int, seed: int = 0, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(spread * torch.randn(n, HEADS, 32, 1, generator=generator))
    return (torch.randn(n, HEADS, 32, DIM, generator=generator) * scales).to(dtype)


def summary_of(keys: Tensor, *, sketch: bool = True) -> LayerSummary:
    summary = LayerSummary(HEADS, DIM, sketch=sketch)
    summary.append(keys)
    return summary


def state_of(summary: LayerSummary) -> dict[str, Tensor]:
    return {name: rows.clone() for name, rows in summary.state(0, len(summary)).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def largest_excess(q: Tensor, key: Tensor) -> float:
    """By how much ``|q.k - q.(scale q8)| <= |q| residual`` is broken, in exact (fp64) arithmetic; 0 if it holds."""
    q8, scale, residual = quantise(key)
    stored = scale.double()[..., None] * q8.double()
    error = (q.double() * (key.double() - stored)).sum(-1).abs()
    # fp64's own rounding of the two sides, far below a step of fp32
    bound = q.double().norm(dim=-1) * residual.double() * (1 + 1e-14)
    return float((error - bound).clamp(min=0).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_residual_bounds_random_keys(dtype: torch.dtype) -> None:
    key = keys(20, dtype=dtype)
    assert largest_excess(torch.randn(key.shape, generator=torch.Generator().manual_seed(1)), key) == 0
    q8, _, _ = quantise(key)
    assert q8.abs().amax(-1).eq(127).all()  # the whole grid is used


def test_residual_bounds_the_worst_query() -> None:
    """The query along the lost part makes Cauchy-Schwarz an equality: rounding down anywhere shows here."""
    key = keys(50, seed=3)
    q8, scale, _ = quantise(key)
    assert largest_excess(key.double() - scale.double()[..., None] * q8.double(), key) == 0


FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    key=arrays.arrays(np.float32, (3, 4), elements=FLOATS),
    scale=st.sampled_from([1.0, 1e-30, 1e-38, 1e-44]),
    bf16=st.booleans(),
)
def test_residual_bounds_adversarial_keys(key: np.ndarray, scale: float, bf16: bool) -> None:
    exact = (torch.from_numpy(key).double() * scale).to(torch.bfloat16 if bf16 else torch.float32)
    q8, step, residual = quantise(exact)
    assert (q8 >= -127).all()
    assert (step >= 0).all() and step.isfinite().all()
    usable = exact.isfinite().all(-1)
    assert residual[~usable].isinf().all()
    lost = (exact.double() - step.double()[..., None] * q8.double()).norm(dim=-1)
    assert (lost[usable] <= residual[usable].double()).all()


def test_zero_and_not_finite_keys() -> None:
    key = torch.zeros(3, 4)
    key[1, 2], key[2, 0] = math.nan, -math.inf
    q8, scale, residual = quantise(key)
    assert (q8 == 0).all() and (scale == 0).all()
    assert residual.tolist() == [0.0, math.inf, math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("form", ["shared", "each", "slice"])
def test_sketched_scores_are_within_their_bound_of_fp32_scores(dtype: torch.dtype, spread: float, form: str) -> None:
    key = keys(12, seed=5, dtype=dtype, spread=spread)
    summary = summary_of(key)
    q = torch.randn(3, HEADS, 7, DIM, generator=torch.Generator().manual_seed(6))
    q[0] = key[4, :, :7].float()  # a query that is a key
    # ...and the worst one for a key: along what its sketch lost
    q[1, :, :] = (key[3].float() - summary.scale.gather(torch.tensor(3))[..., None] * summary.q8.gather(torch.tensor(3)))[:, :7]
    true = torch.einsum("ghmd,nhtd->ghmnt", q, key.float())
    if form == "each":
        blocks = torch.randint(0, 12, (3, HEADS, 5), generator=torch.Generator().manual_seed(7))
        true = true.gather(3, blocks[:, :, None, :, None].expand(-1, -1, 7, -1, 32))
        got = summary.score_sketch(q, blocks)
        assert got.radius.shape == (3, HEADS, 5, 32)
    elif form == "shared":
        got, true = summary.score_sketch(q, torch.tensor([11, 3, 4])), true[:, :, :, [11, 3, 4]]
    else:
        got, true = summary.score_sketch(q, slice(2, 9)), true[:, :, :, 2:9]
    assert got.scores.shape == got.bound().shape == true.shape
    assert ((got.scores - true).abs() <= got.bound()).all()
    assert ((got.scores - true).abs() > 0.9 * got.bound()).any() or spread == 0.0 or form == "each"


def test_bound_covers_rounding_where_nothing_is_lost() -> None:
    """Keys that lie on the grid lose nothing: what remains is the rounding of two fp32 sums in different order."""
    key = torch.randint(-127, 128, (40, HEADS, 32, DIM), generator=torch.Generator().manual_seed(8)).float()
    key[..., 0] = 127.0
    summary = summary_of(key)
    assert torch.cat(summary.residual.views()).max() == 0
    q = torch.randn(HEADS, 9, DIM, generator=torch.Generator().manual_seed(9))
    got = summary.score_sketch(q, slice(0, 40))
    backwards = (q.flip(-1)[:, :, None, None].double() * key.flip(-1).permute(1, 0, 2, 3)[:, None].double()).sum(-1)
    running = torch.zeros_like(got.scores)
    for i in range(DIM):  # one term after the other, in fp32
        running += q[:, :, None, None, i] * key.permute(1, 0, 2, 3)[:, None, ..., i]
    for true in (backwards, running):
        error = (got.scores - true).abs()
        assert error.max() > 0
        assert (error <= got.bound()).all()
    assert got.bound().max() < 1e-2


def test_padding_scores_nothing() -> None:
    summary = summary_of(keys(4))
    q = torch.randn(2, HEADS, 3, DIM)
    each = summary.score_sketch(q, torch.tensor([[[1, -1], [2, 3]], [[0, 1], [-1, -1]]])).scores
    assert each[0, 0, :, 1].isinf().all() and each[1, 1].isinf().all()
    assert each[0, 1].isfinite().all() and each[0, 0, :, 0].isfinite().all()
    shared = summary.score_sketch(q, torch.tensor([3, -1])).scores
    assert shared[..., 1, :].isinf().all() and shared[..., 0, :].isfinite().all()
    with pytest.raises(IndexError):
        summary.score_sketch(q, torch.tensor([4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_is_the_mean(dtype: torch.dtype) -> None:
    key = keys(5, dtype=dtype)
    mean = torch.cat(summary_of(key).means.views())
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, key.double().mean(2).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sketch", [True, False])
def test_kept_rows_come_back_as_they_were(sketch: bool) -> None:
    summary = summary_of(keys(9), sketch=sketch)
    again = LayerSummary(HEADS, DIM, sketch=sketch)
    for start, stop in ((0, 4), (4, 4), (4, 9)):
        again.load(summary.state(start, stop))
    assert same(state_of(again), state_of(summary))


def test_how_keys_arrive_makes_no_difference() -> None:
    whole, parts = summary_of(keys(9)), LayerSummary(HEADS, DIM)
    for part in torch.split(keys(9), [1, 0, 5, 3]):
        parts.append(part)
    assert same(state_of(parts), state_of(whole))


def test_unknown_blocks_are_never_certified() -> None:
    summary = summary_of(keys(2))
    summary.load(summary.blank(3))
    got = summary.score_sketch(torch.randn(HEADS, 4, DIM), slice(0, 5))
    assert got.bound()[:, :, 2:].isinf().all() and (got.scores[:, :, 2:] == 0).all()
    assert got.bound()[:, :, :2].isfinite().all()


def test_forks_and_cuts_do_not_disturb_each_other() -> None:
    parent = summary_of(keys(8))
    child = parent.fork(6)
    child.append(keys(2, seed=1))
    parent.truncate(3)
    parent.append(keys(4, seed=2))
    assert same(state_of(child), state_of(summary_of(torch.cat([keys(8)[:6], keys(2, seed=1)]))))
    assert same(state_of(parent), state_of(summary_of(torch.cat([keys(8)[:3], keys(4, seed=2)]))))
    assert child.nbytes > 0 and parent.nbytes >= 7 * HEADS * (4 * DIM + 32 * (DIM + 8))


def test_rows_of_another_make_are_refused_whole() -> None:
    summary, other = summary_of(keys(2)), summary_of(keys(3, seed=4))
    before, good = state_of(summary), state_of(other)
    for wrong in (
        {name: rows for name, rows in good.items() if name != "residual"},
        good | {"q8": good["q8"].float()},
        good | {"mean": good["mean"][:, :1]},
        good | {"scale": good["scale"][:2]},
        summary_of(keys(3), sketch=False).state(0, 3),
    ):
        with pytest.raises(ConfigError, match="summarise the Blocks anew"):
            summary.load(wrong)
        assert same(state_of(summary), before)


def test_an_append_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = summary_of(keys(2))
    before, append = state_of(summary), GrowingRows.append

    def fails_for_residuals(rows: GrowingRows, new: Tensor) -> None:
        if rows is summary.residual:
            raise MemoryError
        append(rows, new)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(GrowingRows, "append", fails_for_residuals)
        summary.append(keys(3))
    assert same(state_of(summary), before)


def test_means_alone_have_no_sketch() -> None:
    summary = summary_of(keys(2), sketch=False)
    assert set(summary.state(0, 2)) == {"mean"}
    for use in (lambda: summary.q8, lambda: summary.residual, lambda: summary.score_sketch(torch.zeros(HEADS, 1, DIM), slice(0, 1))):
        with pytest.raises(ConfigError, match="sketch=True"):
            use()
