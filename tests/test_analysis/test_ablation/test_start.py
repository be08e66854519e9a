"""Whether cells begin where the base is, and what they cost beside it."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmlska.analysis.ablation.cells import make_cells, write_configs
from mmlska.analysis.ablation.costs import measure_costs
from mmlska.analysis.ablation.driver import configs_of
from mmlska.analysis.ablation.spec import make_spec
from mmlska.analysis.ablation.start import agreement, compare_starts
from mmlska.engine.config import load_config

pytest.importorskip('mmseg')
PICO = 'fpn_van-lska-pico_demo_digits-64x64'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    cfg = load_config(PICO)
    init_default_scope('mmseg')
    torch.manual_seed(1)
    model = MODELS.build(cfg.model)
    file = tmp_path_factory.mktemp('weights') / 'base.pth'
    torch.save(dict(state_dict=model.state_dict()), file)
    return str(file)


def test_added_layers_change_nothing_at_first(tmp_path, weights):
    spec = make_spec(
        dict(
            base=PICO,
            add=['LSKA:kernel_size=7', 'ContextAggregation'],
            where=['neck', 'after_stage@2'],
            weights=weights,
            work_dir=tmp_path,
        )
    )
    cells = make_cells(spec)
    write_configs(spec, cells)
    found = compare_starts(configs_of(spec, cells), weights)
    assert len(found) == 4
    assert set(found.values()) == {'equals the base'}


def test_a_layer_that_changes_something_is_told(tmp_path, weights):
    settings = dict(base=PICO, add=['ECA'], where=['after_stage@2'], work_dir=tmp_path)
    spec = make_spec(settings | dict(weights=weights, start=['plain']))
    cells = make_cells(spec)
    write_configs(spec, cells)
    (words,) = compare_starts(configs_of(spec, cells), weights).values()
    assert words.startswith('differs from the base by up to')


def test_agreement():
    one, other = [torch.zeros(2)], [torch.tensor([0.0, 0.25])]
    assert agreement(one, one) == 'equals the base'
    assert agreement(other, one) == 'differs from the base by up to 0.25'
    assert agreement([torch.zeros(3)], one) == 'outputs of other shapes than the base'


def test_costs_are_kept(tmp_path, monkeypatch):
    """Without data there is no memory of a step; all the rest is measured once."""
    monkeypatch.chdir(tmp_path)
    spec = make_spec(dict(base=PICO, add=['ECA:kernel_size=3'], where=['neck'], work_dir=tmp_path))
    cells = make_cells(spec)
    write_configs(spec, cells)
    configs = configs_of(spec, cells)
    costs = measure_costs(configs, tmp_path / 'costs.json')
    base, cell = costs.values()
    assert cell.params - base.params == 3 * 4
    assert base.step_bytes is None and base.failure == ''
    assert 0 < cell.time[0] <= cell.time[1] <= cell.time[2]
    monkeypatch.setattr('mmlska.analysis.ablation.costs.count', lambda config: pytest.fail())
    assert measure_costs(configs, tmp_path / 'costs.json') == costs
