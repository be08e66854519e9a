import os
import zipfile

import pytest
import torch

from mmlska.engine.saved_checkpoints import (
    choose_checkpoint,
    fault,
    move_into_place,
    saved_checkpoints,
)

TEMPLATE = 'epoch_{}.pth'


@pytest.fixture
def save(tmp_path):
    """Save a small checkpoint; each file is newer than the one before."""
    times = iter(range(1_000_000, 2_000_000))

    def call(name: str, folder=tmp_path) -> str:
        path = folder / name
        torch.save(dict(state_dict=torch.rand(64)), path)
        time = next(times)
        os.utime(path, (time, time))
        return path

    return call


def record(folder, path) -> None:
    """Write last_checkpoint, newer than everything that was saved."""
    (folder / 'last_checkpoint').write_text(str(path))
    os.utime(folder / 'last_checkpoint', (3_000_000, 3_000_000))


def test_a_saved_file_is_whole(save):
    assert fault(save('epoch_1.pth')) == ''


def test_every_truncation_is_noticed(save):
    path = save('epoch_1.pth')
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert fault(path) != '', length


def test_every_damaged_byte_of_the_weights_is_noticed(save):
    path = save('epoch_1.pth')
    whole = path.read_bytes()
    weights = torch.load(path)['state_dict'].numpy().tobytes()
    start = whole.index(weights)
    for place in range(start, start + len(weights), 16):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert 'damaged' in fault(path), place


@pytest.mark.parametrize(
    ('content', 'reason'), [(None, 'does not exist'), (b'', 'is empty'), (b'text', 'is truncated')]
)
def test_the_fault_is_named(tmp_path, content, reason):
    path = tmp_path / 'epoch_1.pth'
    if content is not None:
        path.write_bytes(content)
    assert fault(path).startswith(reason)


def test_a_folder_of_shards_is_whole_if_it_holds_whole_files(tmp_path):
    assert fault(tmp_path) == 'is an empty folder'
    (tmp_path / 'rank1.pth').touch()
    assert fault(tmp_path) == 'has the part rank1.pth, which is empty'
    (tmp_path / 'rank1.pth').unlink()
    torch.save({}, tmp_path / 'rank0.pth')
    assert fault(tmp_path) == ''


def test_what_is_not_whole_never_gets_its_name(save, tmp_path):
    final, partial = save('epoch_1.pth'), tmp_path / 'new'
    before = final.read_bytes()
    partial.write_bytes(before[:-1])
    with pytest.raises(OSError, match='what was written is truncated'):
        move_into_place(partial, final)
    assert final.read_bytes() == before
    partial.write_bytes(save('other').read_bytes())
    move_into_place(partial, final)
    assert final.read_bytes() != before and not partial.exists()


def test_the_middle_of_an_epoch_lies_between_two_epochs(save, tmp_path):
    names = ['epoch_2.pth', 'epoch_10.pth', 'epoch_2_iter_35.pth', 'epoch_3.pth']
    for name in [*names, 'best_acc_epoch_3.pth', '.epoch_4.pth.partial', 'epoch_x.pth']:
        save(name)
    found = [checkpoint.path.name for checkpoint in saved_checkpoints([tmp_path], TEMPLATE)]
    assert found == ['epoch_10.pth', 'epoch_3.pth', 'epoch_2_iter_35.pth', 'epoch_2.pth']


def test_the_record_is_followed_where_its_file_is_whole(save, tmp_path):
    last = save('epoch_2.pth')
    record(tmp_path, last)
    assert choose_checkpoint([str(tmp_path)], TEMPLATE) == (last, [])


@pytest.mark.parametrize('content', [None, b'', b'PK half a file'])
def test_the_newest_whole_one_replaces_one_that_is_not(save, tmp_path, content):
    save('epoch_1.pth')
    second, third = save('epoch_2.pth'), save('epoch_3.pth')
    record(tmp_path, third)
    third.unlink() if content is None else third.write_bytes(content)
    chosen, refused = choose_checkpoint([str(tmp_path)], TEMPLATE)
    assert chosen == second
    assert [path for path, _ in refused] == [third]


@pytest.mark.parametrize('text', [None, ''])
def test_without_a_record_the_most_trained_is_chosen(save, tmp_path, text):
    save('epoch_1.pth')
    second = save('epoch_2.pth')
    if text is not None:
        record(tmp_path, text)
    assert choose_checkpoint([str(tmp_path)], TEMPLATE).path == second


def test_a_kill_before_the_record_costs_nothing(save, tmp_path):
    first = save('epoch_1.pth')
    record(tmp_path, first)
    second = save('epoch_2.pth')
    os.utime(second, (4_000_000, 4_000_000))
    assert choose_checkpoint([str(tmp_path)], TEMPLATE).path == second


def test_checkpoints_of_an_earlier_run_are_the_last_choice(save, tmp_path):
    old, first, second = save('epoch_9.pth'), save('epoch_1.pth'), save('epoch_2.pth')
    record(tmp_path, second)
    assert choose_checkpoint([str(tmp_path)], TEMPLATE).path == second
    second.write_bytes(b'')
    assert choose_checkpoint([str(tmp_path)], TEMPLATE).path == first
    first.write_bytes(b'')
    assert choose_checkpoint([str(tmp_path)], TEMPLATE).path == old


def test_a_moved_folder_is_its_own_place(save, tmp_path):
    folder, moved = tmp_path / 'run', tmp_path / 'moved'
    folder.mkdir()
    record(folder, save('epoch_1.pth', folder))
    folder.rename(moved)
    assert choose_checkpoint([str(moved)], TEMPLATE).path == moved / 'epoch_1.pth'


def test_a_copy_does_not_go_on_from_the_original(save, tmp_path):
    folder, copy = tmp_path / 'run', tmp_path / 'copy'
    folder.mkdir()
    copy.mkdir()
    record(copy, save('epoch_1.pth', folder))
    save('epoch_1.pth', copy)
    assert choose_checkpoint([str(copy)], TEMPLATE).path == copy / 'epoch_1.pth'


def test_a_record_of_another_name_is_followed(save, tmp_path):
    last = save('iter_70.pth')
    record(tmp_path, last)
    save('epoch_1.pth')
    assert choose_checkpoint([str(tmp_path)], TEMPLATE).path == last


def test_nothing_is_chosen_where_nothing_is(tmp_path):
    assert choose_checkpoint([str(tmp_path / 'absent')], TEMPLATE) == (None, [])


def test_a_disk_that_flushes_no_folder_keeps_the_file(save, tmp_path, monkeypatch):
    def refuse_folders(path, *args, plain=os.open, **options):
        if os.path.isdir(path):
            raise PermissionError(13, 'Permission denied', str(path))
        return plain(path, *args, **options)

    partial, final = save('.epoch_1.pth.partial'), tmp_path / 'epoch_1.pth'
    monkeypatch.setattr(os, 'open', refuse_folders)
    move_into_place(partial, final)
    assert fault(final) == '' and not partial.exists()


@pytest.mark.parametrize('name', ['C:\\runs\\a\\epoch_1.pth', 'D:/a/epoch_1.pth', '/a/epoch_1.pth'])
def test_a_record_of_another_system_names_the_file_beside_it(name, save, tmp_path):
    paths = save('epoch_1.pth'), save('epoch_2.pth')
    record(tmp_path, name)
    choice = choose_checkpoint([str(tmp_path)], TEMPLATE)
    assert choice.path == paths[0] and choice.refused == []


@pytest.mark.parametrize('name', ['x' * 5000, 'a\0b', '\ufffd', '../..'])
def test_a_record_of_no_file_leads_to_the_newest(name, save, tmp_path):
    path = save('epoch_1.pth')
    record(tmp_path, name)
    assert choose_checkpoint([str(tmp_path)], TEMPLATE).path == path


def test_an_archive_of_something_else_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / 'epoch_1.pth', 'w') as archive:
        archive.writestr('notes.txt', 'text')
    assert fault(tmp_path / 'epoch_1.pth') == 'is another kind of archive'
