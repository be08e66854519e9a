from pathlib import Path

import numpy as np
import pytest

from mmlska.engine.media_files import (
    CODECS,
    UnreadableVideoError,
    VideoFile,
    list_images,
    output_paths,
    read_video,
)


@pytest.fixture
def folder(tmp_path):
    for name in ('noise.png', 'empty.png', 'broken.jpg', 'notes.txt', 'clip.mp4'):
        (tmp_path / 'images' / 'deep').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'images' / name).touch()
    (tmp_path / 'images' / 'deep' / 'last.jpg').touch()
    return tmp_path / 'images'


def test_a_folder_stands_for_its_images_in_order(folder):
    names = [path.name for path in list_images([folder])]
    assert names == ['broken.jpg', 'empty.png', 'noise.png']
    assert list_images([folder / 'noise.png', folder])[0] == folder / 'noise.png'


@pytest.mark.parametrize(
    ('pattern', 'names'),
    [
        ('*', ['broken.jpg', 'empty.png', 'noise.png']),
        ('*.jpg', ['broken.jpg']),
        ('**/*.jpg', ['broken.jpg', 'last.jpg']),
        ('[en]*.png', ['empty.png', 'noise.png']),
    ],
)
def test_a_glob_stands_for_the_images_that_it_matches(folder, pattern, names):
    assert [path.name for path in list_images([folder / pattern])] == names


def test_videos_count_where_they_are_asked_for(folder):
    assert folder / 'clip.mp4' in list_images([folder], videos=True)
    assert list_images([folder / '*.mp4'], videos=True) == [folder / 'clip.mp4']
    with pytest.raises(FileNotFoundError, match=r'pattern .*mp4. holds no image'):
        list_images([folder / '*.mp4'])


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / 'a[1].jpg').touch()
    assert list_images([tmp_path / 'a[1].jpg']) == [tmp_path / 'a[1].jpg']


def test_missing_images_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no image or folder .*absent\.jpg'):
        list_images([folder / 'noise.png', folder / 'absent.jpg'])
    with pytest.raises(FileNotFoundError, match='holds no image'):
        list_images([folder / 'deep' / '..' / 'none*'])


def test_an_address_is_no_image_file():
    with pytest.raises(FileNotFoundError, match=r'example\.org/a\.jpg. is an address: fetch'):
        list_images(['https://example.org/a.jpg'])


@pytest.mark.parametrize('suffix', ['.gif', '.jp2', '.pgm', '.ppm', '.PNG'])
def test_a_folder_stands_for_images_of_every_usual_format(tmp_path, suffix):
    (tmp_path / f'a{suffix}').touch()
    assert list_images([tmp_path]) == [tmp_path / f'a{suffix}']


def test_pictures_do_not_overwrite_each_other(tmp_path):
    images = [tmp_path / 'a' / 'one.jpg', tmp_path / 'b' / 'two.jpg']
    assert [p.name for p in output_paths(images, tmp_path)] == ['one.jpg', 'two.jpg']
    with pytest.raises(ValueError, match=r"called 'one\.jpg'"):
        output_paths([*images, tmp_path / 'c' / 'one.jpg'], tmp_path)


def test_a_picture_has_a_suffix_that_can_be_written(tmp_path):
    names = [path.name for path in output_paths([Path('a'), Path('b.dat'), Path('c.JPG')], 'out')]
    assert names == ['a.png', 'b.dat.png', 'c.JPG']
    with pytest.raises(ValueError, match=r"called 'a\.png'"):
        output_paths([Path('a'), Path('a.png')], 'out')


def test_a_video_keeps_its_suffix_where_that_is_written():
    names = [path.name for path in output_paths([Path('a.AVI'), Path('b.webm')], 'out')]
    assert names == ['a.AVI', 'b.webm.mp4']


@pytest.mark.parametrize('suffix', CODECS)
@pytest.mark.parametrize('size', [(48, 64), (35, 51)])
def test_a_video_is_read_as_it_was_written(suffix, size, tmp_path):
    path = tmp_path / 'new' / f'clip{suffix}'
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    with VideoFile(path, 5) as file:
        for colour in colours:
            file.write(np.full((*size, 3), colour, np.uint8))
    video = read_video(path)
    assert video.fps == 5 and len(video) == 3
    for frame, colour in zip(video, colours, strict=True):
        assert frame.shape == (size[0] // 2 * 2, size[1] // 2 * 2, 3)
        # BGR, and coded with losses.
        assert np.abs(frame.mean((0, 1)) - colour[::-1]).max() < 15


def test_a_video_for_nowhere_is_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VideoFile(None, 5) as file:
        file.write(np.zeros((8, 8, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / 'clip.mp4').mkdir()
    with (
        pytest.raises(OSError, match='cannot write the video'),
        VideoFile(tmp_path / 'clip.mp4', 5) as file,
    ):
        file.write(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize('content', [b'', b'no video at all'])
def test_an_unreadable_video_is_named(content, tmp_path):
    (tmp_path / 'clip.mp4').write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=r'clip\.mp4. cannot be read as a video'):
        read_video(tmp_path / 'clip.mp4')
