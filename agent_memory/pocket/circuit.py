"""The pocket model's starting weights: a copying circuit laid down by hand, for training to refine.

Knows which residual dimensions hold what. Layer 1 writes the eight previous tokens, each into dimensions of its own;
layer 2 writes a digest of the eight before those; layers 3 and 4 look for the place where the same tokens went before,
by content alone (slow rotary pairs), and copy what followed there. It knows no data and no training.
"""

from typing import Any

import torch

VOCABULARY, HIDDEN, LAYERS, HEADS, GROUPS, HEAD = 3072, 320, 4, 8, 2, 64
INNER, WINDOW, THETA = 320, 512, 1e5
OWN, PAST, DIGEST = 64, 24, 32  # residual: own token, 8 x previous token, 2 digests (as key, as query)
RECALL_LAYERS = (2,)  # the layer whose queries find facts by content; memory lets it choose for those after it
FAST, SLOW = 8, 17  # rotary pairs below FAST turn quickly enough to tell offsets; from SLOW on they carry content

QUIET = 12  # pairs that training lets fade in the layer that finds facts


def config() -> Any:
    """The stock configuration: Llama with attention biases.

    Not Qwen2, for which AutoTokenizer puts Qwen2's own cut of the text in the place of the saved one.
    """
    from transformers import LlamaConfig

    made = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=HEAD, max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": THETA}, tie_word_embeddings=True, attention_bias=True,
        pad_token_id=0, bos_token_id=None, eos_token_id=1, rms_norm_eps=1e-6,
    )  # fmt: skip
    made.recall_layers = list(RECALL_LAYERS)
    return made


def _past(offset: int) -> slice:
    start = OWN + PAST * (offset - 1)
    return slice(start, start + PAST)


def _digest(which: int) -> slice:
    start = OWN + PAST * 8 + DIGEST * which
    return slice(start, start + DIGEST)


def _orthonormal(rows: int, columns: int, seed: torch.Generator) -> torch.Tensor:
    """Random with orthonormal rows, or columns where there are fewer of them."""
    matrix = torch.randn(max(rows, columns), min(rows, columns), generator=seed)
    square: torch.Tensor = torch.linalg.qr(matrix).Q
    return square if rows >= columns else square.T


def _slow() -> torch.Tensor:
    """The head dimensions that positions hardly turn."""
    pairs = torch.arange(SLOW, HEAD // 2)
    return torch.cat([pairs, pairs + HEAD // 2])


def _look_back(attention: Any, head: int, offset: float, strength: float) -> None:
    """Bias one query head towards the key so many places back (its group's key bias must be set)."""
    pairs = torch.arange(FAST)
    angle = THETA ** (-2.0 * pairs / HEAD) * offset
    base = head * HEAD
    # The score of offset d is strength^2 * sum cos(freq * (d - offset)) where the query is the key turned back.
    attention.q_proj.bias[base + pairs] = strength * torch.cos(angle)
    attention.q_proj.bias[base + HEAD // 2 + pairs] = -strength * torch.sin(angle)


def _mark_keys(attention: Any, group: int, strength: float) -> None:
    attention.k_proj.bias[group * HEAD + torch.arange(FAST)] = strength


def _previous_tokens(layer: Any, tokens: torch.Tensor, scale: float) -> None:
    """Layer 1: head i writes the token i places back into its own dimensions."""
    attention = layer.self_attn
    attention.v_proj.weight.zero_()
    attention.o_proj.weight.zero_()
    for group in range(GROUPS):
        _mark_keys(attention, group, 7.5)
        attention.v_proj.weight[group * HEAD : (group + 1) * HEAD, :OWN] = torch.eye(OWN)
    for head in range(HEADS):
        _look_back(attention, head, head + 1, 7.5)
        attention.o_proj.weight[_past(head + 1), head * HEAD : (head + 1) * HEAD] = scale * tokens


def _digests(layer: Any, scale: float, seed: torch.Generator) -> None:
    """Layer 2, second group: the eight tokens before the eight, as keys (8 back) and as queries (7 back) need them."""
    attention = layer.self_attn
    _mark_keys(attention, 1, 7.5)
    value = attention.v_proj.weight[HEAD:]
    value.zero_()
    for offset in range(1, 9):
        value[:DIGEST, _past(offset)] = _orthonormal(DIGEST, PAST, seed)
    value[DIGEST:, :OWN] = _orthonormal(HEAD - DIGEST, OWN, seed)
    for which, offset in ((0, 8), (1, 7)):
        head = HEADS // 2 + which
        _look_back(attention, head, offset, 7.5)
        attention.o_proj.weight[:, head * HEAD : (head + 1) * HEAD] = 0
        attention.o_proj.weight[_digest(which), head * HEAD : head * HEAD + DIGEST] = scale * torch.eye(DIGEST)


def _match(layer: Any, tokens: torch.Tensor, gain: float, sharp: float, seed: torch.Generator) -> None:
    """Layers 3 and 4: find where the same tokens went before, and copy the token that stands there."""
    attention = layer.self_attn
    slow = _slow()
    rows = len(slow)
    attention.q_proj.weight.mul_(0.1)
    attention.k_proj.weight.mul_(0.1)
    for group in range(GROUPS):
        exact = 8 if group == 0 else 2
        bag = _orthonormal(rows, PAST, seed)
        maps = [_orthonormal(rows, PAST, seed) if i < exact else bag for i in range(8)]
        last = _orthonormal(rows, DIGEST, seed)
        base = group * HEAD
        for offset in range(1, 9):
            attention.k_proj.weight[base + slow, _past(offset)] = sharp * maps[offset - 1]
        attention.k_proj.weight[base + slow, _digest(0)] = 0.4 * sharp * last
        for member in range(HEADS // GROUPS):
            head = group * (HEADS // GROUPS) + member
            for offset in range(1, 9):
                weight = sharp * _weight(member, offset)
                target = head * HEAD + slow
                if offset == 1:
                    attention.q_proj.weight[target, :OWN] = weight * maps[0] @ tokens
                else:
                    attention.q_proj.weight[target, _past(offset - 1)] = weight * maps[offset - 1]
            attention.q_proj.weight[head * HEAD + slow, _digest(1)] = 0.4 * sharp * last
        attention.v_proj.weight[base : base + HEAD] = 0
        attention.v_proj.weight[base : base + HEAD, :OWN] = torch.eye(OWN)
    attention.o_proj.weight.zero_()
    for head in range(HEADS):
        attention.o_proj.weight[:OWN, head * HEAD : (head + 1) * HEAD] = gain * torch.eye(OWN)


def _weight(member: int, offset: int) -> float:
    """How much each head of a group cares for the token that far back: the last ones, or all, or the earlier ones."""
    if member == 0:
        return 1.6 if offset <= 3 else 0.4
    if member == 1:
        return 1.0
    return 1.4 / (1 + 0.15 * offset) if member == 2 else (0.7 if offset <= 2 else 1.2)


@torch.no_grad()
def build(seed: int = 0) -> Any:
    """A fresh model with the circuit in place."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(config())
    tokens = _orthonormal(PAST, OWN, source)
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, 0.004, generator=source)
    embedding[:, :OWN] = torch.nn.functional.normalize(torch.randn(VOCABULARY, OWN, generator=source), dim=1)
    full = HIDDEN**0.5  # the length of a normalised residual vector
    first, second, third, fourth = model.model.layers
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(0.3)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(layer.self_attn, name).bias.zero_()
    first.self_attn.q_proj.weight.mul_(0.3)
    first.self_attn.k_proj.weight.mul_(0.3)
    _previous_tokens(first, tokens, (OWN / PAST) ** 0.5 / full)
    for group in range(GROUPS):  # layer 2, first group: attention starts as likeness
        heads = slice(group * HEAD, (group + 1) * HEAD)
        keys = second.self_attn.k_proj.weight[heads]
        for member in range(HEADS // GROUPS):
            start = (group * (HEADS // GROUPS) + member) * HEAD
            second.self_attn.q_proj.weight[start : start + HEAD] = keys
    _digests(second, 1.0 / full, source)
    length = 11**0.5 / full  # one unit part of a vector of about eleven such parts
    _match(third, tokens, 0.45 * length, 1.2, source)
    _match(fourth, tokens, 0.05 * length, 1.2, source)
    return model
