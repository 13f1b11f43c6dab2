"""Writes `doctor.md`: a section for each code of the doctor, from its rule, its remedy and the fault benchmark.

python docs/build.py
"""

import inspect
import json
from pathlib import Path

from bertbin_tf.doctor.finding import with_imports
from bertbin_tf.doctor.remedies import REMEDIES, UNTRIED
from bertbin_tf.doctor.rules import RULES

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results" / "faults.jsonl"
INTRODUCTION = """# What the doctor knows

Made from the rules by `docs/build.py`, so that this is what the program does. `diagnose(model, train_data)` goes
through the codes in this order and names the first one that applies as the cause: what is upstream in the story of a
batch hides what is downstream. The examples are from `benchmarks/faults.py`, on the real checkpoint.

Behind each finding stands what a short run made of it, where there was one: **confirmed**, the model trained with the
remedy and not without it; **refuted**, it trained as well without it; **suspected**, nothing was tried, or the trial
proved nothing. The verdict is the first code that was not refuted. Without one it is **healthy**, or **unexplained**
where something is wrong all the same: ten steps on a few rows of one batch hardly move its logits, the answers have
collapsed, or `fit` cannot take the data. What could not be examined is listed under it.

"""


def page() -> str:
    """Returns the page in Markdown."""
    examples = _examples()
    listed = "\n".join(f"* [`{code}`](#{code})" for code in RULES)
    return INTRODUCTION + listed + "\n\n" + "\n".join(_section(code, examples.get(code)) for code in RULES)


def _section(code, example):
    lines = [f"## {code}", "", inspect.getdoc(RULES[code]), ""]
    if example is not None:
        case, finding = example
        lines += [
            f"Example (`{case}`): {finding['evidence']}.",
            "",
            "```python",
            with_imports(finding["remedy"]),
            "```",
            "",
        ]
    if code in REMEDIES:
        cure = inspect.getdoc(REMEDIES[code]).splitlines()[0]
        tried = "It is not tried: a few rows cannot show it." if code in UNTRIED else "It is tried."
        lines += [f"`treat()` applies this: {cure} {tried}", ""]
    else:
        lines += ["`treat()` leaves it to you.", ""]
    return "\n".join(lines)


def _examples():
    """Returns by code the first case of which it is the cause, and the finding."""
    examples = {}
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    for line in map(json.loads, lines):
        if line["kind"] == "examine" and line["codes"] and line["cause"] == line["codes"][0]:
            examples.setdefault(line["cause"], (line["case"], line["findings"][0]))
    return examples


if __name__ == "__main__":
    (HERE / "doctor.md").write_text(page(), encoding="utf-8")
