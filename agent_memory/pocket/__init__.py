"""The pocket model: a small real checkpoint shipped in the package.

Knows where its weights lie. It does not load them, and imports nothing heavy.
"""

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """The folder with config.json, model.safetensors, and tokenizer.json of the pocket model."""
    return Path(__file__).with_name("weights")
