import argparse
import functools
import http.server
import logging
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from routes import needs_safe_globals
from safetensors.torch import save_file
from torch import nn

from mmlska.checkpoint import CheckpointError, load_from_local, read_checkpoint, unwrap
from mmlska.models import VAN

NANO = dict(embed_dims=[4, 6], depths=[1, 1], ffn_ratios=[2, 2])


def nano(**options):
    return VAN(NANO, dict(type='LSKA', kernel_size=11), out_indices=(0, 1), **options)


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


@pytest.fixture
def attack(tmp_path):
    torch.save(
        {'state_dict': nano().state_dict(), 'x': Attack(tmp_path / 'ran')}, tmp_path / 'a.pth'
    )
    return tmp_path / 'a.pth', tmp_path / 'ran'


def test_a_malicious_file_is_refused_by_the_reader(attack):
    path, ran = attack
    with pytest.raises(CheckpointError, match=r'a.pth.*is refused: .*could run code.*open'):
        read_checkpoint(path)
    assert not ran.exists()


@needs_safe_globals
def test_a_malicious_file_is_refused_by_init_cfg(attack):
    path, ran = attack
    model = nano(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(CheckpointError, match='is refused'):
        model.init_weights()
    assert not ran.exists()


@needs_safe_globals
def test_a_malicious_file_is_refused_by_load_from(attack):
    path, ran = attack
    with pytest.raises(CheckpointError, match='is refused'):
        load_checkpoint(nn.ModuleDict({'backbone': nano()}), str(path))
    assert not ran.exists()


@pytest.mark.parametrize(
    'call',
    [(os.system, ('true',)), (getattr, (str, 'join')), (eval, ('1',))],
    ids=lambda c: str(c),
)
def test_no_function_is_called(tmp_path, call):
    class Call:
        def __reduce__(self):
            return call

    torch.save({'state_dict': {}, 'x': Call()}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / 'a.pth')


def test_a_legacy_pickle_is_refused_too(tmp_path):
    (tmp_path / 'a.pth').write_bytes(pickle.dumps(Attack(tmp_path / 'ran')))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / 'a.pth')
    assert not (tmp_path / 'ran').exists()


@needs_safe_globals
def test_what_timm_stores_beside_the_weights_is_read(tmp_path):
    checkpoint = {
        'epoch': 309,
        'arch': 'van_tiny',
        'state_dict': {'a': torch.ones(2)},
        'args': argparse.Namespace(lr=1e-3, data='/imagenet'),
        'metric': np.float64(75.4),
    }
    torch.save(checkpoint, tmp_path / 'model_best.pth.tar')
    read = read_checkpoint(tmp_path / 'model_best.pth.tar')
    assert read['args'].lr == 1e-3
    assert read['metric'] == 75.4


@needs_safe_globals
def test_what_mmengine_stores_beside_the_weights_is_read(tmp_path):
    history = HistoryBuffer()
    history.update(2.0)
    history.update(4.0)
    message_hub = {'log_scalars': {'train/loss': history}, 'runtime_info': {'iter': 3}}
    torch.save({'state_dict': {}, 'message_hub': message_hub}, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')['message_hub']['log_scalars']['train/loss']
    assert read.statistics('mean') == 3.0
    assert read.current() == 4.0


def test_an_absent_file_is_named_with_where_weights_are_published(tmp_path):
    message = r'van_tiny.pth.*Large-Separable.*VAN-Classification'
    with pytest.raises(FileNotFoundError, match=message):
        read_checkpoint(tmp_path / 'van_tiny.pth')
    model = nano(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth')))
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        model.init_weights()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('kept', [0, 3, 1000, -1])
def test_a_truncated_file_is_named(tmp_path, suffix, kept):
    path = tmp_path / f'van{suffix}'
    if suffix == '.pth':
        torch.save({'state_dict': nano().state_dict()}, path)
    else:
        save_file(nano().state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf'van\{suffix}.*truncated or no checkpoint'):
        read_checkpoint(path)


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / 'page.pth').write_text('<html>Sign in</html>')
    with pytest.raises(CheckpointError, match=r'page.pth.*no checkpoint'):
        read_checkpoint(tmp_path / 'page.pth')


@pytest.mark.parametrize('wrapper', ['state_dict', 'model', 'state_dict_ema'])
def test_unwrap(wrapper):
    weights = {'a.weight': torch.ones(1)}
    assert unwrap({wrapper: weights, 'epoch': 3}) is weights
    assert unwrap({'model': {wrapper: weights}}) is weights
    assert unwrap(weights) is weights


@pytest.mark.parametrize('wrapper', ['module', 'ema_state_dict', 'net', 'backbone'])
def test_weights_alone_under_any_name_are_unwrapped(wrapper):
    weights = {'a.weight': torch.ones(1)}
    assert unwrap({wrapper: weights, 'optimizer': {'state': {0: {}}}, 'epoch': 3}) is weights
    beside = {wrapper: weights, 'b.weight': torch.ones(1)}
    assert unwrap(beside) is beside


def test_weights_under_several_names_begin_with_them():
    teacher, student = torch.zeros(1), torch.ones(1)
    assert unwrap({'teacher': {'a': teacher}, 'student': {'a': student}, 'epoch': 3}) == {
        'teacher.a': teacher,
        'student.a': student,
    }


def load_into_detector(checkpoint, path):
    torch.save(checkpoint, path)
    detector = nn.ModuleDict({'backbone': nano()})
    load_checkpoint(detector, str(path))
    return detector['backbone'].state_dict()


@pytest.mark.parametrize(
    'prefix', ['model.', 'encoder.', 'ema_model.', 'teacher.backbone.', 'model.backbone.']
)
def test_load_from_finds_the_backbone_under_any_prefix(tmp_path, prefix):
    source = nano().state_dict()
    weights = {prefix + key: value for key, value in source.items()}
    weights |= {'other.norm1.weight': torch.ones(3), 'other.fc.weight': torch.ones(3, 3)}
    loaded = load_into_detector({'state_dict': weights}, tmp_path / 'a.pth')
    assert all(torch.equal(loaded[key], value) for key, value in source.items())


def test_load_from_does_not_choose_between_two_backbones(tmp_path):
    source, other = nano().state_dict(), nano().state_dict()
    checkpoint = {'teacher': source, 'student': other}
    with pytest.raises(CheckpointError, match=r"begins with 'backbone\.'"):
        load_into_detector(checkpoint, tmp_path / 'a.pth')
    model = nano(
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='teacher')
    )
    model.init_weights()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in source.items())


def test_a_head_of_torchvision_is_left_out(tmp_path):
    source = nano().state_dict()
    head = {'fc.weight': torch.ones(5, 6), 'fc.bias': torch.ones(5)}
    loaded = load_into_detector({**source, **head}, tmp_path / 'a.pth')
    assert all(torch.equal(loaded[key], value) for key, value in source.items())


def test_the_plain_weights_come_before_the_averaged_ones():
    assert unwrap({'state_dict_ema': {'a': 1}, 'state_dict': {'a': 2}}) == {'a': 2}


@needs_safe_globals
def test_mmengine_reads_through_these_loaders():
    assert CheckpointLoader._get_checkpoint_loader('a.pth') is load_from_local
    assert CheckpointLoader._get_checkpoint_loader('https://a/b.pth').__name__ == 'load_from_http'


def test_checkpoints_of_other_models_pass_unchanged(tmp_path):
    # The keys of mmseg's MSCAN (SegNeXt), the nearest relative.
    weights = {
        'patch_embed1.proj.0.weight': torch.ones(1),
        'block1.0.attn.spatial_gating_unit.conv0.weight': torch.ones(1),
        'block1.0.attn.spatial_gating_unit.conv0_1.weight': torch.ones(1),
        'norm1.weight': torch.ones(1),
    }
    torch.save({'state_dict': weights, 'meta': {'epoch': 1}}, tmp_path / 'mscan.pth')
    read = load_from_local(str(tmp_path / 'mscan.pth'))
    assert list(read['state_dict']) == list(weights)
    assert read['meta'] == {'epoch': 1}


@needs_safe_globals
def test_a_url_is_read_safely_and_kept(tmp_path, monkeypatch):
    served = tmp_path / 'served'
    served.mkdir()
    source = nano()
    torch.save(source.state_dict(), served / 'van.pth')
    torch.save({'x': Attack(tmp_path / 'ran')}, served / 'attack.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    try:
        model = nano(init_cfg=dict(type='Pretrained', checkpoint=f'{url}/van.pth'))
        model.init_weights()
        with pytest.raises(CheckpointError, match='is refused'):
            load_checkpoint(model, f'{url}/attack.pth')
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / 'ran').exists()
    cached = list((tmp_path / 'hub/hub/checkpoints').iterdir())
    assert sorted(path.name.partition('-')[0] for path in cached) == ['attack', 'van']
    loaded = model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in source.state_dict().items())


def test_reading_logs_the_path(tmp_path, caplog):
    torch.save(nano().state_dict(), tmp_path / 'van.pth')
    with caplog.at_level(logging.INFO):
        load_checkpoint(nano(), str(tmp_path / 'van.pth'), logger=logging.getLogger())
    assert 'van.pth' in caplog.text
