"""The plain definitions of the kernels, against float64 and against each other."""

from __future__ import annotations

import pytest
import torch

from agent_memory_kernels import fused, operations, reference

INF = float("inf")


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_there_is_one_choice_of_backend() -> None:
    assert operations("torch") is reference and operations() is fused
    with pytest.raises(ValueError, match="choose 'auto' or 'torch'"):
        operations("magic")


@pytest.mark.parametrize(("rows", "blocks", "size", "dim"), [(1, 3, 32, 64), (64, 300, 32, 32), (5, 1, 7, 16), (33, 129, 32, 80)])
def test_block_maxima_are_the_best_products(rows: int, blocks: int, size: int, dim: int) -> None:
    queries = made(rows, dim)
    keys = (made(blocks, size, dim, seed=1) * 40).round().clamp(-127, 127).to(torch.int8)
    steps = made(blocks, seed=2).abs()
    cut = blocks // 2
    (best,) = reference.block_maxima(queries[None], [[(keys[:cut], steps[:cut]), (keys[cut:], steps[cut:])]], 0.5)
    unit = queries.abs().amax(1, keepdim=True) / 127
    asked = (queries / unit).round().double()
    exact = torch.einsum("rd,bsd->rbs", asked, keys.double()).amax(-1) * unit.double() * 0.5 * steps.double()
    assert torch.allclose(best.double(), exact, rtol=1e-6)
    near = torch.einsum("rd,bsd->rbs", queries.double(), keys.double()).amax(-1) * 0.5 * steps.double()
    longest = queries.norm(dim=1)[:, None].double() * keys.double().norm(dim=2).amax(1) * steps.double()
    assert bool(((best.double() - near).abs() <= 0.01 * longest).all())


def test_block_maxima_do_not_depend_on_how_keys_and_queries_are_cut() -> None:
    queries = made(40, 64)
    keys, steps = (made(700, 32, 64, seed=1) * 40).round().clamp(-127, 127).to(torch.int8), made(700, seed=2).abs()
    (whole,) = reference.block_maxima(queries[None], [[(keys, steps)]], 1.0)
    assert torch.equal(reference.block_maxima(queries[None], [[(keys[:3], steps[:3]), (keys[3:], steps[3:])]], 1.0)[0], whole)
    assert torch.equal(reference.block_maxima(queries[None, 7:9], [[(keys, steps)]], 1.0)[0], whole[7:9])
    both = reference.block_maxima(torch.stack([queries, queries.flip(0)]), [[(keys, steps)], [(keys, steps)]], 1.0)
    assert torch.equal(both, torch.stack([whole, whole.flip(0)]))


def test_echo_is_its_definition() -> None:
    scores, window, weight, asking = made(2, 3, 9, 40), 4, 1.5, 5
    candidates = torch.ones(2, 1, 40, dtype=torch.bool)
    candidates[1, 0, 30:] = False
    votes = reference.echo(scores.clone(), candidates, asking, window, weight)
    assert votes.shape == (2, 3, asking, 40)
    for group in range(2):
        allowed = candidates[group, 0].nonzero().flatten()
        shares = torch.full((3, 9, 40), 0.0, dtype=torch.float64)
        shares[..., allowed] = scores[group][..., allowed].double().softmax(-1)
        logs = (shares + reference.LEAST_SHARE).log()
        for row in range(9 - asking, 9):
            for at in allowed.tolist():
                heard = [max(logs[0, t, at], logs[0, t, max(at - 1, 0)]) for t in range(max(0, row - window + 1), row + 1)]
                expected = shares[0, row, at].log() + weight * sum(heard) / len(heard)
                assert abs(float(votes[group, 0, row - 9 + asking, at]) - float(expected)) < 1e-4
    assert bool((votes[1, :, :, 30:] == -INF).all())


@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_select_takes_the_best_and_lower_indices_first(count: int) -> None:
    votes = torch.tensor([[1.0, 5.0, 5.0, -INF, 5.0, 2.0, 2.0, 2.0, -INF, 0.0]])
    order = sorted(range(10), key=lambda i: (-float(votes[0, i]), i))
    expected = sorted(i for i in order[:count] if votes[0, i] > -INF)
    assert reference.select(votes, count)[0].tolist() == expected + [-1] * (count - len(expected))


@pytest.mark.parametrize("n", [40, 1000, 3001, 40_000])
@pytest.mark.parametrize("count", [1, 4, 30])
@pytest.mark.parametrize("levels", [3, 50])
def test_select_keeps_its_order_among_many_and_many_equals(n: int, count: int, levels: int) -> None:
    g = torch.Generator().manual_seed(n + count)
    votes = torch.randint(0, levels, (4, n), generator=g).float()
    votes[torch.rand(votes.shape, generator=g) < 0.1] = -INF
    votes[1, 2:-1], votes[2] = -INF, -INF
    for row, chosen in zip(votes.tolist(), reference.select(votes, count).tolist(), strict=True):
        order = sorted(range(n), key=lambda i: (-row[i], i))[:count]
        expected = sorted(i for i in order if row[i] > -INF)
        assert chosen == expected + [-1] * (count - len(expected))


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


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_fused_attention_is_the_definition_with_its_log_sum_exp(hidden: bool, turned: bool) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, generator=g) for n in (40, 100, 100))
    if turned:  # rows that do not lie in one piece
        k, v = torch.randn(2, 3, 16, 100, generator=g).transpose(2, 3), v[..., :1].expand(-1, -1, -1, 16)
    bias = torch.zeros(2, 1, 40, 100).masked_fill_(torch.rand(2, 1, 40, 100, generator=g) < 0.5, float("-inf"))
    bias[1, 0, 7] = float("-inf")
    mask = bias if hidden else None
    expected, expected_lse = reference.attend(q, k, v, mask, 0.25, None)
    out, lse = fused.attend(q, k, v, mask, 0.25, None)
    assert torch.allclose(out, expected, atol=1e-5) and torch.allclose(lse, expected_lse, atol=1e-5)
    assert not hidden or bool((lse[1, :, 7] == float("-inf")).all() and (out[1, :, 7] == 0).all())


def test_column_mass_is_what_queries_give_each_key() -> None:
    g = torch.Generator().manual_seed(1)
    q, k = torch.randn(1, 2, 3, 5, 8, generator=g), torch.randn(1, 2, 20, 8, generator=g)
    bias = torch.zeros(1, 1, 5, 20).masked_fill_(torch.rand(1, 1, 5, 20, generator=g) < 0.3, float("-inf"))
    logits = torch.einsum("gshtd,gsnd->gshtn", q, k) * 0.5 + bias[:, :, None]
    mass = reference.column_mass(q, k, bias, logits.logsumexp(-1), 0.5, None)
    assert torch.allclose(mass, logits.softmax(-1).sum(-2), atol=1e-6)
    capped = 2 * torch.tanh(torch.einsum("gshtd,gsnd->gshtn", q, k) * 0.5 / 2)
    mass = reference.column_mass(q, k, None, capped.logsumexp(-1), 0.5, 2.0)
    assert torch.allclose(mass, capped.softmax(-1).sum(-2), atol=1e-6)
