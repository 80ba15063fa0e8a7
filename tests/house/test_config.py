"""Settings: which source wins, and what a mistake says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent_memory.config import Settings
from agent_memory.errors import ConfigError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AGENT_MEMORY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults() -> None:
    settings = Settings.load()
    assert (settings.store, settings.namespace, settings.model, settings.method) == ("./memory", "default", None, "recall")


def test_keyword_beats_environment_beats_file_beats_default(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_folder / "agent-memory.toml").write_text('store = "file"\nmethod = "streaming"\nnamespace = "file"\n')
    monkeypatch.setenv("AGENT_MEMORY_STORE", "environment")
    monkeypatch.setenv("AGENT_MEMORY_METHOD", "full")
    settings = Settings.load(store="keyword", model=None)
    assert (settings.store, settings.method, settings.namespace, settings.model) == ("keyword", "full", "file", None)


@pytest.mark.parametrize(("written", "bytes_meant"), [("8GiB", 8 << 30), ("500MB", 500_000_000), (4096, 4096), ("0", 0)])
def test_sizes(written: str | int, bytes_meant: int) -> None:
    assert Settings.load(device=written).budget.device == bytes_meant


def test_how_tiers_are_used_is_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Settings.load().budget.cold, Settings.load().budget.prefetch) == ("exact", True)
    monkeypatch.setenv("AGENT_MEMORY_COLD", "int8")
    monkeypatch.setenv("AGENT_MEMORY_PREFETCH", "false")
    assert (Settings.load().budget.cold, Settings.load().budget.prefetch) == ("int8", False)


def test_attention_shares_are_on_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().attention_shares
    monkeypatch.setenv("AGENT_MEMORY_ATTENTION_SHARES", "false")
    assert not Settings.load().attention_shares
    assert Settings.load(attention_shares=True).attention_shares


def test_dtype_may_be_written_as_torch_does() -> None:
    assert Settings.load(dtype="torch.bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"device": "8 gigs"}, "device='8 gigs'"),
        ({"device": -1}, "device=-1"),
        ({"window": 0}, "window=0"),
        ({"dtype": "int3"}, "dtype='int3'"),
        ({"cold": "int3"}, "cold='int3'"),
        ({"storr": "x"}, "storr='x': unknown setting; known are store"),
    ],
)
def test_bad_keyword_is_one_line_naming_it(keywords: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(**keywords)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_MEMORY_WINDOW", "wide")
    with pytest.raises(ConfigError, match="AGENT_MEMORY_WINDOW='wide'"):
        Settings.load()


def test_misspelt_variable_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_MEMORY_STOER", "x")
    with pytest.raises(ConfigError, match="unknown environment variable AGENT_MEMORY_STOER"):
        Settings.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("store = ", "agent-memory.toml cannot be read"),
        ("colour = 3", "unknown setting"),
        ("window = -3", "window = -3 in agent-memory.toml"),
    ],
)
def test_bad_file_names_the_file(empty_folder: Path, text: str, message: str) -> None:
    (empty_folder / "agent-memory.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Settings.load()


@pytest.mark.parametrize("name", ["namespace", "store"])
def test_a_tenant_or_a_place_that_is_set_to_nothing_is_not_the_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=''"):
        Settings.load(**{name: ""})
    monkeypatch.setenv(f"AGENT_MEMORY_{name.upper()}", "")
    with pytest.raises(ConfigError, match=f"AGENT_MEMORY_{name.upper()}='' is empty"):
        Settings.load()
