"""What a model looks at: maps with known answers, and the models of both libraries."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from script_runs import TOOLS, run_here
from torch import nn

from mmlska.analysis.attention_maps import (
    Scene,
    add_densities,
    class_activations,
    feature_tiles,
    frozen,
    gate_tiles,
    list_maps,
    principal_colours,
    record_gates,
)
from mmlska.engine.config import load_config
from mmlska.engine.inference import Predictor
from mmlska.layers import (
    ECA,
    LKA,
    LSKA,
    ContextAggregation,
    DFCAttention,
    LKATrivial,
    LSKATrivial,
)

SCRIPT = TOOLS / 'analysis_tools' / 'visualize.py'
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
DETECTOR, SEGMENTOR = CONFIGS / 'small_retinanet.py', CONFIGS / 'small_fpn.py'


# Gates


@pytest.mark.parametrize('layer', [LSKA, LKA, LSKATrivial, LKATrivial, ECA, DFCAttention])
def test_a_layer_is_the_product_of_its_input_and_its_gate(layer):
    x = torch.randn(2, 8, 9, 11)
    attention = layer(8).eval()
    (gate,) = record_gates(attention, lambda: attention(x))
    values = gate.values if gate.values.ndim == 4 else gate.values[:, :, None, None]
    torch.testing.assert_close(attention(x), x * values)


def test_both_gates_of_context_aggregation_give_its_equation():
    x, layer = torch.randn(2, 8, 5, 7), ContextAggregation(8)
    nn.init.normal_(layer.m.weight)
    look, gate = record_gates(layer, lambda: layer(x))
    torch.testing.assert_close(look.values.sum((1, 2, 3)), torch.ones(2))
    mean = (layer.v(x) * look.values).sum((2, 3), keepdim=True)
    torch.testing.assert_close(layer(x), x + gate.values * layer.m(mean))


def test_gates_are_found_inside_other_layers_and_hooks_are_gone():
    init_default_scope('mmlska')
    model = MODELS.build(dict(type='mmlska.GhostNetV2', width=0.5)).eval()
    gates = record_gates(model, lambda: model(torch.rand(1, 3, 64, 64)))
    assert len(gates) == sum(type(m).__name__ == 'DFCGate' for m in model.modules()) > 5
    assert all(gate.values.min() >= 0 and gate.values.max() <= 1 for gate in gates)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_gates_is_told_what_has_one():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match=r'no layer of this Sequential .* DFCAttention, ECA, LKA'):
        record_gates(model, lambda: model(torch.rand(1, 3, 4, 4)))


# Class activation maps


class Known(Scene):
    """A scene of given inputs, without a pipeline."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.inputs, self.samples = inputs, [BaseDataElement()]
        self.image = np.zeros((*inputs.shape[2:], 3), np.uint8)


class Linear(nn.Module):
    """Detector and segmentor whose scores are known sums over the image."""

    places = ((0, 2, 3), (1, 5, 4))

    def extract_feat(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # No score depends on the second map.
        return inputs, inputs[:, :, ::2, ::2]

    def encode_decode(self, inputs: torch.Tensor, metas: list) -> torch.Tensor:
        return self.extract_feat(inputs)[0] * torch.tensor([1.0, 2.0])[:, None, None]

    def predict(self, inputs: torch.Tensor, samples: list, rescale: bool) -> list:
        first = self.extract_feat(inputs)[0]
        scores = torch.stack([first[0, c, y, x] for c, y, x in self.places])
        boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0], [2.0, 4.0, 8.0, 8.0]])
        found = InstanceData(scores=scores, labels=torch.tensor([1, 0]), bboxes=boxes)
        samples[0].pred_instances = found
        return samples


def predictor_of(model: nn.Module, is_detector: bool) -> SimpleNamespace:
    meta = dict(classes=('cat', 'dog'))
    visualizer = SimpleNamespace(dataset_meta=meta)
    return SimpleNamespace(model=model, is_detector=is_detector, visualizer=visualizer)


def test_the_map_of_a_detection_is_where_its_score_was_read():
    pytest.importorskip('captum')
    inputs = torch.zeros(1, 2, 8, 8)
    inputs[0, 0, 2, 3], inputs[0, 1, 5, 4], inputs[0, 0, 7, 7] = 0.6, 0.9, 5
    best, second = class_activations(predictor_of(Linear(), True), Known(inputs))
    assert (best.title, second.title) == ('cat 0.90', 'dog 0.60')
    assert best.box == (0.25, 0.5, 1, 1) and second.box == (0, 0, 0.5, 0.25)
    for tile, place, score in ((best, (5, 4), 0.9), (second, (2, 3), 0.6)):
        expected = np.zeros((8, 8), np.float32)
        expected[place] = score
        np.testing.assert_allclose(tile.values, expected)


def test_the_least_score_and_the_limit_of_detections_hold():
    pytest.importorskip('captum')
    inputs = torch.zeros(1, 2, 8, 8)
    inputs[0, 0, 2, 3], inputs[0, 1, 5, 4] = 0.6, 0.9
    predictor, scene = predictor_of(Linear(), True), Known(inputs)
    assert [t.title for t in class_activations(predictor, scene, limit=1)] == ['cat 0.90']
    assert [t.title for t in class_activations(predictor, scene, 5, 0.7)] == ['cat 0.90']
    assert class_activations(predictor, scene, 5, 0.95) == []


def test_the_map_of_a_class_lies_on_its_own_pixels():
    pytest.importorskip('captum')
    inputs = torch.rand(1, 2, 8, 8) + 0.1
    logits = inputs[0] * torch.tensor([1.0, 2.0])[:, None, None]
    labels = logits.argmax(0)
    tiles = class_activations(predictor_of(Linear(), False), Known(inputs))
    assert len(tiles) == 2
    for tile in tiles:
        index = ('cat', 'dog').index(tile.title.split()[0])
        mask = labels == index
        assert tile.title.endswith(f'{mask.float().mean().item():.0%}')
        expected = logits[index] * mask / mask.sum()
        np.testing.assert_allclose(tile.values, expected.numpy(), rtol=1e-5)


def test_contributions_of_maps_of_all_sizes_keep_their_sum():
    parts = [torch.randn(1, 3, 8, 12), torch.randn(1, 5, 4, 6), torch.randn(1, 2, 1, 1)]
    expected = sum(part.sum(1).clamp(min=0).sum().item() for part in parts)
    assert add_densities(parts, (16, 24)).sum().item() == pytest.approx(expected, rel=1e-5)


def test_a_score_that_nothing_speaks_for_is_marked():
    pytest.importorskip('captum')
    model = Linear()
    one = torch.ones(1, 2, 8, 8)
    model.encode_decode = lambda inputs, metas: torch.ones(1, 2, 8, 8).requires_grad_(True)
    (tile,) = class_activations(predictor_of(model, False), Known(one))
    assert tile.title == 'cat 100% (nothing speaks for it)' and not tile.values.any()


class Detaching(Linear):
    """A detector that cuts its scores off, as mmdet's dense heads do."""

    def extract_feat(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs,)

    def predict(self, inputs: torch.Tensor, samples: list, rescale: bool) -> list:
        samples = super().predict(inputs, samples, rescale)
        samples[0].pred_instances.scores = self.cut_off(samples[0].pred_instances.scores)
        return samples


def test_scores_that_were_cut_off_are_followed_all_the_same():
    pytest.importorskip('captum')
    inputs = torch.rand(1, 2, 8, 8) + 0.5
    model = Detaching()
    calls = []

    def cut_off(scores: torch.Tensor) -> torch.Tensor:
        calls.append(scores)
        return scores.detach()

    model.cut_off = cut_off
    tiles = class_activations(predictor_of(model, True), Known(inputs))
    assert [np.count_nonzero(tile.values) for tile in tiles] == [1, 1]
    # To see what there is, to see that its scores are cut off, and for each detection.
    assert len(calls) == 4
    model.cut_off = lambda scores: torch.tensor(scores.tolist())
    with pytest.raises(TypeError, match='scores of this Detaching carry no gradient'):
        class_activations(predictor_of(model, True), Known(inputs))


def test_a_model_that_finds_no_boxes_is_told_so():
    pytest.importorskip('captum')
    model = Linear()
    model.predict = lambda inputs, samples, rescale: samples
    with pytest.raises(TypeError, match='detections with scores, a Linear predicts nothing'):
        class_activations(predictor_of(model, True), Known(torch.rand(1, 2, 8, 8)))
    assert 'extract_feat' not in vars(model)


def test_frozen_parameters_learn_again():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1).requires_grad_(False))
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]


# Images and features


def test_padding_of_the_model_and_of_the_pipeline_is_cut_off():
    scene = Known(torch.zeros(1, 3, 64, 96))
    assert scene.content() == (64, 96)
    scene.samples[0].set_metainfo(dict(img_shape=(50, 90)))
    assert scene.content() == (50, 90)
    scene.samples[0].set_metainfo(
        dict(img_shape=(64, 96), ori_shape=(20, 40), scale_factor=(2.0, 2.0))
    )
    assert scene.content() == (40, 80)
    assert scene.crop(torch.rand(8, 12)).shape == (40, 80)


def test_colours_follow_what_the_channels_share():
    ramp = torch.linspace(0, 1, 10).expand(6, 10)
    colours = principal_colours(torch.stack([ramp, 3 * ramp, -ramp, torch.zeros(6, 10)]))
    assert colours.shape == (6, 10, 3) and colours.min() >= 0 and colours.max() <= 1
    assert (colours[:, 1:, 0] >= colours[:, :-1, 0]).all() and colours[:, 9, 0].min() == 1


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('images')
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'noise.png'), noise)
    (folder / 'broken.jpg').write_bytes(b'no image at all')
    return folder


def saved(config: Path, folder: Path) -> str:
    """Weights of an untrained model, in a file."""
    pytest.importorskip('captum')
    cfg = load_config(config)
    pytest.importorskip(f'{cfg.default_scope}.models')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    path = folder / f'{config.stem}.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture(scope='module')
def detector(folder) -> Predictor:
    return Predictor(DETECTOR, saved(DETECTOR, folder), 'cpu')


@pytest.fixture(scope='module')
def segmentor(folder) -> Predictor:
    return Predictor(SEGMENTOR, saved(SEGMENTOR, folder), 'cpu')


def test_a_scene_is_what_the_predictor_sees(detector, folder):
    scene = Scene(detector, folder / 'noise.png')
    expected = detector(folder / 'noise.png').pred_instances.scores
    with torch.no_grad():
        found = detector.model.predict(scene.inputs, scene.samples)[0].pred_instances.scores
    torch.testing.assert_close(found, expected)
    assert scene.image.shape == (96, 128, 3) and scene.content() == (96, 128)


def test_every_detection_of_a_detector_has_a_map(detector, folder):
    scene = Scene(detector, folder / 'noise.png')
    tiles = class_activations(detector, scene, limit=10, score_thr=0)
    assert len(tiles) == 10 and any(tile.values.any() for tile in tiles)
    for tile in tiles:
        assert tile.values.shape == (96, 128) and len(tile.box) == 4
        assert np.isfinite(tile.values).all() and tile.values.min() >= 0
        assert tile.values.any() != tile.title.endswith('(nothing speaks for it)')
    assert all(parameter.requires_grad for parameter in detector.model.parameters())


def test_gates_of_a_detector_come_in_order_and_by_number(detector, folder):
    scene = Scene(detector, folder / 'noise.png')
    titles = [tile.title for tile in gate_tiles(detector, scene)]
    assert [title.split('\n')[0] for title in titles] == [f'blocks{i}.0' for i in (1, 2, 3, 4)]
    assert all('LSKA' in title for title in titles)
    ends = [tile.title for tile in gate_tiles(detector, scene, limit=2)]
    assert ends == [titles[0], titles[-1]]
    assert len(gate_tiles(detector, scene, limit=1)) == 1


def test_features_of_a_module_are_shown_stage_by_stage(segmentor, folder):
    scene = Scene(segmentor, folder / 'noise.png')
    tiles = feature_tiles(segmentor, scene)
    named = [tile for tile in tiles if tile.title.startswith('backbone[')]
    assert [tile.title.split()[1] for tile in named] == [
        *('8x24x32', '16x12x16', '24x6x8', '32x3x4')
    ]
    assert tiles[1].values.shape == (96, 128, 3)
    assert feature_tiles(segmentor, scene, 'backbone.norm1')[0].values.shape == (96, 128)


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        ('bakbone', "no module 'bakbone' in the model; did you mean backbone"),
        ('decode_head', "'decode_head' is not run by backbone and neck"),
    ],
)
def test_a_module_that_is_not_there_is_named(segmentor, folder, layer, message):
    with pytest.raises(ValueError, match=message):
        feature_tiles(segmentor, Scene(segmentor, folder / 'noise.png'), layer)


def test_a_module_that_returns_no_map_is_told():
    with pytest.raises(TypeError, match=r'backbone.norm1 returns dict: only maps \(N, C, H, W\)'):
        list_maps(dict(x=1), 'backbone.norm1')
    with pytest.raises(TypeError, match=r'neck returns a tensor \(2, 3\): only maps'):
        list_maps(torch.zeros(2, 3), 'neck')
    assert len(list_maps(torch.zeros(1, 2, 3, 4), 'neck')) == 1


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR], ids=lambda path: path.stem)
@pytest.mark.parametrize('what', ['cam', 'gate', 'features'])
def test_the_tool_draws_a_sheet(config, what, folder, tmp_path):
    options = ['--what', what, '--score-thr', '0', '--out-file', 'sheet.png']
    checkpoint = saved(config, tmp_path)
    done = run_here(SCRIPT, folder / 'noise.png', config, checkpoint, *options, cwd=tmp_path)
    assert 'noise.png: ' in done.stdout
    assert cv2.imread(str(tmp_path / 'sheet.png')).std() > 10


def test_the_tool_names_an_unreadable_image_and_draws_the_others(folder, tmp_path):
    checkpoint = saved(DETECTOR, tmp_path)
    done = run_here(SCRIPT, folder, DETECTOR, checkpoint, cwd=tmp_path, expect=1)
    assert "broken.jpg' cannot be read as an image" in done.stderr
    assert 'noise.png: ' in done.stdout
    assert (tmp_path / 'outputs' / 'visualize' / 'cam.png').is_file()


@pytest.mark.parametrize(
    ('options', 'status', 'message'),
    [
        (['--what', 'cams'], 2, "invalid choice: 'cams' (choose from"),
        (['--max-tiles', '0'], 2, '--max-tiles must be at least 1, got 0'),
        (['--out-file', 'sheet'], 1, '--out-file sheet: no suffix of a picture'),
        (['--what', 'features', '--layer', 'neck.x'], 1, "no module 'neck.x' in the model"),
    ],
)
def test_a_mistake_ends_the_tool_with_one_message(options, status, message, folder, tmp_path):
    arguments = [folder / 'noise.png', SEGMENTOR, saved(SEGMENTOR, tmp_path), *options]
    assert message in run_here(SCRIPT, *arguments, cwd=tmp_path, expect=status).stderr
