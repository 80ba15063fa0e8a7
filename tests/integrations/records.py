"""Records that the pocket model can look up and answer about, made by its generator, and a tool that knows them."""

from __future__ import annotations

import random

from langchain_core.tools import BaseTool, tool

from agent_memory.pocket import data


def records(count: int, seed: int = 0) -> list[data.Record]:
    """Records of different names, without dots, two fields each."""
    rng, found = random.Random(seed), dict[str, data.Record]()
    while len(found) < count:
        record = data.make_record(rng, n_fields=2)
        if "." not in record.name:
            found.setdefault(record.name, record)
    return list(found.values())


def lookup_tool(known: list[data.Record]) -> BaseTool:
    """LangChain's tool over the records."""
    named = {record.name: record for record in known}

    @tool
    def lookup(name: str) -> str:
        """Look up a record."""
        return data.render(named[name], "lines") if name in named else "no such record"

    return lookup
