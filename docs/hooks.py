"""Pages of the site that are made from what is elsewhere: the README and its like, `--help`, the public names.

A command and a code of the doctor have a page each, for those who come from a search.
"""

import argparse
import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

from bertbin_tf.cli.parser import build_parser

ROOT = Path(__file__).parents[1]
PICTURES = ("benchmarks/results/robustness.png",)
# From pages at the top of the repository to those of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "THREATS.md": "threats.md",
}


def on_config(config):
    """Puts the pages of commands and codes under their headings."""
    pages = {"commands/index.md": command_pages(), "doctor/index.md": code_pages()}
    for entry in config.nav:
        for title, target in entry.items() if isinstance(entry, dict) else ():
            if target in pages:
                entry[title] = list(pages[target])
    return config


def on_files(files, config):
    """Adds the pages that are made; that of all codes, which is read where there is no site, gives way to theirs."""
    files.remove(files.get_file_from_path("doctor.md"))
    made = {target: _with_links_of_the_site((ROOT / source).read_text("utf-8")) for source, target in PAGES.items()}
    for target, content in (made | command_pages() | code_pages() | {"api.md": api_page()}).items():
        files.append(File.generated(config, target, content=content))
    for picture in PICTURES:
        files.append(File.generated(config, Path(picture).name, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Has links to the page of all codes lead to the list of theirs, and those out of `docs` to the made pages."""
    if "/" in page.file.src_uri:  # made here, with links to its like
        return markdown
    for source, target in (PAGES | {"doctor.md": "doctor/index.md"}).items():
        markdown = markdown.replace(f"](../{source})", f"]({target})").replace(f"]({source})", f"]({target})")
    return markdown


def command_pages():
    """Returns a page for each command, from its `--help`, behind one that lists them."""
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    index, pages = ["# Commands", "", parser.description, ""], {}
    for name, command in commands.choices.items():
        options = command.format_help().partition("\n\n")[2].partition("\n\n")[2].strip()
        usage = f"```text\n{command.format_usage().strip()}\n\n{options}\n```\n"
        index.append(f"* [`bertbin-tf {name}`]({name}.md): {command.description}")
        pages[f"commands/{name}.md"] = f"# bertbin-tf {name}\n\n{command.description}\n\n{usage}"
    return {"commands/index.md": "\n".join(index) + "\n"} | pages


def code_pages():
    """Returns a page for each code of the doctor, from `doctor.md`, behind one that lists them."""
    introduction, *sections = re.split(r"^## ", (ROOT / "docs" / "doctor.md").read_text("utf-8"), flags=re.MULTILINE)
    pages = {f"doctor/{section.split()[0]}.md": f"# {section}" for section in sections}
    return {"doctor/index.md": re.sub(r"\(#([a-z-]+)\)", r"(\1.md)", introduction)} | pages


def api_page():
    """Returns a page with the public names of each module, which mkdocstrings fills in."""
    lines = ["# API", ""]
    for path in sorted((ROOT / "bertbin_tf").glob("[a-z]*")):
        if path.stem != "cli" and (path.is_dir() or path.suffix == ".py"):
            lines += [f"## bertbin_tf.{path.stem}", "", *(f"::: {name}\n" for name in _public_names(path))]
    return "\n".join(lines)


def _public_names(path):
    """Yields where the public names of a module are defined; a package says in `__all__` which those are."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    trees = {file: ast.parse(file.read_text("utf-8")) for file in files}
    defined = {
        node.name: ".".join((*file.relative_to(ROOT).with_suffix("").parts, node.name)).replace(".__init__", "")
        for file, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    public = defined
    for node in trees[files[0]].body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            public = ast.literal_eval(node.value)
    yield from (defined[name] for name in public if name in defined)


def _with_links_of_the_site(text):
    for picture in PICTURES:
        text = text.replace(f"]({picture})", f"]({Path(picture).name})")
    text = re.sub(r"\[([^\]]+)\]\(notebooks/[^)]+\)", r"`\1`", text)  # they are not part of the site
    return re.sub(r"\]\(docs/", "](", text)
