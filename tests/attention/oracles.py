"""What the selections are by definition, in float64 and without any of the code under test."""

from __future__ import annotations

SINK, BLOCK = 32, 32


def reattention(queries, keys, stop, k, clip, span):
    """methods.md 10.1 word by word for one group ``[H, T, d]``; token indices kept, and the smallest gap that decided a top-k."""
    heads, count, _ = queries.shape
    share = heads // keys.shape[0]
    middle = stop - SINK
    votes: dict[int, int] = {}
    gap = float("inf")
    for h in range(heads):
        for t in range(count):
            scores = (keys[h // share, SINK:stop].double() @ queries[h, t].double()).tolist()
            order = sorted(range(middle), key=lambda m: (-scores[m], m))
            for m in order[: min(k, middle)]:
                votes[m] = votes.get(m, 0) + 1
            if k < middle:
                gap = min(gap, (scores[order[k - 1]] - scores[order[k]]) / max(1e-30, abs(scores[order[0]])))
    kept = sorted(votes, key=lambda m: (-votes[m], m))
    kept = kept if clip < 0 else kept[:clip]
    return [SINK + m for m in range(middle) if any(c - span // 2 <= m <= c + (span + 1) // 2 - 1 for c in kept)], gap


def recall(queries, keys, stop, blocks, scaling):
    """Per KV head, per query softmax over every candidate key, maximum over queries and keys of a Block; and the smallest gap."""
    heads = keys.shape[0]
    rows = queries.reshape(heads, -1, queries.shape[-1]).double()
    out, gap = [], float("inf")
    for h in range(heads):
        last = -(-stop // BLOCK) * BLOCK
        scores = rows[h] @ keys[h, SINK:last].double().T * scaling
        votes = (scores - scores.logsumexp(-1, keepdim=True)).amax(0).unflatten(0, (-1, BLOCK)).amax(-1)
        order = sorted(range(len(votes)), key=lambda b: (-float(votes[b]), b))
        if blocks < len(order):
            gap = min(gap, float(votes[order[blocks - 1]] - votes[order[blocks]]))
        out.append(sorted(b + SINK // BLOCK for b in order[:blocks]))
    return out, gap
