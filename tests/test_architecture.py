"""The folder listing tells the story only as long as imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bertbin_tf"
# From each module to those of ours that it may import.
ALLOWED = {
    "assets": set(),
    "datasets": {"assets"},
    "data": {"assets", "datasets"},
    "distribute": set(),
    "memory": set(),
    "initializers": set(),
    "models": {"assets", "distribute", "initializers"},
    "optimizers": {"distribute", "notebook"},
    "metrics": set(),
    "callbacks": {"distribute", "metrics", "optimizers"},
    "notebook": set(),
    "texts": set(),
    "evaluation": {"notebook"},
    "recipe": {
        "assets",
        "data",
        "models",
        "optimizers",
        "metrics",
        "callbacks",
        "distribute",
        "memory",
        "evaluation",
        "notebook",
        "texts",
    },
    "export": {"data", "models", "texts"},
    "serving": {"export", "texts"},
    "doctor": {"callbacks", "metrics", "optimizers"},
    "report": {"evaluation", "recipe"},
    "cli": {"assets", "callbacks", "data", "doctor", "evaluation", "export", "memory", "recipe", "report", "serving"},
}


def imports_of(path):
    """Yields the modules of ours that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (
                [node.module] if node.module != "bertbin_tf" else [f"bertbin_tf.{alias.name}" for alias in node.names]
            )
        yield from (name.split(".")[1] for name in names if name and name.startswith("bertbin_tf."))


def test_imports_point_one_way():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module != "__init__":
            found.setdefault(module, set()).update(set(imports_of(path)) - {module, "__version__"})
    assert set(found) == set(ALLOWED)
    assert {module: names - ALLOWED[module] for module, names in found.items() if names - ALLOWED[module]} == {}


def test_modules_stay_small():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


@pytest.mark.parametrize("module", ["bertbin_tf", "bertbin_tf.recipe", "bertbin_tf.cli", "bertbin_tf.cli.parser"])
def test_import_loads_nothing_heavy(module):
    code = f"import sys, {module}; print({{'tensorflow', 'keras', 'sklearn', 'numpy', 'rich'}} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"


@pytest.mark.parametrize("modules", ["bertbin_tf.cli.serving, bertbin_tf.serving.server", "bertbin_tf.cli.reporting"])
def test_server_and_report_load_no_keras_models(modules):
    code = f"import sys, {modules}; print({{'keras_nlp', 'keras_hub'}} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"
