"""Recall on real pretrained weights: the measurements of docs/methods.md, `python benchmarks/real_model.py --data FOLDER [NAME...]`.

Each is one run of `agent-memory eval` whose command is printed first. FOLDER holds public files under the names `FILES` says.
What is measured is kept in `benchmarks/results`, a row a document, so that a run that was stopped goes on; of benchmarks whose texts may
not be passed on, only numbers are kept there.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

FILES = {
    "shakespeare": "tinyshakespeare.txt",  # karpathy/char-rnn, data/tinyshakespeare/input.txt
    "papers": "scientific_qa.jsonl",  # OpenLMLab/LEval, LEval-data/Closed-ended-tasks and Open-ended-tasks
    "lectures": "coursera.jsonl",
    "pages": "natural_question_first8.jsonl",
    "talks": "locomo_first5.json",  # snap-research/LoCoMo, data/locomo10.json, its first five conversations
    "topics": "topic_retrieval_longchat.jsonl",
}

DIGITS = 6
"""Of a number that is kept."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """One measurement.

    Attributes:
        asks: what it answers.
        options: of the command; a name in braces is one of `FILES`.
        methods: what is compared, with full attention or with each other.
        texts: whether replies may be kept.
        task: of `agent-memory eval`.
    """

    asks: str
    options: str
    methods: tuple[str, ...]
    texts: bool = True
    task: str = "fidelity"


CAMPAIGNS = {
    "choosing": Campaign(
        "which sizes? judged by the texts and seeds that defaults are chosen on",
        "--on multi-key --haystack {shakespeare} --lengths 6000 --samples 4 --seed 0 --modes made --no-mass --no-replies",
        (
            "recall:attended=1024", "recall:attended=1024:local=64", "recall:attended=1024:local=256", "recall:attended=1024:blocks=52",
            "recall:attended=512", "recall",
        ),
    ),
    "needles": Campaign(
        "are facts found, with memory made through a Session?",
        "--on multi-key --haystack {papers} --keys animals --lengths 6000 --samples 32 --seed 3000 --modes made --no-mass",
        ("recall:attended=1024",),
    ),
    "needles-sizes": Campaign(
        "the same with other sizes, the bare default among them",
        "--on multi-key --haystack {papers} --keys animals --lengths 6000 --samples 8 --seed 3000 --modes made --no-mass",
        ("recall:attended=512", "recall", "streaming:attended=1024"),
    ),
    "loss": Campaign(
        "what does a text lose?",
        "--on loss --file {lectures} --file {pages} --file {papers} --file {shakespeare} --lengths 8000 --samples 16 --seed 1000 "
        "--modes made --no-mass",
        ("recall:attended=2048", "streaming:attended=2048"),
    ),
    "conversations": Campaign(
        "questions about long conversations",
        "--on locomo --file {talks} --lengths 6000 --samples 160 --seed 1000 --modes made --no-mass",
        ("recall:attended=1024", "streaming:attended=1024"),
        texts=False,
    ),
    "mass": Campaign(
        "how much of the attention lies in what is chosen?",
        "--on multi-key --haystack {papers} --keys animals --lengths 6000 --samples 4 --seed 3000 --modes read --no-replies",
        ("recall:attended=1024",),
    ),
    "locomo": Campaign(
        "questions about whole conversations, beside the last tokens, text retrieval, and evidence alone",
        "--file {talks} --data-set multi-hop --data-set temporal --data-set single-hop --draw 160 --seed 1000",
        ("streaming:attended=2048", "recall", "bm25", "evidence"),
        texts=False,
        task="locomo",
    ),
    "topics": Campaign(
        "the topics of long records of many conversations",
        "--file {topics} --samples 30",
        ("streaming:attended=2048", "recall"),
        texts=False,
        task="leval",
    ),
}  # fmt: skip


def command(name: str, data: Path, rows: Path) -> list[str]:
    """The command of a campaign."""
    campaign = CAMPAIGNS[name]
    files = {key: str(data / file) for key, file in FILES.items()}
    words = [word.format(**files) for word in campaign.options.split()]
    return [
        "agent-memory",
        "eval",
        campaign.task,
        "--model",
        "smollm2",
        *words,
        "--method",
        ",".join(campaign.methods),
        "--resume",
        str(rows),
    ]


def fit_to_keep(line: str, texts: bool) -> str:
    """A row as it is kept: numbers rounded, and no reply where its text may not be passed on."""
    row = _rounded(json.loads(line))
    for outcome in row.get("outcomes", ()):
        if outcome["answers"] is not None and not texts:
            outcome["answers"]["reply"] = None
    if "answer" in row and not texts:
        row["answer"] = None
    return json.dumps(row)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    """Run the campaigns that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CAMPAIGNS)}; all by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public files")
    parser.add_argument("--more", default="", help="further options of eval fidelity, as --cache FOLDER")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - CAMPAIGNS.keys()):
        parser.error(f"{unknown[0]!r} is none of {', '.join(CAMPAIGNS)}")
    for name in args.names or CAMPAIGNS:
        run(name, args.data, shlex.split(args.more))


def run(name: str, data: Path, more: list[str]) -> None:
    """Run one campaign, from what is kept on, and keep what it measured whatever stops it."""
    kept, working = RESULTS / f"{name}.jsonl", RESULTS / f"{name}.part"
    if not working.exists():
        working.write_text(kept.read_text(encoding="utf-8") if kept.exists() else "", encoding="utf-8")
    words = command(name, data, working)
    print(f"{CAMPAIGNS[name].asks}\n{shlex.join(command(name, Path('DATA'), Path(kept.name)))}", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "agent_memory.cli", *words[1:], *more], check=True)  # noqa: S603 - our own command
    finally:
        lines = [fit_to_keep(line, CAMPAIGNS[name].texts) for line in working.read_text(encoding="utf-8").splitlines()]
        kept.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    working.unlink()


if __name__ == "__main__":
    main()
