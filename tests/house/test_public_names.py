"""The names this package promises, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import agent_memory

RUN_IN_CHILD = """
import json, sys
import agent_memory
print(json.dumps(sorted(name for name in ("torch", "transformers", "sqlalchemy", "pydantic") if name in sys.modules)))
"""


def test_import_is_cheap() -> None:
    done = subprocess.run([sys.executable, "-c", RUN_IN_CHILD], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_names_are_sorted() -> None:
    assert agent_memory.__all__ == sorted(agent_memory.__all__)


@pytest.mark.parametrize("name", agent_memory.__all__)
def test_every_promised_name_is_there(name: str) -> None:
    assert getattr(agent_memory, name) is not None


def test_promised_names_are_the_ones_that_can_be_had() -> None:
    promised = {name for names in agent_memory._ROOMS.values() for name in names} | {"__version__"}
    assert promised == set(agent_memory.__all__)
    assert promised <= set(dir(agent_memory))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Manager'"):
        _ = agent_memory.Manager


def test_version_is_the_installed_one() -> None:
    assert version("agent-kv-memory") == agent_memory.__version__
