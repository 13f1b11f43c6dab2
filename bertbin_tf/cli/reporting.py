"""What `report` and `compare` do."""

from pathlib import Path

from bertbin_tf.cli import console
from bertbin_tf.recipe.folder import write_whole
from bertbin_tf.report import page, read_record, verdict


def report(path: Path, output: Path | None, as_json: bool) -> None:
    """Writes the page of a run, and says in a line what it came to."""
    record = read_record(path)
    output = _write(output or path / "report.html", [record])
    word, sentence = verdict(record)
    if as_json:
        console.print_json({"page": str(output), "verdict": word, "sentence": sentence})
    else:
        print(f"{word}: {sentence}\nThe page is {output}")


def compare(paths: list[Path], output: Path | None, as_json: bool) -> None:
    """Prints a table of runs, and writes their page if asked to."""
    records = [read_record(path) for path in paths]
    header, rows = page.comparison(records)
    same_rows = page.have_same_rows(records)
    if output is not None:
        output = _write(output, records)
    if as_json:
        runs = [dict(zip(header, row, strict=True)) for row in rows]
        console.print_json({"runs": runs, "same_validation_rows": same_rows, "page": output and str(output)})
        return
    console.print_table("Runs, on their validation texts, 95 % intervals", header, rows)
    if not same_rows:
        print("These runs were validated on different texts: their figures cannot be compared.")
    if output is not None:
        print(f"The page is {output}")


def _write(output, records):
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output must name an .html file. Received: '{output}'")
    with console.status("Drawing ..."):
        content = page.render_records(records)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda file: file.write_text(content, encoding="utf-8"))
    return output
