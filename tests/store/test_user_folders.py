"""The user's cache folder, and a user who has no home folder: what is needed of one is said, and a model in a folder needs none."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory.config import Settings
from agent_memory.errors import AgentMemoryError, ConfigError
from agent_memory.evaluate.fidelity.run import FidelityOptions
from agent_memory.model.fingerprint import fingerprint
from agent_memory.model.locate import locate
from agent_memory.opening import open_runtime
from agent_memory.store.store import Store
from agent_memory.user_folders import cache_folder
from tests.integrations.tiny import save_tiny_model
from tests.model.conftest import byte_tokenizer
from tests.model.zoo import tiny
from tests.store.support import append, open_session


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id that a container was started with: no passwd entry, no ``HOME``."""

    def unknown(uid: object) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


WITHOUT_HOME: dict[str, tuple[Callable[[], Any], str]] = {
    "cache folder": (cache_folder, "XDG_CACHE_HOME"),
    "fidelity": (lambda: FidelityOptions(("full",)), "XDG_CACHE_HOME"),
    "a named model": (lambda: locate("smollm2"), "XDG_CACHE_HOME"),
    "a model under ~": (lambda: locate("~/model"), "HOME"),
    "a model under ~somebody": (lambda: locate("~somebody/model"), "whole path"),
    "a source under ~": (lambda: fingerprint(tiny("llama"), byte_tokenizer(), source="~/model"), "HOME"),
}


@pytest.mark.parametrize("use", WITHOUT_HOME)
def test_a_user_without_a_home_folder_is_told_what_to_set(no_home: None, use: str) -> None:
    call, named = WITHOUT_HOME[use]
    with pytest.raises(AgentMemoryError, match=named) as caught:
        call()
    assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)


def test_a_model_in_a_folder_needs_no_home(no_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(model=save_tiny_model(tmp_path / "model"), store=str(tmp_path / "store"), window=1024)
    with open_runtime(settings) as runtime, runtime.session("s") as session:
        session.append("user", "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "store"], "no folder called ~"


def test_xdg_cache_home_is_enough(no_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "agent-memory"
    assert FidelityOptions(("full",)).cache == tmp_path / "agent-memory" / "fidelity"


def test_a_store_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the home folder in the path of a Store, of its index and of an archive; no folder of that name is made."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    with Store.open("~/store") as store:
        append(open_session(store))
        store.export("s", "default", Path("~/s.zip"))
    with Store.open("sqlite:///~/other/index.sqlite") as store:
        assert store.import_(Path("~/s.zip")).turns == 1
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["other", "s.zip", "store"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
