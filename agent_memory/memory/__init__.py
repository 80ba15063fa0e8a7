"""Where keys and values are now: Blocks in byte-bounded Tiers, and what is known of each Block without reading it.

Knows tensors and byte budgets; nothing of models, files or SQL.
"""
