"""The shape of the checkout: what keeps imports, packaging and reading easy."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("agent_memory", "kernels", "integrations", "examples", "benchmarks", "tests")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
LONGEST_FILE, LONGEST_TRITON_FILE, LONGEST_FUNCTION, LONGEST_KERNEL = 400, 400, 80, 150
BANNED_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.mark.parametrize("folder", ["kernels", "integrations", "integrations/llama_index", "integrations/llama_index/llms"])
def test_namespace_folder_has_no_init(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize(
    "package",
    ["agent_memory", "kernels/agent_memory_kernels", "integrations/langchain_agent_memory", "integrations/llama_index/llms/agent_memory"],
)
def test_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@by_file
def test_file_is_short(path: Path) -> None:
    text = path.read_text()
    limit = LONGEST_TRITON_FILE if re.search(r"^import triton", text, re.M) else LONGEST_FILE
    assert len(text.splitlines()) <= limit


@by_file
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= (LONGEST_KERNEL if kernel else LONGEST_FUNCTION), node.name


@by_file
def test_module_says_what_it_knows(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@by_file
def test_nothing_runs_code_from_a_file(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & BANNED_IMPORTS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in BANNED_IMPORTS
        elif isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "torch.load"


def test_git_keeps_the_memory_room_and_ignores_a_store() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")

    def ignored(name: str) -> bool:
        return subprocess.run([git, "-C", str(ROOT), "check-ignore", "-q", name]).returncode == 0

    assert not ignored("agent_memory/memory/block.py")
    assert ignored("memory/index.db")
