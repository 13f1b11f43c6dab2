"""Runs each notebook's .py source and writes the .ipynb beside it, outputs included.

Usage: python notebooks/build.py [NAME ...]    # all of them by default
"""

import sys
from pathlib import Path

import jupytext
import nbclient

FOLDER = Path(__file__).parent
# TensorFlow greets on standard error, with addresses and times that differ in every run.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def execute(source: Path):
    """Returns the notebook of a jupytext source after running all its cells; a failing cell raises."""
    notebook = jupytext.read(source)
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"  # and not a random one, or each run would change the file
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    import os

    os.environ.update(QUIET)
    for source in sorted(FOLDER.glob("[0-9]*.py")):
        if not sys.argv[1:] or source.stem in sys.argv[1:]:
            jupytext.write(execute(source), source.with_suffix(".ipynb"))
            print(f"{source.name}: done")
