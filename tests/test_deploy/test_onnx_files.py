import numpy as np
import pytest
import torch
from torch import nn
from torch_versions import since

from mmlska.deploy import onnx_files
from mmlska.deploy.onnx_files import (
    OLDEST_TORCH,
    ExportError,
    ExportOptions,
    OnnxModel,
    check_packages,
    export_onnx,
)

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytestmark = since(OLDEST_TORCH, 'its exporter to ONNX is not made for these graphs')


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class Graph(nn.Module):
    """A network, and a step after it that float16 cannot hold."""

    output_names = ('maps', 'places')

    def __init__(self):
        super().__init__()
        self.model = Network()

    def forward(self, image):
        maps = self.model(image)
        return maps, maps.sum(1) * 1e-3 + 4097.0


# As the graphs of the package are known by.
Graph.__module__ = 'mmlska.deploy.detection_graphs'


@pytest.fixture(scope='module')
def graph():
    torch.manual_seed(0)
    return Graph().eval()


@torch.no_grad()
def test_a_file_holds_the_graph_its_metadata_and_no_path_of_this_machine(graph, tmp_path):
    file = tmp_path / 'a.onnx'
    told = dict(classes=['a', 'ü'], resize=None, mean=[0.5, 1.0, 2.0])
    export_onnx(graph, torch.randn(2, 3, 8, 12), file, ExportOptions(dynamic=True), told)
    assert OnnxModel(file).metadata == told | dict(least_size=[1, 1])
    (image,) = onnx.load(file).graph.input
    sides = [side.dim_param or side.dim_value for side in image.type.tensor_type.shape.dim]
    assert (image.name, sides) == ('image', ['batch', 3, 'height', 'width'])
    assert str(onnx_files.__file__).encode() not in file.read_bytes()
    assert b'.py' not in file.read_bytes()
    x = torch.randn(1, 3, 5, 9)
    found = OnnxModel(file)(x)
    assert list(found) == ['maps', 'places']
    for name, expected in zip(found, graph(x), strict=True):
        np.testing.assert_allclose(found[name], expected.numpy(), atol=1e-5)


@torch.no_grad()
def test_in_half_precision_the_network_is_half_and_what_follows_is_not(graph, tmp_path):
    file = tmp_path / 'half.onnx'
    export_onnx(graph, torch.randn(1, 3, 8, 8), file, ExportOptions(half=True, opset=18))
    model = onnx.load(file)
    onnx.checker.check_model(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [name for name in kinds if 'conv.weight' in name]
    assert [kinds[name] for name in weights] == [onnx.TensorProto.FLOAT16]
    assert model.opset_import[0].version == 18
    x = torch.randn(1, 3, 8, 8)
    found = OnnxModel(file)(x)
    maps, places = (value.numpy() for value in graph(x))
    assert found['maps'].dtype == found['places'].dtype == np.float32
    error = np.abs(found['maps'] - maps).max()
    assert 0 < error < 1e-2
    # 4097 is no number of float16, whose neighbours are 4096 and 4100.
    assert np.abs(found['places'] - places).max() < 0.01


def test_a_size_that_becomes_a_number_is_an_error_in_one_line(tmp_path):
    class Fixed(nn.Module):
        def forward(self, image):
            if image.shape[2] != 8:
                raise RuntimeError('this takes 8 rows')
            return {'y': image * int(image.shape[2])}

    with pytest.raises(ExportError, match=r'Fixed cannot be exported: [^\n]*$'):
        export_onnx(
            Fixed(), torch.randn(2, 3, 8, 8), tmp_path / 'a.onnx', ExportOptions(dynamic=True)
        )
    assert not (tmp_path / 'a.onnx').exists()


def test_a_version_of_operators_that_cannot_be_had_is_no_other_one(graph, tmp_path):
    with pytest.raises(ExportError, match='cannot write opset 9 of this graph, only 18'):
        export_onnx(graph, torch.randn(1, 3, 8, 8), tmp_path / 'a.onnx', ExportOptions(opset=9))
    assert not (tmp_path / 'a.onnx').exists()


def test_missing_packages_and_an_old_pytorch_are_named(monkeypatch):
    find = onnx_files.importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            onnx_files.importlib.util,
            'find_spec',
            lambda name: None if name == 'onnxscript' else find(name),
        )
        with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'mmlska\[export\]'"):
            check_packages()
    monkeypatch.setattr(torch, '__version__', '2.8.1+cpu')
    with pytest.raises(ImportError, match=r'needs PyTorch 2\.9 or newer, this is 2\.8\.1'):
        check_packages()


def test_a_file_that_cannot_be_run_is_named(graph, tmp_path):
    file = tmp_path / 'a.onnx'
    file.write_text('no graph')
    with pytest.raises(ValueError, match=r"a\.onnx' cannot be loaded: [^\n]*$"):
        OnnxModel(file)
    export_onnx(graph, torch.randn(1, 3, 8, 12), file)
    model = OnnxModel(file)
    assert model.size == (8, 12) and model.metadata == {}
    with pytest.raises(ValueError, match=r'does not take images of shape \(1, 3, 8, 8\): [^\n]*$'):
        model(torch.randn(1, 3, 8, 8))
