"""A configuration as a YAML document: its values, and the line of each key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from etl_dagster.config.text import Place

#: YAML's types of scalars that PyYAML parses, and what they are in plain words.
_PARSED = {"bool": "true or false", "float": "number", "int": "number", "timestamp": "date"}

#: How many mappings and lists may be inside of each other. PyYAML and what reads its values call
#: themselves for each, and Python ends that with a RecursionError at some hundred.
_MOST_LEVELS = 100
#: How many keys, values and list items aliases may repeat in all. What an alias stands for may hold
#: aliases itself, so a few lines can amount to more values than fit into memory.
_MOST_REPEATED = 100_000


def read_yaml(text: str) -> tuple[Any, dict[Place, int], list[str]]:
    """The values of a document, the line of each key (from 1), and keys that are there twice.

    Raises:
        yaml.MarkedYAMLError: it isn't YAML, a value is not of its type, or the document is nested
            too deeply or amounts to too much.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        column = error.position - (text.rfind("\n", 0, error.position) + 1)
        raise yaml.MarkedYAMLError(
            problem=f"the character U+{ord(text[error.position]):04X} is not allowed in YAML",
            problem_mark=yaml.Mark(str(error.name), error.position, line, column, None, 0),
        ) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}, []
        walk = _Walk(loader)
        mistakes = list(walk.mistakes(node, (), ()))
        return loader.construct_document(node), walk.lines, mistakes
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Refuses what is nested too deeply, before it is."""

    _levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._levels > _MOST_LEVELS:
            raise yaml.MarkedYAMLError(
                problem=f"this is nested more than {_MOST_LEVELS} levels deep",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        self._levels += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._levels -= 1


class _Walk:
    """Goes through the nodes of a document, and into an alias each time that it is met.

    The values are made once the walk is done: what it refuses could not be made, or would fill the
    memory.
    """

    def __init__(self, loader: yaml.SafeLoader) -> None:
        #: By the place of a key, its line, from 1.
        self.lines: dict[Place, int] = {}
        self._loader = loader
        self._met: set[int] = set()
        self._repeated = 0

    def mistakes(self, node: yaml.Node, place: Place, above: tuple[int, ...]) -> Iterator[str]:
        """The keys of a node, and of all below it, that are there twice.

        Args:
            above: the identities of the nodes that this one is in.

        Raises:
            yaml.MarkedYAMLError: a value can't be read, or aliases make the document too large.
        """
        if id(node) in above:
            raise yaml.MarkedYAMLError(
                problem="a section must not hold an alias of itself",
                problem_mark=node.start_mark,
            )
        self._count(node)
        self._require_readable(node)
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from self.mistakes(item, (*place, str(index)), above)
        if not isinstance(node, yaml.MappingNode):
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a text, not a mapping or a list",
                    problem_mark=key.start_mark,
                )
            self._require_readable(key)
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                where = ".".join((*place, name))
                yield f"line {line}: {where}: is there already, in line {seen[name]}"
            seen.setdefault(name, line)
            self.lines[(*place, name)] = line
            yield from self.mistakes(value, (*place, name), above)

    def _count(self, node: yaml.Node) -> None:
        if id(node) not in self._met:
            self._met.add(id(node))
            return
        self._repeated += 1
        if self._repeated > _MOST_REPEATED:
            raise yaml.MarkedYAMLError(
                problem=f"aliases repeat more than {_MOST_REPEATED} values, of which this is one; "
                "write fewer aliases, or patterns under `tables`",
                problem_mark=node.start_mark,
            )

    def _require_readable(self, node: yaml.Node) -> None:
        """Raises MarkedYAMLError for a scalar that is spelled as a date or number, and is not one.

        PyYAML raises errors without a place for these, and some quote the value.
        """
        kind = node.tag.rpartition(":")[2]
        if not isinstance(node, yaml.ScalarNode) or kind not in _PARSED:
            return
        try:
            self._loader.construct_object(node)
        except (ValueError, LookupError, AttributeError):
            raise yaml.MarkedYAMLError(
                problem=f"this is not a valid {_PARSED[kind]}; a text needs quotes here",
                problem_mark=node.start_mark,
            ) from None
