"""The notebooks: kept without outputs, and run from the first cell to the last by this interpreter."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
WINDOW = 512

by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


@pytest.fixture(autouse=True)
def no_settings_of_ones_own(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(own_folder / "jupyter"))
    monkeypatch.delenv("MPLBACKEND", raising=False)


def run(path: Path, folder: Path) -> list[Any]:
    """The notebook's code cells after they were run, in a kernel of this interpreter whatever kernels are registered here."""
    notebook = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    NotebookClient(notebook, km=manager, timeout=120, resources={"metadata": {"path": str(folder)}}).execute(cleanup_kc=True)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


@by_notebook
def test_a_notebook_is_short_and_valid_and_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert 8 <= len(notebook.cells) <= 12
    assert path.read_text() == nbformat.writes(notebook) + "\n"
    for cell in notebook.cells:
        assert cell.source.strip() and len(cell.source.splitlines()) <= 30
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@by_notebook
def test_a_notebook_answers_rightly_and_draws_what_memory_saves(path: Path, own_folder: Path) -> None:
    tool, talk, question, restart, picture = run(path, own_folder)
    assert f"alembic version: {version('alembic')}" in printed(tool)
    lengths = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) tokens so far", printed(talk))]
    assert len(lengths) == 5 and lengths == sorted(lengths) and lengths[-1] > 2 * WINDOW
    answer, *recalled = printed(question).splitlines()
    assert answer == f"alembic version: {version('alembic')}"
    ago = [int(found[1].replace(",", "")) for line in recalled if (found := re.match(r"  tool turn 3, ([\d,]+) tokens ago", line))]
    assert ago and ago[0] > WINDOW
    later = re.search(r"^(.*) \((\d+) tokens read\)$", printed(restart), re.M)
    assert later and later[1] == f"tqdm version: {version('tqdm')}" and int(later[2]) < 100
    assert any("image/png" in output.get("data", {}) for output in picture.outputs)
    read, whole = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", printed(picture)))
    assert lengths[-1] < read < whole / 4
