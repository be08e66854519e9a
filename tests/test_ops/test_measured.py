import platform
from datetime import date
from pathlib import Path

import pytest

from mmlska.ops import dispatch, measured
from mmlska.ops.large_kernel_attention.operation import ATTENTION

DOCS = Path(__file__).parents[2]
WINDOWS = 'AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD'


@pytest.fixture(autouse=True)
def fresh():
    measured.cpu.cache_clear()
    yield
    measured.cpu.cache_clear()


def test_every_row_names_an_operation_its_date_and_a_page_that_holds_its_source():
    operations = {dispatch.CASCADE.name, dispatch.CONV_GELU.name, ATTENTION.name}
    operations |= {'in_fast_layout', 'in_bands'}
    for key, row in measured.TABLE.items():
        assert key.operation in operations
        assert row.least >= 1
        assert date.fromisoformat(row.date).year >= 2026
        page, section = row.source.split(', ')
        assert f'## {section}\n' in (DOCS / page).read_text()


def test_no_call_that_has_a_row_ends_at_the_smallest_size():
    known = measured.KNOWN_BY_CALLERS
    rows = [row for key, row in measured.TABLE.items() if key.operation not in known]
    assert rows and all(row.least >= measured.smallest() for row in rows)


def test_what_has_no_row_was_not_measured(monkeypatch):
    key = measured.Key('riscv64', 'depthwise_cascade', False, 'long dilated lines')
    assert measured.why_slower(key, 2**30) == (
        'it was not measured to be faster on riscv64 in float32'
    )
    monkeypatch.setitem(measured.TABLE, key, measured.Row(2**20, '2026-11-25', 'docs'))
    assert measured.why_slower(key, 2**20) == ''
    assert measured.why_slower(key, 2**20 - 1) == 'the map has less than 1048576 elements'
    assert measured.measured_operations('riscv64') == ['depthwise_cascade']


@pytest.mark.parametrize(
    ('machine', 'cpuinfo', 'processor', 'expected'),
    [
        ('x86_64', 'processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t: 1\n', '', 'GenuineIntel'),
        ('x86_64', 'vendor_id : AuthenticAMD\n', 'x86_64', 'AuthenticAMD'),
        ('x86_64', 'processor : 0\n', '', 'x86_64'),
        ('AMD64', None, WINDOWS, 'AuthenticAMD'),
        ('x86_64', None, '', 'x86_64'),
        ('aarch64', 'vendor_id : AuthenticAMD\n', '', 'aarch64'),
        ('', None, '', 'an unknown processor'),
    ],
)
def test_a_processor_is_named_by_its_vendor(monkeypatch, machine, cpuinfo, processor, expected):
    def read_text(path, encoding):
        assert path == Path('/proc/cpuinfo')
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(platform, 'machine', lambda: machine)
    monkeypatch.setattr(platform, 'processor', lambda: processor)
    monkeypatch.setattr(Path, 'read_text', read_text)
    assert measured.cpu() == expected
