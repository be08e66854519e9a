"""Weights that come with the package, by name."""

import hashlib
import json

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from PIL import Image
from safetensors.torch import save_file

from mmlska.checkpoint import own_models
from mmlska.checkpoint.files import CheckpointError
from mmlska.datasets import make_digit_scenes
from mmlska.engine.config import load_config
from mmlska.models import VAN

ARCH = dict(embed_dims=[8, 8], depths=[1, 1], ffn_ratios=[2, 2])


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A zoo of one small VAN in half precision; yields the model that it is of."""
    torch.manual_seed(0)
    model = VAN(ARCH, out_indices=(0, 1))
    halves = {
        key: value.half() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    save_file(halves, tmp_path / 'tiny.safetensors')
    sha256 = hashlib.sha256((tmp_path / 'tiny.safetensors').read_bytes()).hexdigest()
    known = dict(classes=['digit'])
    entry = dict(
        file='tiny.safetensors', sha256=sha256, config='mine', options={}, dataset_meta=known
    )
    (tmp_path / 'index.json').write_text(json.dumps({'van-tiny-digits': entry}))
    monkeypatch.setattr(own_models.find_own_model, '__defaults__', (tmp_path,))
    own_models.own_models.cache_clear()
    yield model
    own_models.own_models.cache_clear()


def test_a_config_loads_a_model_by_its_name(zoo):
    torch.manual_seed(1)
    init_cfg = dict(type='Pretrained', checkpoint='mmlska://van-tiny-digits')
    model = VAN(ARCH, out_indices=(0, 1), init_cfg=init_cfg)
    model.init_weights()
    for key, value in zoo.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-3)
        assert model.state_dict()[key].dtype == value.dtype


def test_mmengine_loads_a_model_by_its_name(zoo):
    found = CheckpointLoader.load_checkpoint('mmlska://van-tiny-digits', map_location='cpu')
    weights = found.get('state_dict', found)
    assert found['meta']['dataset_meta'] == dict(classes=['digit'])
    assert set(zoo.state_dict()) <= {key.removeprefix('backbone.') for key in weights}


def test_an_unknown_name_is_told(zoo):
    with pytest.raises(CheckpointError, match='did you mean mmlska://van-tiny-digits'):
        own_models.find_own_model('mmlska://van-tiny-digit')


def test_a_damaged_file_is_told(zoo, tmp_path):
    (tmp_path / 'tiny.safetensors').write_bytes(b'x')
    with pytest.raises(CheckpointError, match='SHA-256'):
        own_models.find_own_model('mmlska://van-tiny-digits')


def test_every_model_of_the_package_is_whole_and_has_a_card():
    models = own_models.own_models()
    assert models
    for name in models:
        path = own_models.find_own_model(f'mmlska://{name}')
        card = path.with_suffix('.md').read_text(encoding='utf-8')
        assert all(word in card for word in ('Data', 'Seed', 'mIoU', 'Apache-2.0'))
    assert len(models) == len({model.sha256 for model in models.values()})


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Scenes that no model was trained on: another seed than that of the study."""
    folder = tmp_path_factory.mktemp('scenes')
    make_digit_scenes(folder, num_train=1, num_val=6, image_size=64, seed=77)
    return folder


@pytest.mark.parametrize('name', sorted(own_models.own_models()))
def test_a_model_of_the_package_segments_scenes(name, scenes):
    """Loaded by name into the config of its card, it finds most of the pixels of the digits."""
    apis = pytest.importorskip('mmseg.apis')
    model = own_models.own_models()[name]
    config = load_config(model.config, model.options)
    segmentor = apis.init_model(config, f'mmlska://{name}', device='cpu')
    right = total = 0
    for image in sorted((scenes / 'images' / 'val').iterdir()):
        found = apis.inference_model(segmentor, str(image)).pred_sem_seg.data[0].numpy()
        truth = np.array(Image.open(scenes / 'labels' / 'val' / f'{image.stem}.png'))
        digits = (truth > 0) & (truth < 255)
        right += (found == truth)[digits].sum()
        total += digits.sum()
    # One class of eleven at random would give a tenth.
    assert right / total > 0.5
