"""The pocket model: a small real checkpoint shipped in the package.

Knows where its weights lie and what was measured of them. It does not load them, and imports nothing heavy.
"""

import json
from pathlib import Path

__all__ = ["in_window_exact", "path"]


def path() -> Path:
    """The folder with config.json, model.safetensors, and tokenizer.json of the pocket model."""
    return Path(__file__).with_name("weights")


def in_window_exact() -> float | None:
    """Score A: exact answers inside the window, the lower of generated and real records; None if these weights were not scored."""
    file = path() / "scores.json"
    return float(json.loads(file.read_text(encoding="utf-8"))["score_a"]) if file.exists() else None
