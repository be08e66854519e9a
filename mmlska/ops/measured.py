"""Where a fast form is taken: on which processors, for which calls, from which size of the map on.

There is one table, filled from measurements alone. What has no row in it is computed by the
reference form.
"""

import functools
import platform
import re
from pathlib import Path
from typing import NamedTuple

import torch


class Key(NamedTuple):
    """What was measured.

    Attributes:
        processor: Vendor of an x86-64 CPU, architecture of another, compute capability of a GPU;
            see :func:`cpu` and :func:`gpu`.
        operation: Name of the operation, as in :class:`mmlska.ops.Choice`.
        training: Whether autograd recorded it.
        case: Kind of the kernels, where an operation has several, see ``onednn.case_of``.
    """

    processor: str
    operation: str
    training: bool
    case: str = ''


class Row(NamedTuple):
    """What came out.

    Attributes:
        least: Elements of the smallest map for which the fast form wins.
        date: When that was measured.
        source: Page of this repository and section of it where the figures stand.
    """

    least: int
    date: str
    source: str


AMD, INTEL = 'AuthenticAMD', 'GenuineIntel'
CASCADE = 'depthwise_cascade'
ZEN4 = '2026-11-20', 'docs/benchmarks.md, CPU'
XEON = '2026-11-25', 'docs/benchmarks.md, Other processors'

TABLE = {
    Key(AMD, CASCADE, False, 'long dilated squares'): Row(2**15, *ZEN4),
    Key(AMD, CASCADE, True, 'long dilated squares'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, False, 'long dilated lines'): Row(2**17, *ZEN4),
    Key(AMD, CASCADE, True, 'long dilated lines'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, False, 'long dilated lines in channels_last'): Row(2**17, *ZEN4),
    Key(AMD, CASCADE, True, 'long dilated lines in channels_last'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, True, 'short dilated'): Row(2**18, *ZEN4),
    Key(AMD, CASCADE, False, 'long undilated lines'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, True, 'long undilated lines'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, True, 'undilated rows in channels_last'): Row(2**17, *ZEN4),
    Key(INTEL, CASCADE, False, 'long dilated lines'): Row(128 * 56 * 72, *XEON),
    Key(INTEL, CASCADE, True, 'long dilated lines'): Row(128 * 56 * 72, *XEON),
    # What is the smallest map depends on what follows: the callers of these two know it.
    Key(AMD, 'in_fast_layout', False): Row(1, *ZEN4),
    Key(AMD, 'in_fast_layout', True): Row(1, *ZEN4),
    Key(AMD, 'in_bands', False): Row(1, *ZEN4),
}
# Elements of the smallest map for which any operation has a fast form. Most calls end here.
SMALLEST = min(row.least for key, row in TABLE.items() if key.operation.startswith('depthwise'))


def why_slower(key: Key, elements: int) -> str:
    """Why a fast form is not known to be faster; '' if it is.

    Args:
        key (Key): What is computed, and where.
        elements (int): Elements of the map.
    """
    row = TABLE.get(key)
    if row is None:
        return f'it was not measured to be faster on {key.processor}'
    return '' if elements >= row.least else f'the map has less than {row.least} elements'


def measured_operations(processor: str) -> list[str]:
    """Names of the operations that have a row for a processor."""
    return sorted({key.operation for key in TABLE if key.processor == processor})


@functools.cache
def cpu() -> str:
    """The vendor of an x86-64 processor as it names itself, of another its architecture."""
    machine = platform.machine() or 'an unknown processor'
    if machine not in ('x86_64', 'AMD64'):
        return machine
    try:
        described = Path('/proc/cpuinfo').read_text()
    except OSError:
        # Windows has no such file, and puts the vendor last: 'AMD64 Family 25 ..., AuthenticAMD'.
        return platform.processor().rpartition(' ')[2] or machine
    found = re.search(r'^vendor_id\s*:\s*(\S+)', described, re.MULTILINE)
    return found[1] if found else machine


@functools.cache
def gpu(device: torch.device) -> str:
    """The compute capability of a GPU."""
    return 'compute capability {}.{}'.format(*torch.cuda.get_device_capability(device))
