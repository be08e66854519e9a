import numpy as np
import pytest

from mmlska.deploy.onnx_files import OnnxModel
from mmlska.deploy.quantizing import outer_layers, quantise

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
helper = onnx.helper


def conv(source, target, weights):
    return helper.make_node('Conv', [source, weights], [target], name=target, pads=[0, 0, 0, 0])


def write(file, nodes, shape=('N', 2, 4, 4), dtype=np.float32):
    """A file of these nodes, with the weights ``net.a`` to ``net.d`` of pointwise convolutions."""
    random = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(random.normal(size=(2, 2, 1, 1)).astype(dtype), f'net.{name}')
        for name in 'abcd'
    ]
    graph = helper.make_graph(
        nodes,
        'graph',
        [
            helper.make_tensor_value_info(
                'image', helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
            )
        ],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    helper.set_model_props(model, {'classes': '["x"]'})
    onnx.save(model, file)
    return file


CHAIN = [
    conv('image', 'first', 'net.a'),
    helper.make_node('Relu', ['first'], ['relu'], name='relu'),
    conv('relu', 'middle', 'net.b'),
    conv('middle', 'other', 'net.c'),
    conv('other', 'last', 'net.d'),
]


def images():
    return iter(np.random.default_rng(1).normal(size=(3, 1, 2, 4, 4)))


def float_layers(file):
    """Convolutions that take their weights as the graph has them."""
    graph = onnx.load(file).graph
    whole = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == 'Conv' and node.input[1] in whole]


def test_the_first_and_the_last_layers_stay_float(tmp_path):
    file, out = write(tmp_path / 'a.onnx', CHAIN), tmp_path / 'b.onnx'
    assert quantise(file, out, images()) == 3
    assert float_layers(out) == ['first', 'last']
    assert OnnxModel(out).metadata == dict(classes=['x'])
    (image, *_) = images()
    whole, small = (OnnxModel(each)(image)['last'] for each in (file, out))
    error = np.abs(whole - small).max() / np.abs(whole).max()
    assert 0 < error < 0.05
    assert quantise(file, out, images(), keep=['net.b', 'et.b']) == 3
    assert float_layers(out) == ['first', 'middle', 'last']


def test_a_layer_before_a_choice_is_a_last_one_and_sizes_lead_nowhere():
    nodes = [
        conv('image', 'first', 'net.a'),
        conv('first', 'scores', 'net.b'),
        helper.make_node('TopK', ['scores', 'count'], ['best', 'places'], name='topk'),
        helper.make_node('Gather', ['first', 'places'], ['chosen'], name='gather'),
        helper.make_node('Shape', ['image'], ['size'], name='shape'),
        helper.make_node('Resize', ['chosen', '', '', 'size'], ['resized'], name='resize'),
        conv('resized', 'inner', 'net.c'),
        conv('inner', 'last', 'net.d'),
    ]
    graph = helper.make_graph(nodes, 'graph', [], [])
    assert outer_layers(graph) == ['first', 'scores', 'last']


def test_what_cannot_be_quantised_is_named(tmp_path):
    file, out = write(tmp_path / 'a.onnx', CHAIN), tmp_path / 'b.onnx'
    with pytest.raises(ValueError, match='needs images to measure ranges on, got none'):
        quantise(file, out, iter(()))
    with pytest.raises(ValueError, match=r"no layer has 'neck' in the name of its weights"):
        quantise(file, out, images(), keep=['net.b', 'neck'])
    quantise(file, out, images())
    with pytest.raises(ValueError, match=r"b\.onnx' is quantised already"):
        quantise(out, tmp_path / 'c.onnx', images())
    half = write(tmp_path / 'half.onnx', CHAIN, dtype=np.float16)
    with pytest.raises(ValueError, match=r"half\.onnx' computes in float16: .*without --fp16"):
        quantise(half, tmp_path / 'c.onnx', images())
    (tmp_path / 'cut.onnx').write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cut\.onnx' cannot be loaded: "):
        quantise(tmp_path / 'cut.onnx', tmp_path / 'c.onnx', images())
    assert not (tmp_path / 'c.onnx').exists()
