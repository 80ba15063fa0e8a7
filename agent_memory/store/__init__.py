"""Durable truth: turns and token ids in an SQLite index, keys and values as immutable Segment files.

Knows bytes, dtype names and shapes; never imports torch, and knows nothing of models.
"""
