"""Generated names and values, as diverse as those of real records.

Knows how a version, a person, a licence, a path or a date looks. It knows no layout and no dialogue.
Values hold no line break, no double quote, and at most about a dozen tokens.
"""

import random
import re
import string
from collections.abc import Callable
from functools import lru_cache

from agent_memory.pocket import words
from agent_memory.pocket.real import real_names

Make = Callable[[random.Random], str]


@lru_cache(maxsize=1)
def plain_words() -> tuple[str, ...]:
    """English words that are no real package's name."""
    return tuple(sorted(set(words.ENGLISH) - real_names()))


@lru_cache(maxsize=1)
def tech_words() -> tuple[str, ...]:
    """Technical words that are no real package's name."""
    return tuple(sorted(set(words.TECH) - real_names()))


def pseudo(rng: random.Random) -> str:
    """A pronounceable word that means nothing."""
    text = ""
    for _ in range(rng.choice((1, 1, 2, 2, 2, 3))):
        text += rng.choice(words.ONSETS) if rng.random() < 0.9 else ""
        text += rng.choice(words.NUCLEI)
        text += rng.choice(words.CODAS) if rng.random() < 0.5 else ""
    return text


def letters(rng: random.Random) -> str:
    """A short run of letters, as in abbreviations."""
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.choice((1, 2, 2, 3, 3, 4))))


def word(rng: random.Random) -> str:
    """One word of any kind, lower case."""
    kind = rng.random()
    if kind < 0.35:
        return pseudo(rng)
    if kind < 0.65:
        return rng.choice(plain_words())
    return rng.choice(tech_words()) if kind < 0.88 else letters(rng)


def integer(rng: random.Random) -> str:
    """A number of one to seven digits, short ones more often."""
    return str(rng.randrange(10 ** rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 7))))


def small(rng: random.Random) -> str:
    """A number as found between the dots of a version."""
    return str(rng.choice((rng.randrange(10), rng.randrange(30), rng.randrange(100), rng.randrange(3))))


def version(rng: random.Random) -> str:
    """A Python, Debian, or calendar version."""
    parts = [small(rng) for _ in range(rng.choice((2, 3, 3, 3, 4)))]
    kind = rng.random()
    if kind < 0.1:
        parts[0] = str(rng.randrange(2010, 2027))
    elif kind < 0.15:
        parts = [f"{rng.randrange(2010, 2027)}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}"]
    text = ".".join(parts)
    tail = rng.random()
    if tail < 0.35:
        text += rng.choice(("", "", "+dfsg", "+ds", "~rc1", "+dfsg1", f"+git{integer(rng)}"))
        text += f"-{rng.choice(('0', '1', '1', '2', '3', '5', '10', '0.1', '1.1', small(rng)))}"
        text += rng.choice(("", "", "", "+b1", "+b2", "+deb12u1", f"+deb{small(rng)}u{rng.randrange(1, 20)}", "ubuntu1", "build2"))
        text = f"{rng.choice((1, 1, 2, 3, 4))}:{text}" if rng.random() < 0.15 else text
    elif tail < 0.5:
        text += rng.choice(("rc1", "b2", "a1", ".post1", ".dev0", "+cpu", ".dev20240101", f"-{letters(rng)}", f"+{letters(rng)}1"))
    return text


def person(rng: random.Random) -> str:
    """First and last name, at times with an initial, or two persons."""
    last = pseudo(rng).capitalize()
    if rng.random() < 0.12:
        last += f"-{pseudo(rng).capitalize()}"
    middle = f" {rng.choice(string.ascii_uppercase)}." if rng.random() < 0.15 else ""
    first = rng.choice(words.FIRST) if rng.random() < 0.75 else pseudo(rng).capitalize()
    return f"{first}{middle} {last}"


def group(rng: random.Random) -> str:
    """A team, company, or project."""
    name = rng.choice((pseudo(rng).capitalize(), word(rng).capitalize(), letters(rng).upper(), word(rng)))
    lead = rng.choice(("", "", "", "The ", "Debian ", f"{word(rng).capitalize()} "))
    return f"{lead}{name}{rng.choice((',', '')) if rng.random() < 0.1 else ''} {rng.choice(words.TITLES)}"


def party(rng: random.Random) -> str:
    """Whoever can be an author or maintainer."""
    kind = rng.random()
    if kind < 0.55:
        return person(rng)
    if kind < 0.85:
        return group(rng)
    return rng.choice((f"{person(rng)} et al.", word(rng), f"{person(rng)}, {person(rng)}", f"{word(rng)} and {word(rng)}"))


def licence(rng: random.Random) -> str:
    """A licence id, or two joined."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(words.LICENSES)
    if kind < 0.75:
        return f"{rng.choice(words.LICENSES)} {rng.choice(('OR', 'AND', 'and', 'or'))} {rng.choice(words.LICENSES)}"
    return f"{pseudo(rng).capitalize()}{rng.choice((' License', '-1.0', ' License 2.0', '-' + small(rng), ''))}"


def host(rng: random.Random) -> str:
    """A host name or address."""
    if rng.random() < 0.25:
        return ".".join(str(rng.randrange(256)) for _ in range(4))
    return f"{word(rng)}{rng.choice(('', '-' + small(rng), small(rng)))}.{word(rng)}.{rng.choice(words.TOP_LEVEL)}"


def url(rng: random.Random) -> str:
    """A short web address."""
    start = f"http{rng.choice(('s', 's', ''))}://{rng.choice(('', '', 'www.'))}{word(rng)}.{rng.choice(words.TOP_LEVEL)}"
    return start + rng.choice(("", "/", f"/{word(rng)}", f"/{word(rng)}/", f"/{word(rng)}/{word(rng)}"))


def file_path(rng: random.Random) -> str:
    """An absolute path."""
    return "".join(f"/{word(rng)}" for _ in range(rng.choice((2, 3, 3, 4)))) + rng.choice(("", "", ".txt", ".so", ".conf"))


def date(rng: random.Random) -> str:
    """A calendar day."""
    return f"{rng.randrange(1995, 2031)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"


def phrase(rng: random.Random) -> str:
    """Two to five words, at times with brackets or a number."""
    text = " ".join(word(rng) for _ in range(rng.choice((2, 3, 3, 4, 5))))
    kind = rng.random()
    if kind < 0.12:
        return f"{text} ({word(rng)})"
    return f"{text} {small(rng)}" if kind < 0.25 else text


def requirement(rng: random.Random) -> str:
    """How many things are required, or one of them."""
    if rng.random() < 0.5:
        return small(rng)
    bound = f"{rng.choice(('>=', '==', '~=', '<', '>'))}{small(rng)}.{small(rng)}"
    return rng.choice((f"{word(rng)}{bound}", f"{word(rng)} ({bound})", f"{word(rng)}-{word(rng)}", word(rng)))


def region(rng: random.Random) -> str:
    """A cloud region."""
    return f"{rng.choice(words.PLACES)}-{rng.choice(words.PLACES)}-{rng.randrange(1, 10)}"


def digest(rng: random.Random) -> str:
    """A short hexadecimal digest."""
    return "".join(rng.choice("0123456789abcdef") for _ in range(rng.choice((6, 7, 8))))


def _one(options: tuple[str, ...], other: Make) -> Make:
    return lambda rng: rng.choice(options) if rng.random() < 0.7 else other(rng)


MAKERS: dict[str, Make] = {
    "version": version, "author": party, "license": licence, "section": _one(words.SECTIONS, word), "maintainer": party,
    "files": integer, "size": lambda rng: integer(rng) + rng.choice(("", "", " kB", " MB", "K")), "requires": requirement,
    "homepage": url, "architecture": _one(words.ARCHITECTURES, word), "port": integer,
    "status": _one(words.STATES, word), "owner": lambda rng: rng.choice((person, word, group))(rng),
    "region": region, "path": file_path, "priority": _one(words.PRIORITIES, small),
    "source": lambda rng: rng.choice((package(rng), f"{package(rng)} ({version(rng)})", phrase(rng))), "host": host,
    "email": lambda rng: f"{word(rng)}@{word(rng)}.{rng.choice(words.TOP_LEVEL)}",
    "updated": lambda rng: rng.choice((date(rng), f"{date(rng)} {rng.randrange(24):02d}:{rng.randrange(60):02d}")),
    "checksum": digest, "summary": phrase,
}  # fmt: skip


def value(rng: random.Random, field: str) -> str:
    """A value of the field; a field outside the list gets a value of any kind."""
    make = MAKERS.get(field) if rng.random() < 0.9 else None
    return (make or rng.choice(tuple(MAKERS.values())))(rng)


def echo(rng: random.Random, name: str) -> str:
    """A value made of a name's own pieces, as sources, sections, teams, and paths of real records are."""
    pieces = [piece for piece in re.split(r"[-_.]", name) if piece]
    piece = rng.choice(pieces)
    part = name[: name.rfind(pieces[-1])].rstrip("-_.") if len(pieces) > 1 else name
    title = rng.choice((piece.capitalize(), piece.upper(), piece))
    forms = (
        part, piece, name.removeprefix("lib"), f"{part or name} ({version(rng)})", f"/usr/lib/{name}", f"{name}.{letters(rng)}",
        f"https://{piece}.{rng.choice(words.TOP_LEVEL)}", f"Debian {title} {rng.choice(words.TITLES)}", f"The {title} Team",
        f"{title} {rng.choice(words.TITLES)}", f"{word(rng)} {piece}", f"{piece}/{word(rng)}", name,
    )  # fmt: skip
    return rng.choice(forms) or piece


def vary(rng: random.Random, text: str) -> str:
    """The same value again, or one that differs from it in a single piece."""
    pieces = re.findall(r"[A-Za-z]+|\d+|[^A-Za-z\d]+", text)
    at = [index for index, piece in enumerate(pieces) if piece.isalnum()]
    if not at or rng.random() < 0.35:
        return text
    chosen = rng.choice(at)
    fresh = small(rng) if pieces[chosen].isdigit() else word(rng)
    pieces[chosen] = fresh.capitalize() if pieces[chosen][0].isupper() else fresh
    return "".join(pieces)


def package(rng: random.Random) -> str:
    """A name, which may by chance be a real one: callers that name records must reject those."""
    parts = [word(rng) for _ in range(rng.choice((1, 1, 2, 2, 2, 2, 3, 3, 4)))]
    kind = rng.random()
    if kind < 0.12:
        parts[0] = "lib" + parts[0]
    elif kind < 0.2:
        parts.insert(0, rng.choice(("python3", "py", "python", "node", "golang", "ruby", "lib")))
    at = rng.randrange(len(parts))
    if rng.random() < 0.3:
        parts[at] += rng.choice(("1", "2", "3", "0", "6", "64", small(rng), f"{small(rng)}.{small(rng)}"))
    if rng.random() < 0.15:
        parts.append(rng.choice(("0", "1", "2", "1.0", "2.0", small(rng), f"{small(rng)}.{small(rng)}")))
    if rng.random() < 0.1:
        parts = [part.capitalize() for part in parts]
    joint = rng.choice(("-",) * 14 + ("_", "_", "_", ".", "", ""))
    return joint.join(parts) if joint or len(parts) < 3 else "-".join(parts)
