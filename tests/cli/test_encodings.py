"""A terminal that takes ASCII only: everything is printed, with a mark for what it cannot show, and JSON loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from agent_memory.store.store import Store
from tests.cli.conftest import LAYOUT, MODEL, OLD_RECALL

NAME = "m\u00fcller \U0001f600"
IN_CHILD = """
import sys
from agent_memory.cli import main
for words in (["--help"], ["sessions"], ["show", NAME], ["show", NAME, "--full"], ["recall", NAME], ["verify"], ["show", "n\\u00f6"],
              ["delete", NAME], ["sessions", "--json"], ["show", NAME, "--json"]):
    try:
        main(words)
    except SystemExit as left:
        print(words[0], left.code, file=sys.stderr)
"""


def test_whatever_a_store_holds_is_printed_in_ascii(own_folder: Path) -> None:
    with Store.open("memory") as store:
        timeline = store.session(NAME, model=MODEL, layout=LAYOUT)
        timeline.append_turn("tool", "na\u00efve \u2026 \U0001f600 " * 30, np.arange(40), name="\u540d", chain="a")
        timeline.append_turn("assistant", "", np.arange(5), chain="b", meta={"tool_calls": [{"name": "\ud800"}]}, recall=OLD_RECALL)
        timeline.close()
    script = f"NAME = {ascii(NAME)}\n{IN_CHILD}"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True)
    out, err = child.stdout.decode("ascii"), child.stderr.decode("ascii")
    codes = [line for line in err.splitlines() if not line.startswith("error: ")]
    assert codes == ["--help 0", "sessions 0", "show 0", "show 0", "recall 0", "verify 0", "show 1", "delete 1", "sessions 0", "show 0"], (
        err
    )
    assert "Unicode" not in err and "m?ller" in out
    sessions, shown = (json.loads(line) for line in out.splitlines()[-2:])
    assert [info["name"] for info in sessions["sessions"]] == [NAME]
    assert shown["turns"][0]["name"] == "\u540d" and shown["turns"][1]["meta"]["tool_calls"] == [{"name": "\ud800"}]
