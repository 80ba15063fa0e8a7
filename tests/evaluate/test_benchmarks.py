"""Public benchmarks: their files read and refused, and their questions asked of the pocket model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.evaluate.benchmarks import infinitebench, leval, locomo, longbench, run
from agent_memory.evaluate.benchmarks.run import BENCHMARKS, BenchmarkOptions, cut_middle, run_benchmark
from agent_memory.evaluate.fork import asked_on_a_fork
from agent_memory.runtime import Runtime
from agent_memory.session import Session

LONGBENCH = {
    "input": "Who?", "context": "Ada wrote it. {x}", "answers": ["Ada", "Ada L."], "length": 4, "dataset": "narrativeqa",
    "language": "en", "all_classes": None, "_id": "7",
}  # fmt: skip
TREC = LONGBENCH | {"dataset": "trec", "answers": ["Person"], "all_classes": ["Person", "Place"]}
PASSKEY = {"id": 0, "context": "The pass key is 71432.", "input": "What is the pass key?", "answer": ["71432"], "options": []}
CHOICE = PASSKEY | {"input": "Who did it?", "answer": "Bob", "options": ["Ann", "Bob", "Cy", "Di"]}
TPO = {"input": "A lecture.", "instructions": ["Why?\nA. x\nB. y", "How?"], "outputs": ["A", "B"], "source": "tpo", "evaluation": "exam"}
SCI_FI = TPO | {"instructions": ["Men fly, based on the world described in the document."], "outputs": ["True [fact: False]"]}
CONVERSATION = {
    "speaker_a": "Ann", "speaker_b": "Bob",
    "session_10_date_time": "2 May, 2023", "session_10": [{"speaker": "Bob", "dia_id": "D10:1", "text": "Bye!"}],
    "session_2_date_time": "1 May, 2023",
    "session_2": [{"speaker": "Ann", "dia_id": "D2:1", "text": "Look!", "blip_caption": "a photo of a dog"}],
    "session_11_date_time": "3 May, 2023",
}  # fmt: skip
QA = [
    {"question": "When did Bob leave?", "answer": 2023, "evidence": ["D10:1"], "category": 2},
    {"question": "What would she like?", "answer": "A dog; she shares one", "evidence": ["D2:1"], "category": 3},
    {"question": "What was stolen?", "adversarial_answer": "a cat", "evidence": [], "category": 5},
]
LOCOMO = {"sample_id": "conv-1", "conversation": CONVERSATION, "qa": QA}


def write(path: Path, *rows: Any) -> Path:
    """The rows as LoCoMo's one list, or one a line as everybody else's; text as it is."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_longbench_prompt_is_the_published_one_cut_after_the_context(tmp_path: Path) -> None:
    first, second = longbench.read(write(tmp_path / "mixed.jsonl", LONGBENCH, "\n", TREC | {"dataset": "trec_e"}))
    assert first.pieces[0].startswith("You are given a story") and first.pieces[0].endswith("Story: Ada wrote it. {x}")
    assert first.question.startswith("\n\nNow, answer the question based on the story asconcisely")
    assert first.question.endswith("Question: Who?\n\nAnswer:")
    assert (first.id, first.answers, first.metric, first.max_new_tokens) == ("mixed/1", ("Ada", "Ada L."), "f1", 128)
    assert (second.id, second.dataset, second.meta["classes"]) == ("mixed/3", "trec", ("Person", "Place"))


def test_longbench_summaries_of_chats_end_with_the_line(tmp_path: Path) -> None:
    (found,) = longbench.read(write(tmp_path / "s.jsonl", LONGBENCH | {"dataset": "samsum"}))
    assert found.stop == ("\n",)


def test_longbench_code_of_the_file_itself_is_context(tmp_path: Path) -> None:
    (found,) = longbench.read(write(tmp_path / "r.jsonl", LONGBENCH | {"dataset": "repobench-p", "input": "x = \n"}))
    assert found.pieces == ("Please complete the code given below. \nAda wrote it. {x}x = \n",)
    assert found.question == "Next line of code:\n"


def test_infinitebench_prompts(tmp_path: Path) -> None:
    (passkey,) = infinitebench.read(write(tmp_path / "passkey.jsonl", PASSKEY))
    assert passkey.pieces[0].endswith("important information.\n\nThe pass key is 71432.")
    assert passkey.question == "\n\nWhat is the pass key?\n\nThe pass key is"
    (choice,) = infinitebench.read(write(tmp_path / "longbook_choice_eng.jsonl", CHOICE))
    assert choice.question == "\n\nQuestion: Who did it?\nA. Ann\nB. Bob\nC. Cy\nD. Di\n\nThe letter of the correct answer is"
    assert choice.answers == ("Bob", "B")
    asked = PASSKEY | {"input": "What is func_3(-5)?", "answer": [4]}
    (code,) = infinitebench.read(write(tmp_path / "code_run.jsonl", asked))
    assert code.pieces[0].startswith("There is a function called func_3 in") and code.question.endswith("The value of func_3(-5) is")
    asked = PASSKEY | {"input": "The 2nd largest number of the list is", "answer": [8.5]}
    (found,) = infinitebench.read(write(tmp_path / "math_find.jsonl", asked))
    assert found.pieces[0].startswith("What is the 2nd largest number in the following list?") and found.answers == ("8.5",)
    (sums,) = infinitebench.read(write(tmp_path / "math_calc.jsonl", PASSKEY | {"answer": [[1, 4]]}))
    assert sums.answers == ("1", "4")


def test_leval_prompts_and_answers(tmp_path: Path) -> None:
    rows = [TPO, TPO | {"evaluation": "human"}, TPO | {"evaluation": "LLM"}]
    one, two = leval.read(write(tmp_path / "tpo.jsonl", *rows))
    assert one.pieces == two.pieces == ("Document is as follows. A lecture.",)
    assert two.question == " Question: How? \nPlease directly give answer without any additional output or explanation\n Answer: "
    assert one.system is not None and "like A or B" in one.system
    (told, so) = leval.read(write(tmp_path / "sci_fi.jsonl", SCI_FI))
    assert (told.answers, so.answers, so.pieces) == (("true",), ("false",), ())
    assert "real-world knowledge" in so.question and "in the document" not in so.question
    summary = TPO | {"evaluation": "rouge", "document": "A novel.", "instructions": ["Sum up."], "outputs": ["It is so."]}
    del summary["input"]
    (found,) = leval.read(write(tmp_path / "news_summ.jsonl", summary))
    assert found.question == " Instruction: Sum up. The suggested output length is around 3 words. Output: "


def test_locomo_sessions_are_pieces_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    when, liked, stolen = locomo.read(write(tmp_path / "locomo10.json", LOCOMO))
    assert when.pieces == liked.pieces == stolen.pieces
    assert when.pieces[0].startswith("Below is a conversation between two people: Ann and Bob.")
    assert when.pieces[0].endswith('DATE: 1 May, 2023\nCONVERSATION:\nAnn said, "Look!"\n and shared a photo of a dog.\n')
    assert when.pieces[1:] == ('\nDATE: 2 May, 2023\nCONVERSATION:\nBob said, "Bye!"\n\n',)
    assert when.question.endswith("leave? Use DATE of CONVERSATION to answer with an approximate date.\n")
    assert (when.dataset, when.answers, liked.answers) == ("temporal", ("2023",), ("A dog",))
    assert sorted(stolen.meta["options"]) == ["No information available", "a cat"]
    assert f"(a) {stolen.meta['options'][0]} (b) {stolen.meta['options'][1]}." in stolen.question


def lacking(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("name", "file", "rows", "said"),
    [
        ("longbench", "a.jsonl", [LONGBENCH, lacking(LONGBENCH, "context")], "a.jsonl, line 2: key 'context' is missing; found are _id"),
        ("longbench", "a.jsonl", [LONGBENCH | {"answers": [None]}], "line 1: key 'answers' must hold strings or numbers"),
        ("longbench", "a.jsonl", [LONGBENCH | {"input": 3}], "key 'input' must be a string, not a number"),
        ("longbench", "a.jsonl", [LONGBENCH | {"dataset": "mine"}], "data set 'mine' is unknown; known are narrativeqa"),
        ("longbench", "a.jsonl", [lacking(TREC, "all_classes")], "'all_classes' is missing"),
        ("longbench", "a.jsonl", [LONGBENCH, "{oops\n"], "a.jsonl, line 2: .*LongBench files hold one JSON object a line"),
        ("longbench", "a.jsonl", [[LONGBENCH]], "line 1: must be an object, not a list"),
        ("longbench", "a.jsonl", ["\n"], "there are no questions to ask"),
        ("infinitebench", "mine.jsonl", [PASSKEY], "no task 'mine'; name the file after its task: passkey"),
        ("infinitebench", "passkey.jsonl", [lacking(PASSKEY, "answer")], "line 1: key 'answer' is missing; found are context, id"),
        ("infinitebench", "code_run.jsonl", [PASSKEY], "line 1: key 'input' must ask for 'func_"),
        ("infinitebench", "code_debug.jsonl", [CHOICE | {"options": ["Bob"]}], "line 1: key 'options' must hold 4"),
        ("infinitebench", "code_debug.jsonl", [CHOICE | {"answer": ["Eve"]}], "line 1: key 'answer' must be one of the options"),
        ("infinitebench", "math_find.jsonl", [PASSKEY | {"input": "The last of x", "answer": ["no"]}], "line 1: key 'answer' must hold"),
        ("infinitebench", "passkey.jsonl", [PASSKEY | {"answer": []}], "line 1: key 'answer' holds no answer"),
        ("leval", "tpo.jsonl", [TPO | {"outputs": ["A"]}], "line 1: keys 'instructions' and 'outputs' must be equally long, not 2 and 1"),
        ("leval", "tpo.jsonl", [TPO | {"evaluation": "love"}], "line 1: key 'evaluation' must be exam, f1, rouge, human or LLM"),
        ("leval", "tpo.jsonl", [lacking(TPO, "input")], "line 1: key 'input' is missing"),
        ("leval", "sci_fi.jsonl", [SCI_FI | {"outputs": ["True"]}], "line 1: key 'outputs' of sci_fi"),
        ("leval", "tpo.jsonl", [TPO, TPO | {"evaluation": "f1"}], "data set 'tpo' mixes metrics letter and f1"),
        ("locomo", "l.json", [LOCOMO, lacking(LOCOMO, "qa")], "l.json, sample 2: key 'qa' is missing; found are conversation, sample_id"),
        ("locomo", "l.json", [LOCOMO | {"qa": [QA[0], lacking(QA[0], "answer")]}], "sample 1, qa 2: key 'answer' is missing"),
        ("locomo", "l.json", [LOCOMO | {"qa": [lacking(QA[2], "adversarial_answer")]}], "qa 1: key 'adversarial_answer' is missing"),
        ("locomo", "l.json", [LOCOMO | {"qa": [QA[0] | {"category": 7}]}], "key 'category' must be 1 to 5, not 7"),
        ("locomo", "l.json", [LOCOMO | {"conversation": {"speaker_a": "Ann"}}], "key 'session_1' is missing or empty; found are speaker_a"),
        ("locomo", "l.jsonl", [LOCOMO], "line 1: LoCoMo files hold one JSON list of conversations, not an object with keys conv"),
        ("locomo", "l.jsonl", ["[\n{"], "line 2: .*LoCoMo files hold one JSON list"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_before_anything_is_loaded(tmp_path: Path, name: str, file: str, rows: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_benchmark(refuse, BenchmarkOptions(name, (write(tmp_path / file, *rows),)))


def refuse(**_: Any) -> Runtime:
    raise AssertionError("nothing may be loaded")


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "passkey.jsonl").write_bytes(b"\xff\xfe")
    for file in (tmp_path / "passkey.jsonl", tmp_path / "none" / "passkey.jsonl"):
        with pytest.raises(ConfigError, match="passkey.jsonl cannot be read"):
            run_benchmark(refuse, BenchmarkOptions(name, (file,)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "squad"}, "benchmark 'squad' is unknown; there are longbench, leval"),
        ({"files": ()}, "name at least one file of longbench"),
        ({"limit": 0}, "limit, drawn and max_new_tokens must be at least 1"),
        ({"truncate": "middle:1"}, "write none, or middle:N"),
        ({"truncate": "end:100"}, "write none, or middle:N"),
    ],
)
def test_an_option_that_cannot_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_benchmark(refuse, BenchmarkOptions(**{"name": "longbench", "files": (Path("a.jsonl"),)} | changed))


class Letters:
    """A tokenizer of single letters, with one special token before them."""

    is_fast = True

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        return {"input_ids": [0, *map(ord, text)], "offset_mapping": [(0, 0), *((at, at + 1) for at in range(len(text)))]}


def test_the_middle_is_cut_and_the_question_is_not() -> None:
    pieces = ("abcdef", "ghij", "klmnop")
    assert cut_middle(pieces, ["??"], Letters(), None) == cut_middle(pieces, ["??"], Letters(), 19) == pieces
    assert cut_middle(pieces, ["??"], Letters(), 16) == ("abcdef", "g", "klmnop")  # special token and 7 letters; 6 letters and ??
    assert cut_middle(pieces, ["?", "??"], Letters(), 9) == ("abc", "op")
    assert cut_middle(pieces, ["?" * 9], Letters(), 4) == ("a",)
    slow = Letters()
    slow.is_fast = False
    with pytest.raises(ConfigError, match="needs a fast tokenizer; Letters"):
        cut_middle(pieces, ["?"], slow, 4)


FILES: dict[str, tuple[str, list[Any], dict[str, int], int]] = {
    "longbench": ("mixed.jsonl", [LONGBENCH, LONGBENCH | {"dataset": "samsum"}], {"narrativeqa": 1, "samsum": 1}, 2),
    "infinitebench": ("passkey.jsonl", [PASSKEY, PASSKEY], {"passkey": 2}, 1),
    "leval": ("sci_fi.jsonl", [SCI_FI], {"sci_fi": 2}, 2),
    "locomo": ("locomo10.json", [LOCOMO], {"temporal": 1, "open-domain": 1, "adversarial": 1}, 1),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every question that is asked, with the Session it is asked about."""
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []

    @contextmanager
    def seen(runtime: Runtime, session: Session, fork: str) -> Iterator[Session]:
        turns = [(turn.role, turn.text) for turn in session.turns()]
        with asked_on_a_fork(runtime, session, fork) as child:
            reply, about = child.reply, {"session": session.name, "turns": turns, "tokens": session.tokens}

            def noted(text: str, **how: Any) -> str:
                found.append({"text": text, **how, **about})
                return reply(text, **how)

            monkeypatch.setattr(child, "reply", noted)
            yield child

    monkeypatch.setattr(run, "asked_on_a_fork", seen)
    return found


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_questions_are_asked_once_on_forks_of_a_shared_context(name: str, tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    file, rows, counts, contexts = FILES[name]
    path, told = write(tmp_path / file, *rows), list[int]()
    options = BenchmarkOptions(name, (path,), ("recall",), max_new_tokens=4, resume=tmp_path / "kept.jsonl")
    report = run_benchmark(load, options, lambda done, total, what: told.append(done))
    items = list(BENCHMARKS[name].read(path))
    heads = [[("system", item.system)] if item.system else [] for item in items]
    assert [one["turns"] for one in asked] == [[*head, *(("user", p) for p in i.pieces)] for head, i in zip(heads, items, strict=True)]
    assert [(one["text"], one["max_new_tokens"], one["stop"]) for one in asked] == [(item.question, 4, item.stop) for item in items]
    assert len({one["session"] for one in asked}) == contexts and told == list(range(1, len(items) + 1))
    assert (report["task"], report["window"], report["counts"]) == (name, 1024, counts)
    assert set(report["metrics"]) == set(report["summary"]["recall"]) == set(counts)
    assert all(0 <= score <= 100 for score in report["summary"]["recall"].values())

    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    letters = [item.meta["options"].index(item.answers[0]) if "options" in item.meta else None for item in items]
    right = [item.answers[0] if letter is None else f"({'ab'[letter]})" for item, letter in zip(items, letters, strict=True)]
    torn = json.dumps(kept[0])[:-9]
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps(r | {"answer": a}) + "\n" for r, a in zip(kept, right, strict=True)) + torn)
    again = run_benchmark(load, options)
    assert len(asked) == len(items), "what was answered is not asked again"
    assert again["summary"] == {"recall": pytest.approx(dict.fromkeys(counts, 100.0))}


def load(**options: Any) -> Runtime:
    return Runtime.load(window=1024, **options)


def test_limit_and_cut_of_a_run_that_was_stopped(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "a.jsonl", *(LONGBENCH | {"context": f"{n} " + "x " * 400} for n in range(3)))
    kept = tmp_path / "kept.jsonl"
    options = BenchmarkOptions("longbench", (path,), ("streaming",), limit=2, truncate="middle:300", max_new_tokens=2, resume=kept)
    assert run_benchmark(load, options)["counts"] == {"narrativeqa": 2}
    assert [one["tokens"] < 300 for one in asked] == [True, True]
    lines = kept.read_text().splitlines()
    kept.write_text(lines[0] + "\n" + lines[1][:20])
    run_benchmark(load, options)
    assert json.loads(kept.read_text().splitlines()[-1]) == json.loads(lines[1])
    kept.write_text("my notes\n")
    with pytest.raises(ConfigError, match="resume needs a file of its own"):
        run_benchmark(load, options)
    assert kept.read_text() == "my notes\n"
