"""The plain definitions of the kernels, against float64 and against each other."""

from __future__ import annotations

import pytest
import torch

from agent_memory_kernels import operations, reference

INF = float("inf")


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_there_is_one_choice_of_backend() -> None:
    assert operations() is operations("torch") is reference
    with pytest.raises(ValueError, match="choose 'auto' or 'torch'"):
        operations("magic")


@pytest.mark.parametrize(("rows", "blocks", "size", "dim"), [(1, 3, 32, 64), (64, 300, 32, 32), (5, 1, 7, 16)])
def test_block_maxima_are_the_best_products(rows: int, blocks: int, size: int, dim: int) -> None:
    queries, keys = made(rows, dim), made(blocks, size, dim, seed=1)
    best = reference.block_maxima(queries, [keys[: blocks // 2], keys[blocks // 2 :]], 0.5)
    exact = torch.einsum("rd,bsd->rbs", queries.double() * 0.5, keys.double()).amax(-1)
    assert torch.allclose(best.double(), exact, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_select_takes_the_best_and_lower_indices_first(count: int) -> None:
    votes = torch.tensor([[1.0, 5.0, 5.0, -INF, 5.0, 2.0, 2.0, 2.0, -INF, 0.0]])
    order = sorted(range(10), key=lambda i: (-float(votes[0, i]), i))
    expected = sorted(i for i in order[:count] if votes[0, i] > -INF)
    assert reference.select(votes, count)[0].tolist() == expected + [-1] * (count - len(expected))


def test_softmax_votes_are_normalised_over_candidates_only() -> None:
    scores = made(2, 3, 4, 6)
    candidates = torch.ones(2, 1, 6, dtype=torch.bool)
    candidates[0, 0, 2] = False
    votes = reference.vote(scores.clone(), candidates, "softmax")
    kept = scores[0][:, :, [0, 1, 3, 4, 5]]
    expected = (kept - kept.logsumexp(-1, keepdim=True)).amax(1)
    assert torch.allclose(votes[0][:, [0, 1, 3, 4, 5]], expected)
    assert bool((votes[0][:, 2] == -INF).all())
    assert torch.allclose(reference.vote(scores.clone(), candidates, "max")[1], scores[1].amax(1))
    with pytest.raises(ValueError, match="softmax"):
        reference.vote(scores, candidates, "loudest")


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_any_split_of_keys_merges_to_the_same(softcap: float | None, sinks: bool) -> None:
    q, k, v = made(2, 3, 4, 8), made(2, 3, 9, 8, seed=1), made(2, 3, 9, 5, seed=2)
    extra = made(1, 3, 4, seed=3) if sinks else None
    logits = (q.double() @ k.double().mT) * 0.3
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    weights = torch.cat([logits, extra.double().expand(2, -1, -1)[..., None]], -1) if extra is not None else logits
    expected = weights.softmax(-1)[..., :9] @ v.double()
    for parts in ([9], [4, 5], [1, 3, 5]):
        pairs = [reference.attend(q, a, b, None, 0.3, softcap) for a, b in zip(k.split(parts, 2), v.split(parts, 2), strict=True)]
        merged = reference.merge([o for o, _ in pairs], [lse for _, lse in pairs], extra)
        assert torch.allclose(merged.double(), expected, atol=1e-5)


def test_attend_alone_is_attend() -> None:
    q, k, v = made(2, 3, 4, 8), made(2, 3, 9, 8, seed=1), made(2, 3, 9, 8, seed=2)
    bias = torch.zeros(2, 1, 4, 9).masked_fill_(made(2, 1, 4, 9, seed=4) > 1, -INF)
    assert torch.allclose(reference.attend_alone(q, k, v, bias, 0.3), reference.attend(q, k, v, bias, 0.3, None)[0], atol=1e-6)


def test_hidden_keys_give_nothing() -> None:
    q, k, v = made(1, 1, 2, 4), made(1, 1, 3, 4), made(1, 1, 3, 4)
    out, lse = reference.attend(q, k, v, torch.full((1, 1, 2, 3), -INF), 1.0, None)
    assert bool((out == 0).all()) and bool((lse == -INF).all())
