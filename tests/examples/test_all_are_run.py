"""Every example is run by a test here, is short, says what it shows, and stands in the table of their README."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LONGEST = 80

by_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


@by_script
def test_a_test_runs_the_example(path: Path) -> None:
    tests = [ast.parse(file.read_text()) for file in Path(__file__).parent.glob("test_*.py")]
    calls = {ast.unparse(node.func) for test in tests for node in ast.walk(test) if isinstance(node, ast.Call)}
    assert f"{path.stem}.main" in calls


@by_script
def test_an_example_is_short_and_can_be_imported_and_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < LONGEST
    assert ast.get_docstring(ast.parse(text))
    assert re.search(r'^def main\(store: str = "./memory", model: str \| None = None[,)]', text, re.M)
    assert text.count('if __name__ == "__main__":\n') == 1


def test_the_readme_lists_every_example_and_no_other() -> None:
    listed = re.findall(r"^\| \[([\w.]+)\]\((\S+)\) \|", (EXAMPLES / "README.md").read_text(), re.M)
    assert sorted(listed) == [(name, name) for name in sorted(path.name for path in [*SCRIPTS, *NOTEBOOKS])]
