"""Whether the ``classes`` of a config are the categories of an annotation file, in its order.

mmdet numbers the categories in the order of the file, not of ``classes``: with the same names in
another order each label gets a wrong name, and nothing shows it.
"""

import difflib
from collections.abc import Sequence
from typing import Any

from .faults import Fault


def check_names(path: str, categories: Sequence[dict], classes: Any) -> list[Fault]:
    """Compare the categories of a file with the classes of the config.

    Args:
        path: The annotation file.
        categories: Its categories.
        classes: ``metainfo['classes']`` of the data set, None if nothing is known of them.
    """
    names = [category.get('name') for category in categories]
    if not all(isinstance(name, str) for name in names):
        return [Fault(path, 'a category has no name', "give each one 'id' and 'name'")]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        message = f'several categories are called {doubled[0]!r}: they become one class too many'
        return [Fault(path, message, 'make the names different')]
    if classes is None:
        return []
    if isinstance(classes, str):
        message = f'classes={classes!r} is text: each letter would be a class'
        return [Fault(path, message, f'write metainfo=dict(classes=({classes!r},)), with a comma')]
    try:
        classes = list(classes)
    except TypeError:
        return [Fault(path, f'classes={classes!r} is no tuple of names', right_classes(names))]
    strange = [name for name in classes if not isinstance(name, str)]
    if strange:
        message = f'the class {strange[0]!r} of the config is no text, as the categories are'
        return [Fault(path, message, right_classes(names))]
    return compare(path, names, classes)


def compare(path: str, names: list[str], classes: list[str]) -> list[Fault]:
    """The fault of names that differ, with the tuple that is right."""
    unknown = [name for name in classes if name not in names]
    present = [name for name in names if name in classes]
    if not present:
        message = (
            f'none of the classes {shown(classes)} of the config is a category of the file: '
            'training would run on nothing'
        )
        return [Fault(path, message, right_classes(names))]
    if unknown:
        message = (
            f'the classes {", ".join(map(repr, unknown))} of the config are no categories of the '
            'file: mmdet gives the labels of the classes behind them wrong names'
            f'{hint(unknown[0], names)}'
        )
        return [Fault(path, message, right_classes(corrected(names, classes)))]
    if present != classes:
        first = next(
            i for i, pair in enumerate(zip(present, classes, strict=True)) if len({*pair}) > 1
        )
        message = (
            'the classes of the config stand in another order than the categories of the file: '
            f'mmdet numbers by the file, so that objects of {present[first]!r} are called '
            f'{classes[first]!r}'
        )
        return [Fault(path, message, right_classes(present))]
    return []


def corrected(names: list[str], classes: list[str]) -> list[str]:
    """Categories that the classes mean, in the order of the file: misspelt ones by the nearest."""
    meant = {name for name in classes if name in names}
    for name in classes:
        if name not in names:
            free = [other for other in names if other not in meant]
            meant.update(difflib.get_close_matches(name, free, n=1))
    return [name for name in names if name in meant]


def right_classes(names: Sequence[str]) -> str:
    """The setting to copy."""
    comma = ',' if len(names) == 1 else ''
    classes = f'({", ".join(map(repr, names))}{comma})'
    return f'metainfo=dict(classes={classes}), and num_classes={len(names)}'


def hint(name: str, choices: Sequence[str]) -> str:
    """The choice most like a name."""
    matches = difflib.get_close_matches(name, choices, n=1)
    return f'; {name!r} is perhaps {matches[0]!r}' if matches else ''


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first names."""
    return ', '.join(map(repr, names[:most])) + (', ...' if len(names) > most else '')
