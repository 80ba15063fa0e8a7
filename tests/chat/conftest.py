"""Tokenizers for the tests of this folder."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from tests.chat.builders import CHATML, ENDS, KINDS, TEMPLATES, byte_level, compatible, make

_made: dict[tuple[str, str], Any] = {}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer_of(kind: str) -> Any:
    """name of a template -> tokenizer"""

    def get(name: str) -> Any:
        if (kind, name) not in _made:
            _made[kind, name] = make(KINDS[kind], TEMPLATES[name], ENDS[name])
        return _made[kind, name]

    return get


@pytest.fixture
def custom() -> Any:
    """template, end -> tokenizer (byte-level)"""
    return lambda template, end="<|im_end|>", kind=byte_level: make(kind, template, end)


@pytest.fixture
def compatible_tokenizer() -> Any:
    tokenizer = make(compatible, CHATML + "{# <|steer|> #}", "<|im_end|>")
    tokenizer.add_tokens([AddedToken("<|steer|>", normalized=True)])
    return tokenizer
