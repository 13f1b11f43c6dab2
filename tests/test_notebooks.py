import importlib.util
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))


def build():
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.checkpoint
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs_and_its_claim_holds(source, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    build().execute(source)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_committed_notebook_has_the_cells_of_its_source_and_outputs(source):
    committed = jupytext.read(source.with_suffix(".ipynb"))
    expected = jupytext.read(source)
    assert [cell.source for cell in committed.cells] == [cell.source for cell in expected.cells]
    assert committed.cells[0].source.startswith("# ") and committed.cells[0].cell_type == "markdown"
    assert len(committed.cells) <= 15
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert code[-1].outputs and "assert " in code[-1].source
