"""What has to hold before any test module is imported.

Triton decides when it is first imported whether its own library is interpreted, and torch or transformers may import it for another test.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
