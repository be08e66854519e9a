"""Files of ONNX: written from graphs, with what their user has to know in their metadata.

What stands beside the tensors in a file is a JSON value under each name of ``metadata_props``.
"""

import contextlib
import importlib
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.export import Dim
from torch.torch_version import TorchVersion

from .half_precision import to_half

INPUT = 'image'
# That of 2.6 cannot export a sum of products, or a norm of layers, at sizes that it does not know.
OLDEST_TORCH = '2.9'
# The dimensions of the input that may differ from run to run, as files name them.
DYNAMIC = {0: 'batch', 2: 'height', 3: 'width'}


class ExportError(ValueError):
    """A graph that PyTorch cannot write as ONNX, with the reason that it gives."""


class ExportOptions(NamedTuple):
    """How a graph is written.

    Attributes:
        dynamic: Whether the file takes any batch, height and width.
        half: Whether the network computes in float16, see :mod:`mmlska.deploy.half_precision`.
        opset: Version of ONNX's operators; None leaves it to torch.
    """

    dynamic: bool = False
    half: bool = False
    opset: int | None = None


FIXED = ExportOptions()


def export_onnx(
    graph: nn.Module,
    image: torch.Tensor,
    file: str | os.PathLike,
    options: ExportOptions = FIXED,
    metadata: Mapping[str, Any] | None = None,
    translations: Mapping[Callable, Callable] | None = None,
) -> None:
    """Write a graph as ONNX by torch's exporter on torch.export.

    Args:
        graph (nn.Module): Maps images to tensors, see :func:`by_name`; those of
            :mod:`mmlska.deploy.plain_graphs` and detection graphs do.
        image (Tensor): An example ``(N, 3, H, W)``, whose shape a file takes that is not dynamic;
            for one that is, with more than one image.
        file (str | PathLike): Where the file goes.
        options (ExportOptions): How it is written.
        metadata (Mapping, optional): Values that JSON knows, by name. The least height and width
            that a dynamic file takes are added as ``least_size``.
        translations (Mapping, optional): How operators outside PyTorch are written, see
            :func:`mmlska.deploy.detection_graphs.custom_translation_table`.

    Raises:
        ImportError: If the extra ``export`` is not installed, or PyTorch is too old.
        ExportError: If PyTorch cannot export the graph.
    """
    check_packages()
    import onnx

    program = _exported(graph.eval(), image, options, translations)
    model = program.model_proto
    _check_opset(model, options.opset)
    if options.half:
        to_half(model)
    _forget_origins(model)
    metadata = dict(metadata or {})
    if options.dynamic:
        _name_sides(model.graph)
        metadata['least_size'] = _least_size(program.exported_program)
    onnx.helper.set_model_props(model, {name: json.dumps(v) for name, v in metadata.items()})
    onnx.save(model, os.fspath(file))


def _exported(
    graph: nn.Module,
    image: torch.Tensor,
    options: ExportOptions,
    translations: Mapping[Callable, Callable] | None,
) -> 'torch.onnx.ONNXProgram':
    with torch.no_grad(), _quiet_exporter():
        names = list(by_name(graph, graph(image)))
        try:
            return torch.onnx.export(
                graph,
                (image,),
                dynamo=True,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=(dict.fromkeys(DYNAMIC, Dim.DYNAMIC),) if options.dynamic else None,
                opset_version=options.opset,
                custom_translation_table=dict(translations or {}),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            kind = type(getattr(graph, 'model', graph)).__name__
            raise ExportError(f'{kind} cannot be exported: {_reason(error)}') from error


def _check_opset(model: Any, asked: int | None) -> None:
    """Raise an error if torch has written another version than it was asked for."""
    (made,) = (entry.version for entry in model.opset_import if not entry.domain)
    if asked not in (None, made):
        raise ExportError(
            f'PyTorch {torch.__version__} cannot write opset {asked} of this graph, only {made}'
        )


def by_name(
    graph: nn.Module, outputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What a graph has returned by name: a dict is, a tuple is named by its ``output_names``."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return dict(zip(graph.output_names, outputs, strict=True))


def _reason(error: BaseException) -> str:
    """What went wrong first, in a line: the exporter wraps it into pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f'{type(error).__name__}: {_first_line(error)}'


def check_packages() -> None:
    """Check that what exporting needs is installed.

    Raises:
        ImportError: If it is not, or PyTorch is too old.
    """
    needed = ('onnx', 'onnxruntime', 'onnxscript')
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"exporting needs {', '.join(missing)}: pip install 'mmlska[export]'")
    if TorchVersion(torch.__version__) < OLDEST_TORCH:
        raise ImportError(
            f'exporting needs PyTorch {OLDEST_TORCH} or newer, this is {torch.__version__}'
        )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without a line for each operator of torchvision, and what torch says of its own code."""
    logger = logging.getLogger('torch.onnx._internal.exporter._registration')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', category=FutureWarning, module='copyreg')
            yield
    finally:
        logger.setLevel(level)


def _forget_origins(model: Any) -> None:
    """Remove where in which source file each node comes from: paths of the machine, half a file."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    for function in model.functions:
        for part in (function, *function.node):
            del part.metadata_props[:]


def _name_sides(graph: Any) -> None:
    """Call the dynamic dimensions by their names instead of torch's symbols."""
    sides = graph.input[0].type.tensor_type.shape.dim
    names = {sides[axis].dim_param: name for axis, name in DYNAMIC.items()}
    symbols = re.compile(rf'\b({"|".join(map(re.escape, names))})\b')
    for value in (*graph.input, *graph.output, *graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = symbols.sub(lambda found: names[found[0]], side.dim_param)


def _least_size(program: torch.export.ExportedProgram) -> list[int]:
    """The least height and width that a program takes; any batch is fine."""
    (image,) = (n for n in program.graph.nodes if n.op == 'placeholder' and n.name == INPUT)
    symbols = [side.node.expr for side in image.meta['val'].shape[2:]]
    return [max(1, int(program.range_constraints[symbol].lower)) for symbol in symbols]


class OnnxModel:
    """A file in ONNX Runtime on the CPU, with as many threads as PyTorch takes.

    Args:
        file (str | PathLike): The file.

    Attributes:
        metadata (dict[str, Any]): What stands in the file beside its graph.
        size (tuple[int, int] | None): The only height and width that it takes, one image at a
            time; None if it takes any.

    Raises:
        ValueError: If this is no ONNX file, or a damaged one.
    """

    def __init__(self, file: str | os.PathLike) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.file = os.fspath(file)
        try:
            self.session = onnxruntime.InferenceSession(
                self.file, options, providers=['CPUExecutionProvider']
            )
        # What ONNX Runtime raises has no common base but this.
        except Exception as error:
            raise ValueError(f'{self.file!r} cannot be loaded: {_first_line(error)}') from error
        self.output_names = [output.name for output in self.session.get_outputs()]
        entries = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {name: json.loads(value) for name, value in entries.items()}
        sides = self.session.get_inputs()[0].shape[2:]
        self.size = None if isinstance(sides[0], str) else tuple(sides)

    def __call__(self, image: np.ndarray | torch.Tensor) -> dict[str, np.ndarray]:
        """Map images ``(N, 3, H, W)`` to arrays by name.

        Raises:
            ValueError: If the file takes no images of this shape.
        """
        image = np.asarray(image, np.float32)
        try:
            values = self.session.run(None, {INPUT: image})
        except Exception as error:
            raise ValueError(
                f'{self.file!r} does not take images of shape {image.shape}: {_first_line(error)}'
            ) from error
        return dict(zip(self.output_names, values, strict=True))


def _first_line(error: BaseException) -> str:
    return next(filter(None, map(str.strip, str(error).splitlines())), 'no reason given')
