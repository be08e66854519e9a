"""What is on the disk after each way in which saving can fail, and what goes on from it."""

import errno
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import FlexibleRunner
from toy_training import BATCH, BATCHES, Call, Rising, stop_workers, toy_runner, weights

from mmlska.engine import SafeCheckpointHook
from mmlska.engine.hooks import safe_checkpoint_hook
from mmlska.engine.saved_checkpoints import fault

BOTH_LOOPS = pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
LENGTH = {True: 3, False: 3 * BATCHES}


@pytest.fixture(autouse=True)
def figures_begin_anew(monkeypatch):
    monkeypatch.setattr(Rising, 'calls', 0)


@pytest.fixture
def told(monkeypatch):
    """Warnings of mmengine's loggers, which do not propagate."""
    messages = []
    monkeypatch.setattr(
        logging.Logger, 'warning', lambda self, message, *args: messages.append(str(message))
    )
    return messages


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*') if '.pth' in path.name)


def interrupt(work_dir: Path, at: int, by_epoch: bool, **options) -> None:
    """Train until a signal comes in an iteration."""
    send = Call(at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    runner = toy_runner(work_dir, by_epoch, LENGTH[by_epoch], [send], **options)
    with pytest.raises(SystemExit):
        runner.train()
    stop_workers(runner)


def fail_to_write(monkeypatch, error: int = errno.ENOSPC, allowed: int = 0):
    """Let the disk take half of each checkpoint after the first ones."""
    put = LocalBackend.put
    written = []

    def put_half(self, content: bytes, path: str) -> None:
        written.append(path)
        if len(written) <= allowed:
            return put(self, content, path)
        put(self, content[: len(content) // 2], path)
        raise OSError(error, os.strerror(error), path)

    monkeypatch.setattr(LocalBackend, 'put', put_half)


def test_it_is_a_checkpoint_hook_of_mmengine_with_all_its_options():
    hook = HOOKS.build(
        dict(type='mmlska.SafeCheckpointHook', interval=5, save_best='acc', max_keep_ckpts=2)
    )
    assert isinstance(hook, CheckpointHook) and isinstance(hook, SafeCheckpointHook)
    assert (hook.interval, hook.save_best, hook.max_keep_ckpts) == (5, ['acc'], 2)


def test_an_unknown_way_to_meet_a_full_disk_is_refused():
    with pytest.raises(ValueError, match=r"one of \('continue', 'stop'\), got 'wait'"):
        SafeCheckpointHook(on_write_error='wait')


@BOTH_LOOPS
@pytest.mark.parametrize('at', [1, BATCHES, BATCHES + 2, 2 * BATCHES - 1])
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(tmp_path, by_epoch, at):
    whole = toy_runner(tmp_path / 'whole', by_epoch, LENGTH[by_epoch])
    whole.train()
    interrupt(tmp_path / 'cut', at, by_epoch)
    resumed = toy_runner(tmp_path / 'cut', by_epoch, LENGTH[by_epoch], resume=True)
    resumed.train()
    assert resumed.iter == whole.iter == 3 * BATCHES
    assert (weights(resumed) - weights(whole)).abs().max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(('by_epoch', 'persistent'), [(True, True), (True, False), (False, True)])
def test_so_it_does_with_workers_that_augment(tmp_path, by_epoch, persistent):
    options = dict(num_workers=2, persistent_workers=persistent)
    whole = toy_runner(tmp_path / 'whole', by_epoch, LENGTH[by_epoch], **options)
    whole.train()
    stop_workers(whole)
    interrupt(tmp_path / 'cut', BATCHES + 3, by_epoch, **options)
    resumed = toy_runner(tmp_path / 'cut', by_epoch, LENGTH[by_epoch], resume=True, **options)
    resumed.train()
    stop_workers(resumed)
    assert (weights(resumed) - weights(whole)).abs().max() <= 1e-6


@BOTH_LOOPS
def test_a_killed_run_does_so_too(tmp_path, by_epoch):
    """What is left is the checkpoint of an interval; an evaluation has followed it."""

    class Killed(Exception):
        pass

    def die():
        raise Killed

    whole = toy_runner(tmp_path / 'whole', by_epoch, LENGTH[by_epoch])
    whole.train()
    with pytest.raises(Killed):
        toy_runner(
            tmp_path / 'cut', by_epoch, LENGTH[by_epoch], [Call(2 * BATCHES + 1, die)]
        ).train()
    resumed = toy_runner(tmp_path / 'cut', by_epoch, LENGTH[by_epoch], resume=True)
    resumed.train()
    assert (weights(resumed) - weights(whole)).abs().max() <= 1e-6


def test_another_random_state_gives_other_weights(tmp_path, monkeypatch):
    """The two tests above compare something."""
    monkeypatch.setattr(SafeCheckpointHook, '_restore_random_state', lambda *_: None)
    whole = toy_runner(tmp_path / 'whole')
    whole.train()
    interrupt(tmp_path / 'cut', BATCHES + 2, by_epoch=True)
    resumed = toy_runner(tmp_path / 'cut', resume=True)
    resumed.train()
    assert (weights(resumed) - weights(whole)).abs().max() > 1e-3


def test_the_rest_of_an_epoch_is_told_by_its_own_numbers(tmp_path):
    interrupt(tmp_path, BATCHES + 2, by_epoch=True)
    seen = []

    class Numbers(Call):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append((runner.epoch, batch_idx))
            assert len(runner.train_dataloader) == BATCHES

    toy_runner(tmp_path, hooks=[Numbers(0, None)], resume=True).train()
    second = [(1, index) for index in range(3, BATCHES)]
    assert seen == [*second, *((2, index) for index in range(BATCHES))]


@pytest.mark.parametrize('kept', [1, 2])
def test_no_more_than_the_wanted_number_stays(tmp_path, kept):
    toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=kept)).train()
    assert files(tmp_path) == [f'epoch_{number}.pth' for number in (1, 2, 3)][-kept:]


def test_the_old_file_goes_after_the_new_one_is_whole(tmp_path, monkeypatch):
    """At each removal, and whenever something is written, a whole checkpoint is there."""
    moments = []

    def look(function):
        def call(*args, **options):
            whole = [name for name in files(tmp_path) if not fault(tmp_path / name)]
            moments.append(sorted(name for name in whole if not name.startswith('.')))
            return function(*args, **options)

        return call

    monkeypatch.setattr(LocalBackend, 'put', look(LocalBackend.put))
    monkeypatch.setattr(safe_checkpoint_hook, 'remove', look(safe_checkpoint_hook.remove))
    toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert moments == [
        [],
        ['epoch_1.pth'],
        ['epoch_1.pth', 'epoch_2.pth'],
        ['epoch_2.pth'],
        ['epoch_2.pth', 'epoch_3.pth'],
    ]


def test_the_best_is_kept_in_the_same_way(tmp_path):
    toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=1, save_best='acc', rule='greater')).train()
    assert files(tmp_path) == ['best_acc_epoch_3.pth', 'epoch_3.pth']
    assert not any(fault(tmp_path / name) for name in files(tmp_path))


def test_on_a_full_disk_the_run_goes_on_with_the_old_file(tmp_path, monkeypatch, told):
    fail_to_write(monkeypatch, allowed=1)
    runner = toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=1))
    runner.train()
    assert runner.epoch == 3
    assert files(tmp_path) == ['epoch_1.pth'] and not fault(tmp_path / 'epoch_1.pth')
    about = [message for message in told if 'No space left' in message]
    assert len(about) == 2
    assert 'epoch_2.pth could not be saved' in about[0] and 'epoch_1.pth is kept' in about[0]
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_1.pth')


def test_once_there_is_room_again_it_saves_again(tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        fail_to_write(context, allowed=1)
        free = Call(2 * BATCHES, context.undo)
        options = dict(max_keep_ckpts=1, save_best='acc', rule='greater')
        toy_runner(tmp_path, hooks=[free], checkpoint=options).train()
    assert files(tmp_path) == ['best_acc_epoch_3.pth', 'epoch_3.pth']


def test_a_full_disk_keeps_the_old_best(tmp_path, monkeypatch, told):
    # The first epoch, its best, and its checkpoint once more with the best on record.
    fail_to_write(monkeypatch, allowed=3)
    options = dict(max_keep_ckpts=1, save_best='acc', rule='greater')
    runner = toy_runner(tmp_path, checkpoint=options)
    runner.train()
    assert files(tmp_path) == ['best_acc_epoch_1.pth', 'epoch_1.pth']
    assert runner.message_hub.get_info('best_score') == 1


def test_by_option_a_full_disk_stops_the_run(tmp_path, monkeypatch, told):
    fail_to_write(monkeypatch, allowed=1)
    with pytest.raises(SystemExit) as stopped:
        toy_runner(tmp_path, checkpoint=dict(on_write_error='stop')).train()
    assert stopped.value.code == 74
    assert files(tmp_path) == ['epoch_1.pth'] and 'Training stops' in told[-1]


def test_a_record_that_cannot_be_written_costs_nothing(tmp_path, told):
    (tmp_path / 'last_checkpoint').mkdir()
    toy_runner(tmp_path, length=2).train()
    assert files(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    assert any('last_checkpoint could not be written' in message for message in told)


def test_what_a_killed_save_has_left_is_cleared_away(tmp_path):
    (tmp_path / '.epoch_7.pth.partial').write_bytes(b'half')
    toy_runner(tmp_path, length=1).train()
    assert files(tmp_path) == ['epoch_1.pth']


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    runner = toy_runner(tmp_path, length=1)
    with monkeypatch.context() as context:
        context.setattr('mmengine.visualization.vis_backend.dump', full)
        runner.train()
        (backend,) = runner.visualizer._vis_backends.values()
        assert Path(backend._scalar_save_file).read_text() == ''
        backend.add_scalars(dict(loss=1.0))
    backend.add_scalars(dict(loss=2.0))
    assert Path(backend._scalar_save_file).read_text() == '{"loss": 2.0, "step": 0}\n'
    assert runner.epoch == 1


@pytest.mark.parametrize('damage', [b'', b'PK half', None])
def test_resume_falls_back_and_says_what_is_lost(tmp_path, told, damage):
    toy_runner(tmp_path, length=2).train()
    last = tmp_path / 'epoch_2.pth'
    last.unlink() if damage is None else last.write_bytes(damage)
    runner = toy_runner(tmp_path, length=2, resume=True)
    runner.train()
    assert not fault(last)
    (message,) = (text for text in told if 'is lost' in text)
    assert str(last) in message and 'Training goes on from epoch_1.pth' in message


def test_resume_without_a_record_goes_on_from_the_newest(tmp_path):
    toy_runner(tmp_path, length=2).train()
    (tmp_path / 'last_checkpoint').unlink()
    before = (tmp_path / 'epoch_1.pth').stat().st_mtime_ns
    runner = toy_runner(tmp_path, length=3, resume=True)
    runner.train()
    assert (tmp_path / 'epoch_1.pth').stat().st_mtime_ns == before
    assert files(tmp_path)[-1] == 'epoch_3.pth'


def test_a_moved_run_goes_on_and_keeps_its_best(tmp_path):
    options = dict(save_best='acc', rule='greater')
    toy_runner(tmp_path / 'run', length=1, checkpoint=options).train()
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    toy_runner(tmp_path / 'copy', length=2, checkpoint=options, resume=True).train()
    assert files(tmp_path / 'run') == ['best_acc_epoch_1.pth', 'epoch_1.pth']
    assert files(tmp_path / 'copy') == ['best_acc_epoch_2.pth', 'epoch_1.pth', 'epoch_2.pth']


def test_a_folder_of_checkpoints_beside_the_work_dir_is_looked_into(tmp_path):
    options = dict(out_dir=str(tmp_path / 'elsewhere'))
    work_dir = tmp_path / 'run'
    toy_runner(work_dir, length=1, checkpoint=options).train()
    (work_dir / 'last_checkpoint').unlink()
    runner = toy_runner(work_dir, length=2, checkpoint=options, resume=True)
    runner.train()
    assert files(tmp_path / 'elsewhere' / 'run') == ['epoch_1.pth', 'epoch_2.pth']
    assert runner._load_from.endswith('epoch_1.pth')


def test_nothing_to_resume_is_said(tmp_path, told):
    toy_runner(tmp_path, length=1, resume=True).train()
    assert any('nothing to resume' in message for message in told)


def test_with_nothing_to_resume_the_weights_of_the_config_are_taken(tmp_path, told):
    toy_runner(tmp_path / 'first', length=1).train()
    start = str(tmp_path / 'first' / 'epoch_1.pth')
    runner = toy_runner(tmp_path / 'second', length=1, resume=True, cfg=dict(start_from=start))
    runner.train()
    assert runner._load_from == start and runner.epoch == 1
    assert any(f'training starts from {start}' in message for message in told)


def test_a_start_over_whole_checkpoints_is_warned_of(tmp_path, told):
    toy_runner(tmp_path, length=1).train()
    assert not any('overwritten' in message for message in told)
    toy_runner(tmp_path, length=1).train()
    (message,) = (text for text in told if 'overwritten' in text)
    assert str(tmp_path / 'epoch_1.pth') in message and '--resume' in message


def test_a_file_of_weights_is_not_resumed(tmp_path):
    path = tmp_path / 'weights.pth'
    runner = toy_runner(tmp_path, resume=True, load_from=str(path))
    torch.save(dict(state_dict=runner.model.state_dict()), path)
    with pytest.raises(ValueError, match=r'weights\.pth: the file holds weights only'):
        runner.train()


def test_a_file_without_its_message_hub_is_not_resumed(tmp_path):
    toy_runner(tmp_path, length=1).train()
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint['message_hub']
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r'epoch_1\.pth: the file holds weights and lacks its mes'):
        toy_runner(tmp_path, length=2, resume=True).train()


def test_a_random_state_that_is_none_starts_anew_and_says_so(tmp_path, told):
    toy_runner(tmp_path, length=1).train()
    path = tmp_path / 'epoch_1.pth'
    torch.save({**torch.load(path, weights_only=False), 'random_states': [dict(python=1)]}, path)
    toy_runner(tmp_path, length=2, resume=True).train()
    assert any('random state of the checkpoint cannot be read' in message for message in told)


def test_a_checkpoint_without_optimizer_says_so(tmp_path, told):
    toy_runner(tmp_path, length=1, checkpoint=dict(save_optimizer=False)).train()
    toy_runner(tmp_path, length=2, resume=True).train()
    assert any('holds no state of the optimizer' in message for message in told)


def test_another_number_of_processes_draws_anew_and_says_so(tmp_path, told):
    toy_runner(tmp_path, length=1).train()
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    assert len(checkpoint['random_states']) == 1
    checkpoint['random_states'] *= 2
    torch.save(checkpoint, path)
    toy_runner(tmp_path, length=2, resume=True).train()
    assert any('random state of 2 processes, now there are 1' in message for message in told)


def test_an_epoch_of_another_length_goes_on_after_the_same_share(tmp_path, told):
    interrupt(tmp_path, BATCHES + 2, by_epoch=True)
    runner = toy_runner(tmp_path, resume=True, batch_size=BATCH // 2)
    runner.train()
    assert any(f'had {BATCHES} batches and has {2 * BATCHES} now' in message for message in told)
    # Three batches of the second epoch are done, which are half of it.
    assert runner.iter == BATCHES + 3 + BATCHES + 2 * BATCHES


def test_a_loop_without_epochs_is_saved_by_its_iteration(tmp_path):
    send = Call(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    runner = toy_runner(tmp_path, False, 8, [send], checkpoint=dict(by_epoch=True))
    with pytest.raises(SystemExit):
        runner.train()
    assert files(tmp_path) == ['epoch_0_iter_3.pth']


class ToyFlexibleRunner(FlexibleRunner):
    """The runner of mmengine's strategies, which saves and resumes by code of its own."""

    def __init__(self, **options) -> None:
        super().__init__(strategy=dict(type='SingleDeviceStrategy'), **options)


def test_the_runner_of_strategies_resumes_exactly_too(tmp_path):
    whole = toy_runner(tmp_path / 'whole', runner=ToyFlexibleRunner)
    whole.train()
    interrupt(tmp_path / 'cut', BATCHES + 2, by_epoch=True, runner=ToyFlexibleRunner)
    resumed = toy_runner(tmp_path / 'cut', resume=True, runner=ToyFlexibleRunner)
    resumed.train()
    assert resumed.iter == whole.iter
    assert (weights(resumed) - weights(whole)).abs().max() <= 1e-6
