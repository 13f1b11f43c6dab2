"""What the doctor says: findings, each with its evidence and its cure, and the diagnosis that they make up."""

import dataclasses
import html
import json
import textwrap
from typing import Any

IMPORTS = {
    "LayerwiseAdamW(": "from bertbin_tf.optimizers import LayerwiseAdamW",
    "warmup_cosine(": "from bertbin_tf.optimizers import warmup_cosine",
    "LogOdds(": "from bertbin_tf.initializers import LogOdds",
    "load_preprocessor(": "from bertbin_tf.models import load_preprocessor",
    "data.split(": "from bertbin_tf import data",
}


def with_imports(remedy: str) -> str:
    """Returns lines of code with the imports that they need of this package."""
    return "\n".join([line for name, line in IMPORTS.items() if name in remedy] + [remedy.strip()])


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that keeps a model from training.

    Args:
        code: String, one of `CODES`.
        evidence: String, what was measured, in numbers.
        remedy: String, the lines of code that mend it.
        explanation: String, what the code means and why it does harm.
        status: `"confirmed"` if a short run from the restored weights trained with the remedy and not without it,
            `"refuted"` if it trained as well without it, `"suspected"` if nothing was tried, or in vain. Defaults to
            `"suspected"`.
        trial: String, what the short runs came to. Defaults to an empty one: none was made.
    """

    code: str
    evidence: str
    remedy: str
    explanation: str = ""
    status: str = "suspected"
    trial: str = ""

    @property
    def stands(self) -> bool:
        """Whether no trial refuted it."""
        return self.status != "refuted"

    @property
    def was_tried_in_vain(self) -> bool:
        """Whether a trial was made and proved nothing."""
        return self.status == "suspected" and bool(self.trial)

    @property
    def advice(self) -> str:
        """The lines that mend it, with their imports."""
        return with_imports(self.remedy)

    def __str__(self):
        parts = [textwrap.fill(text, 100) for text in (self.evidence, self.trial) if text]
        return f"{self.code} ({self.status})\n" + textwrap.indent("\n\n".join([*parts, self.advice]), "    ")


@dataclasses.dataclass(frozen=True)
class Treated:
    """What `Diagnosis.treat` did.

    Args:
        train_data: The training data to go on with: shuffled, with masks or labels mended, where that was the cure.
        changes: Tuple of strings: what was changed, a line each.
        left: Dict from code to the reason why its remedy was not applied.
        findings: Tuple of the `Finding`s that were treated, with what the short runs proved.
        validation_data: The validation data to go on with, with masks or labels mended where theirs were wrong, too;
            `None` if there are none.
    """

    train_data: Any
    changes: tuple[str, ...]
    left: dict[str, str]
    findings: tuple[Finding, ...]
    validation_data: Any = None

    @property
    def lines(self) -> list[str]:
        """What was changed, and what is left, a line each."""
        return [
            *(f"changed: {line}" for line in self.changes),
            *(f"left to you: {code}: {reason}" for code, reason in self.left.items()),
        ]

    def __str__(self):
        lines = self.lines
        lines += [f"proved: {finding.code}: {finding.trial}" for finding in self.findings if finding.trial]
        return "\n".join(lines) or "nothing was changed"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What keeps a model from training, most likely cause first.

    Args:
        findings: Tuple of `Finding`.
        symptoms: Tuple of strings: what is not as it should be, whatever the cause.
        unread: Tuple of strings: what could not be examined, and why.
        seconds: Float, how long it took. Defaults to `0.0`.
        treatment: What `treat` applies; `None` of a diagnosis that belongs to no model. Defaults to `None`.
    """

    findings: tuple[Finding, ...] = ()
    symptoms: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    seconds: float = 0.0
    treatment: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def cause(self) -> str:
        """The code of the first finding that no trial refuted.

        Without one it is `"unexplained"` where there are symptoms, such as data that `fit` cannot take, and else
        `"healthy"`.
        """
        standing = [finding.code for finding in self.findings if finding.stands]
        return standing[0] if standing else "unexplained" if self.symptoms else "healthy"

    @property
    def verdict(self) -> str:
        """`cause`, and that a healthy model was not examined as a whole where that is so."""
        return (
            f"{self.cause}, as far as it could be examined" if self.cause == "healthy" and self.unread else self.cause
        )

    def treat(self, epochs: int = 1) -> Treated:
        """Applies the remedies that a program can apply, lists each change, and compiles the model anew.

        Findings that a trial refuted are left alone, and so are those behind the first whose trial proved nothing.
        Metrics, and a loss that needs no change, stay.

        Args:
            epochs: Int >= 1, how long is to be trained: a schedule that is set ends there. Defaults to `1`.

        Example:
        >>> treated = diagnose(model, batches).treat(epochs=2)
        >>> history = model.fit(treated.train_data, epochs=2, verbose=0)
        """
        if self.treatment is None:
            raise ValueError("This diagnosis was read or made by hand. Call `diagnose(model, train_data)` first.")
        return self.treatment.apply([finding for finding in self.findings if finding.stands], epochs)

    def to_json(self) -> str:
        """Returns all of it as a JSON object."""
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        content = {"cause": self.cause, "findings": findings, "symptoms": self.symptoms, "unread": self.unread}
        return json.dumps(content | {"seconds": self.seconds}, indent=2) + "\n"

    def __str__(self):
        parts = [f"Verdict: {self.verdict}  ({self.seconds:.0f} s)", *map(str, self.findings)]
        for title, lines in (("Symptoms", self.symptoms), ("Not examined", self.unread)):
            if lines:
                parts.append("\n".join([f"{title}:", *(f"    {line}" for line in lines)]))
        return "\n\n".join(parts)

    def _repr_html_(self):
        cell = '<td style="text-align: left; vertical-align: top">'  # Jupyter sets cells to the right
        rows = "".join(
            f"<tr>{cell}<b>{html.escape(finding.code)}</b><br>{html.escape(finding.status)}</td>"
            f"{cell}{html.escape(finding.evidence)}<br>{html.escape(finding.trial)}<pre>{html.escape(finding.advice)}</pre></td></tr>"
            for finding in self.findings
        )
        notes = "".join(f"<li>{html.escape(line)}</li>" for line in (*self.symptoms, *self.unread))
        return f"<p>Verdict: <b>{html.escape(self.verdict)}</b></p><table>{rows}</table><ul>{notes}</ul>"
