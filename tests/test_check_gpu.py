"""The check for machines with a GPU, with a stand-in for the Python that has one."""

import pytest
from script_runs import REPOSITORY, run

SCRIPT = REPOSITORY / 'tests' / 'check_gpu.sh'


@pytest.fixture
def stand_in(tmp_path):
    """A Python that sees a device, says what it was asked for, and fails the tests."""
    python = tmp_path / 'python'
    python.write_text(
        '#!/bin/sh\n'
        'echo "$*"\n'
        'case "$*" in\n'
        '    "-m pytest "*) exit 3 ;;\n'
        '    "-m benchmarks suite "*) exec sleep 60 ;;\n'
        'esac\n'
    )
    python.chmod(0o755)
    return python


def test_without_a_device_it_says_so(tmp_path):
    done = run(SCRIPT, '--out', tmp_path / 'out', cwd=tmp_path, expect=1)
    assert 'sees no CUDA device' in done.stderr
    assert not (tmp_path / 'out').exists()


def test_unknown_steps_are_named(tmp_path):
    done = run(SCRIPT, 'memchek', cwd=tmp_path, expect=2)
    assert 'unknown step memchek' in done.stderr and 'usage: check_gpu.sh' in done.stderr


def test_a_failed_step_gives_the_status_and_the_others_run(tmp_path, stand_in):
    out = tmp_path / 'out'
    done = run(
        SCRIPT, '--out', out, 'tests', 'baseline', cwd=tmp_path, expect=3, PYTHON=str(stand_in)
    )
    summary = (out / 'summary.txt').read_text()
    assert done.stdout == summary
    assert 'tests      FAILED with status 3' in summary
    assert 'baseline   passed' in summary
    assert '-m benchmarks depthwise ' in (out / 'baseline.log').read_text()
    assert 'tests/test_ops' in (out / 'tests.log').read_text()


def test_a_step_is_cut_off_after_its_minutes(tmp_path, stand_in):
    out = tmp_path / 'out'
    settings = dict(PYTHON=str(stand_in), MINUTES='0.02')
    run(SCRIPT, '--out', out, 'benchmark', cwd=tmp_path, expect=124, **settings)
    assert 'benchmark  CUT OFF after 0.02 minutes' in (out / 'summary.txt').read_text()
