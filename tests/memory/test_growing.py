"""Rows that grow and are shared: any order of appends, truncations and forks, against plain lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.memory.growing import GrowingRows


def numbered(start: int, n: int) -> torch.Tensor:
    return (torch.arange(start, start + n)[:, None] * 10 + torch.arange(2)).to(torch.int32)


def rows_of(rows: GrowingRows) -> list[int]:
    whole = torch.cat(rows.views())
    assert all(view.is_contiguous() for view in rows.views())
    assert 1 <= len(rows.views()) <= 2
    assert torch.equal(whole, rows.gather(torch.arange(len(rows))))
    assert torch.equal(whole, rows.slice(0, len(rows)))
    return [int(row) // 10 for row in whole[:, 0]]


STEP = st.tuples(st.sampled_from(["append", "truncate", "fork", "drop"]), st.integers(0, 7), st.integers(0, 9))


@settings(max_examples=500, derandomize=True, deadline=None)
@given(steps=st.lists(STEP, max_size=40), capacity=st.integers(1, 5))
def test_forks_never_disturb_each_other(steps: list[tuple[str, int, int]], capacity: int) -> None:
    family = [(GrowingRows((2,), torch.int32, capacity), list[int]())]
    fresh = 0
    for verb, who, n in steps:
        rows, expected = family[who % len(family)]
        if verb == "append":
            rows.append(numbered(fresh, n))
            expected.extend(range(fresh, fresh + n))
            fresh += n
        elif verb == "truncate":
            rows.truncate(n)
            del expected[n:]
        elif verb == "fork":
            family.append((rows.fork(n), expected[:n]))
        elif len(family) > 1:
            family.pop(who % len(family))
        for one, known in family:
            assert len(one) == len(known)
            assert rows_of(one) == known


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data(), own=st.integers(0, 6), base=st.integers(0, 6))
def test_slice_and_gather_across_the_seam(data: st.DataObject, own: int, base: int) -> None:
    parent = GrowingRows((2,), torch.int32)
    parent.append(numbered(0, base + 3))
    rows = parent.fork(base)
    rows.append(numbered(base, own))
    start, stop = data.draw(st.integers(0, base + own)), data.draw(st.integers(0, base + own + 3))
    assert torch.equal(rows.slice(start, stop), numbered(0, base + own)[start:stop])
    if base + own:
        index = torch.tensor(data.draw(st.lists(st.integers(0, base + own - 1), min_size=4, max_size=4))).view(2, 2)
        assert torch.equal(rows.gather(index), numbered(0, base + own)[index])
        part = torch.tensor([[1], [0]])
        assert torch.equal(rows.gather(index, part), numbered(0, base + own)[index, part])


@pytest.mark.parametrize("index", [5, -1])
@pytest.mark.parametrize("inherited", [0, 2, 5])
def test_rows_that_are_not_there_are_not_given(index: int, inherited: int) -> None:
    parent = GrowingRows((2,), torch.int32)
    parent.append(numbered(0, 9))
    rows = parent.fork(inherited)
    rows.append(numbered(inherited, 7 - inherited))
    rows.truncate(5)
    with pytest.raises(IndexError):
        rows.gather(torch.tensor([0, index]))
    with pytest.raises(IndexError):
        rows.gather(torch.tensor([0, index]), torch.tensor([0, 0]))


def test_a_fork_copies_nothing_and_a_fork_of_it_only_what_the_first_added() -> None:
    parent = GrowingRows((2,), torch.int32, capacity=4)
    parent.append(numbered(0, 100))
    child = parent.fork(90)
    assert child.views()[0].data_ptr() == parent.views()[0].data_ptr()
    assert (child.nbytes, parent.nbytes) == (0, 100 * 8)
    child.append(numbered(500, 3))
    grandchild = child.fork(92)
    assert grandchild.views()[0].data_ptr() == parent.views()[0].data_ptr()
    assert grandchild.nbytes == 4 * 8
    assert rows_of(grandchild) == [*range(90), 500, 501]


def test_rows_are_converted_and_kept_apart_from_what_was_given() -> None:
    rows = GrowingRows((2,), torch.float32)
    given = torch.ones(1, 2, dtype=torch.float64)
    rows.append(given)
    given.zero_()
    assert rows.views()[0].tolist() == [[1.0, 1.0]]
    with pytest.raises(RuntimeError):
        rows.append(torch.ones(2, 3))
    assert len(rows) == 1


def test_room_doubles() -> None:
    rows, moves, before = GrowingRows((1,), torch.int8, capacity=1), 0, 0
    for _ in range(1000):
        rows.append(torch.zeros(1, 1, dtype=torch.int8))
        moves, before = moves + (rows.nbytes != before), rows.nbytes
    assert moves == 11
    assert rows.nbytes == 1024


def test_every_fork_is_protected_not_only_the_latest() -> None:
    parent = GrowingRows((2,), torch.int32)
    parent.append(numbered(0, 10))
    first, second = parent.fork(8), parent.fork(3)
    parent.truncate(5)
    parent.append(numbered(50, 5))
    assert rows_of(first) == list(range(8))
    assert rows_of(second) == [0, 1, 2]
    assert rows_of(parent) == [*range(5), *range(50, 55)]
