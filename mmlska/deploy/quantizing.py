"""Static quantisation of an exported graph: int8 weights and activations, by ONNX Runtime."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_files import INPUT, OnnxModel, check_packages

# What costs: the rest stays float32, norms, gates, boxes and their suppression among it.
QUANTISED = ('Conv', 'MatMul', 'Gemm')
# What goes through these is chosen or counted; a layer behind them has other values.
CHOICES = ('TopK', 'NonMaxSuppression', 'RoiAlign', 'NonZero', 'Shape')


def quantise(
    file: str | os.PathLike,
    out: str | os.PathLike,
    images: Iterable[np.ndarray],
    percentile: float | None = None,
    keep: Sequence[str] = (),
) -> int:
    """Write an int8 copy of a file, with the ranges of activations measured on images.

    Weights get a scale for each output channel, activations one for all, with a zero point. The
    first and the last layers stay float32, see :func:`outer_layers`.

    Args:
        file (str | PathLike): An ONNX file of float32.
        out (str | PathLike): Where the copy goes, with the metadata of the file.
        images (Iterable[np.ndarray]): Prepared images ``(N, 3, H, W)``, such as the model meets.
        percentile (float, optional): Cut ranges off at this percentile of the magnitudes.
            Defaults to None, the largest and least value.
        keep (Sequence[str]): Layers stay float32 too whose weights have one of these in their name.

    Returns:
        int: How many images were used.

    Raises:
        ImportError: If the extra ``export`` is not installed.
        ValueError: If there is no image, the file is not of float32, or no layer is meant by
            something in ``keep``.
    """
    check_packages()
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    OnnxModel(file)
    source = onnx.load(os.fspath(file))
    _check_precision(source.graph, file)
    reader = _Reader(images)
    if not reader.has_next():
        raise ValueError('quantising needs images to measure ranges on, got none')
    by_percentile = percentile is not None
    with tempfile.TemporaryDirectory() as folder:
        prepared, made = (str(Path(folder) / name) for name in ('prepared.onnx', 'int8.onnx'))
        # Norms join convolutions and constants are computed before ranges are measured.
        quant_pre_process(os.fspath(file), prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantize_static(
            prepared,
            made,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=sorted({*outer_layers(graph), *_layers_named(graph, keep)}),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(
                CalibrationMethod, 'Percentile' if by_percentile else 'MinMax'
            ),
            extra_options=dict(CalibPercentile=percentile) if by_percentile else {},
        )
        model = onnx.load(made)
    onnx.helper.set_model_props(model, {p.key: p.value for p in source.metadata_props})
    onnx.save(model, os.fspath(out))
    return reader.count


def outer_layers(graph: Any) -> list[str]:
    """Names of the first and the last nodes of a graph that quantising would take.

    Eight bits are too few for pixels, and for what scores and boxes are read from, while what these
    layers cost is little. The last ones of an RPN are among them.

    Args:
        graph (onnx.GraphProto): The graph, in topological order.
    """
    first, seen = [], {INPUT}
    for node in graph.node:
        if seen.intersection(node.input):
            if node.op_type in QUANTISED:
                first.append(node.name)
            elif node.op_type not in CHOICES:
                seen.update(node.output)
    last, leading = [], set()
    for node in reversed(graph.node):
        leads_on = not leading.isdisjoint(node.output)
        if node.op_type in QUANTISED:
            leading.update(node.input)
            if not leads_on:
                last.append(node.name)
        elif leads_on and node.op_type not in CHOICES:
            leading.update(node.input)
    return [*first, *reversed(last)]


def _layers_named(graph: Any, words: Sequence[str]) -> set[str]:
    layers = {
        node.name: ' '.join(node.input[1:]) for node in graph.node if node.op_type in QUANTISED
    }
    meant = {word: {name for name, weights in layers.items() if word in weights} for word in words}
    for word, names in meant.items():
        if not names:
            raise ValueError(f'no layer has {word!r} in the name of its weights')
    return set().union(*meant.values())


def _check_precision(graph: Any, file: str | os.PathLike) -> None:
    """Raise an error unless a graph computes in float32."""
    import onnx

    if any(node.op_type == 'QuantizeLinear' for node in graph.node):
        raise ValueError(f'{os.fspath(file)!r} is quantised already')
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer):
        raise ValueError(f'{os.fspath(file)!r} computes in float16: export it without --fp16')


class _Reader:
    """Hands images to the calibration, one by one."""

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self.images = iter(images)
        self.waiting = next(self.images, None)
        self.count = 0

    def has_next(self) -> bool:
        """Whether an image is left."""
        return self.waiting is not None

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, None after the last one."""
        image, self.waiting = self.waiting, next(self.images, None)
        if image is None:
            return None
        self.count += 1
        return {INPUT: np.asarray(image, np.float32)}
