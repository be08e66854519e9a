"""What a value of an annotation file can be, and many of them as one array."""

import math
from collections.abc import Iterable, Sequence
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
        return np.array(numbers, dtype=np.float64)
    except OverflowError:
        return np.array([as_float(number) for number in numbers])


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
