"""A snapshot of real package records, and the names that training must never see.

Knows how to read importlib.metadata and dpkg, and the committed snapshot of both.
It generates nothing and imports no torch.
"""

import argparse
import importlib.metadata
import json
import re
import subprocess
from functools import lru_cache
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("real_records.json")
LIMIT = 32
DPKG = ("Package", "Version", "Section", "Maintainer", "Architecture", "Installed-Size", "Priority", "Source", "Homepage")
RENAMED = {"installed-size": "size"}


def normalise(name: str) -> str:
    """One spelling for a name: lower case, one hyphen between the parts."""
    return re.sub(r"[-_.]+", "-", name).lower().strip("-")


@lru_cache(maxsize=1)
def snapshot() -> dict[str, list[str] | list[dict[str, str]]]:
    """The committed snapshot: `records` (name and fields, flat) and `names` (every name seen)."""
    loaded: dict[str, list[str] | list[dict[str, str]]] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return loaded


@lru_cache(maxsize=1)
def real_names() -> frozenset[str]:
    """Every real name of the snapshot, normalised."""
    if not SNAPSHOT.exists():
        return frozenset()
    return frozenset(str(name) for name in snapshot()["names"])


def _short(value: str) -> str:
    """A value fit to be asked about: one line, no mail address, not long; empty when it is none."""
    value = re.sub(r"\s*<[^>]*>", "", value.strip().split("\n")[0]).strip()
    good = 0 < len(value) <= LIMIT and value != "UNKNOWN" and '"' not in value
    return value if good else ""


def _first(meta: importlib.metadata.PackageMetadata, key: str) -> str:
    return str((meta.get_all(key) or [""])[0] or "")


def distributions() -> list[dict[str, str]]:
    """The record of every installed Python distribution."""
    found = {}
    for item in importlib.metadata.distributions():
        meta = item.metadata
        fields = {
            "name": item.name,
            "version": item.version,
            "author": _first(meta, "Author"),
            "license": _first(meta, "License-Expression") or _first(meta, "License"),
            "requires": str(len(item.requires or [])),
            "files": str(len(item.files or [])),
            "homepage": _first(meta, "Home-page"),
        }
        found[normalise(item.name)] = {key: short for key, value in fields.items() if (short := _short(value))} | {"name": item.name}
    return [found[name] for name in sorted(found)]


def debian() -> list[dict[str, str]]:
    """The record of every installed Debian package; empty where there is no dpkg."""
    form = "\\t".join(f"${{{field}}}" for field in DPKG) + "\\n"
    command = ["dpkg-query", "-W", "-f", form]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return []
    records = []
    for line in text.splitlines():
        values = dict(zip((field.lower() for field in DPKG), map(_short, line.split("\t")), strict=True))
        values.pop("package")
        values["name"] = line.split("\t")[0]
        records.append({RENAMED.get(key, key): value for key, value in values.items() if value})
    return records


def main() -> None:
    """Write the snapshot: all distributions, and an even spread of the Debian packages."""
    parser = argparse.ArgumentParser(description="Write the snapshot of real package records.")
    parser.add_argument("--records", type=int, default=240)
    args = parser.parse_args()
    python, other = distributions(), debian()
    names = sorted({normalise(record["name"]) for record in python + other})
    step = max(1, len(other) // max(1, args.records - len(python)))
    records = python + other[::step]
    text = json.dumps({"records": records, "names": names}, indent=0, ensure_ascii=False)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")
    print(f"{len(records)} records, {len(names)} names")


if __name__ == "__main__":
    main()
