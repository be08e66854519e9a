"""What a value of an annotation file can be, and many of them as one array."""

import contextlib
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

NUMBERS = {int, float}


def is_id(value: Any) -> bool:
    """Whether a value can be an id."""
    return type(value) in (int, float, str)


def is_box(box: Any) -> bool:
    """Whether a value is a list of four numbers."""
    return type(box) is list and len(box) == 4 and are_numbers(box)


def is_finite(number: int | float) -> bool:
    """Whether a number is finite as float64."""
    return math.isfinite(as_float(number))


def are_numbers(values: Iterable) -> bool:
    """Whether all values are numbers, and no booleans."""
    return set(map(type, values)) <= NUMBERS


def as_array(numbers: Sequence[int | float]) -> np.ndarray:
    """Numbers ``(N,)`` in float64; whole ones beyond its range become infinite."""
    try:
        return np.fromiter(numbers, np.float64, len(numbers))
    except OverflowError:
        return np.fromiter(map(as_float, numbers), np.float64, len(numbers))


def as_float(number: int | float) -> float:
    """A number as float, infinite where it is out of range."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def lacking_keys(entries: Iterable[dict], keys: Iterable[str]) -> set[str]:
    """Those of some keys that not every entry has."""
    kinds = set(map(frozenset, entries))
    return {key for key in keys if any(key not in kind for kind in kinds)}


def places(ids: Sequence, known: Collection) -> np.ndarray:
    """Place of each id among those that are known ``(N,)``, -1 where it is none of them."""
    if known and set(map(type, known)) | set(map(type, ids)) == {int}:
        # Numbers beyond 64 bits are looked up like text.
        with contextlib.suppress(OverflowError):
            return places_of_numbers(as_integers(ids), as_integers(known))
    table = {key: place for place, key in enumerate(known)}
    found = (table.get(key, -1) if is_id(key) else -1 for key in ids)
    return np.fromiter(found, np.int64, len(ids))


def as_integers(numbers: Collection[int]) -> np.ndarray:
    """Whole numbers ``(N,)`` in int64."""
    return np.fromiter(numbers, np.int64, len(numbers))


def places_of_numbers(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The same for whole numbers of 64 bits, searched in order."""
    order = known.argsort()
    nearest = np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)
    found = order[nearest]
    return np.where(known[found] == ids, found, -1)
