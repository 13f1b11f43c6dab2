"""Lets griffe show what follows `Example:` in our docstrings as code: it knows indented `Examples:` only."""

import re

import griffe


class Examples(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:\n(>>>(?:.+\n?)+)",
                r"Example:\n\n```python\n\1\n```\n",
                obj.docstring.value,
                flags=re.MULTILINE,
            )
