"""What has to hold before any test module is imported, and the real model that any test may ask for.

Triton decides when it is first imported whether its own library is interpreted, and torch or transformers may import it for another test.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct in fp32 with its tokenizer, what the name ``smollm2`` means; skips where it cannot be fetched."""
    from agent_memory.errors import ModelNotFound
    from agent_memory.model.locate import locate

    try:
        return Path(locate("smollm2"))
    except ModelNotFound as error:
        pytest.skip(str(error))
