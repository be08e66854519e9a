"""Configs of cells: written, read, built, and run forward, on bases of all libraries."""

import pytest

from mmlska.analysis.ablation.cells import config_path, make_cells, slug, write_configs
from mmlska.analysis.ablation.costs import count
from mmlska.analysis.ablation.spec import make_spec
from mmlska.analysis.complexity import build_for_counting
from mmlska.engine.config import load_config

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
R50 = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'
ECA_SEGMENTOR = 'fpn_r50-eca_4xb4-80k_ade20k-512x512'
NANO = 'fpn_van-lska-nano_demo_digits-128x128'


def cells_of(folder, base, add, where, **settings):
    """Cells with their configs, read from where they were written."""
    spec = make_spec(dict(base=base, add=[add], where=[where], work_dir=folder, **settings))
    cells = make_cells(spec)
    write_configs(spec, cells)
    return cells, [config_path(spec, cell) for cell in cells if cell.text]


def built(config):
    return build_for_counting(load_config(config))


def kinds(model, kind):
    """Names of the modules of a kind."""
    return [name for name, part in model.named_modules() if type(part).__name__ == kind]


def test_plugins_of_a_resnet_of_mmdet(tmp_path):
    _, (base, cell) = cells_of(tmp_path, R50, 'ECA:kernel_size=3', 'after_conv3@2,4')
    model = built(cell)
    found = kinds(model, 'ECA')
    assert len(found) == 4 + 3
    assert {name.split('.')[1] for name in found} == {'layer2', 'layer4'}
    # A kernel of three weights in each bottleneck, and nothing else.
    costs = count(base), count(cell)
    assert costs[1].params - costs[0].params == 3 * 7


def test_a_layer_on_each_level_of_a_pyramid(tmp_path):
    _, (base, cell) = cells_of(tmp_path, R50, 'ECA:kernel_size=3', 'neck')
    assert kinds(built(cell), 'ECA') == [f'neck.1.levels.{i}' for i in range(5)]
    assert count(cell).params - count(base).params == 3 * 5


def test_a_pyramid_of_a_segmentor_without_neck(tmp_path):
    base = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'
    _, (_, cell) = cells_of(tmp_path, base, 'ECA', 'neck')
    assert load_config(cell).model.neck.in_channels == [256, 512, 1024, 2048]
    assert count(cell).failure == ''


def test_a_segmentors_resnet_runs_its_own_plugin_and_the_added_one(tmp_path):
    _, (_, cell) = cells_of(tmp_path, ECA_SEGMENTOR, 'LSKA:kernel_size=7', 'after_conv3@2,3')
    model = built(cell)
    sequences = kinds(model, 'AttentionSequence')
    assert len(sequences) == 4 + 6
    assert all(name.split('.')[1] in ('layer2', 'layer3') for name in sequences)
    # Each bottleneck runs one plugin, the last one: no ECA stands beside a sequence.
    alone = [name for name in kinds(model, 'ECA') if 'attention_sequence' not in name]
    assert {name.split('.')[1] for name in alone} == {'layer1', 'layer4'}
    assert count(cell).failure == ''


def test_plugins_beside_those_of_a_detector(tmp_path):
    base = 'retinanet_r50-eca_fpn_1x_coco'
    _, (_, cell) = cells_of(tmp_path, base, 'LSKA:kernel_size=7', 'after_conv2@4')
    model = built(cell)
    assert len(kinds(model, 'LSKA')) == 3
    assert len(kinds(model, 'ECA')) == 16


def test_plugins_of_a_van_and_its_attention(tmp_path):
    _, (_, cell) = cells_of(tmp_path / 'a', NANO, 'ECA', 'after_stage@1,4')
    assert [name.split('.')[1] for name in kinds(built(cell), 'ECA')] == [
        'after_stage1',
        'after_stage4',
    ]
    _, (base, cell) = cells_of(tmp_path / 'b', NANO, 'LKA:kernel_size=7', 'attention')
    assert len(kinds(built(cell), 'LKA')) == len(kinds(built(base), 'LSKA')) == 6
    assert kinds(built(cell), 'LSKA') == []


@pytest.mark.parametrize(
    ('base', 'where', 'told'),
    [
        (R50, 'attention', 'mmlska.VAN'),
        (R50, 'after_conv3@5', 'has 4 stages'),
    ],
)
def test_a_place_that_the_base_lacks_is_a_cell_with_its_reason(tmp_path, base, where, told):
    (_, cell), _ = cells_of(tmp_path, base, 'ECA', where)
    assert told in cell.failure


def test_a_layer_that_cannot_be_built_is_told(tmp_path):
    _, (_, cell) = cells_of(tmp_path, NANO, 'LSKA:kernel_size=8', 'attention')
    assert '7 and 11' in count(cell).failure


def test_with_weights_layers_enter_as_the_identity(tmp_path):
    weights = tmp_path / 'w.pth'
    weights.write_bytes(b'not read here')
    cells, (base, cell) = cells_of(tmp_path, R50, 'LSKA', 'neck', weights=str(weights))
    assert 'IdentityStart' in cells[1].text
    cfg = load_config(cell)
    assert cfg.load_from == load_config(base).load_from == str(weights)
    # Nothing need be downloaded for weights that are overwritten.
    assert cfg.model.backbone.init_cfg is None
    undecayed = cfg.optim_wrapper.paramwise_cfg.custom_keys
    names = [name for name, _ in built(cell).named_parameters() if name in undecayed]
    assert names == [f'neck.1.levels.{i}.g' for i in range(5)]
    assert cfg.default_hooks.added_neck.type == 'mmlska.AddedNeckHook'


def test_with_weights_layers_enter_with_their_own_start_too(tmp_path):
    weights = tmp_path / 'w.pth'
    weights.write_bytes(b'not read here')
    settings = dict(weights=str(weights), start=['identity', 'plain'])
    cells, (base, identity, plain) = cells_of(tmp_path, R50, 'LSKA', 'neck', **settings)
    assert [cell.label for cell in cells] == ['base', 'LSKA', 'LSKA, plain']
    assert kinds(built(identity), 'IdentityStart') == kinds(built(plain), 'LSKA')
    hooks = [load_config(config).default_hooks for config in (base, identity, plain)]
    assert {h.start_evaluation.type for h in hooks} == {'mmlska.StartEvaluationHook'}
    assert hooks[1].added_neck == hooks[2].added_neck


def test_with_weights_no_attention_is_replaced(tmp_path):
    weights = tmp_path / 'w.pth'
    weights.write_bytes(b'not read here')
    (_, cell), _ = cells_of(tmp_path, NANO, 'LKA', 'attention', weights=str(weights))
    assert 'no cell could start from them' in cell.failure


def test_the_base_of_the_cells_is_the_users_with_the_overrides(tmp_path):
    options = {
        'train_cfg.max_iters': 7,
        'param_scheduler.1.end': 7,
        'model.backbone.drop_path_rate': 0.2,
    }
    _, (base, _) = cells_of(tmp_path, NANO, 'ECA', 'neck', cfg_options=options)
    wanted, found = load_config(NANO, options), load_config(base)
    for key in ('model', 'train_cfg', 'param_scheduler', 'train_dataloader', 'optim_wrapper'):
        assert found[key] == wanted[key], key


def test_cells_save_safely(tmp_path):
    _, (base, _) = cells_of(tmp_path, R50, 'ECA', 'neck')
    hooks = load_config(base).default_hooks
    assert hooks.checkpoint == dict(type='mmlska.SafeCheckpointHook', interval=1)
    assert hooks.interruption.type == 'mmlska.InterruptionHook'


def test_evaluations_between_epochs_are_logged_apart(tmp_path):
    digits = 'retinanet_van-lska-nano_fpn_demo_digits'
    for folder, base, expected in (('a', digits, False), ('b', R50, None)):
        _, (config, _) = cells_of(tmp_path / folder, base, 'ECA', 'neck')
        assert load_config(config).default_hooks.logger.get('log_metric_by_epoch') == expected


def test_overrides_of_hooks_stay_beside_those_of_the_cells(tmp_path):
    options = {'default_hooks.logger.interval': 7, 'default_hooks.checkpoint.interval': 3}
    for folder, base in (('a', 'retinanet_van-lska-nano_fpn_demo_digits'), ('b', R50)):
        _, (config, _) = cells_of(tmp_path / folder, base, 'ECA', 'neck', cfg_options=options)
        hooks = load_config(config).default_hooks
        assert (hooks.logger.interval, hooks.checkpoint.interval) == (7, 3)
        assert hooks.checkpoint.type == 'mmlska.SafeCheckpointHook'


def test_names_are_distinct_and_without_dots(tmp_path):
    assert slug('ECA gamma=1.5 b=2') == 'eca-gamma1p5-b2'
    with pytest.raises(ValueError, match='two cells are named'):
        cells_of(tmp_path, NANO, 'ECA:gamma=1,1', 'neck')
