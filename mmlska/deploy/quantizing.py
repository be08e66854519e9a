"""Static quantisation of an exported graph: int8 weights and activations, by ONNX Runtime."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .onnx_files import INPUT, check_packages

# What costs: the rest stays float32, norms, gates and the resizing of logits among it.
QUANTISED = ('Conv', 'MatMul', 'Gemm')


def quantise(
    file: str | os.PathLike,
    out: str | os.PathLike,
    images: Iterable[np.ndarray],
    percentile: float | None = None,
) -> int:
    """Write an int8 copy of a file, with the ranges of activations measured on images.

    Weights get a scale for each output channel, activations one for all, with a zero point.

    Args:
        file (str | PathLike): An ONNX file of float32.
        out (str | PathLike): Where the copy goes, with the metadata of the file.
        images (Iterable[np.ndarray]): Prepared images ``(N, 3, H, W)``, such as the model meets.
        percentile (float, optional): Cut ranges off at this percentile of the magnitudes.
            Defaults to None, the largest and least value.

    Returns:
        int: How many images were used.

    Raises:
        ImportError: If the extra ``export`` is not installed.
        ValueError: If there is no image.
    """
    check_packages()
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    reader = _Reader(images)
    if not reader.has_next():
        raise ValueError('quantising needs images to measure ranges on, got none')
    by_percentile = percentile is not None
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / 'prepared.onnx')
        # Norms join convolutions and constants are computed before ranges are measured.
        quant_pre_process(os.fspath(file), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            os.fspath(out),
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(
                CalibrationMethod, 'Percentile' if by_percentile else 'MinMax'
            ),
            extra_options=dict(CalibPercentile=percentile) if by_percentile else {},
        )
    source, made = onnx.load(os.fspath(file)), onnx.load(os.fspath(out))
    onnx.helper.set_model_props(made, {p.key: p.value for p in source.metadata_props})
    onnx.save(made, os.fspath(out))
    return reader.count


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
