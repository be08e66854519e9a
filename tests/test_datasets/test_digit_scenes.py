import hashlib
import json
import re
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from script_runs import TOOLS, run_here

pytest.importorskip('sklearn')
pytest.importorskip('skimage')

from mmlska.datasets import DIGITS, make_digit_scenes
from mmlska.datasets.digit_scenes import MAX_DIGITS, load_sources, render_scene

SMALL = dict(num_train=12, num_val=6)


def fingerprints(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    return make_digit_scenes(tmp_path_factory.mktemp('data') / 'scenes', **SMALL)


@pytest.fixture(scope='module')
def sources():
    return load_sources('val')


@pytest.fixture(scope='module')
def scenes(sources):
    return [render_scene(sources, 128, np.random.default_rng(seed)) for seed in range(40)]


class TestScene:
    def test_photograph_untouched_outside_the_masks(self, scenes):
        for scene in scenes:
            outside = ~np.any(scene.masks, axis=0)
            assert np.array_equal(scene.image[outside], scene.background[outside])

    def test_light_ink_with_a_dark_rim_of_one_tint(self, scenes):
        for scene in scenes:
            for mask in scene.masks:
                pixels = scene.image[mask].astype(float)
                tint = pixels[pixels.sum(1).argmax()]
                assert tint.max() == 255
                assert tint.min() >= 140
                brightness = pixels @ tint / (tint @ tint)
                assert np.abs(pixels - brightness[:, None] * tint).max() <= 1
                assert np.mean(brightness > 0.9) > 0.2
                inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3)), borderValue=0) > 0
                rim = scene.image[mask & ~inside]
                assert rim.max() < 100

    def test_masks_are_apart(self, scenes):
        for scene in scenes:
            assert np.sum(scene.masks, axis=0).max() == 1

    def test_semantic_labels_are_the_masks(self, scenes):
        for scene in scenes:
            expected = sum(m * (d + 1) for m, d in zip(scene.masks, scene.digits, strict=True))
            assert np.array_equal(scene.semantic, expected)
            assert scene.semantic.dtype == np.uint8

    def test_number_and_size_of_digits(self, scenes):
        numbers = [len(scene.masks) for scene in scenes]
        assert min(numbers) >= 1
        assert max(numbers) <= MAX_DIGITS
        sides = [max(np.ptp(np.nonzero(m), axis=1) + 1) for s in scenes for m in s.masks]
        assert 20 <= min(sides) < 35
        assert 45 < max(sides) <= 75

    def test_shows_the_scan_it_names(self, scenes):
        from sklearn.datasets import load_digits

        target = load_digits().target
        assert all([int(t) for t in target[s.scans]] == s.digits for s in scenes)

    def test_every_digit_and_photograph_appears(self, scenes, sources):
        assert {d for s in scenes for d in s.digits} == set(range(10))
        assert {s.photograph for s in scenes} == set(sources.photographs)

    @pytest.mark.parametrize('size', [64, 200])
    def test_size_of_the_scene(self, sources, size):
        scene = render_scene(sources, size, np.random.default_rng(0))
        assert scene.image.shape == (size, size, 3)
        assert scene.semantic.shape == (size, size)


class TestSplits:
    def test_no_photograph_in_both(self):
        train, val = load_sources('train').photographs, load_sources('val').photographs
        assert not set(train) & set(val)
        # The two motorcycle photographs are a stereo pair: they count as one.
        assert sum('motorcycle' in path for path in (*train, *val)) == 1

    def test_no_digit_in_both(self):
        train, val = load_sources('train'), load_sources('val')
        assert len(train.scans) + len(val.scans) == 1797
        assert val.first_scan == len(train.scans)
        assert set(train.digits) == set(val.digits) == set(range(10))

    def test_written_scenes_keep_to_their_split(self, root):
        train, val = annotations(root, 'train'), annotations(root, 'val')
        for key, field in (('annotations', 'scan'), ('images', 'photograph')):
            assert not {x[field] for x in train[key]} & {x[field] for x in val[key]}

    def test_unknown_split(self):
        with pytest.raises(
            ValueError, match=r"split must be one of \['train', 'val'\], got 'tets'"
        ):
            load_sources('tets')


class TestFiles:
    def test_counts_and_sizes(self, root):
        for split, number in (('train', 12), ('val', 6)):
            names = [image['file_name'] for image in annotations(root, split)['images']]
            for kind in ('images', 'labels'):
                files = sorted((root / kind / split).iterdir())
                assert [file.name for file in files] == names
                assert len(files) == number
                for file in files:
                    assert mmcv.imread(file, flag='unchanged').shape[:2] == (128, 128)

    def test_boxes_areas_and_labels_match_the_masks(self, root):
        for split in ('train', 'val'):
            truth = annotations(root, split)
            assert truth['annotations']
            painted = {image['id']: np.zeros((128, 128), int) for image in truth['images']}
            for instance in truth['annotations']:
                mask = decode(instance['segmentation'])
                rows, columns = np.nonzero(mask)
                left, top, width, height = instance['bbox']
                assert (columns.min(), columns.max()) == (left, left + width - 1)
                assert (rows.min(), rows.max()) == (top, top + height - 1)
                assert instance['area'] == mask.sum()
                painted[instance['image_id']] += mask * instance['category_id']
            for image in truth['images']:
                labels = mmcv.imread(root / 'labels' / split / image['file_name'], flag='unchanged')
                assert np.array_equal(labels, painted[image['id']])

    def test_run_lengths_mean_the_same_to_pycocotools(self, root):
        coco = pytest.importorskip('pycocotools.mask')
        for instance in annotations(root, 'val')['annotations']:
            runs = coco.frPyObjects(instance['segmentation'], 128, 128)
            assert np.array_equal(coco.decode(runs), decode(instance['segmentation']))
            assert coco.toBbox(runs).tolist() == instance['bbox']

    def test_mmdet_reads_it(self, root):
        datasets = pytest.importorskip('mmdet.datasets')
        dataset = datasets.CocoDataset(
            data_root=str(root),
            ann_file='annotations/instances_val.json',
            data_prefix=dict(img='images/val/'),
            metainfo=dict(classes=DIGITS),
        )
        truth = annotations(root, 'val')
        assert len(dataset) == 6
        read = [x['bbox_label'] for i in range(6) for x in dataset.get_data_info(i)['instances']]
        assert read == [x['category_id'] - 1 for x in truth['annotations']]

    def test_mmseg_reads_it(self, root):
        datasets = pytest.importorskip('mmseg.datasets')
        dataset = datasets.BaseSegDataset(
            data_root=str(root),
            data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
            img_suffix='.png',
            metainfo=dict(classes=('background', *DIGITS)),
        )
        assert len(dataset) == 6
        assert all(Path(dataset[i]['seg_map_path']).is_file() for i in range(6))


def decode(segmentation: dict) -> np.ndarray:
    """COCO's definition: runs of 0 and 1 in turn, down the columns."""
    counts = segmentation['counts']
    pixels = np.repeat(np.arange(len(counts)) % 2, counts)
    return pixels.reshape(segmentation['size'], order='F')


class TestDeterminism:
    def test_bit_identical_when_repeated(self, root, tmp_path):
        again = make_digit_scenes(tmp_path / 'again', **SMALL)
        assert fingerprints(again) == fingerprints(root)

    def test_other_seed_other_scenes(self, root, tmp_path):
        other = fingerprints(make_digit_scenes(tmp_path / 'other', **SMALL, seed=1))
        same = fingerprints(root)
        assert other.keys() == same.keys()
        assert not set(other.values()) & set(same.values())

    def test_more_scenes_begin_with_the_same(self, root, tmp_path):
        more = make_digit_scenes(tmp_path / 'more', num_train=14, num_val=7)
        few, many = fingerprints(root), fingerprints(more)
        assert all(many[name] == few[name] for name in few if name.endswith('.png'))


class TestTarget:
    def test_kept_when_nothing_changed(self, tmp_path):
        root = make_digit_scenes(tmp_path / 'scenes', num_train=1, num_val=1)
        before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
        make_digit_scenes(root, num_train=1, num_val=1)
        assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before

    def test_made_anew_when_a_parameter_changed(self, tmp_path):
        root = make_digit_scenes(tmp_path / 'scenes', num_train=2, num_val=1)
        make_digit_scenes(root, num_train=1, num_val=1, seed=5)
        fresh = make_digit_scenes(tmp_path / 'fresh', num_train=1, num_val=1, seed=5)
        assert fingerprints(root) == fingerprints(fresh)

    def test_made_anew_when_an_image_is_missing(self, tmp_path):
        root = make_digit_scenes(tmp_path / 'scenes', num_train=2, num_val=1)
        before = fingerprints(root)
        (root / 'images' / 'train' / '000001.png').unlink()
        assert fingerprints(make_digit_scenes(root, num_train=2, num_val=1)) == before

    def test_empty_folder_is_filled(self, tmp_path):
        (tmp_path / 'scenes').mkdir()
        root = make_digit_scenes(tmp_path / 'scenes', num_train=1, num_val=1)
        assert len(fingerprints(root)) == 7

    def test_nothing_else_is_left_behind(self, tmp_path):
        make_digit_scenes(tmp_path / 'scenes', num_train=2, num_val=1)
        make_digit_scenes(tmp_path / 'scenes', num_train=1, num_val=1)
        assert [path.name for path in tmp_path.iterdir()] == ['scenes']

    def test_a_failure_leaves_the_old_scenes(self, tmp_path, monkeypatch):
        root = make_digit_scenes(tmp_path / 'scenes', num_train=1, num_val=1)
        before = fingerprints(root)
        monkeypatch.setattr(mmcv, 'imwrite', lambda *args: False)
        with pytest.raises(OSError, match='no image could be written'):
            make_digit_scenes(root, num_train=2, num_val=1)
        assert fingerprints(root) == before
        assert [path.name for path in tmp_path.iterdir()] == ['scenes']

    def test_files_of_others_are_kept(self, tmp_path):
        (tmp_path / 'thesis.txt').write_text('mine')
        with pytest.raises(FileExistsError, match='holds files that are not digit scenes'):
            make_digit_scenes(tmp_path, num_train=1, num_val=1)
        assert (tmp_path / 'thesis.txt').read_text() == 'mine'

    def test_the_current_folder_is_not_replaced(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileExistsError, match='is the current folder'):
            make_digit_scenes('.', num_train=1, num_val=1)

    def test_through_a_link(self, tmp_path):
        (tmp_path / 'disk').mkdir()
        (tmp_path / 'scenes').symlink_to('disk')
        make_digit_scenes(tmp_path / 'scenes', num_train=1, num_val=1)
        assert (tmp_path / 'scenes').is_symlink()
        assert len(fingerprints(tmp_path / 'disk')) == 7

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / 'scenes').write_text('mine')
        with pytest.raises(FileExistsError, match='is a file; name a folder'):
            make_digit_scenes(tmp_path / 'scenes', num_train=1, num_val=1)

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / 'file').write_text('mine')
        target = tmp_path / 'file' / 'scenes'
        message = f'cannot write the digit scenes to {str(target)!r}'
        with pytest.raises(OSError, match=re.escape(message)):
            make_digit_scenes(target, num_train=1, num_val=1)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (dict(num_train=0), 'num_train must lie between 1 and 999999, got 0; the nearest is 1'),
        (dict(num_val=-3), 'num_val must lie between 1 and 999999, got -3; the nearest is 1'),
        (dict(image_size=16), 'image_size must lie between 64 and 1024, got 16; '),
        (dict(image_size=4096), 'got 4096; the nearest is 1024'),
        (dict(seed=-1), 'seed must lie between 0 and 4294967295, got -1; the nearest is 0'),
        (dict(num_train=2.5), 'num_train must be an integer, got 2.5'),
        (dict(seed='x'), "seed must be an integer, got 'x'"),
        (dict(num_val=True), 'num_val must be an integer, got True'),
    ],
)
def test_bad_arguments(tmp_path, bad, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_digit_scenes(tmp_path / 'scenes', **bad)
    assert not list(tmp_path.iterdir())


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='pip install scikit-image'):
        make_digit_scenes(tmp_path / 'scenes')


class TestTool:
    tool = TOOLS / 'dataset_tools' / 'make_digit_scenes.py'

    def test_makes_the_scenes(self, root, tmp_path):
        done = run_here(self.tool, 'scenes', '--num-train', 12, '--num-val', 6, cwd=tmp_path)
        assert '12 training and 6 validation scenes' in done.stdout
        assert fingerprints(tmp_path / 'scenes') == fingerprints(root)

    def test_bad_argument(self, tmp_path):
        done = run_here(self.tool, 'scenes', '--num-val', 0, cwd=tmp_path, expect=1)
        assert done.stderr == (
            'error: num_val must lie between 1 and 999999, got 0; the nearest is 1\n'
        )
