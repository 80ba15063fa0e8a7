"""How facts of a Store look on a terminal: sizes, ages, snippets, and the tables of Sessions, turns and recalled turns.

Knows the records of ``types`` and nothing of where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ByteSize
from rich.markup import escape
from rich.table import Table

from agent_memory.errors import StoreCorrupt
from agent_memory.types import Damage, Recall, RecalledTurn, SessionInfo, Turn

ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def size(count: int) -> str:
    """Bytes for people, as ``12.3MiB``."""
    return ByteSize(count).human_readable()


def count(number: int, noun: str) -> str:
    """``1 turn``, ``2 turns``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def age(moment: float) -> str:
    """How long ago a UNIX time was, as ``3 min ago``."""
    passed = max(0.0, time.time() - moment)
    for seconds, unit in _UNITS:
        if passed >= seconds:
            return f"{int(passed // seconds)} {unit} ago"
    return "now"


def snippet(text: str, width: int = 72) -> str:
    """The beginning of a text on one line, safe to print as rich markup."""
    line = " ".join(text[: width * 4].split())
    line = printable(line)
    return escape(line if len(line) <= width and len(text) <= width * 4 else line[: width - 1] + "…")


def printable(text: str) -> str:
    """A text without characters that steer a terminal; line breaks and tabs stay."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def speaker(role: str, name: str | None) -> str:
    """A role and perhaps a tool's name, in the colour of the role."""
    style = ROLE_STYLES.get(role, "white")
    return f"[{style}]{snippet(role, 24)}[/]" + (f" {snippet(name, 24)}" if name else "")


def table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; the headings named in ``right`` are those of numbers."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", no_wrap=heading in right)
    return made


def session_table(sessions: Iterable[SessionInfo]) -> Table:
    """One line a Session."""
    made = table("session", "turns", "tokens", "disk", "written", "parent", right=("turns", "tokens", "disk"))
    for info in sessions:
        parent = snippet(info.parent or "", 32)
        if info.damage is not None:
            made.add_row(snippet(info.name, 48), "", "", "", "[red]damaged[/]", "")
            continue
        made.add_row(snippet(info.name, 48), f"{info.turns:,}", f"{info.tokens:,}", size(info.bytes), age(info.updated), parent)
    return made


def turn_table(turns: Iterable[Turn]) -> Table:
    """One line a turn."""
    made = table("turn", "who", "tokens", "text", right=("turn", "tokens"))
    for turn in turns:
        made.add_row(str(turn.index), speaker(turn.role, turn.name), f"{turn.tokens:,}", snippet(turn.text))
    return made


def recall_table(recall: Recall, most: int = 8) -> Table:
    """One line a recalled turn, at most ``most``; what the scores are stands over them, since older versions recorded something else."""
    older = recall.local_share is None and any(hit.score is not None for hit in recall.turns)
    score = "of selections" if older else "of attention"
    made = table("turn", "who", "tokens ago", score, "peak", "tier", "text", right=("turn", "tokens ago", score, "peak"))
    for hit in recall.foremost(most):
        row = (str(hit.turn), speaker(hit.role, hit.name), f"{hit.tokens_ago:,}", share(hit.score), share(hit.peak), hit.tier)
        made.add_row(*row, snippet(hit.text))
    return made


def share(part: float | None) -> str:
    """A share for people: ``3.1%``, or ``-`` where it is not known."""
    return "-" if part is None else f"{part:.1%}"


def read_recall(stored: Mapping[str, Any]) -> Recall:
    """The Recall that ``Recall.to_dict`` was stored from; StoreCorrupt for anything else."""
    try:
        return Recall(**{**stored, "turns": tuple(RecalledTurn(**hit) for hit in stored["turns"])})
    except (KeyError, TypeError) as error:
        raise StoreCorrupt("what the store keeps of a recall is none; run agent-memory verify") from error


def recall_line(recall: Recall) -> str:
    """A Recall in one line: how many turns and Blocks, from which tiers, and how far it is proven."""
    tiers = ", ".join(f"{count:,} from {tier}" for tier, count in recall.tiers.items() if count)
    proven = "exact" if recall.exact else f"certified: {recall.certified}"
    damaged = f"; [red]{len(recall.damaged)} damaged Blocks left out[/]" if recall.damaged else ""
    read = f" ({tiers})" if tiers else ""
    return f"{count(len(recall.turns), 'turn')}, {count(recall.blocks, 'Block')}{read}; {proven}{_attention(recall)}{damaged}"


def _attention(recall: Recall) -> str:
    """How the attention of the reply was shared out."""
    if recall.sink_share is None or recall.local_share is None:
        return ""
    unread = recall.unread_share or 0.0
    recalled = 1 - recall.sink_share - recall.local_share - unread
    estimated = f", {share(unread)} unread" if unread else ""
    return f"; attention {share(recalled)} recalled, {share(recall.sink_share)} sink, {share(recall.local_share)} local{estimated}"


def damage_table(damage: Iterable[Damage]) -> Table:
    """One line for each thing that ``verify`` found."""
    made = table("session", "block", "layer", "damage", "turns")
    for found in damage:
        block, layer = ("-" if number is None else str(number) for number in (found.block, found.layer))
        made.add_row(snippet(found.session, 40), block, layer, found.kind, ", ".join(map(str, found.turns)))
    return made
