"""Bootstrap intervals of ratios of sums, drawn by document."""

from __future__ import annotations

import numpy as np
import pytest

from agent_memory.errors import ConfigError
from agent_memory.evaluate.statistics import bootstrap_mean, bootstrap_ratio


def test_documents_are_drawn_not_questions() -> None:
    assert bootstrap_ratio([0.0, 8.0], [8.0, 8.0]) == (0.0, 1.0)  # eight questions of each document agree: there are two draws, not 16
    low, high = bootstrap_mean([0.0] * 8 + [1.0] * 8)
    assert 0.2 < low < high < 0.8


def test_the_interval_is_that_of_ratios_of_sums_of_every_draw() -> None:
    rng = np.random.default_rng(5)
    parts, wholes = rng.random(12), rng.integers(1, 9, 12).astype(float)
    drawn = np.random.default_rng(3).integers(0, 12, (500, 12))
    ratios = [parts[row].sum() / wholes[row].sum() for row in drawn]
    given = (parts.tolist(), wholes.tolist())
    assert bootstrap_ratio(*given, draws=500, seed=3) == pytest.approx(np.quantile(ratios, [0.025, 0.975]))
    assert bootstrap_ratio(*given, seed=3) == bootstrap_ratio(*given, seed=3) != bootstrap_ratio(*given, seed=4)
    low, high = bootstrap_ratio(*given)
    assert low < parts.sum() / wholes.sum() < high


def test_draws_without_anything_to_divide_by_are_left_out() -> None:
    assert bootstrap_ratio([0.0, 3.0], [0.0, 4.0]) == (0.75, 0.75)


@pytest.mark.parametrize(("parts", "wholes"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_what_gives_no_interval_is_refused(parts: list[float], wholes: list[float]) -> None:
    with pytest.raises(ConfigError):
        bootstrap_ratio(parts, wholes)
