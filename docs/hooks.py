"""Pages of the site that are made from what is elsewhere: the README and its like, `--help`, the public names."""

import argparse
import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

from bertbin_tf.cli.parser import build_parser

ROOT = Path(__file__).parents[1]
# From pages at the top of the repository to those of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "THREATS.md": "threats.md",
}


def on_files(files, config):
    """Adds the pages that are made."""
    made = {target: _with_links_of_the_site((ROOT / source).read_text("utf-8")) for source, target in PAGES.items()}
    made |= {"commands.md": commands_page(), "api.md": api_page()}
    for target, content in made.items():
        files.append(File.generated(config, target, content=content))
    return files


def commands_page():
    """Returns a section for each command, from its `--help`."""
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = ["# Commands", "", parser.description, ""]
    for name, command in commands.choices.items():
        options = command.format_help().partition("\n\n")[2].partition("\n\n")[2]
        lines += [
            f"## {name}",
            "",
            command.description,
            "",
            "```text",
            command.format_usage().strip(),
            "",
            options.strip(),
            "```",
            "",
        ]
    return "\n".join(lines)


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
    for source, target in PAGES.items():
        text = text.replace(f"]({source})", f"]({target})")
    text = re.sub(r"\[([^\]]+)\]\(notebooks/[^)]+\)", r"`\1`", text)  # they are not part of the site
    return re.sub(r"\]\(docs/", "](", text)
