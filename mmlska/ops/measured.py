"""Where a fast form is taken: on which processors, for which calls, from which size of the map on.

There is one table, filled from measurements alone. What has no row in it is computed by the
reference form. What ``python -m mmlska tune`` measured on this machine goes before the shipped
rows; its file is read once in a process, when the first operation asks.
"""

import functools
import importlib
import logging
import platform
import re
from pathlib import Path
from typing import NamedTuple

import torch

from . import tuned

logger = logging.getLogger('mmlska')


class Key(NamedTuple):
    """What was measured.

    Attributes:
        processor: Vendor of an x86-64 CPU, architecture of another, compute capability of a GPU;
            see :func:`cpu` and :func:`gpu`.
        operation: Name of the operation, as in :class:`mmlska.ops.Choice`.
        training: Whether autograd recorded it.
        case: Kind of the kernels, where an operation has several, see ``onednn.case_of``.
        dtype: Name of the dtype in which the map is computed.
    """

    processor: str
    operation: str
    training: bool
    case: str = ''
    dtype: str = 'float32'


class Row(NamedTuple):
    """What came out.

    Attributes:
        least: Elements of the smallest map for which the fast form wins; None if it never does.
        date: When that was measured.
        source: Page of this repository and section of it where the figures stand, or the file that
            was written on this machine.
    """

    least: int | None
    date: str
    source: str


# What is the smallest map for these depends on what follows: their callers know it.
KNOWN_BY_CALLERS = ('in_fast_layout', 'in_bands')
AMD, INTEL = 'AuthenticAMD', 'GenuineIntel'
CASCADE, ATTENTION = 'depthwise_cascade', 'large_kernel_attention'
ZEN4 = '2026-11-20', 'docs/benchmarks.md, CPU'
XEON = '2026-11-25', 'docs/benchmarks.md, Other processors'
ZEN5 = '2026-11-26', 'docs/benchmarks.md, Attention in one operation'

TABLE = {
    Key(AMD, CASCADE, False, 'long dilated squares'): Row(2**15, *ZEN4),
    Key(AMD, CASCADE, True, 'long dilated squares'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, False, 'long dilated lines'): Row(2**17, *ZEN4),
    Key(AMD, CASCADE, True, 'long dilated lines'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, False, 'long dilated lines in channels_last'): Row(2**17, *ZEN4),
    Key(AMD, CASCADE, True, 'long dilated lines in channels_last'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, True, 'short dilated'): Row(2**18, *ZEN4),
    Key(AMD, CASCADE, True, 'short dilated in channels_last'): Row(2**18, *ZEN4),
    Key(AMD, CASCADE, False, 'long undilated lines'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, True, 'long undilated lines'): Row(2**16, *ZEN4),
    Key(AMD, CASCADE, True, 'undilated rows in channels_last'): Row(2**17, *ZEN4),
    Key(INTEL, CASCADE, False, 'long dilated lines'): Row(128 * 56 * 72, *XEON),
    Key(INTEL, CASCADE, True, 'long dilated lines'): Row(128 * 56 * 72, *XEON),
    Key(AMD, ATTENTION, False, 'long dilated squares'): Row(2**15, *ZEN5),
    Key(AMD, ATTENTION, True, 'long dilated squares'): Row(2**16, *ZEN5),
    Key(AMD, ATTENTION, False, 'long dilated lines'): Row(2**17, *ZEN5),
    Key(AMD, ATTENTION, True, 'long dilated lines'): Row(2**16, *ZEN5),
    Key(AMD, ATTENTION, False, 'long dilated lines in channels_last'): Row(2**18, *ZEN5),
    Key(AMD, ATTENTION, True, 'long dilated lines in channels_last'): Row(2**16, *ZEN5),
    Key(AMD, ATTENTION, False, 'short dilated'): Row(2**18, *ZEN5),
    Key(AMD, ATTENTION, True, 'short dilated'): Row(2**17, *ZEN5),
    Key(AMD, ATTENTION, False, 'short dilated in channels_last'): Row(2**19, *ZEN5),
    Key(AMD, ATTENTION, True, 'short dilated in channels_last'): Row(2**18, *ZEN5),
    Key(AMD, ATTENTION, False, 'long undilated lines'): Row(2**15, *ZEN5),
    Key(AMD, ATTENTION, True, 'long undilated lines'): Row(2**16, *ZEN5),
    Key(AMD, ATTENTION, True, 'undilated rows in channels_last'): Row(2**18, *ZEN5),
    Key(AMD, 'in_fast_layout', False): Row(1, *ZEN4),
    Key(AMD, 'in_fast_layout', True): Row(1, *ZEN4),
    Key(AMD, 'in_bands', False): Row(1, *ZEN4),
}


def row_of(key: Key) -> Row | None:
    """What is known of a key: what was measured on this machine, else what is shipped."""
    own = tuned_rows(key.processor)
    return own[key] if key in own else TABLE.get(key)


def why_slower(key: Key, elements: int) -> str:
    """Why a fast form is not known to be faster; '' if it is.

    Args:
        key (Key): What is computed, and where.
        elements (int): Elements of the map.
    """
    row = row_of(key)
    if row is None:
        return f'it was not measured to be faster on {key.processor} in {key.dtype}'
    if row.least is None:
        return f'it was measured to be slower on this machine in {key.dtype}'
    return '' if elements >= row.least else f'the map has less than {row.least} elements'


def rows_in_force(processor: str) -> dict[Key, Row]:
    """All rows that hold on a processor of this machine, sorted."""
    shipped = {key: row for key, row in TABLE.items() if key.processor == processor}
    return dict(sorted((shipped | tuned_rows(processor)).items()))


def measured_operations(processor: str) -> list[str]:
    """Names of the operations that have a fast form on a processor of this machine."""
    rows = rows_in_force(processor).items()
    return sorted({key.operation for key, row in rows if row.least is not None})


@functools.cache
def smallest() -> int:
    """Elements of the smallest map for which any operation has a fast form: most calls end there.

    0 where none has one anywhere, so that each call is told its own reason.
    """
    shipped = [(key.operation, row.least) for key, row in TABLE.items()]
    own = [
        (case.operation, least) for table in _tuned_tables() for case, least in table.least.items()
    ]
    found = [least for operation, least in shipped + own if operation not in KNOWN_BY_CALLERS]
    return min((least for least in found if least is not None), default=0)


@functools.cache
def tuned_rows(processor: str) -> dict[Key, Row]:
    """The rows that were measured on this machine; a difference in versions is told once.

    Where several GPUs are of one compute capability, a form is taken only if it wins on all.
    """
    tables = [table for table in _tuned_tables() if table.place.processor == processor]
    if not tables:
        return {}
    found = {table.place: table for table in tables}
    places = places_of(processor)
    missing = [place for place in places if place not in found]
    if missing:
        logger.warning(
            '%s holds nothing for %s, only for %s: the shipped table counts; '
            '`python -m mmlska tune` measures this machine',
            tuned.path_in_use(),
            ' and '.join(map(str, missing)),
            ' and '.join(map(str, found)),
        )
        return {}
    own = [found[place] for place in places]
    date, source = min(table.date for table in own), str(tuned.path_in_use())
    return {
        Key(processor, *case): Row(
            tuned.largest(table.least.get(case) for table in own), date, source
        )
        for case in own[0].least
    }


@functools.cache
def _tuned_tables() -> list[tuned.Table]:
    """What the file of this machine holds; nothing, and a warning, if it is broken."""
    path = tuned.path_in_use()
    try:
        return tuned.read(path) if path else []
    except tuned.TunedFileError as error:
        logger.warning('%s; the shipped table of fast forms counts', error)
        return []


def forget() -> None:
    """Read the file anew when the next operation asks."""
    for function in (smallest, tuned_rows, _tuned_tables):
        function.cache_clear()


def places_of(processor: str) -> list[tuned.Place]:
    """The devices of this machine that are such a processor, each with the versions in use."""
    if processor == cpu():
        return [place_of(torch.device('cpu'))]
    devices = [torch.device('cuda', i) for i in range(torch.cuda.device_count())]
    return sorted({place_of(device) for device in devices if gpu(device) == processor})


def processor_of(device: torch.device) -> str:
    """What a device is in the table, see :class:`Key`."""
    return cpu() if device.type == 'cpu' else gpu(device)


def place_of(device: torch.device) -> tuned.Place:
    """Where what is measured on a device holds: its name, and the versions in use."""
    version = str(torch.__version__)
    if device.type == 'cpu':
        return tuned.Place(cpu(), cpu_model(), version, '')
    return tuned.Place(gpu(device), torch.cuda.get_device_name(device), version, triton_version())


@functools.cache
def cpu() -> str:
    """The vendor of an x86-64 processor as it names itself, of another its architecture."""
    machine = platform.machine() or 'an unknown processor'
    if machine not in ('x86_64', 'AMD64'):
        return machine
    # Windows has no such file, and puts the vendor last: 'AMD64 Family 25 ..., AuthenticAMD'.
    return _from_cpuinfo('vendor_id') or platform.processor().rpartition(' ')[2] or machine


@functools.cache
def cpu_model() -> str:
    """The name of the processor."""
    return _from_cpuinfo('model name') or platform.processor() or cpu()


def _from_cpuinfo(field: str) -> str:
    """What the system tells of its first processor; '' if nothing."""
    try:
        described = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return ''
    found = re.search(rf'^{field}\s*:\s*(\S.*?)\s*$', described, re.MULTILINE)
    return found[1] if found else ''


@functools.cache
def gpu(device: torch.device) -> str:
    """The compute capability of a GPU."""
    return 'compute capability {}.{}'.format(*torch.cuda.get_device_capability(device))


def triton_version() -> str:
    """The version of Triton, '' where it cannot be imported."""
    try:
        return importlib.import_module('triton').__version__
    except Exception:
        # A broken Triton raises anything.
        return ''


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype, as in a :class:`Key`.

    >>> name_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix('torch.')
