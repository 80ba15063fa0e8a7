"""One Store and one working folder for the whole of LangChain's suites, so that each model is loaded once."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_agent_memory import ChatAgentMemory
from tests.standard.rewriting import save_rewriting_model


@pytest.fixture(autouse=True, scope="package")
def one_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, before = tmp_path_factory.mktemp("standard"), Path.cwd()
    save_rewriting_model(folder / "rewriting")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AGENT_MEMORY_")]:
            patch.delenv(name)
        patch.chdir(folder)
        yield folder
        for model in (None, "rewriting"):
            ChatAgentMemory(model=model, store="memory", options=OPTIONS).close()
    assert Path.cwd() == before


@pytest.fixture(autouse=True)
def one_of_the_partners(monkeypatch: pytest.MonkeyPatch) -> None:
    """``load(allowed_objects="all")`` means the classes in LangChain's own table; others are named: ``allowed_objects=[ChatAgentMemory]``
    (as in tests/integrations/test_langchain.py). The suite says ``all``, so here we are in the table."""
    load_module = importlib.import_module("langchain_core.load.load")  # the package has a function of that name
    paths = load_module._get_default_allowed_class_paths("all") | {tuple(ChatAgentMemory.lc_id())}
    monkeypatch.setitem(load_module._default_class_paths_cache, "all", paths)


OPTIONS = {"window": 2048, "threads": 1}
"""The tools of these suites take more room than a quarter of the pocket model's window."""
