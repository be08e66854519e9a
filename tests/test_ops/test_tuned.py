"""The file of this machine: what is read from it, and what a broken or foreign one does."""

import json

import pytest
import torch
from torch_versions import compiles

from mmlska.ops import depthwise_cascade, dispatch, measured, record_choices, tuned
from mmlska.ops.measured import Key
from mmlska.ops.tuned import Case, Place, Table, TunedFileError

LINES = Case('depthwise_cascade', False, 'long dilated lines', 'float32')
SQUARES = Case('depthwise_cascade', True, 'long dilated squares', 'float32')


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that does not exist yet, and which is in use."""
    path = tmp_path / 'tuned.json'
    monkeypatch.setenv('MMLSKA_TUNED', str(path))
    monkeypatch.setattr(measured, 'cpu', lambda: 'riscv64')
    monkeypatch.setattr(measured, 'cpu_model', lambda: 'U74')
    forget()
    yield path
    monkeypatch.undo()
    forget()


def forget():
    measured.forget()
    dispatch.forget_plans()


def table(least=None, **changes):
    place = Place('riscv64', 'U74', torch.__version__, '')._replace(**changes)
    return Table(place, '2026-11-26', {LINES: 2**14, SQUARES: None} if least is None else least)


def why_slower(case, elements):
    key = Key('riscv64', *case)
    return measured.why_slower(key, elements)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']


def test_what_is_written_is_read(file):
    tables = [table(), table(device='U84')]
    tuned.write(file, tables)
    assert tuned.read(file) == tables
    assert [path.name for path in file.parent.iterdir()] == ['tuned.json']
    text = file.read_text()
    assert '"operation": "depthwise_cascade"' in text and '"least": null' in text


def test_a_new_table_takes_the_place_of_that_of_the_same_place():
    other = table(torch='2.1.0')
    assert tuned.merged([table(), other], table({LINES: 1})) == [other, table({LINES: 1})]
    assert tuned.merged([], other) == [other]


def test_the_rows_of_this_machine_go_before_those_that_are_shipped(file, caplog, monkeypatch):
    shipped = {Key('riscv64', *SQUARES): measured.Row(1, '', ''), Key('riscv64', 'other', True): 1}
    monkeypatch.setattr(measured, 'TABLE', shipped)
    tuned.write(file, [table(device='U84'), table()])
    assert why_slower(LINES, 2**14) == ''
    assert why_slower(LINES, 2**14 - 1) == 'the map has less than 16384 elements'
    assert why_slower(SQUARES, 2**30) == 'it was measured to be slower on this machine in float32'
    rows = measured.rows_in_force('riscv64')
    assert rows[Key('riscv64', 'other', True)] == 1
    assert rows[Key('riscv64', *LINES)] == (2**14, '2026-11-26', str(file))
    assert not warnings_of(caplog)


def test_a_call_takes_the_form_that_was_measured_here(file, monkeypatch):
    monkeypatch.delenv('MMLSKA_OPS', raising=False)
    tuned.write(file, [table()])
    x, weights = torch.rand(1, 4, 64, 64), [torch.rand(4, 1, 1, 7), torch.rand(4, 1, 7, 1)]
    with record_choices() as choices:
        depthwise_cascade(x, weights, [None] * 2, [3, 3])
        depthwise_cascade(x[:, :3], [w[:3] for w in weights], [None] * 2, [3, 3])
    forms = [choice.form for choice in choices]
    assert forms == ['cpu' if torch.backends.mkldnn.is_available() else 'plain', 'plain']
    assert choices[1].reason == 'the map has less than 16384 elements'


def test_the_file_is_read_once_and_not_before_an_operation_asks(file, monkeypatch):
    reads, read = [], tuned.read
    monkeypatch.setattr(tuned, 'read', lambda path: reads.append(path) or read(path))
    for _ in range(3):
        depthwise_cascade(torch.rand(1, 1, 2, 2), [torch.rand(1, 1, 1, 3)], [None], [1])
        why_slower(LINES, 1)
    assert reads == [file]


BROKEN = {
    'no JSON': '{"format": 1,',
    'no object': '[]',
    'another format': '{"format": 99, "tables": []}',
    'of somebody else': '{"python": "3.11"}',
    'no tables': '{"format": 1}',
    'a table without a place': '{"format": 1, "tables": [{"rows": []}]}',
    'nested too deeply': '[' * 100_000,
}


def record(**changes):
    row = dict(operation='a', training=True, case='', dtype='float32', least=4) | changes
    place = dict(processor='riscv64', device='U74', torch='2', triton='', date='')
    return json.dumps(dict(format=1, tables=[dict(place, rows=[row])]))


BROKEN |= {
    f'{name} is {value!r}': record(**{name: value})
    for name, value in [('least', 0), ('least', True), ('least', '1'), ('training', 1), ('case', 2)]
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_file_is_told_once_and_the_shipped_table_counts(file, name, caplog):
    file.write_text(BROKEN[name])
    with pytest.raises(TunedFileError, match=r'tuned\.json'):
        tuned.read(file)
    for _ in range(2):
        assert why_slower(LINES, 2**30).startswith('it was not measured')
        assert measured.smallest() == min(
            row.least for key, row in measured.TABLE.items() if key.operation.startswith('depth')
        )
    (warning,) = warnings_of(caplog)
    assert str(file) in warning and warning.endswith('the shipped table of fast forms counts')


def test_a_file_that_may_not_be_read_is_broken(file, caplog):
    file.mkdir()
    assert why_slower(LINES, 2**30) and 'cannot be read' in warnings_of(caplog)[0]


@pytest.mark.parametrize(
    'changes', [dict(device='U84'), dict(torch='1.0'), dict(triton='3.0')], ids=lambda c: str(c)
)
def test_a_table_of_another_device_or_version_is_told_once(file, changes, caplog):
    tuned.write(file, [table(**changes)])
    for _ in range(2):
        assert why_slower(LINES, 2**30).startswith('it was not measured')
    (warning,) = warnings_of(caplog)
    assert f'nothing for U74, PyTorch {torch.__version__}, only for ' in warning
    assert next(iter(changes.values())) in warning and '`python -m mmlska tune`' in warning


def test_a_table_of_another_processor_alone_is_no_news(file, caplog):
    tuned.write(file, [table(processor='compute capability 9.0')])
    assert why_slower(LINES, 2**30).startswith('it was not measured')
    assert not warnings_of(caplog)


def test_gpus_of_one_capability_take_what_wins_on_all(file, monkeypatch):
    names = ['A100 40GB', 'A100 80GB', 'T4']
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: names[device.index])
    monkeypatch.setattr(measured, 'gpu', lambda d: f'compute capability {8 - d.index // 2}.0')
    monkeypatch.setattr(measured, 'triton_version', lambda: '3.6.0')
    ampere = dict(processor='compute capability 8.0', triton='3.6.0')
    third = LINES._replace(training=True)
    first = table({LINES: 4, SQUARES: 4, third: 4}, device=names[0], **ampere)
    second = table({LINES: 16, SQUARES: None}, device=names[1], **ampere)
    tuned.write(file, [first, second])
    rows = measured.tuned_rows('compute capability 8.0')
    assert [row.least for row in rows.values()] == [16, None, None]


@pytest.mark.parametrize('value', ['off', None, '~/x/t.json'])
def test_the_environment_names_the_file_or_turns_it_off(monkeypatch, tmp_path, value):
    monkeypatch.delenv('MMLSKA_TUNED')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('HOME', '/home/me')
    if value:
        monkeypatch.setenv('MMLSKA_TUNED', value)
    found = tuned.path_in_use()
    expected = {'off': None, None: tmp_path / 'mmlska' / 'tuned.json'}
    assert found == expected.get(value, found) and (
        value != '~/x/t.json' or '/home/me' in str(found)
    )


def test_without_a_home_no_file_is_in_use(monkeypatch):
    monkeypatch.delenv('MMLSKA_TUNED')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr('os.path.expanduser', lambda path: path)
    assert tuned.path_in_use() is None


@compiles
def test_compilers_keep_it_as_a_constant(file):
    tuned.write(file, [table()])
    torch._dynamo.reset()
    graphs = []

    def note(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda x: depthwise_cascade(x, [torch.ones(1, 1, 1, 3)], [None], [1]),
        backend=note,
        fullgraph=True,
    )
    out = compiled(torch.ones(1, 1, 2, 3))
    assert out.tolist() == [[[[2, 3, 2], [2, 3, 2]]]] and len(graphs) == 1
