"""Whole models over memory: every map equals its dense forward however text is cut, and the methods that ought to be one are one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from agent_memory.attention.methods import Method, Sizes, make_method
from agent_memory.attention.positions import Attended, PackedPositions
from agent_memory.attention.region import LayerRule, Region, attend, turned
from agent_memory.attention.rotation import Turning
from agent_memory.attention.selectors import TopKSelector
from agent_memory_kernels import operations
from tests.attention import dense
from tests.attention.dense import FAR, MAPS, WINDOW, everything, sparse

TOKENS = 700
CLOSE = 2e-3
"""Stock transformers in fp32 is 1e-3 away from the dense forward in float64; a wrong position changes logits by 1 to 20."""


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.fixture(scope="module")
def expected(model, session_ids):
    """``expected(spec)``: the dense forward of the first ``TOKENS`` tokens."""
    made: dict[dense.Map, torch.Tensor] = {}

    def of(how: dense.Map) -> torch.Tensor:
        if how not in made:
            with torch.no_grad():
                made[how] = dense.forward(model, session_ids[:TOKENS], how)
        return made[how]

    return of


@pytest.fixture(scope="module")
def session_ids() -> torch.Tensor:
    return torch.randint(0, 97, (TOKENS,), generator=torch.Generator().manual_seed(1))


def test_the_dense_forward_is_the_model(model, expected, session_ids):
    with torch.no_grad():
        assert apart(model(session_ids[None]).logits[0], expected(MAPS["full"])) < CLOSE


@pytest.mark.parametrize("sizes", [[700], [1, 299, 300, 100], [192, 1, 191, 193, 123], [16] * 20 + [380]], ids=len)
@pytest.mark.parametrize("spec", MAPS)
def test_any_partition_is_the_dense_forward(drive, expected, session_ids, spec, sizes):
    """None of the published codes gives the same for a prompt in pieces: DCA's takes all of them for the last chunk's."""
    driver = drive(make_method(spec, WINDOW))
    assert driver.method.sizes is None
    out = torch.cat([driver.feed(part) for part in session_ids.split(sizes)])
    assert apart(out, expected(MAPS[spec])) < CLOSE


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=some.lists(some.integers(1, 300), min_size=2, max_size=12))
@pytest.mark.parametrize("spec", FAR)
def test_however_text_is_cut_the_logits_stay(drive, expected, session_ids, spec, cuts):
    driver, at = drive(make_method(spec, WINDOW)), 0
    for size in cuts:
        if at < TOKENS:
            out = driver.feed(session_ids[at : at + size])
            assert apart(out, expected(MAPS[spec])[at : at + size]) < CLOSE
            at += size


@pytest.mark.parametrize("spec", MAPS)
def test_a_decoded_token_is_its_row_of_a_longer_prefill(drive, expected, session_ids, spec):
    """Odd tokens too: Self-Extend's code floors ``W / G`` in decoding only. From 560 on, the chunk of 192 ends within."""
    driver = drive(make_method(spec, WINDOW))
    driver.feed(session_ids[:560])
    decoded = torch.cat([driver.feed(one) for one in session_ids[560:600].split(1)])
    assert apart(decoded, expected(MAPS[spec])[560:600]) < CLOSE


LOCAL = {
    "rerope:window=128:log_n=false": 128,
    "leaky_rerope:window=128:log_n=false": 128,
    "self_extend:neighbours=120:group=8": 120,
    "dca": 192,
    "dca:chunk=100:cap=180": 100,
    "string:shift=110:window=8": 110,
}


@pytest.mark.parametrize("spec", LOCAL)
def test_text_of_the_local_size_is_stock_and_longer_text_is_not(drive, model, session_ids, spec):
    """Distance w is w for ReRoPE too, and a cap above the chunk keeps true distances across its border: so 300 tokens on."""
    local = LOCAL[spec]
    with torch.no_grad():
        stock = model(session_ids[None, :600]).logits[0]
    out = drive(make_method(spec, WINDOW)).feed(session_ids[:600])
    assert apart(out[:local], stock[:local]) < 1e-4
    assert apart(out[local + 300 :], stock[local + 300 :]) > 0.1


SAME = [
    ("self_extend:neighbours=24:group=1", "full", TOKENS),
    ("leaky_rerope:window=24:factor=1:log_n=false", "full", TOKENS),
    ("leaky_rerope:window=24:factor=1000000000000", "rerope:window=24", TOKENS),
    ("leaky_rerope:window=24:factor=1000000000000:log_n=false", "rerope:window=24:log_n=false", TOKENS),
    ("dca:chunk=100:cap=199", "full", 200),
    ("dca:chunk=128:cap=255", "full", 256),
    ("string:shift=30:window=30", "full", TOKENS),
    ("self_extend:neighbours=24:group=24", "self_extend:neighbours=24:group=24:log_n=false", TOKENS),
]


@pytest.mark.parametrize(("one", "other", "tokens"), SAME)
def test_two_names_of_one_map(drive, session_ids, one, other, tokens):
    a, b = (drive(make_method(spec, WINDOW)).feed(session_ids[:tokens]) for spec in (one, other))
    assert apart(a, b) < CLOSE


def test_a_cap_below_two_chunks_is_not_plain(drive, session_ids):
    a, b = (drive(make_method(spec, WINDOW)).feed(session_ids[:200]) for spec in ("dca:chunk=100:cap=150", "full"))
    assert apart(a, b) > 0.1


COVERING = [(4096, 4096, 1), (4, 7, 4096), (4, -1, 4096)]
SIZES = Sizes(sink=32, recalled=64, local=48)


def all_chosen(k: int, clip: int, span: int, positions) -> Method:
    """ReAttention with so many keys, or such spans, that nothing is left out."""
    return Method(name="all", sizes=SIZES, selector=TopKSelector(k, clip, span, operations()), positions=positions)


@pytest.mark.parametrize(("k", "clip", "span"), COVERING)
def test_reattention_that_recalls_everything_is_full_attention(drive, expected, session_ids, k, clip, span):
    out = drive(all_chosen(k, clip, span, PackedPositions())).feed(session_ids)
    assert apart(out, expected(MAPS["full"])) < CLOSE


def beginning_at(border: int, how: dense.Map) -> dense.Map:
    """True positions for queries before ``border``: what fits into the attended set is attended as stock does."""

    def place(i: torch.Tensor, j: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        phi, psi = how.place(i, j)
        return torch.where(i < border, i.double(), phi.double()), torch.where(i < border, j.double(), psi.double())

    return dense.Map(place, how.log_n)


@pytest.mark.parametrize("spec", ["rerope", "self_extend:neighbours=24:group=4", "dca:chunk=20:cap=30", "infllm:local=64"])
def test_a_selector_of_everything_beside_a_map_is_the_map_beyond_the_attended_set(drive, expected, session_ids, spec):
    out = drive(all_chosen(4, 7, 4096, make_method(spec, WINDOW).positions)).feed(session_ids)
    how = MAPS.get(spec, dense.infllm(64))
    assert apart(out, expected(beginning_at(SIZES.attended, how))) < CLOSE


@pytest.mark.parametrize("n", [17, 64])
def test_everything_at_the_positions_of_infllm_is_rerope_of_one_less(drive, expected, session_ids, n):
    """InfLLM: D < n true, beyond n - 1. ReRoPE with w = n - 1: min(D, n - 1). At D = n - 1 both are n - 1."""
    out = drive(make_method(f"rerope:window={n - 1}:log_n=false", WINDOW)).feed(session_ids)
    assert apart(out, expected(dense.infllm(n))) < CLOSE


@pytest.mark.parametrize("tokens", [everything(300, 60), sparse(3, 16, seed=6)], ids=["all", "heads"])
def test_the_positions_of_infllm_are_those_of_rerope(tokens):
    queries, attended = case(*tokens)
    one, other = (make_method(spec, WINDOW).positions.regions(attended) for spec in ("infllm:local=65", "rerope:window=64:log_n=false"))
    assert apart(merged(queries, one), merged(queries, other)) < 1e-5


@pytest.mark.parametrize(
    "spec", ["recall:score=max+rerope", "reattention+self_extend:neighbours=24:group=4", "streaming+dca:chunk=20:cap=30"]
)
def test_combinations_do_not_depend_on_the_cut(drive, session_ids, spec):
    method, ids = make_method(spec, WINDOW), session_ids[:688]
    one = drive(method).feed(ids)
    driver = drive(method)
    other = torch.cat([driver.feed(part) for part in ids.split([256, 64, 16, 304, 48])])
    assert apart(one, other) < CLOSE
    assert apart(one, drive(make_method(spec.split("+")[0], WINDOW)).feed(ids)) > 0.1


@pytest.mark.parametrize("spec", ["recall", "recall+rerope", "recall+dca", "recall:attended=128"])
def test_single_tokens_are_chosen_alike_however_text_is_cut_but_for_ties(drive, session_ids, spec):
    """Products of other shapes round otherwise, and of two tokens that weigh the same either may be read: of these random weights the last
    chosen token still holds a part of the attention that is seen. A wrong one of any weight changes logits by 1 to 20."""
    method, ids = make_method(spec, WINDOW), session_ids[:688]
    one = drive(method).feed(ids)
    driver = drive(method)
    other = torch.cat([driver.feed(part) for part in ids.split([256, 64, 16, 304, 48])])
    differences = (one - other).abs().amax(1)
    assert differences.max() < 0.3 and differences[:300].median() < CLOSE


def columns(region: Region, at: torch.Tensor) -> Region:
    """A Region of the keys ``at`` only."""
    visible = region.visible
    if visible is not None:
        visible = visible.expand(*visible.shape[:-1], region.keys.shape[2])[..., at]
    psi = region.key_positions.expand(*region.key_positions.shape[:-1], region.keys.shape[2])[..., at]
    return dataclasses.replace(region, keys=region.keys[:, :, at], values=region.values[:, :, at], key_positions=psi, visible=visible)


def case(tokens: torch.Tensor, asked: torch.Tensor) -> tuple[torch.Tensor, Attended]:
    queries, keys, values = dense.random(tokens, asked.shape[1], (6, 3, 16), seed=0)
    return queries, Attended(keys, values, tokens, asked)


def merged(queries: torch.Tensor, regions: list[Region]) -> torch.Tensor:
    return attend(queries, turned(queries, regions, Turning(dense.Rotations(16), 0)), LayerRule(0, 0.25), operations())


@pytest.mark.parametrize("tokens", [everything(200, 60), sparse(1, 16, seed=5), sparse(3, 16, seed=6)], ids=["all", "shared", "heads"])
@pytest.mark.parametrize("spec", MAPS)
def test_splitting_the_keys_of_regions_changes_nothing(spec, tokens):
    """Also where one part has no key that a query sees."""
    queries, attended = case(*tokens)
    regions = make_method(spec, WINDOW).positions.regions(attended)
    whole = merged(queries, regions)
    for seed in range(3):
        parts = []
        for region in regions:
            order = torch.randperm(region.keys.shape[2], generator=torch.Generator().manual_seed(seed))
            cut = (1, len(order) // 3, len(order) - 1)[seed]
            parts += [columns(region, half.sort().values) for half in (order[:cut], order[cut:]) if len(half)]
        assert apart(merged(queries, parts), whole) < 1e-5


@pytest.mark.parametrize("tokens", [everything(200, 60), sparse(1, 16, seed=5), sparse(3, 16, seed=6)], ids=["all", "shared", "heads"])
def test_keys_at_one_position_have_no_order(tokens):
    """ReRoPE's far keys all stand at 0: positions, values and visibility move along, and nothing else may matter."""
    queries, attended = case(*tokens)
    regions = make_method("rerope:window=16", WINDOW).positions.regions(attended)
    far = [region for region in regions if bool((region.key_positions == region.key_positions.flatten()[0]).all())]
    assert len(far) == 1
    order = torch.randperm(far[0].keys.shape[2], generator=torch.Generator().manual_seed(0))
    visible = far[0].visible
    assert visible is not None
    shuffled = dataclasses.replace(
        far[0],
        keys=far[0].keys[:, :, order],
        values=far[0].values[:, :, order],
        visible=visible.expand(*visible.shape[:-1], len(order))[..., order],
    )
    others = [region for region in regions if region is not far[0]]
    assert apart(merged(queries, [*others, shuffled]), merged(queries, regions)) < 1e-5
