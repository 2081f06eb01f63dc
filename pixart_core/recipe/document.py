"""YAML text to plain data that remembers its lines, and back.

Scalars follow YAML 1.2's core schema: `2e-5` is a number (PyYAML's YAML 1.1 rules make it a text)
and `no` is a text (there it is false), so a recipe means what it says.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import yaml

from pixart_core.errors import UserError

_RESOLVERS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either set of rules would read as something else."""


for _name, _pattern, _first in _RESOLVERS:
    _regexp, _chars = re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _regexp, _chars)


@dataclasses.dataclass(frozen=True)
class Document:
    """A YAML file: its data, and where each key stands.

    Attributes:
        label: the path as messages name it.
        data: dicts, lists and scalars.
        duplicates: (line, dotted path) of keys that a mapping holds twice.
    """

    label: str
    data: Any
    duplicates: list[tuple[int, tuple[str, ...]]]
    root: yaml.Node | None

    def line(self, path: tuple[str | int, ...]) -> int:
        """Line (from 1) of the key at `path`, or of its nearest parent that is in the file."""
        node, line = self.root, 1
        for part in path:
            found = _find(node, part)
            if found is None:
                break
            mark, node = found
            line = mark.line + 1
        return line


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        UserError: not readable, not UTF-8, or not YAML; names the file and the line.
    """
    label = _label(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{label}: not a text file in UTF-8") from error
    except OSError as error:
        raise UserError(f"{label}: cannot read it: {error.strerror}") from error
    return parse_document(text, label)


def parse_document(text: str, label: str) -> Document:
    """`read_document` for text already read."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        duplicates = _duplicates(root)
        data = None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{label}:{mark.line + 1}" if mark else label
        hint = " (indent with spaces, not tabs)" if "\\t" in (error.problem or "") else ""
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}{hint}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{label}: not valid YAML: {error}") from error
    return Document(label, data, duplicates, root)


def parse_value(text: str) -> Any:
    """The value of an override: brackets, braces and quotes are YAML, anything else one scalar.

    So `prompt=a fox: red #1` stays the text that was typed.
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        return parse_document(text, "value").data
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_document(yaml.ScalarNode(tag, text))


def dump_yaml(data: Any) -> str:
    """YAML text in the order of `data`, short lists on one line; every YAML reader reads it alike."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def _label(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _find(node: yaml.Node | None, part: str | int) -> tuple[yaml.Mark, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        # The last one counts: merged keys (`<<`) stand before a mapping's own.
        for key, value in reversed(node.value):
            if key.value == str(part):
                return key.start_mark, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark, node.value[part]
    return None


def _duplicates(root: yaml.Node | None) -> list[tuple[int, tuple[str, ...]]]:
    found: list[tuple[int, tuple[str, ...]]] = []
    visited: set[int] = set()

    def visit(node: yaml.Node, path: tuple[str, ...]) -> None:
        if id(node) in visited:  # an alias
            return
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                visit(item, (*path, str(index)))
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                if name in seen and key.tag != "tag:yaml.org,2002:merge":
                    found.append((key.start_mark.line + 1, (*path, name)))
                seen.add(name)
                visit(value, (*path, name))

    if root is not None:
        visit(root, ())
    return found
