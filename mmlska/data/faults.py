"""What is wrong with data: one record for each kind of fault in each file, and its words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ERROR, WARNING = 'error', 'warning'


@dataclass(frozen=True)
class Fault:
    """One kind of fault in one file.

    Attributes:
        file: The file.
        message: What is wrong, and what follows from it.
        remedy: What to do.
        level: ``'error'`` or ``'warning'``: whether a run would fail or learn something wrong.
        where: Every place in the file, such as ``'annotation 17 (4 values)'``; empty for the whole.
    """

    file: str
    message: str
    remedy: str
    level: str = ERROR
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.describe()

    def describe(self, most: int | None = None) -> str:
        """The fault in words, with all its places or the first ``most`` of them."""
        lines = [f'{self.level}: {self.file}: {self.message}']
        if self.where:
            shown = ', '.join(self.where[:most])
            rest = len(self.where) - len(self.where[:most])
            lines.append(f'  {len(self.where)} x: {shown}' + (f' and {rest} more' if rest else ''))
        return '\n'.join([*lines, f'  remedy: {self.remedy}'])


def fault_of(
    path: str,
    found: Sequence[tuple[dict, str]],
    message: str,
    remedy: str,
    level: str = ERROR,
    noun: str = 'annotation',
) -> list[Fault]:
    """A fault of some entries of a file, each with a detail, maybe empty; none if there are none.

    Args:
        path: The file.
        found: The entries with their details.
        message: What is wrong with them.
        remedy: What to do.
        level: ``'error'`` or ``'warning'``.
        noun: What the entries are.
    """
    if not found:
        return []
    where = (
        f'{noun} {entry.get("id", "without id")}' + (f' ({detail})' if detail else '')
        for entry, detail in found
    )
    return [Fault(path, message, remedy, level, tuple(where))]


def has_errors(faults: Iterable[Fault]) -> bool:
    """Whether one of the faults is more than a warning."""
    return any(fault.level == ERROR for fault in faults)


def joined(faults: Sequence[Fault]) -> list[Fault]:
    """Make faults of the same kind in many files one, whose places are the files.

    The first fault of a kind gives the words. Faults with places inside a file stay alone.
    """
    groups: dict[tuple, list[Fault]] = {}
    for fault in faults:
        key = (fault.message, fault.remedy, fault.level, fault.where and fault.file)
        groups.setdefault(key, []).append(fault)
    return [
        group[0]
        if len(group) == 1
        else Fault(
            f'{len(group)} files',
            group[0].message,
            group[0].remedy,
            group[0].level,
            tuple(fault.file for fault in group),
        )
        for group in groups.values()
    ]
