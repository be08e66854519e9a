import argparse
import os
import socket
import subprocess
import sys

import pytest

from mmlska import cli


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    cli.add_config_options(parser)
    cli.add_launch_options(parser)
    return parser


def test_options_are_parsed_into_values(parser):
    pairs = ['lr=1e-3', 'on=true', 'scale=(640,400)', 'list=1,2', 'name=a=b', 'none=None']
    args = parser.parse_args(['some.py', '--cfg-options', *pairs])
    assert args.cfg_options == dict(
        lr=1e-3, on=True, scale=(640, 400), list=[1, 2], name='a=b', none=None
    )


@pytest.mark.parametrize('pair', ['batch_size', '=4'])
def test_a_malformed_option_is_a_usage_error(parser, pair, capsys):
    with pytest.raises(SystemExit) as error:
        parser.parse_args(['some.py', '--cfg-options', pair])
    assert error.value.code == 2
    assert f'--cfg-options takes KEY=VALUE pairs, got {pair!r}' in capsys.readouterr().err


@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_the_local_rank_is_handed_on(parser, spelling, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', 'restored by monkeypatch')
    del os.environ['LOCAL_RANK']
    cli.parse_launch_arguments(parser, ['some.py', spelling, '3'])
    assert os.environ['LOCAL_RANK'] == '3'


def test_the_local_rank_of_torchrun_goes_first(parser, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1')
    cli.parse_launch_arguments(parser, ['some.py'])
    assert os.environ['LOCAL_RANK'] == '1'


@pytest.mark.parametrize('error', [FileNotFoundError('no such x'), KeyError('no such x')])
def test_an_error_of_the_user_is_one_message_and_status_one(error, capsys, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SystemExit) as exit_info, cli.report_errors():
        raise error
    assert exit_info.value.code == 1
    assert capsys.readouterr().err.endswith('error: no such x\n')


@pytest.mark.parametrize('rank', ['0', '3'])
def test_each_process_of_a_job_speaks_by_its_rank(rank, capsys, monkeypatch):
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('WORLD_SIZE', '4')
    with pytest.raises(SystemExit), cli.report_errors():
        raise ValueError('missing here')
    host = socket.gethostname()
    assert capsys.readouterr().err.endswith(f'error on {host}, rank {rank}: missing here\n')


def after_import(expression: str, **environment: str | None) -> subprocess.CompletedProcess:
    """What an expression is in a new process that has imported the module, and what it said."""
    known = {key: value for key, value in {**os.environ, **environment}.items() if value}
    command = [sys.executable, '-c', f'import mmlska.cli, os, sys; print({expression})']
    return subprocess.run(command, env=known, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ('load', 'given', 'policy'),
    [(4.5, None, 'PASSIVE'), (4.5, 'ACTIVE', 'ACTIVE'), (4.0, None, None), (0.0, None, None)],
)
def test_threads_that_wait_sleep_where_others_need_the_cores(
    load, given, policy, monkeypatch, tmp_path
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    monkeypatch.setattr(os, 'getloadavg', lambda: (load, 9.0, 9.0), raising=False)
    # Set first, so that what the function sets is taken back too.
    monkeypatch.setenv('OMP_WAIT_POLICY', given or '')
    if given is None:
        del os.environ['OMP_WAIT_POLICY']
    cli.prepare_environment()
    assert os.environ.get('OMP_WAIT_POLICY') == policy


def test_the_environment_is_prepared_before_pytorch_reads_it():
    assert after_import("'torch' in sys.modules").stdout == 'False\n'


def test_letters_that_the_output_lacks_end_nothing():
    assert after_import(r"'\u87ba\u4e1d'", PYTHONIOENCODING='cp1252').stdout == '\\u87ba\\u4e1d\n'


def test_without_a_home_caches_have_a_place_until_the_end(tmp_path):
    no_folder = tmp_path / 'file'
    no_folder.touch()
    cache = "os.environ.get('XDG_CACHE_HOME')"
    asked = f'{cache}, os.access({cache}, os.W_OK)'
    done = after_import(asked, HOME=str(no_folder), XDG_CACHE_HOME=None, TMPDIR=str(tmp_path))
    folder, is_writable = done.stdout.split()
    assert folder.startswith(str(tmp_path)) and is_writable == 'True'
    assert not os.path.exists(folder)
    assert done.stderr.count('nothing can be written into the home folder') == 1


@pytest.mark.parametrize('named', [None, 'mine'])
def test_a_place_for_caches_that_is_there_stays(named, tmp_path):
    done = after_import(
        "os.environ.get('XDG_CACHE_HOME')", HOME=str(tmp_path / 'new'), XDG_CACHE_HOME=named
    )
    assert (done.stdout, done.stderr) == (f'{named}\n', '')
    assert not (tmp_path / 'new').exists()


def test_an_error_of_the_code_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli.report_errors():
        _ = 1 / 0


def test_what_the_user_can_mend_may_be_named():
    with pytest.raises(SystemExit), cli.report_errors(LookupError):
        raise KeyError('no such x')
    with pytest.raises(ValueError), cli.report_errors(LookupError):
        raise ValueError('of the code')


@pytest.fixture
def of_models() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    cli.add_models(parser)
    return parser


@pytest.mark.parametrize(
    ('words', 'pairs', 'names'),
    [
        (['a.py', 'x.pth', 'b.py', 'y.pth'], [('a.py', 'x.pth'), ('b.py', 'y.pth')], ['a', 'b']),
        (
            ['a.py', 'one/x.pth', 'a.py', 'two/x.pth'],
            [('a.py', 'one/x.pth'), ('a.py', 'two/x.pth')],
            ['a one/x', 'a two/x'],
        ),
        (['a.py', 'x.pth', '--names', 'mine'], [('a.py', 'x.pth')], ['mine']),
    ],
)
def test_models_come_in_pairs_with_names_of_their_own(of_models, words, pairs, names):
    args = of_models.parse_args(words)
    cli.pair_models(of_models, args)
    assert (args.models, args.names) == (pairs, names)


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['a.py'], 'models come as pairs CONFIG CHECKPOINT, got 1 arguments'),
        (['a.py', 'x.pth', '--names', 'p', 'q'], 'a different name for each of 1 models'),
        (['a.py', 'x', 'b.py', 'y', '--names', 'p', 'p'], 'a different name for each of 2 models'),
    ],
)
def test_models_without_checkpoints_or_names_are_usage_errors(of_models, words, sentence, capsys):
    args = of_models.parse_args(words)
    with pytest.raises(SystemExit):
        cli.pair_models(of_models, args)
    assert sentence in capsys.readouterr().err


def test_a_bare_key_that_is_missing_is_told_as_such(capsys, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SystemExit), cli.report_errors():
        {}['img_scale']
    assert capsys.readouterr().err.endswith("error: KeyError: 'img_scale'\n")
