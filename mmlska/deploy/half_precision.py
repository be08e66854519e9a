"""Half precision for exported graphs: the network computes in float16, what follows it in float32.

Boxes in pixels need more than the 11 bits of float16, and norms and sums overflow in it. So only
what modules of the model compute is converted, and of that only operations that autocast runs in
float16 too, or that neither add nor amplify. Casts stand where the two meet; inputs and outputs of
the file stay float32.
"""

import ast
from collections.abc import Iterator
from typing import Any

import numpy as np

# Operations that may run in float16, and which of their inputs follow suit (all where it is None).
HALF_OPERATIONS: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(('Conv', 'ConvTranspose', 'MatMul', 'Gemm'), None),
    **dict.fromkeys(('Add', 'Sub', 'Mul', 'Neg', 'Concat', 'Identity'), None),
    **dict.fromkeys(
        ('Gelu', 'Erf', 'Relu', 'LeakyRelu', 'PRelu', 'HardSwish', 'HardSigmoid'), None
    ),
    **dict.fromkeys(('Sigmoid', 'Tanh', 'Clip', 'MaxPool', 'AveragePool'), None),
    **dict.fromkeys(('Reshape', 'Transpose', 'Flatten', 'Squeeze', 'Unsqueeze'), (0,)),
    **dict.fromkeys(('Slice', 'Split', 'Expand', 'Gather', 'Resize'), (0,)),
}
# Where torch's exporter tells which modules a node comes from.
CLASSES = 'pkg.torch.onnx.class_hierarchy'
# The modules that wrap a model, whose own computations follow the network.
WRAPPERS = ('mmlska.deploy.plain_graphs.', 'mmlska.deploy.detection_graphs')


def to_half(model: Any) -> Any:
    """The same graph with its network in float16.

    Args:
        model (onnx.ModelProto): A graph as torch's exporter writes it, of float32. It is changed.

    Returns:
        onnx.ModelProto: The same object.
    """
    return _Converter(model).run()


class _Converter:
    """Goes through the nodes in their order and keeps of each value in which types it exists."""

    def __init__(self, model: Any) -> None:
        import onnx

        self.onnx = onnx
        self.model = model
        self.graph = model.graph
        self.floats = _float_values(onnx.shape_inference.infer_shapes(model), onnx)
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.halves: set[str] = set()
        self.casts: dict[tuple[str, bool], str] = {}
        self.nodes: list[Any] = []

    def run(self) -> Any:
        """Convert all nodes."""
        for node in list(self.graph.node):
            self._convert(node)
        for output in self.graph.output:
            self._keep_float(output.name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._drop_unused()
        # The types of values inside have changed; the runtime infers them.
        del self.graph.value_info[:]
        return self.model

    def _convert(self, node: Any) -> None:
        is_half = self._runs_in_half(node)
        following = HALF_OPERATIONS.get(node.op_type) if is_half else None
        for place, name in enumerate(node.input):
            wants_half = is_half and (following is None or place in following)
            if name in self.floats:
                node.input[place] = self._as(name, wants_half)
        if is_half:
            self.halves.update(name for name in node.output if name in self.floats)
        self.nodes.append(node)

    def _runs_in_half(self, node: Any) -> bool:
        made = {name for name in node.output if name}
        return (
            node.op_type in HALF_OPERATIONS
            and node.domain in ('', 'ai.onnx')
            and made <= self.floats
            and _is_of_network(node)
        )

    def _as(self, name: str, half: bool) -> str:
        """Name of a value in the type that is asked for."""
        if (name in self.halves) == half:
            return name
        key = (name, half)
        if key not in self.casts:
            self.casts[key] = f'{name}_{"half" if half else "float"}'
            if name in self.weights:
                self._add_weight(name, self.casts[key])
            else:
                self._add_cast(name, self.casts[key], half)
        return self.casts[key]

    def _add_weight(self, name: str, new: str) -> None:
        array = self.onnx.numpy_helper.to_array(self.weights[name])
        largest = np.finfo(np.float16).max
        array = np.clip(array, -largest, largest).astype(np.float16)
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(array, new))

    def _add_cast(self, name: str, new: str, half: bool) -> None:
        kind = self.onnx.TensorProto.FLOAT16 if half else self.onnx.TensorProto.FLOAT
        cast = self.onnx.helper.make_node('Cast', [name], [new], name=f'cast_{new}', to=kind)
        self.nodes.append(cast)

    def _keep_float(self, output: str) -> None:
        """Let an output of the graph that a node makes in float16 leave as float32."""
        if output not in self.halves:
            return
        inner = f'{output}_inside'
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == output:
                        names[place] = inner
        self._add_cast(inner, output, half=False)

    def _drop_unused(self) -> None:
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _float_values(model: Any, onnx: Any) -> set[str]:
    """Names of all values of float32: inputs, weights, and what nodes make of them."""
    graph = model.graph
    float32 = onnx.TensorProto.FLOAT
    infos = (*graph.input, *graph.value_info, *graph.output)
    names = {info.name for info in infos if info.type.tensor_type.elem_type == float32}
    return names | {tensor.name for tensor in graph.initializer if tensor.data_type == float32}


def _is_of_network(node: Any) -> bool:
    modules = list(_modules_of(node))
    return bool(modules) and not modules[-1].startswith(WRAPPERS)


def _modules_of(node: Any) -> Iterator[str]:
    """Classes of the modules around a node, from the outside; the last word is the operation."""
    for entry in node.metadata_props:
        if entry.key == CLASSES:
            yield from ast.literal_eval(entry.value)[:-1]
