"""Sizes as people write them."""

from __future__ import annotations

import pytest

from agent_memory.errors import ConfigError
from agent_memory.memory.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0), (4096, 4096), ("0", 0), ("17", 17), ("17B", 17), ("1KiB", 1024), ("8GiB", 8 << 30), ("8 gib", 8 << 30), (" 2TiB ", 2 << 40),
        ("500MB", 500_000_000), ("1.5GiB", 3 << 29), ("0.5kb", 500), ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_understood(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1", -1, "8G", "8 giga", "1e9", "1,5GiB", "0x10", "1.GiB", ".5GiB", "inf", "nan", True, None, 1.5, "٣KiB", "9" * 5000],
)
def test_garbage_is_refused_by_name(text: object) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)  # type: ignore[arg-type]
