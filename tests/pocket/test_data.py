"""The generated language: never a real name, one line a fact, the same for the same seed."""

# ruff: noqa: S311  (generated text, not secrets)

import json
import random
import subprocess
import sys

import pytest

from agent_memory.pocket import data, dialogues
from agent_memory.pocket.exact import real_records
from agent_memory.pocket.real import real_names


def test_no_generated_name_is_real():
    rng = random.Random(0)
    near = [data.make_name(rng, like=name) for name in sorted(real_names())[:300]]
    names = near + [data.make_record(rng).name for _ in range(3000)]
    assert not [name for name in names if data.is_real_name(name)]


def test_real_names_are_recognised_however_they_are_spelled():
    assert data.is_real_name("typing_extensions")
    assert data.is_real_name("Typing.Extensions")
    assert not data.is_real_name("quarn-vault")


def test_the_snapshot_holds_enough_real_records():
    records = real_records(random.Random(0))
    assert len(records) >= 150
    assert all(data.is_real_name(record.name) and record.fields for record in records)


def test_facts_are_single_lines_and_json_is_json():
    rng = random.Random(1)
    for _ in range(500):
        record = data.make_record(rng)
        for layout in data.LAYOUTS:
            assert data.render(record, layout).count("\n") == len(record.fields) - 1
        for line in data.render(record, "json").split("\n"):
            assert json.loads(line)["name"] == record.name


def test_the_pin_layout():
    assert data.render_fact("a-b", "version", "1.2", "pin") == "a-b==1.2"
    assert data.answer("a-b", "version", "1.2") == "a-b version: 1.2"
    assert data.question("a-b", "version") == "What is the version of a-b?"


def test_near_duplicates_share_pieces_but_differ():
    rng = random.Random(2)
    for _ in range(300):
        name = data.make_record(rng, like="quarn-vault-core").name
        assert name != "quarn-vault-core"
        assert set(name.replace("_", "-").split("-")) & {"quarn", "vault", "core"}


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_gives_the_same_dialogue(seed):
    shape = dialogues.Shape(updates=0.3, unknown=0.2)
    first, again = (dialogues.script(random.Random(seed), shape) for _ in range(2))
    assert first == again


def test_of_several_values_the_last_is_the_answer():
    facts = [dialogues._Fact("a", "port", value, "lines", "plain") for value in ("1", "2", "3")]
    assert [fact.value for fact in dialogues._latest(facts)] == ["3"]


def test_the_generator_needs_no_torch():
    code = "import sys, agent_memory.pocket.data as d; d.dialogue; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
