import mmcv
import numpy as np
import pytest
import torch

from mmlska.conversion.images import random_images, read_images

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def write(path, height=40, width=60, colour=(10, 20, 30)):
    """A file of one colour, given as red, green, blue."""
    image = np.full((height, width, 3), colour[::-1], dtype=np.uint8)
    mmcv.imwrite(image, str(path))


def test_colours_are_normalised_as_for_imagenet(tmp_path):
    write(tmp_path / 'a.png', colour=(200, 100, 50))
    (batch,) = read_images([tmp_path], 32)
    assert batch.shape == (1, 3, 32, 32)
    assert batch.dtype == torch.float32
    expected = (torch.tensor([200, 100, 50]) - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(batch[0], expected[:, None, None].expand(3, 32, 32), atol=1e-5)


@pytest.mark.parametrize('size', [16, 40, 90])
@pytest.mark.parametrize(('height', 'width'), [(40, 80), (80, 40)])
def test_the_middle_is_taken(tmp_path, size, height, width):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[: height // 4] = image[-(height // 4) :] = 255 * (height > width)
    if width > height:
        image[:, : width // 4] = image[:, -(width // 4) :] = 255
    mmcv.imwrite(image, str(tmp_path / 'a.png'))
    (batch,) = read_images([tmp_path], size)
    assert batch.shape == (1, 3, size, size)
    middle = batch[0, :, size // 4 : -size // 4, size // 4 : -size // 4]
    dark = -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.allclose(middle, dark[:, None, None].expand_as(middle), atol=1e-5)


def test_images_are_spread_over_the_names_and_over_folders(tmp_path):
    for i in range(10):
        folder = tmp_path / f'class{i // 5}'
        folder.mkdir(exist_ok=True)
        write(folder / f'{i}.png', colour=(20 * i, 0, 0))
    batches = read_images([tmp_path], 8, number=5)
    red = torch.cat(batches)[:, 0, 0, 0] * STD[0] + MEAN[0]
    assert red.round().tolist() == [0, 40, 80, 120, 160]
    both = read_images([tmp_path / 'class1', tmp_path / 'class0'], 8)
    assert [len(batch) for batch in both] == [8, 2]


def test_unreadable_files_are_passed_over(tmp_path, capsys):
    write(tmp_path / 'good.JPG')
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'page.png').write_text('<html>')
    (tmp_path / 'notes.txt').write_text('no image')
    assert torch.cat(read_images([tmp_path], 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ('files', 'message'),
    [([], r'holds no image: no file in it ends in \.jpg'), (['a.jpg'], r'can be read; 1 .*a\.jpg')],
)
def test_folders_without_images_are_named(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text('<html>')
    with pytest.raises(ValueError, match=rf'{tmp_path.name}.*{message}'):
        read_images([tmp_path])


def test_an_absent_folder_is_named(tmp_path):
    with pytest.raises(NotADirectoryError, match='none'):
        read_images([tmp_path / 'none'])


@pytest.mark.parametrize('read', [lambda **kw: read_images(['.'], **kw), random_images])
@pytest.mark.parametrize('option', ['size', 'number'])
def test_sizes_and_numbers_are_positive(read, option):
    with pytest.raises(ValueError, match=f'the {option} of images must be positive, but is 0'):
        read(**{option: 0})


def test_noise_is_the_same_for_the_same_seed():
    first, second, other = random_images(16, 9, 1), random_images(16, 9, 1), random_images(16, 9, 2)
    assert [batch.shape for batch in first] == [(8, 3, 16, 16), (1, 3, 16, 16)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
