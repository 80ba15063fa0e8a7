"""Turning queries and keys: the same whichever way a rotation is known, and whatever is in the buffers."""

import pytest
import torch

from agent_memory.attention.rotation import Buffers, Turning, rotated
from tests.attention import dense

DIM = 16


class InPart(dense.Rotations):
    """Turns the first ``r`` dimensions, and leaves the others."""

    def __init__(self, width):
        super().__init__(width)
        self.width = width

    def rotate(self, layer, x, cos, sin):
        return torch.cat([super().rotate(layer, x[..., : self.width], cos, sin), x[..., self.width :]], dim=-1)


class ByFunction(InPart):
    """The same, known by its own function alone."""

    def halves(self, layer, n):
        return None


@pytest.mark.parametrize("shape", [(7,), (3, 7), (3, 2, 7)])
@pytest.mark.parametrize("width", [DIM, DIM // 2])
@pytest.mark.parametrize("buffers", [None, Buffers()])
def test_halves_turn_as_the_models_own_function(shape, width, buffers):
    x, positions = torch.randn(3, 2, 7, DIM), torch.randint(0, 5000, shape)
    turning = Turning(InPart(width), 0, buffers, "here")
    (turn,) = turning.turns([positions])
    assert isinstance(turn, torch.Tensor) and turn.shape == (*shape, width)
    got = turning.turned(x, turn)
    torch.testing.assert_close(got, rotated(x, positions, ByFunction(width), 0), atol=1e-5, rtol=0)


def test_buffers_are_used_again_and_grow():
    buffers, like = Buffers(), torch.zeros(1)
    first = buffers.take("a", (2, 3), like)
    assert buffers.take("a", (3, 2), like).data_ptr() == first.data_ptr() != buffers.take("b", (2, 3), like).data_ptr()
    assert buffers.take("a", (7,), like).shape == (7,) and buffers.take("a", (2,), like.half()).dtype == torch.float16


def test_positions_that_are_no_integers_take_the_models_own_pair():
    x, positions = torch.randn(1, 2, 7, DIM), torch.arange(7) + 0.5
    turning = Turning(dense.Rotations(DIM), 0)
    (turn,) = turning.turns([positions])
    assert isinstance(turn, tuple)
    cos, sin = dense.Rotations(DIM).cos_sin(0, positions)
    torch.testing.assert_close(turning.turned(x, turn), dense.Rotations(DIM).rotate(0, x, cos, sin))
