"""Whatever weights hold, a load is whole, or an error that names the key and changes nothing."""

import collections
import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.runner import load_checkpoint
from routes import Detector, fill, log_of, needs_safe_globals
from torch import nn

from mmlska.checkpoint import CheckpointError, load_from_local, naming, to_naming
from mmlska.models import VAN

# `MMLSKA_FUZZ=10000 pytest tests/test_checkpoint/test_fuzzed_weights.py` tries as many.
CASES = int(os.environ.get('MMLSKA_FUZZ', 500))
ARCH = dict(embed_dims=[2, 2], depths=[1, 1], ffn_ratios=[1, 1])


def van():
    return VAN(ARCH, dict(type='LSKA', kernel_size=3, dilation=1), out_indices=(0, 1))


SOURCE = fill(van()).state_dict()
TARGET, INSIDE = van(), Detector(van())
KEYS = sorted(key for key in SOURCE if 'num_batches' not in key)


def itself():
    value = []
    value.append(value)
    return value


def itself_as_weights():
    value = {}
    value['state_dict'] = value
    return value


# What a value of a checkpoint may become; each is unusable, whatever weight it stands for.
BAD_VALUES = {
    'none': lambda x: None,
    'text': lambda x: 'weights',
    'number': lambda x: 3,
    'list': lambda x: x.tolist(),
    'self-reference': lambda x: itself(),
    'dict': lambda x: {'weight': x},
    'array': lambda x: x.numpy(),
    'array of objects': lambda x: np.array([None, {}], dtype=object),
    'meta': lambda x: x.to('meta'),
    'sparse': lambda x: x.to_sparse(),
    'quantized': lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    'nested': lambda x: torch.nested.nested_tensor([x, x]),
    'integer': lambda x: x.int(),
    'boolean': lambda x: x.bool(),
    'complex': lambda x: x.to(torch.complex64),
    'number of no dimension': lambda x: x.sum(),
    'one more dimension': lambda x: x[None],
    'empty': lambda x: x.flatten()[:0],
    'huge view': lambda x: x.flatten()[:1].expand(2**40),
}
# Keys that no weights have.
BAD_KEYS = [0, 1.5, None, ('a',), b'norm1.weight', True]
values = st.sampled_from(sorted(BAD_VALUES))
keys = st.sampled_from(KEYS)


@st.composite
def damages(draw):
    """What is done to a state dict: the name of a kind, a key, and more."""
    kind = draw(st.sampled_from(['value', 'drop', 'rename', 'key', 'twice', 'all']))
    more = dict(value=values, all=values, rename=keys, key=st.sampled_from(range(len(BAD_KEYS))))
    return kind, draw(keys), draw(more.get(kind, st.none()))


def damaged(damage):
    """Weights after a damage, and the texts of which an error must name one."""
    kind, key, more = damage
    weights = collections.OrderedDict(SOURCE)
    if kind == 'value':
        weights[key] = BAD_VALUES[more](weights[key])
        # An array of objects is refused while the file is read, by its type.
        return weights, [key, 'NumPy type']
    elif kind == 'all':
        weights = {name: BAD_VALUES[more](value) for name, value in weights.items()}
        return weights, [*KEYS, 'NumPy type']
    elif kind == 'drop':
        del weights[key]
    elif kind == 'rename':
        weights[f'{more}.{key}x'] = weights.pop(key)
    elif kind == 'key':
        weights[BAD_KEYS[more]] = torch.ones(1)
        return weights, [repr(BAD_KEYS[more])]
    else:
        weights[key.replace('blocks', 'block') + ('' if 'blocks' in key else '.x')] = torch.ones(1)
    return weights, [key]


def by_load_state_dict(weights, path):
    TARGET.load_state_dict(weights)


def by_init_cfg(weights, path):
    torch.save(weights, path)
    TARGET.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    TARGET._is_init = False
    TARGET.init_weights()


def by_load_from(weights, path):
    torch.save({'state_dict': weights}, path)
    load_checkpoint(INSIDE, str(path))


def by_load_from_with_prefix(weights, path):
    named = {f'backbone.{key}' if isinstance(key, str) else key: weights[key] for key in weights}
    torch.save({'state_dict': named}, path)
    load_checkpoint(INSIDE, str(path))


ROUTES = [by_load_state_dict, by_init_cfg, by_load_from, by_load_from_with_prefix]


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@needs_safe_globals
@settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize='MMLSKA_FUZZ' not in os.environ,
)
@given(damage=damages(), route=st.sampled_from(ROUTES), wrapper=st.sampled_from([None, 'model']))
@pytest.mark.slow
def test_a_load_is_whole_or_names_the_key(tmp_path_factory, damage, route, wrapper):
    weights, named = damaged(damage)
    if wrapper and route in (by_load_state_dict, by_init_cfg):
        weights = {wrapper: weights}
    model = TARGET if route in (by_load_state_dict, by_init_cfg) else INSIDE.backbone
    before = state(model)
    with pytest.raises(CheckpointError) as caught:
        route(weights, tmp_path_factory.getbasetemp() / 'fuzzed.pth')
    assert any(text in str(caught.value) for text in named), str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('route', ROUTES)
def test_undamaged_weights_are_loaded_on_every_route(route, tmp_path):
    route(SOURCE, tmp_path / 'whole.pth')
    model = TARGET if route in (by_load_state_dict, by_init_cfg) else INSIDE.backbone
    assert all(torch.equal(value, SOURCE[key]) for key, value in model.state_dict().items())
    assert model.has_loaded_weights


@needs_safe_globals
@pytest.mark.parametrize('weights', [[], 'weights', None, 3, itself(), itself_as_weights(), {}])
@pytest.mark.parametrize('route', [by_load_state_dict, by_init_cfg])
def test_what_is_no_state_dict_is_refused(weights, route, tmp_path):
    with pytest.raises(CheckpointError):
        route(weights, tmp_path / 'a.pth')


@pytest.mark.parametrize('metadata', [3, {'': 3}, {'': {'version': 'one'}}, {'norm1': []}])
@pytest.mark.parametrize('route', [by_load_state_dict, by_init_cfg, by_load_from])
def test_versions_that_are_none_are_refused(metadata, route, tmp_path):
    weights = collections.OrderedDict(SOURCE)
    weights._metadata = metadata
    with pytest.raises(CheckpointError, match='_metadata'):
        route(weights, tmp_path / 'a.pth')


@pytest.mark.parametrize('number', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_told(number):
    weights = {**SOURCE, 'norm1.bias': torch.full((2,), number)}
    lines = log_of(lambda: van().load_state_dict(weights))
    assert [line for line in lines if 'not finite: norm1.bias' in line]


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_other_floating_point_numbers_are_taken(dtype):
    weights = {key: value.to(dtype) for key, value in SOURCE.items()}
    model = van()
    model.load_state_dict(weights)
    assert torch.equal(model.norm1.weight, weights['norm1.weight'].float())


# A user's own strict=False


def test_without_strict_what_fits_is_loaded_and_the_rest_told_in_one_warning():
    weights = dict(SOURCE)
    del weights['norm2.bias']
    weights['extra.weight'] = torch.ones(1)
    model = fill(van())
    start = model.norm2.bias.clone()
    results = []
    lines = log_of(lambda: results.append(model.load_state_dict(weights, strict=False)))
    assert results[0].missing_keys == ['norm2.bias']
    assert results[0].unexpected_keys == ['extra.weight']
    assert torch.equal(model.norm2.bias, start)
    assert torch.equal(model.norm2.weight, SOURCE['norm2.weight'])
    told = [line for line in lines if 'keep their start' in line]
    assert len(told) == 1
    assert 'norm2.bias' in told[0]
    assert not [line for line in lines if 'all' in line and 'are loaded' in line]


def test_without_strict_a_detector_takes_what_fits():
    detector = Detector(fill(van()))
    weights = {f'backbone.{key}': value for key, value in to_naming(SOURCE, 'official').items()}
    del weights['backbone.norm2.bias']
    result = detector.load_state_dict(weights, strict=False)
    assert result.missing_keys == ['backbone.norm2.bias', 'neck.weight', 'neck.bias']
    assert not result.unexpected_keys
    assert torch.equal(detector.backbone.norm2.weight, SOURCE['norm2.weight'])


def test_with_strict_a_detector_is_refused_by_pytorch():
    with pytest.raises(RuntimeError, match=r'Missing key.*backbone\.norm2\.bias'):
        Detector(van()).load_state_dict(
            {f'backbone.{key}': SOURCE[key] for key in SOURCE if key != 'norm2.bias'}
        )


def test_an_empty_load_without_strict_changes_nothing():
    model = fill(van())
    before = state(model)
    result = model.load_state_dict({}, strict=False)
    assert set(result.missing_keys) == {key for key in before if 'num_batches' not in key}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.has_loaded_weights


def test_assign_takes_the_tensors_themselves():
    with torch.device('meta'):
        model = van()
    # PyTorch notes in the metadata of a state dict that it was assigned; a plain dict has none.
    model.load_state_dict(dict(SOURCE), assign=True)
    assert model.norm1.weight.data_ptr() == SOURCE['norm1.weight'].data_ptr()


def test_a_model_on_meta_does_not_claim_to_be_loaded():
    model = van().to('meta')
    with warnings.catch_warnings():
        # PyTorch says so for every weight.
        warnings.simplefilter('ignore')
        model.load_state_dict(SOURCE)
    assert not model.has_loaded_weights


def test_each_foreign_name_is_translated_once(monkeypatch):
    calls = collections.Counter()
    rename = naming.rename
    monkeypatch.setattr(
        naming, 'rename', lambda key, rules: calls.update([key]) or rename(key, rules)
    )
    naming.canonical.cache_clear()
    weights = to_naming(SOURCE, 'official-detection')
    van().load_state_dict(weights)
    assert calls
    assert set(calls.values()) == {1}


def test_other_models_values_are_handed_through(tmp_path):
    model = nn.Linear(2, 2)
    torch.save({**model.state_dict(), '_extra_state': {'a': [1]}}, tmp_path / 'a.pth')
    assert load_from_local(str(tmp_path / 'a.pth'))['_extra_state'] == {'a': [1]}
