import importlib.util
import re
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from bertbin_tf.doctor import CODES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_of_the_doctor_is_what_its_rules_say():
    assert (DOCS / "doctor.md").read_text(encoding="utf-8") == load(DOCS / "build.py").page(), (
        "run python docs/build.py"
    )


def test_page_has_every_code_once():
    page = (DOCS / "doctor.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.+)$", page, re.MULTILINE)) == CODES


def test_every_code_has_a_planted_fault_but_the_one_that_is_luck(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    faults = load(ROOT / "benchmarks" / "faults_cases.py").FAULTS
    assert set(faults) == set(CODES) - {"seed-instability"}


def test_configuration_for_tf_serving_is_in_its_own_terms():
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"^```\n(model_config_list.+?)^```", page, re.DOTALL | re.MULTILINE)
    parsed = text_format.Parse(config, model_server_config_pb2.ModelServerConfig())
    assert dict(parsed.model_config_list.config[0].version_labels) == {"stable": 1, "canary": 2}
