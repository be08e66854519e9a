import pytest
import torch
from torch import nn

from mmlska.engine import weights
from mmlska.engine.weights import load_all_weights


def model(channels: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels))


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_whole_weights_are_loaded(prefix):
    source, target = model(), model()
    load_all_weights(
        target, {prefix + key: value for key, value in source.state_dict().items()}, 'x.pth'
    )
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_missing_weights_are_an_error_that_counts_them():
    given = model().state_dict()
    del given['0.bias'], given['1.weight']
    message = r"'x\.pth' is not of this Sequential: it lacks 2 weights \(0\.bias, 1\.weight\)"
    with pytest.raises(ValueError, match=message):
        load_all_weights(model(), given, 'x.pth')


def test_weights_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r'(?s)not of this Sequential: .*size mismatch for 0'):
        load_all_weights(model(2), model(3).state_dict(), 'x.pth')


def test_a_long_message_is_cut():
    error = RuntimeError('\n'.join(f'line {number}' for number in range(100)))
    assert weights.first_lines(error).splitlines()[-2:] == ['  line 4', '  ...']


def test_superfluous_weights_are_told_in_one_line(monkeypatch):
    messages = []
    monkeypatch.setattr(weights, 'print_log', lambda message, **_: messages.append(message))
    load_all_weights(model(), {**model().state_dict(), 'aux.weight': torch.zeros(1)}, 'x.pth')
    assert messages == ['the model has no place for 1 weights (aux.weight) of x.pth']


def part_names(prefix: str) -> dict:
    return {f'{prefix}{key}': value for key, value in whole().state_dict().items()}


def whole() -> nn.Module:
    return nn.ModuleDict(dict(backbone=nn.Linear(2, 2), neck=nn.Linear(2, 2), head=nn.Linear(2, 2)))


@pytest.mark.parametrize('beside', [{}, {'backbone.weight': torch.zeros(2, 2)}])
def test_weights_in_a_module_around_the_model_are_found(beside):
    given, target = part_names('model.'), whole()
    load_all_weights(target, {**beside, **given, 'loss.weight': torch.zeros(1)}, 'x.pth')
    for key, value in target.state_dict().items():
        assert torch.equal(value, given[f'model.{key}'])


def test_of_several_models_in_a_file_none_is_taken():
    given = part_names('student.') | part_names('teacher.')
    weights.offer_to_model(whole(), given)
    assert given.keys() == {*part_names('student.'), *part_names('teacher.')}
    with pytest.raises(ValueError, match='it lacks 6 weights'):
        load_all_weights(whole(), given, 'x.pth')


@pytest.mark.parametrize('prefix', ['', 'other.neck.'])
def test_names_of_the_model_itself_and_strange_ones_are_left(prefix):
    given = {f'{prefix}{key}': value for key, value in model().state_dict().items()}
    before = dict(given)
    weights.offer_to_model(whole(), given)
    assert given == before
