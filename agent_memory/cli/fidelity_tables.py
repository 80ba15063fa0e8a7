"""How figures of fidelity look on a terminal: tables while they are measured and at the end, and a line a finished document.

Knows the JSON object of ``run_fidelity``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from agent_memory.cli import shapes

if TYPE_CHECKING:
    from rich.table import Table

Report = Mapping[str, Any]
Figure = Mapping[str, Any]


def tables(report: Report) -> list[Table]:
    """Figures of answers or of text, and of mass where it was weighed."""
    made = [_answers(report) if "right" in report["full"] else _text(report)]
    return [*made, _mass(report)] if any(report["mass"].values()) else made


def footing(report: Report) -> str:
    """What was measured on, and full attention's own figures."""
    full, documents = report["full"], shapes.count(report["documents"], "document")
    said = f"{report['model']}, window {report['window']:,}; {documents} of at most {report['length']:,} tokens; full attention: "
    if "right" in full:
        score = "" if full["score"]["value"] == full["right"]["value"] else f", score {_plain(full['score'])}"
        return said + f"{full['right_answers']} of {report['questions']} right{score}, NLL {_plain(full['nll'])} an answer"
    return said + f"NLL {full['nll_per_token']['value']:.4f} a token"


def line(report: Report) -> str:
    """The running figures, when one more document is finished."""
    full, figures = report["full"], []
    for method, mode, row in _rows(report):
        if "right" in full:
            figures.append(f"{method}, {mode}: dNLL {_signed(row['nll_change'])}, kept {row['kept']}, lost {row['lost']}, won {row['won']}")
        else:
            figures.append(f"{method}, {mode}: {row['nll_change_per_token']['value']:+.4f} nats a token")
    right = f" (full attention: {full['right_answers']} of {report['questions']} right)" if "right" in full else ""
    return f"{shapes.count(report['documents'], 'document')}{right}: " + "; ".join(figures)


def _rows(report: Report) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for method, modes in report["methods"].items():
        for mode, row in modes.items():
            yield method, mode, row


def _answers(report: Report) -> Table:
    scored = report["full"]["score"]["value"] != report["full"]["right"]["value"]
    headings = [
        "memory",
        "dNLL",
        "95%",
        "dNLL/token",
        "KL/token",
        "right",
        "kept",
        "lost",
        "won",
        "kept share",
        "95% ",
        *["score"] * scored,
    ]
    made = shapes.table("method", *headings, right=tuple(headings[1:]))
    for method, mode, row in _rows(report):
        right = f"{row['kept'] + row['won']} of {row['questions']}"
        cells = [
            _signed(row["nll_change"]), _interval(row["nll_change"], "+.3f"), _signed(row["nll_change_per_token"]),
            _plain(row["kl_per_token"]), right, str(row["kept"]), str(row["lost"]), str(row["won"]),
            _share(row["kept_share"]), _interval(row["kept_share"], ".0%"), *[_plain(row["score"])] * scored,
        ]  # fmt: skip
        made.add_row(method, mode, *cells)
    return made


def _text(report: Report) -> Table:
    windows = list(dict.fromkeys(name for _, _, row in _rows(report) for name in row["gap_closed"]))
    closed = [f"closed of {name}" for name in windows]
    headings = ["memory", "NLL/token", "change", "95%", "KL/token", *closed]
    made = shapes.table("method", *headings, right=tuple(headings[1:]))
    for method, mode, row in _rows(report):
        change = row["nll_change_per_token"]
        shares = (row["gap_closed"][name] for name in windows)
        cells = [f"{row['nll_per_token']['value']:.4f}", f"{change['value']:+.4f}", _interval(change, "+.4f"), _plain(row["kl_per_token"])]
        made.add_row(method, mode, *cells, *(f"{_share(one)} ({shapes.count(one['texts'], 'text')})" for one in shares))
    return made


def _mass(report: Report) -> Table:
    headings = ("choice", "to choose from", "chosen of it", "chosen of oracle", "95%", "worst")
    made = shapes.table("mass", *headings, right=headings[1:])
    for method, kinds in report["mass"].items():
        for kind, row in (kinds or {}).items():
            if row is not None:
                worst = row["worst"]
                place = "-" if worst is None else f"{worst['of_oracle']:.0%} (layer {worst['layer']}, KV head {worst['kv_head']})"
                of_oracle = row["of_oracle"]
                cells = (_share(row["available_share"]), _share(row["chosen_share"]), _share(of_oracle), _interval(of_oracle, ".0%"), place)
                made.add_row(method, kind, *cells)
    return made


def _signed(figure: Figure) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:+.3f}"


def _plain(figure: Figure) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:.3f}"


def _share(figure: Figure) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:.0%}"


def _interval(figure: Figure, form: str) -> str:
    return "-" if figure["interval"] is None else " to ".join(format(bound, form) for bound in figure["interval"])
