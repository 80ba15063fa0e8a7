"""Each position map, on keys made up here, equals its formula evaluated pair by pair in float64 (``dense.py``)."""

from __future__ import annotations

import re

import pytest
import torch

from agent_memory.attention.methods import make_method
from agent_memory.attention.positions import Attended
from agent_memory.attention.region import LayerRule, attend, turned
from agent_memory.attention.rotation import Turning
from agent_memory.errors import ConfigError
from agent_memory_kernels import operations
from tests.attention import dense
from tests.attention.dense import MAPS, WINDOW, everything, sparse

HEADS, KV_HEADS, DIM = 6, 3, 16
BOUNDED = {
    "recall+rerope:window=16:log_n=false": "rerope:window=16:log_n=false",
    "recall+rerope": "rerope",
    "reattention+self_extend:neighbours=24:group=4": "self_extend:neighbours=24:group=4",
    "streaming+leaky_rerope": "leaky_rerope",
    "recall+dca": "dca",
    "reattention+dca-code": "dca-code",
    "recall+dca:chunk=20:cap=30": "dca:chunk=20:cap=30",
    "recall+string:shift=30:window=8": "string:shift=30:window=8",
    "reattention+full": "full",
    "infllm": "infllm",
    "infllm:local=64": "infllm:local=64",
}
PLACED = {**MAPS, "infllm": dense.infllm(128), "infllm:local=64": dense.infllm(64)}


def case(tokens: torch.Tensor, asked: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, Attended]:
    """Random queries, and random keys and values for ``tokens``."""
    queries, keys, values = dense.random(tokens, asked.shape[1], (HEADS, KV_HEADS, DIM), seed)
    return queries, Attended(keys, values, tokens, asked)


def ours(spec: str, queries, attended: Attended, rule: dense.Rule, rotary=None) -> torch.Tensor:
    """The method's Regions of ``attended``, merged."""
    regions = make_method(spec, WINDOW).positions.regions(attended)
    layer = LayerRule(0, rule.scaling, rule.sinks, rule.softcap)
    return attend(queries, turned(queries, regions, Turning(rotary or dense.Rotations(queries.shape[-1]), 0)), layer, operations())


PLAIN = dense.Rule(DIM**-0.5)
SINKS = torch.linspace(-1.0, 2.0, HEADS)
RULES = {"plain": PLAIN, "sinks": dense.Rule(0.2, sinks=SINKS), "softcap-and-sinks": dense.Rule(0.4, softcap=3.0, sinks=SINKS)}


def differs(spec: str, of: str, tokens, asked, rule: dense.Rule = PLAIN, seed: int = 0) -> float:
    """Largest difference between a method and the formula called ``of``."""
    queries, attended = case(tokens, asked, seed)
    expected = dense.attention(queries, attended.keys, attended.values, tokens, asked, PLACED[of], rule)
    return float((ours(spec, queries, attended, rule) - expected).abs().max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("n", "count"), [(420, 420), (1100, 7), (300, 1), (9, 9), (1, 1)])
@pytest.mark.parametrize("spec", MAPS)
def test_attention_to_everything_is_the_formula(spec, n, count, rule):
    """With as many queries as keys the first rows have no far keys; with nine tokens no row has."""
    assert differs(spec, spec, *everything(n, count), RULES[rule]) < 1e-4


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scope", [1, KV_HEADS])
@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("spec", MAPS)
def test_attention_to_chosen_tokens_is_the_formula_at_their_true_indices(spec, count, scope, rule):
    """One group starts the text and has nothing far; the others have gaps, -1 between keys, and other keys for each KV head."""
    assert differs(spec, spec, *sparse(scope, count, seed=count + scope), RULES[rule]) < 1e-4


@pytest.mark.parametrize("scope", [1, KV_HEADS])
@pytest.mark.parametrize("spec", BOUNDED)
def test_a_combination_selects_as_its_first_part_and_places_as_its_second(spec, scope):
    first, of = make_method(spec.split("+")[0], WINDOW), BOUNDED[spec]
    method = make_method(spec, WINDOW)
    assert method.sizes == first.sizes
    assert type(method.selector) is type(first.selector)
    assert differs(spec, of, *sparse(scope, 16, seed=3)) < 1e-4


@pytest.mark.parametrize("spec", dense.FAR)
def test_a_tile_may_begin_at_any_residue_of_chunk_and_group(spec):
    """40 is a multiple of the small chunk and of both groups; 192 and 160, where the large chunks end, are crossed too."""
    for first in (150, 180, 365):
        starts = torch.arange(first, first + 40)
        tokens, asked = torch.arange(first + 45).expand(40, 1, -1).clone(), starts[:, None] + torch.arange(5)
        for group, start in enumerate(starts.tolist()):  # the last keys are the queries' own: those after them are not there
            tokens[group, 0] = torch.cat([torch.full((40 - group,), -1), torch.arange(start + 5)])
        assert differs(spec, spec, tokens, asked) < 1e-4


@pytest.mark.parametrize("count", [3, 30, 65])
def test_a_tile_over_several_chunks_appended_to_memory_is_dual_chunk_attention(count):
    """ChunkLlama takes every query of a prefill onto memory for one of the last chunk, and lets it see the tokens after it."""
    for n in range(90, 111):
        assert differs("dca:chunk=20:cap=30", "dca:chunk=20:cap=30", *everything(n, count)) < 1e-4


@pytest.mark.parametrize("spec", MAPS)
def test_query_heads_in_a_row_share_a_kv_head(spec):
    """Pairing is ``h // g``. ReAttention's decoding and others pair ``h mod Hk``, which mixes heads."""
    tokens, asked = everything(100, 100)
    queries, attended = case(tokens, asked)
    names = torch.arange(float(KV_HEADS))[None, :, None, None].repeat(1, 1, 100, DIM)
    out = ours(spec, queries, Attended(attended.keys, names, tokens, asked), PLAIN)
    expected = (torch.arange(HEADS) // (HEADS // KV_HEADS)).float()[None, :, None, None]
    assert float((out - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("spec", MAPS)
def test_equal_logits_give_every_key_the_same_share(spec):
    """A key counted in two regions would have two shares, one in none would have no share.

    STRING's prefill counts D = S twice: its window [S, 0] holds it already. InfLLM's prefill counts keys at the edge of its window
    twice, those that are local to one query of a chunk and far from another.
    """
    tokens, asked = everything(150, 150)
    keys = torch.randn(1, 1, 150, DIM, generator=torch.Generator().manual_seed(0))
    attended = Attended(keys, torch.eye(150)[None, None], tokens, asked)
    shares = ours(spec, torch.zeros(1, 1, 150, DIM), attended, PLAIN)[0, 0]
    expected = torch.ones(150, 150).tril() / torch.arange(1, 151)[:, None]
    assert float((shares - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("spec", MAPS)
def test_the_share_of_each_single_key_is_that_of_one_softmax(spec):
    tokens, asked = everything(150, 150)
    g = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(2, 1, 1, 150, DIM, generator=g) * 1.5
    attended = Attended(keys, torch.eye(150)[None, None], tokens, asked)
    shares = ours(spec, queries, attended, PLAIN)
    assert float((shares - dense.weights(queries, keys, tokens, asked, MAPS[spec], PLAIN)).abs().max()) < 1e-5
    assert float((shares.sum(-1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("spec", ["rerope:window=16:log_n=false", "dca:chunk=20:cap=30"])
def test_keys_nearby_keep_their_distance_far_into_a_text(spec):
    """Positions that count from the start of a text round off in a model's fp32 angles (by 0.06 rad at a million); distances do not."""
    start = 1_000_000
    near = torch.arange(start - 60, start + 16)
    tokens, asked = torch.cat([torch.arange(32), torch.arange(500_000, 500_032), near])[None, None], near[None, -16:]
    queries, attended = case(tokens, asked)
    expected = dense.attention(queries, attended.keys, attended.values, tokens, asked, MAPS[spec], PLAIN)
    out = ours(spec, queries, attended, PLAIN, dense.Rotations(DIM, torch.float32))
    assert float((out - expected).abs().max()) < 2e-4


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ropere", r"ropere"),
        ("", r"no method"),
        ("recall+ropere", r"ropere"),
        ("rerope+recall", r"rerope|recall"),
        ("recall+recall", r"recall"),
        ("full+rerope", r"full"),
        ("recall+rerope+dca", r"recall\+rerope\+dca"),
        ("full:window=3", r"window"),
        ("rerope:windw=16", r"windw"),
        ("dca:neighbours=16", r"neighbours"),
        ("rerope:window", r"window"),
        ("rerope:window=16:window=17", r"window"),
        ("rerope:window=wide", r"window.*wide"),
        ("rerope:window=16.5", r"window.*16\.5"),
        ("rerope:log_n=maybe", r"log_n.*maybe"),
        ("leaky_rerope:factor=much", r"factor.*much"),
        ("leaky_rerope:factor=nan", r"factor.*nan"),
        ("leaky_rerope:factor=inf", r"factor.*inf"),
        ("self_extend:neighbours=24:group=x", r"group.*x"),
        ("dca:chunk=:cap=30", r"chunk"),
    ],
)
def test_a_spec_that_cannot_be_read_is_refused_by_name(spec, says):
    with pytest.raises(ConfigError, match=says) as caught:
        make_method(spec, WINDOW)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "value", "bound"),
    [
        ("rerope:window=256", 256, 256),
        ("rerope:window=300", 300, 256),
        ("rerope:window=0", 0, 1),
        ("recall+rerope:window=301", 301, 256),
        ("leaky_rerope:window=302", 302, 256),
        ("leaky_rerope:factor=0", 0, 1),
        ("dca:cap=256", 256, 255),
        ("dca:chunk=20:cap=400", 400, 255),
        ("dca:chunk=0", 0, 1),
        ("dca:chunk=60:cap=50", 60, 50),
        ("self_extend:neighbours=25:group=4", 25, 4),
        ("recall+self_extend:neighbours=40:group=16", 40, 16),
        ("self_extend:neighbours=24:group=0", 0, 1),
        ("string:shift=0:window=8", 0, 1),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_bound(spec, value, bound):
    """Self-Extend's ``W / G`` where G does not divide W is a fraction in prefill and a floor in decoding: two different maps."""
    with pytest.raises(ConfigError) as caught:
        make_method(spec, WINDOW)
    assert {str(value), str(bound)} <= set(re.findall(r"\d+", str(caught.value).replace(spec, "", 1)))
