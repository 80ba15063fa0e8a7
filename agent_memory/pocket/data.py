"""Generated records, the layouts they are written in, questions about them, and their answers.

Knows the language of the pocket model and nothing of the model: standard library only.
Real package names are never generated; values are.
"""

import random
import re
from dataclasses import dataclass, field

from agent_memory.pocket import values, words
from agent_memory.pocket.real import normalise, real_names

__all__ = [
    "FIELDS", "LAYOUTS", "QUESTIONS", "UNKNOWN", "Record", "answer", "is_real_name", "lookup", "make_name", "make_record",
    "mention", "noise", "question", "render", "render_fact",
]  # fmt: skip

FIELDS: tuple[str, ...] = words.FIELDS
LAYOUTS: tuple[str, ...] = ("lines", "json", "sentence", "table", "pin", "note")
UNKNOWN = "I do not know."

QUESTIONS: tuple[str, ...] = (
    "What is the {field} of {name}?",
    "Tell me the {field} of {name}.",
    "{name} {field}?",
    "Which {field} does {name} have?",
)
_FACTS = {
    "lines": "{name} {field}: {value}",
    "json": '{{"name": "{name}", "{field}": "{value}"}}',
    "sentence": "{name} has {field} {value}",
    "table": "{name} | {field} | {value}",
    "pin": "{name}.{field} = {value}",
    "note": "Note: {name} {field} is {value}",
}


@dataclass(frozen=True)
class Record:
    """One thing with a name, and what is known about it."""

    name: str
    fields: dict[str, str] = field(default_factory=dict)


def is_real_name(name: str) -> bool:
    """Whether this is a name of the snapshot of real packages; the generator rejects those."""
    return normalise(name) in real_names()


def _pieces(name: str) -> list[str]:
    return re.split(r"([-_.])", name)


def _near(rng: random.Random, name: str) -> str:
    """A name that shares all pieces but one, or has one more or one less at either end."""
    pieces = _pieces(name)
    joint = next((piece for piece in pieces if piece in {"-", "_", "."}), "-")
    kind = rng.random()
    if kind < 0.25:
        return f"{name}{joint}{values.word(rng)}"
    if kind < 0.35:
        return f"{values.word(rng)}{joint}{name}"
    if kind < 0.45 and len(pieces) > 1:
        return "".join(pieces[:-2])
    at = rng.randrange(0, len(pieces), 2)
    digits = re.search(r"\d+$", pieces[at])
    if digits and rng.random() < 0.5:
        pieces[at] = pieces[at][: digits.start()] + values.small(rng)
    else:
        pieces[at] = values.word(rng)
    return "".join(pieces)


def make_name(rng: random.Random, *, like: str | None = None) -> str:
    """A name of no real package; with `like`, a near-duplicate of that name."""
    while True:
        name = values.package(rng) if like is None else _near(rng, like)
        if name and name != like and len(name) <= 36 and not is_real_name(name):
            return name


def make_record(rng: random.Random, *, like: str | None = None, n_fields: int = 3) -> Record:
    """A record with that many fields; with `like`, its name is a near-duplicate of that name."""
    chosen = rng.sample(FIELDS, min(n_fields, len(FIELDS)))
    return Record(make_name(rng, like=like), {name: values.value(rng, name) for name in chosen})


def render_fact(name: str, field: str, value: str, layout: str) -> str:
    """One fact as one line."""
    if layout == "pin" and field == "version":
        return f"{name}=={value}"
    return _FACTS[layout].format(name=name, field=field, value=value)


def render(record: Record, layout: str) -> str:
    """A record as the text of a tool output: one line for each fact."""
    return "\n".join(render_fact(record.name, key, value, layout) for key, value in record.fields.items())


def question(name: str, field: str) -> str:
    """The canonical question."""
    return QUESTIONS[0].format(name=name, field=field)


def answer(name: str, field: str, value: str) -> str:
    """The answer restates what was asked, so that it reads like the fact itself."""
    return f"{name} {field}: {value}"


def lookup(name: str) -> str:
    """What a user says to have a tool called."""
    return f"Look up {name}."


def _log_line(rng: random.Random) -> str:
    stamp = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}"
    return f"{stamp} {rng.choice(('INFO', 'WARN', 'ERROR', 'DEBUG'))} {values.phrase(rng)}"


def _noise_line(rng: random.Random) -> str:
    kind = rng.randrange(7)
    if kind == 0:
        return values.file_path(rng).lstrip("/")
    if kind == 1:
        return _log_line(rng)
    if kind == 2:
        return f"{values.phrase(rng).capitalize()}. {values.phrase(rng).capitalize()}."
    if kind == 3:
        return f"-rw-r--r-- 1 root root {values.integer(rng)} {values.date(rng)} {values.word(rng)}.{values.letters(rng)}"
    if kind == 4:
        return f"{values.word(rng)}={values.integer(rng)}"
    if kind == 5:
        return values.file_path(rng)
    return f"{values.word(rng)} {values.word(rng)}: {values.phrase(rng)}"


_MENTIONS = (
    "{file}-{version}.dist-info/{leaf} {size}", "{file}-{version}.dist-info/{leaf} {size}", "{file}/{word}.py {size}",
    "{file}/{word}/__init__.py {size}", "/usr/share/doc/{name}/{leaf}", "/usr/share/doc/{name}", "/usr/lib/{word}/{name}.so",
    "/var/lib/{word}/{name}.list", "{date} status installed {name}:amd64 {version}", "{date} status unpacked {name}:amd64 {version}",
    "{date} install {name}:amd64 <none> {version}", "{date} configure {name}:amd64 {version} <none>",
)  # fmt: skip
_LEAVES = ("RECORD", "METADATA", "WHEEL", "INSTALLER", "top_level.txt", "copyright", "changelog.gz", "README", "entry_points.txt")


def mention(rng: random.Random, name: str, version: str | None) -> str:
    """A line of a listing or a log that names a thing, and often its version, but answers no question about it."""
    return rng.choice(_MENTIONS).format(
        name=name, file=name.replace("-", "_"), version=version or values.version(rng), leaf=rng.choice(_LEAVES),
        word=values.word(rng), size=rng.randrange(9999), date=values.date(rng),
    )  # fmt: skip


def noise(rng: random.Random, lines: int) -> str:
    """So many lines of listings, logs, and prose that answer no question."""
    return "\n".join(_noise_line(rng) for _ in range(lines))


def __getattr__(name: str) -> object:
    # The dialogues import this module; asking for them here must not make a circle at import time.
    if name == "dialogue":
        from agent_memory.pocket.dialogues import dialogue

        return dialogue
    raise AttributeError(name)
