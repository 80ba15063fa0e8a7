"""Looking at a Store and changing it, without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent_memory.errors import StoreStopped
from agent_memory.store.store import Store
from tests.cli.conftest import LAYOUT, MODEL, RECALL, Result

Cli = Callable[..., Result]
IN_CHILD = """
import sys
from agent_memory.cli import main
for words in (["sessions"], ["show", "alpha"], ["recall", "alpha"], ["verify"]):
    try:
        main(words)
    except SystemExit as left:
        print(words[0], left.code, "torch" in sys.modules, file=sys.stderr)
"""


def test_sessions_tell_disk_use(cli: Cli, filled: Path) -> None:
    answer = cli("sessions", "--json").json
    assert [info["name"] for info in answer["sessions"]] == ["alpha"]
    assert answer["bytes"] == answer["sessions"][0]["bytes"] > 2 * 32 * 8 * 4
    assert [info["name"] for info in cli("sessions", "--all", "--json").json["sessions"]] == ["alpha", "alpha/1"]
    people = cli("sessions").out
    assert "alpha" in people and "KiB" in people and "1 Session," in people


def test_sessions_of_another_namespace_are_not_listed(cli: Cli, filled: Path) -> None:
    assert cli("sessions", "--all", "--json", "-n", "bob").json["sessions"] == []


def test_show_lists_the_last_turns(cli: Cli, filled: Path) -> None:
    answer = cli("show", "alpha", "--last", "2", "--json").json
    assert [turn["role"] for turn in answer["turns"]] == ["user", "assistant"]
    assert (answer["session"]["turns"], answer["session"]["tokens"], answer["session"]["kv_tokens"]) == (3, 54, 32)
    assert "registry" in cli("show", "alpha").out


@pytest.mark.parametrize("option", [[], ["--full"]])
def test_show_never_sends_control_characters_to_the_terminal(cli: Cli, filled: Path, option: list[str]) -> None:
    out = cli("show", "alpha", *option).out
    assert "\x1b[2J" not in out
    assert "version: 4.1.7" in out


def test_recall_shows_what_memory_contributed(cli: Cli, filled: Path) -> None:
    answer = cli("recall", "alpha", "--json").json
    assert answer["replies"][0]["turn"] == 2
    assert answer["replies"][0]["recall"]["turns"][0]["tier"] == "disk"
    people = cli("recall", "alpha").out
    assert "disk" in people and "certified" in people
    assert "75.0%" in people and "of selections" in people and "attention" not in people, "a record of a version without shares"


def test_recall_shows_how_the_attention_was_shared_out(cli: Cli, filled: Path) -> None:
    turn = RECALL.turns[0]
    hits = tuple(replace(turn, turn=number, score=score) for number, score in ((0, 0.125), (1, 0.0625)))
    known = replace(RECALL, turns=hits, sink_share=0.5, local_share=0.125, other_share=0.0625, unread_share=0.125)
    unknown = replace(RECALL, turns=(replace(turn, score=None),))
    with Store.open("memory") as store, closing(store.session("alpha", model=MODEL, layout=LAYOUT)) as timeline:
        for recall in (known, unknown):
            timeline.append_turn("assistant", "4.1.7", np.arange(5), chain="d", recall=recall.to_dict())
    both = cli("recall", "alpha", "--last", "2").out
    assert "attention 25.0% recalled, 50.0% sink, 12.5% local, 12.5% unread" in both and both.count("recalled, ") == 1
    assert both.index("12.5%") < both.index("6.2%") and both.count("of attention") == 2 and "of selections" not in both
    assert cli("recall", "alpha", "--last", "2", "--json").json["replies"][1]["recall"]["turns"][0]["score"] is None


def test_export_delete_import_brings_a_session_back(cli: Cli, filled: Path, tmp_path: Path) -> None:
    before = cli("show", "alpha", "--json").json["turns"]
    archive = str(tmp_path / "alpha.archive")
    assert cli("export", "alpha", archive, "--json").json["bytes"] > 0
    assert cli("delete", "alpha", "--yes", "--json").json["deleted"] == "alpha"
    assert cli("show", "alpha").code == 1
    assert cli("import", archive, "--name", "again", "--json").json["name"] == "again"
    after = cli("show", "again", "--json").json["turns"]
    assert [(turn["role"], turn["text"], turn["tokens"]) for turn in after] == [
        (turn["role"], turn["text"], turn["tokens"]) for turn in before
    ]


def test_verify_is_silent_about_a_whole_store(cli: Cli, filled: Path) -> None:
    done = cli("verify", "--json")
    assert (done.code, done.json["ok"], done.json["sessions"], done.json["damage"]) == (0, True, 2, [])


def test_verify_names_the_damage_and_exits_with_1(cli: Cli, filled: Path) -> None:
    segment = next(filled.rglob("*.safetensors"))
    damaged = bytearray(segment.read_bytes())
    damaged[-1] ^= 1
    segment.write_bytes(bytes(damaged))
    done = cli("verify", "--json")
    assert (done.code, done.json["ok"]) == (1, False)
    assert {found["block"] for found in done.json["damage"]} == {0}
    assert "damaged" in cli("verify").out


def test_delete_asks_and_takes_silence_for_no(cli: Cli, filled: Path) -> None:
    done = cli("delete", "alpha")
    assert done.code == 1 and "pass --yes" in done.err
    assert cli("show", "alpha").code == 0


def test_prune_takes_only_what_is_old(cli: Cli, filled: Path) -> None:
    assert cli("prune", "--older-than", "1h", "--yes", "--json").json == {"pruned": [], "skipped": [], "bytes": 0, "dry_run": False}
    preview = cli("prune", "--older-than", "0h", "--dry-run", "--json").json
    assert preview["pruned"] == ["alpha", "alpha/1"]
    assert cli("show", "alpha").code == 0
    assert cli("prune", "--older-than", "0h", "--yes", "--json").json["pruned"] == ["alpha", "alpha/1"]
    assert cli("sessions", "--all", "--json").json["sessions"] == []


def test_prune_leaves_what_is_in_use_and_goes_on_with_the_rest(cli: Cli, filled: Path) -> None:
    with Store.open("memory") as store, closing(store.session("beta", model=MODEL, layout=LAYOUT)) as beta:
        beta.append_turn("user", "?", np.arange(1), chain="a")
        store.session("gamma", model=MODEL, layout=LAYOUT).close()
        with closing(store.session("alpha", model=MODEL, layout=LAYOUT)):
            done = cli("prune", "--older-than", "0h", "--yes", "--json")
            assert (done.code, done.json["pruned"]) == (0, ["alpha/1", "gamma"])
            assert [(skipped["session"], "in use" in skipped["reason"]) for skipped in done.json["skipped"]] == [
                ("alpha", True),
                ("beta", True),
            ]
        people = cli("prune", "--older-than", "0h", "--yes").out
        assert "deleted 1 Session\n  alpha\n" in people and "left 1 Session that is in use\n  beta: " in people
    assert [info["name"] for info in cli("sessions", "--all", "--json").json["sessions"]] == ["beta"]


def test_prune_tells_what_it_did_before_an_error(cli: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.delete

    def stopped(store: Store, name: str, namespace: str = "default") -> None:
        if name == "alpha/1":
            raise StoreStopped("a write failed to reach the disk; open the store again")
        real(store, name, namespace)

    monkeypatch.setattr(Store, "delete", stopped)
    done = cli("prune", "--older-than", "0h", "--yes", "--json")
    assert (done.code, done.json["pruned"]) == (1, ["alpha"]) and "failed to reach the disk" in done.err


def test_looking_at_a_store_does_not_import_torch(filled: Path) -> None:
    child = subprocess.run([sys.executable, "-c", IN_CHILD], capture_output=True, text=True, check=True)
    assert child.stderr.splitlines() == [f"{name} 0 False" for name in ("sessions", "show", "recall", "verify")]


def test_a_reader_that_leaves_early_is_told_nothing(filled: Path) -> None:
    with Store.open("memory") as store:
        timeline = store.session("long", model=MODEL, layout=LAYOUT)
        timeline.append_turn("tool", "x" * 4_000_000, [1], chain="a")
    for option in ("--full", "--json"):
        line = f"{sys.executable} -m agent_memory.cli show long {option} | head -c 10"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert (len(done.stdout), done.stderr) == (10, "")


def test_json_is_all_there_is_on_standard_output(cli: Cli, filled: Path) -> None:
    for words in (("sessions",), ("show", "alpha"), ("recall", "alpha"), ("verify",)):
        done = cli(*words, "--json")
        assert json.loads(done.out) and done.out.count("\n") == 1 and done.err == ""


def test_an_empty_name_is_no_name(cli: Cli, filled: Path) -> None:
    cli("export", "alpha/1", "a.zip")
    cli("delete", "alpha/1", "--yes")
    for words in (["import", "a.zip", "--name", ""], ["sessions", "-n", ""], ["attach-check", ""], ["verify", ""]):
        left = cli(*words)
        assert left.code == 1 and len(left.err.splitlines()) == 1, words
    assert [info["name"] for info in cli("sessions", "--all", "--json").json["sessions"]] == ["alpha"]
