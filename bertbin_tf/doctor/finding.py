"""What the doctor says: findings, each with its evidence and its cure, and the diagnosis that they make up."""

import dataclasses
import html
import json
import textwrap


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that keeps a model from training.

    Args:
        code: String, one of `CODES`.
        evidence: String, what was measured, in numbers.
        remedy: String, the lines of code that mend it.
        explanation: String, what the code means and why it does harm.
        status: `"confirmed"` if a short run from the restored weights trained with the remedy and not without it,
            `"refuted"` if the remedy changed nothing, `"suspected"` if nothing was tried. Defaults to `"suspected"`.
    """

    code: str
    evidence: str
    remedy: str
    explanation: str = ""
    status: str = "suspected"

    def __str__(self):
        evidence = textwrap.fill(self.evidence, 100)
        return f"{self.code} ({self.status})\n" + textwrap.indent(f"{evidence}\n\n{self.remedy.strip()}", "    ")


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What keeps a model from training, most likely cause first.

    Args:
        findings: Tuple of `Finding`.
        symptoms: Tuple of strings: what is not as it should be, whatever the cause.
        unread: Tuple of strings: what could not be examined, and why.
        seconds: Float, how long it took. Defaults to `0.0`.
    """

    findings: tuple[Finding, ...] = ()
    symptoms: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def cause(self) -> str:
        """The code of the first finding, `"healthy"`, or `"unexplained"` where there are symptoms without a cause."""
        if self.findings:
            return self.findings[0].code
        return "unexplained" if self.symptoms else "healthy"

    def to_json(self) -> str:
        """Returns all of it as a JSON object."""
        return json.dumps({"cause": self.cause} | dataclasses.asdict(self), indent=2) + "\n"

    def __str__(self):
        parts = [f"Verdict: {self.cause}  ({self.seconds:.0f} s)", *map(str, self.findings)]
        for title, lines in (("Symptoms", self.symptoms), ("Not examined", self.unread)):
            if lines:
                parts.append("\n".join([f"{title}:", *(f"    {line}" for line in lines)]))
        return "\n\n".join(parts)

    def _repr_html_(self):
        rows = "".join(
            f"<tr><td><b>{html.escape(finding.code)}</b><br>{html.escape(finding.status)}</td>"
            f"<td>{html.escape(finding.evidence)}<pre>{html.escape(finding.remedy.strip())}</pre></td></tr>"
            for finding in self.findings
        )
        notes = "".join(f"<li>{html.escape(line)}</li>" for line in (*self.symptoms, *self.unread))
        return f"<p>Verdict: <b>{html.escape(self.cause)}</b></p><table>{rows}</table><ul>{notes}</ul>"
