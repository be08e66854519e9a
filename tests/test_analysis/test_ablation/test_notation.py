import pytest

from mmlska.analysis.ablation.config_text import Expression, config_text, render
from mmlska.analysis.ablation.notation import Place, parse_additions, parse_place
from mmlska.analysis.ablation.spec import make_spec, parse_seeds, read_settings


def layers(text):
    return [addition.layer for addition in parse_additions(text)]


def test_a_word_stands_for_every_combination_of_its_values():
    assert layers('LSKA:kernel_size=7,23:dilation=2,3') == [
        dict(type='mmlska.LSKA', kernel_size=k, dilation=d) for k in (7, 23) for d in (2, 3)
    ]


def test_layers_that_are_joined_act_one_after_the_other():
    found = parse_additions('ECA+LSKA:kernel_size=7,11')
    assert [a.label for a in found] == ['ECA + LSKA kernel_size=7', 'ECA + LSKA kernel_size=11']
    assert found[1].layer == dict(
        type='mmlska.AttentionSequence',
        layers=[dict(type='mmlska.ECA'), dict(type='mmlska.LSKA', kernel_size=11)],
    )


def test_values_are_those_of_python():
    assert layers('ECA:kernel_size=None:gamma=1.5') == [
        dict(type='mmlska.ECA', kernel_size=None, gamma=1.5)
    ]
    # A comma inside brackets belongs to a value.
    assert layers('ECA:b=(1,2)') == [dict(type='mmlska.ECA', b=(1, 2))]


def test_a_dict_is_the_config_of_one_layer():
    assert layers(dict(type='LSKA', kernel_size=7)) == [dict(type='mmlska.LSKA', kernel_size=7)]
    with pytest.raises(ValueError, match="'type'"):
        parse_additions(dict(kernel_size=7))


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('LSKB', 'did you mean LSKA'),
        ('LSKA:kernel_size', "'kernel_size'"),
        ('LSKA:kernel_size=', 'LSKA:kernel_size=7,11,23'),
        ('ECA+', 'LSKA:kernel_size'),
    ],
)
def test_an_unreadable_layer_is_told(text, told):
    with pytest.raises(ValueError, match=told):
        parse_additions(text)


def test_places():
    assert parse_place('neck') == Place('neck')
    assert parse_place('after_conv3@4,2') == Place('after_conv3', (2, 4))
    assert str(parse_place('after_conv3@4,2')) == 'after_conv3@2,4'


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('after_conf3', 'did you mean after_conv3'),
        ('neck@2', 'no stages'),
        ('after_stage@0', 'the first is 1'),
        ('after_stage@', 'the first is 1'),
    ],
)
def test_an_unknown_place_is_told(text, told):
    with pytest.raises(ValueError, match=told):
        parse_place(text)


def test_seeds():
    assert parse_seeds([7]) == (7,)
    for wrong in (0, [], [1, 1], [-1], [0.5]):
        with pytest.raises(ValueError, match='seeds is how many'):
            parse_seeds(wrong)


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('mine.yaml', 'base: fpn_van-lska-nano_demo_digits-128x128\nadd: [ECA]\nwhere: [neck]\n'),
        (
            'mine.py',
            "base = 'fpn_van-lska-nano_demo_digits-128x128'\nadd = ['ECA']\nwhere = ['neck']\n",
        ),
    ],
)
def test_a_file_holds_the_same_settings(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    spec = make_spec(read_settings(tmp_path / name))
    assert spec.base.stem == 'fpn_van-lska-nano_demo_digits-128x128'
    assert [a.layer for a in spec.additions] == [dict(type='mmlska.ECA')]
    assert spec.seeds == (0, 1, 2)
    assert spec.work_dir.name == 'ablation_fpn_van-lska-nano_demo_digits-128x128'


def test_a_config_is_no_file_of_settings(tmp_path):
    (tmp_path / 'base.py').write_text("model = dict(type='X')\n")
    assert read_settings(tmp_path / 'base.py') is None
    assert read_settings('mmdet::retinanet/retinanet_r50_fpn_1x_coco') is None


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (dict(wheer=['neck']), 'did you mean where'),
        (dict(add=[]), "needs 'add'"),
        (dict(base='mmdet::retinanet/retinanet_r50_fpn_1x_cocoo'), 'did you mean retinanet/'),
        (dict(base='mmdat::x'), 'no such library'),
        (dict(weights='absent.pth'), 'absent.pth'),
        (dict(start='plain'), "give 'weights'"),
        (dict(start='plane', weights=__file__), 'identity, plain'),
    ],
)
def test_wrong_settings_are_told(changes, told):
    settings = dict(base='fpn_van-lska-nano_demo_digits-128x128', add=['ECA'], where=['neck'])
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        make_spec(settings | changes)


VALUES = [
    dict(a=1, b=[dict(c=(1,)), 'x'], d={'e.f': None, 'g': ()}),
    [list(range(60)), dict(long='y' * 120), True],
    (),
]


@pytest.mark.parametrize('value', VALUES)
def test_a_rendered_value_is_the_value(value):
    text = render(value)
    assert eval(text) == value
    assert max(map(len, text.splitlines())) <= 140


def test_an_expression_stands_as_it_is():
    text = config_text('Why.', './base.py', dict(neck=[Expression('_base_.neck'), None]))
    assert text == "# Why.\n_base_ = './base.py'\nneck = [_base_.neck, None]\n"
