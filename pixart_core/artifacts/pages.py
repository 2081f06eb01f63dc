"""HTML pages from templates."""

from pathlib import Path

import jinja2


def page_environment(templates: Path) -> jinja2.Environment:
    """Of the templates in a folder.

    Prompts and names come from anywhere: all that is put in is escaped, but for what was made here and is
    marked so (`markupsafe.Markup`); a value that is missing is an error.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
