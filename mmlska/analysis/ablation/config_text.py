"""Configs as text that a person reads: nested ``dict(...)`` calls, wrapped where they are long."""

from collections.abc import Mapping, Sequence
from typing import Any

LINE_LENGTH = 100
INDENT = 4


class Expression(str):
    """Python that stands in a config as it is, such as ``_base_.model.neck``."""


def config_text(comment: str, base: str, settings: Mapping[str, Any]) -> str:
    """Text of a config that inherits from another one.

    Args:
        comment: What the config is for, one line.
        base: What it inherits from, as ``_base_`` takes it.
        settings: Its top-level variables.

    Example:
        >>> print(config_text('More.', './base.py', dict(model=dict(neck=None))))
        # More.
        _base_ = './base.py'
        model = dict(neck=None)
        <BLANKLINE>
    """
    lines = [f'# {comment}', f'_base_ = {base!r}']
    lines += [f'{name} = {render(value, len(name) + 3)}' for name, value in settings.items()]
    return '\n'.join(lines) + '\n'


def render(value: Any, column: int = 0, depth: int = 0) -> str:
    """Python of a value, in several lines where one would be too long.

    Args:
        value: Numbers, words, lists, tuples and dicts of them.
        column: Where in its line the text begins.
        depth: How deeply the line is indented.
    """
    line = render_line(value)
    is_nested = isinstance(value, (Mapping, list, tuple)) and len(value) > 0
    if not is_nested or column + depth * INDENT + len(line) <= LINE_LENGTH:
        return line
    opening, closing, parts = brackets(value)
    inner = ' ' * INDENT * (depth + 1)
    rows = [f'{inner}{key}{render(part, len(key), depth + 1)},' for key, part in parts]
    return '\n'.join([opening, *rows, ' ' * INDENT * depth + closing])


def render_line(value: Any) -> str:
    """Python of a value in one line."""
    if isinstance(value, Expression):
        return str(value)
    if isinstance(value, (Mapping, list, tuple)):
        opening, closing, parts = brackets(value)
        text = ', '.join(f'{key}{render_line(part)}' for key, part in parts)
        lone = isinstance(value, tuple) and len(value) == 1
        return f'{opening}{text}{"," * lone}{closing}'
    return repr(value)


def brackets(value: Mapping | Sequence) -> tuple[str, str, list[tuple[str, Any]]]:
    """What opens and closes a collection, and its members with what stands before each."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key.isidentifier() for key in value):
            return 'dict(', ')', [(f'{key}=', part) for key, part in value.items()]
        return '{', '}', [(f'{key!r}: ', part) for key, part in value.items()]
    opening, closing = '[]' if isinstance(value, list) else '()'
    return opening, closing, [('', part) for part in value]
