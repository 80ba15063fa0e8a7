"""A byte-level tokenizer made on the spot, so that characters and stop strings fall apart over tokens; and a user's cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MERGED = [("l", "l"), ("h", "e"), ("he", "ll"), ("hell", "o"), ("S", "T")]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, a few merges, and three special tokens: ``<pad>`` 0, ``<s>`` 1, ``</s>`` 2."""
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGED)]
    backend = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, MERGED))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")  # noqa: S106


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's cache folder keeps what is ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "agent-memory"
