"""The real record of every installed package, with its real files and log lines as noise.

Knows importlib.metadata and dpkg; does not know models or memory.
"""

from __future__ import annotations

import importlib.metadata
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..pocket import data, real

DPKG_INFO = Path("/var/lib/dpkg/info")
DPKG_LOG = Path("/var/log/dpkg.log")
ASKED_FOR = ("version", "homepage", "maintainer", "author", "source", "size")
"""Fields that people ask for in plain words."""
RARE = 0.02
"""A value is asked about if at most this share of packages has it, so that it cannot be guessed."""


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package: its name, what the machine says of it, and lines that answer nothing."""

    name: str
    fields: dict[str, str]
    noise: tuple[str, ...]

    def text(self, layout: str, lines: int) -> str:
        """A tool output: its record, in a layout of the pocket model's or in ``plain`` sentences, among ``lines`` lines of noise."""
        before = lines // 2
        if layout == "plain":
            record = "\n".join(f"The {field} of {self.name} is {value}." for field, value in self.fields.items())
        else:
            record = data.render(data.Record(self.name, self.fields), layout)
        return "\n".join([*self.noise[:before], record, *self.noise[before:lines]])


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask of a package, and what the machine itself says."""

    package: str
    field: str
    value: str

    @property
    def text(self) -> str:
        """The question."""
        return data.question(self.package, self.field)

    @property
    def says_it(self) -> bool:
        """Whether the question contains its answer."""
        return self.value.casefold() in self.text.casefold()


def installed() -> list[Package]:
    """Every installed Python distribution, and every Debian package where dpkg is present, in a fixed random order."""
    python = _python_files()
    logs = _debian_logs()
    found: dict[str, Package] = {}
    for record in real.distributions():
        name = record["name"]
        found[real.normalise(name)] = Package(name, _fields(record), tuple(python.get(name, ())))
    for record in real.debian():
        name = record["name"]
        found.setdefault(real.normalise(name), Package(name, _fields(record), tuple(_debian_files(name) + logs.get(name, []))))
    packages = [package for package in found.values() if package.fields]
    random.Random(0).shuffle(packages)  # noqa: S311 - a fixed order, not a secret
    return packages


def questions(packages: Sequence[Package], count: int, rng: random.Random, plain: bool = False) -> list[Question]:
    """Questions about ``count`` different packages, each about a value that few packages share.

    Args:
        packages: to ask about.
        count: how many.
        rng: which.
        plain: none whose answer the question contains.
    """
    rare = _rare(packages)
    asked: list[Question] = []
    for package in rng.sample(list(packages), len(packages)):
        possible = [Question(package.name, field, package.fields[field]) for field in rare[package.name]]
        if possible and len(asked) < count:
            question = rng.choice(possible)
            if not plain or not question.says_it:
                asked.append(question)
    return asked


def told(packages: Sequence[Package], facts: int, lines: int) -> list[Package]:
    """Those with ``lines`` of noise and something to ask for, each with at most so many ``facts`` that people ask for and few share.

    A small model confuses facts that are told alike, whatever it attends to; so it is told few of each package, far apart.
    """
    rare, few = _rare(packages), []
    for package in packages:
        asked_for = [field for field in rare[package.name] if field in ASKED_FOR]
        fields = [field for field in asked_for if not Question(package.name, field, package.fields[field]).says_it]
        rng = random.Random(package.name)  # noqa: S311 - the same facts of the same package
        chosen = rng.sample(fields, min(facts, len(fields)))
        if chosen and len(package.noise) >= lines:
            few.append(Package(package.name, {field: package.fields[field] for field in chosen}, package.noise))
    return few


def _rare(packages: Sequence[Package]) -> dict[str, list[str]]:
    """Fields of each package, by its name, whose value few packages share."""
    shared = Counter((field, value) for package in packages for field, value in package.fields.items())
    most = max(1, int(RARE * len(packages)))
    return {p.name: sorted(field for field, value in p.fields.items() if shared[field, value] <= most) for p in packages}


def _fields(record: dict[str, str]) -> dict[str, str]:
    return {field: value for field, value in record.items() if field != "name" and field in data.FIELDS}


def _python_files() -> dict[str, list[str]]:
    return {item.name: [f"{file} {file.size or 0}" for file in item.files or ()] for item in importlib.metadata.distributions()}


def _debian_files(name: str) -> list[str]:
    for file in (DPKG_INFO / f"{name}.list", *DPKG_INFO.glob(f"{name}:*.list")):
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    return []


def _debian_logs() -> dict[str, list[str]]:
    if not DPKG_LOG.is_file():
        return {}
    logs: dict[str, list[str]] = {}
    for line in DPKG_LOG.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if len(words) > 3:
            logs.setdefault(words[3 if words[2] != "status" else 4 if len(words) > 4 else 3].split(":")[0], []).append(line)
    return logs
