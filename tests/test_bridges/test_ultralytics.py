import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from frameworks import require

os.environ['YOLO_OFFLINE'] = 'true'
ultralytics = require('ultralytics')
bridge = pytest.importorskip('mmlska.bridges.ultralytics')
ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs' / 'yolo').glob('*.yaml'))
STOCK = 'yolov8n.yaml'


@pytest.fixture(scope='module', autouse=True)
def names():
    return bridge.register()


def output(model, size=64):
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.model.eval()(images)[0]


def randomised(model):
    """The model with statistics of norms that are those of some training."""
    torch.manual_seed(1)
    for name, value in model.model.state_dict().items():
        if name.endswith(('running_mean', 'running_var')):
            value.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_our_models_are_built_with_their_layers(path, names):
    model = ultralytics.YOLO(str(path), task='detect')
    rows = yaml.safe_load(path.read_text())
    wanted = [row[2] for part in ('backbone', 'head') for row in rows[part] if row[2] in names]
    built = [type(module).__name__ for module in model.model.modules()]
    assert wanted and all(built.count(name) >= wanted.count(name) for name in wanted)
    assert model.model.stride.tolist() == [8, 16, 32]
    assert output(model, 96).shape[1] == 84


def test_rows_take_positions_names_and_channels(tmp_path):
    content = bridge.insert(STOCK, after=4, layer='ECA', args=[dict(kernel_size=9)])
    (tmp_path / 'a.yaml').write_text(yaml.safe_dump(content))
    layer = ultralytics.YOLO(str(tmp_path / 'a.yaml'), task='detect').model.model[5]
    assert (layer.in_channels, layer.kernel_size) == (64, 9)


def test_a_trained_model_keeps_all_its_weights_and_outputs(tmp_path):
    trained = randomised(ultralytics.YOLO(STOCK))
    args = [dict(type='LSKA', kernel_size=11)]
    file = tmp_path / 'yolov8n-lska.yaml'
    model = bridge.insert(trained, layer='IdentityStart', args=args, save_as=file)
    assert len(trained.model.state_dict()) == 355
    moved, state = bridge.shift_weights(trained.model.state_dict(), 9), model.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in moved.items())
    assert torch.equal(output(model), output(trained))
    again = ultralytics.YOLO(str(file))
    again.model.load_state_dict(state)
    assert torch.equal(output(again), output(trained))
    model.model.train()(torch.rand(1, 3, 64, 64))['boxes'].sum().backward()
    assert model.model.model[10].g.grad.abs().sum() > 0


def test_references_follow_the_inserted_row():
    stock = bridge.insert(STOCK, after=0, layer='ECA')
    sources = [row[0] for part in ('backbone', 'head') for row in stock[part]]
    # Those of YOLOv8: Concat with rows 6, 4, 12 and 9, Detect with 15, 18 and 21.
    assert [source for source in sources if source != -1] == [
        *([-1, 7], [-1, 5], [-1, 13], [-1, 10]),
        [16, 19, 22],
    ]
    after_pooling = bridge.insert(STOCK, after='SPPF', layer='ECA')
    assert [-1, 10] in [row[0] for row in after_pooling['head']]


@pytest.mark.parametrize(
    ('wrong', 'sentence'),
    [
        (dict(after='C2f'), r"after='C2f' is at rows \[2, 4, 6, 8"),
        (dict(after='Focus'), "after='Focus' is nowhere. The rows are 0 Conv"),
        (dict(after=22), 'after=22 is nowhere'),
        (dict(layer='Lska'), "layer='Lska' is unknown: allowed are LSKA"),
    ],
)
def test_impossible_places_are_told(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        bridge.insert(STOCK, **wrong)


def test_several_inputs_need_a_concat():
    content = bridge.insert(STOCK, layer='ECA')
    content['backbone'][10][0] = [-1, 8]
    with pytest.raises(ValueError, match=r'put a row \[\[-1, 8\], 1, Concat, \[1\]\] before it'):
        ultralytics.nn.tasks.DetectionModel(content, verbose=False)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Digit scenes in YOLO's format."""
    from mmlska.datasets.digit_scenes import make_digit_scenes

    folder = tmp_path_factory.mktemp('scenes')
    make_digit_scenes(folder, num_train=8, num_val=4)
    for part in ('train', 'val'):
        write_labels(folder, part)
    names = {i: str(i) for i in range(10)}
    data = dict(path=str(folder), train='images/train', val='images/val', names=names)
    (folder / 'data.yaml').write_text(yaml.safe_dump(data))
    return folder


def write_labels(folder, part):
    content = json.loads((folder / 'annotations' / f'instances_{part}.json').read_text())
    images = {image['id']: image for image in content['images']}
    lines = {key: [] for key in images}
    for found in content['annotations']:
        image = images[found['image_id']]
        x, y, w, h = found['bbox']
        centre = ((x + w / 2) / image['width'], (y + h / 2) / image['height'])
        size = (w / image['width'], h / image['height'])
        numbers = ' '.join(f'{value:.6f}' for value in (*centre, *size))
        lines[image['id']].append(f'{found["category_id"] - 1} {numbers}')
    (folder / 'labels' / part).mkdir(parents=True, exist_ok=True)
    for key, image in images.items():
        name = Path(image['file_name']).with_suffix('.txt').name
        (folder / 'labels' / part / name).write_text('\n'.join(lines[key]))


def yolo(folder, *words):
    """``python -m mmlska yolo`` in a process of its own, which can import torchvision."""
    return run_python(folder, '-m', 'mmlska', 'yolo', *words)


def run_python(folder, *words):
    (folder / 'sitecustomize.py').write_text('import torchvision_operators\n')
    path = os.pathsep.join(map(str, (folder, Path(__file__).parent, ROOT)))
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', *words],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path, 'YOLO_CONFIG_DIR': str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_it_trains_resumes_and_exports(scenes):
    project = f'project={scenes / "runs"}'
    common = ('imgsz=96', 'batch=4', 'workers=0', 'device=cpu', 'plots=False', project)
    model = ROOT / 'configs' / 'yolo' / 'lska-after-sppf.yaml'
    yolo(
        scenes, 'detect', 'train', f'model={model}', 'data=data.yaml', 'epochs=2', 'name=a', *common
    )
    (last,) = scenes.rglob('a/weights/last.pt')
    results = (last.parents[1] / 'results.csv').read_text().splitlines()
    assert len(results) == 3
    yolo(scenes, 'detect', 'val', f'model={last}', 'data=data.yaml', *common)
    onnx = pytest.importorskip('onnx')
    yolo(scenes, 'export', f'model={last}', 'format=onnx', 'imgsz=96', 'simplify=False')
    graph = onnx.load(last.with_suffix('.onnx')).graph
    assert {node.domain for node in graph.node} == {''}


# The snippet of docs/bridges.md, at a rate that changes no weight to speak of.
INSERT_AND_TRAIN = """
import os
from ultralytics import YOLO
from mmlska.bridges.ultralytics import insert

model = insert(YOLO('best.pt'), after='SPPF', layer='IdentityStart',
               args=[dict(type='LSKA', kernel_size=11)], save_as='mine.yaml')
model.train(data='data.yaml', epochs=1, name='b', optimizer='SGD', lr0=1e-9, warmup_epochs=0,
            imgsz=96, batch=4, workers=0, device='cpu', plots=False,
            project=os.path.abspath('runs'))
"""


@pytest.mark.slow
def test_a_model_with_an_inserted_layer_trains_from_its_weights(scenes):
    """Ultralytics' trainer builds a model anew, and must take the weights over."""
    file = scenes / 'yolov8n-digits.yaml'
    file.write_text(yaml.safe_dump({**ultralytics.YOLO(STOCK).model.yaml, 'nc': 10}))
    trained = randomised(ultralytics.YOLO(file))
    trained.save(scenes / 'best.pt')
    run_python(scenes, '-c', INSERT_AND_TRAIN)
    (last,) = scenes.rglob('b/weights/last.pt')
    bridge.register()
    found = ultralytics.YOLO(last).model.float().state_dict()
    expected = bridge.shift_weights(trained.model.state_dict(), 9)
    convolutions = [key for key, value in expected.items() if value.ndim == 4]
    assert len(convolutions) > 50
    for key in convolutions:
        # Ultralytics saves in half precision.
        assert torch.allclose(found[key], expected[key], rtol=1e-3, atol=1e-4), key
