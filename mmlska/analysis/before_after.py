"""What training made of a model, seen on one image: prediction, receptive field and gate.

Before is the model of the same config with random weights, the same in every run. The receptive
field is that of the image at hand: of :func:`effective_receptive_field` with several draws of the
signs over one image, where studies take many images.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from mmlska.engine.config import load_config
from mmlska.engine.inference import Predictor

from .attention_maps import GateValue, Scene, Tile, frozen, gate_tile, gated_layers, record_gates
from .receptive_field import (
    Box,
    Field,
    effective_receptive_field,
    feature_map,
    quiet,
    theoretical_field,
)

# More change a field of one image hardly any more.
DRAWS = 4
BEFORE, AFTER = 'before training', 'after training'


@dataclass(frozen=True)
class Findings:
    """What one model makes of an image.

    Attributes:
        prediction: What it predicts.
        field: What the middle of a map of its backbone sees.
        gate: What one of its layers multiplies with; None for a model without a gate.
    """

    prediction: BaseDataElement
    field: Field
    gate: Tile | None


class BeforeAfter:
    """A trained model, and the same model with random weights.

    Args:
        config: Path of a config, or the name of a shipped one.
        checkpoint: File with the weights of that model.
        options: Overrides of the config by dotted key.
        device: Where to run. Defaults to a GPU where there is one.

    Attributes:
        before: The model with random weights, those of seed 0.
        after: The trained one.
        stages: How many maps the backbone returns.
        layers: Names of the layers that have a gate.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If the checkpoint is of another model, or the model has no backbone.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str,
        options: dict | None = None,
        device: str | None = None,
    ) -> None:
        self.after = Predictor(config, checkpoint, device, options)
        self.before = untrained(self.after, load_config(config, options))
        self.stages = number_of_maps(backbone_of(self.after.model))
        self.layers = gated_layers(self.after.model)

    def look(self, path: str | Path, stage: int, layer: str | None) -> tuple[Findings, Findings]:
        """Show both models an image.

        Args:
            path: The image.
            stage: Index of the map whose middle the receptive fields are of.
            layer: Name of the layer whose gate is shown, one of ``layers``; None for no gate.

        Returns:
            What the untrained model makes of it, and what the trained one does.

        Raises:
            UnreadableImageError: If the pipeline of the config cannot read the file.
            ValueError: If there is no such map or layer.
        """
        scene = Scene(self.after, path)
        box = theoretical_box(self.after.model, scene, stage)
        return tuple(
            Findings(
                prediction=predictor(path),
                field=field_of(predictor.model, scene, stage, box, name),
                gate=None if layer is None else gate_of(predictor.model, scene, layer),
            )
            for predictor, name in ((self.before, BEFORE), (self.after, AFTER))
        )


def untrained(predictor: Predictor, cfg: Config) -> Predictor:
    """The same predictor with the random weights of seed 0; nothing that it names is fetched."""
    twin = copy.copy(predictor)
    init_default_scope(cfg.default_scope)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        twin.model = revert_sync_batchnorm(MODELS.build(without_weights(cfg.model)))
        twin.model.init_weights()
    twin.model.to(predictor.device).eval()
    return twin


def without_weights(settings: dict) -> dict:
    """Settings of a model that names no checkpoint to start from."""
    settings = copy.deepcopy(settings)
    waiting = [settings]
    while waiting:
        group = waiting.pop()
        if (group.get('init_cfg') or {}) and 'checkpoint' in group['init_cfg']:
            group['init_cfg'] = None
        if 'pretrained' in group:
            group['pretrained'] = None
        waiting += [value for value in group.values() if isinstance(value, dict)]
    return settings


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a detector or segmentor.

    Raises:
        ValueError: If it has none under that name.
    """
    if not hasattr(model, 'backbone'):
        raise ValueError(f'a {type(model).__name__} has no backbone whose receptive field is known')
    return model.backbone


def number_of_maps(backbone: nn.Module) -> int:
    """How many maps a backbone returns, by the convention of OpenMMLab's ``out_indices``."""
    indices = getattr(backbone, 'out_indices', 0)
    return len(indices) if isinstance(indices, Sequence) else 1


def content_of(scene: Scene) -> torch.Tensor:
    """What the model gets of an image, ``(1, C, H, W)``, without padding."""
    height, width = scene.content()
    return scene.inputs[..., :height, :width]


def theoretical_box(model: nn.Module, scene: Scene, stage: int) -> Box:
    """All pixels that can have an influence: the same for any weights."""
    image = content_of(scene)
    return theoretical_field(backbone_of(model), image.shape[2:], stage, image.shape[1])


def field_of(model: nn.Module, scene: Scene, stage: int, box: Box, name: str) -> Field:
    """What the middle of a map sees of this image."""
    backbone, image = backbone_of(model), content_of(scene)
    with frozen(model):
        contribution = effective_receptive_field(backbone, [image] * DRAWS, stage)
        with torch.no_grad():
            map_ = feature_map(backbone(image), stage)
    stride = round(image.shape[2] / map_.shape[2])
    return Field(name, stage, stride, name, 1, contribution, box)


def gate_of(model: nn.Module, scene: Scene, layer: str) -> Tile:
    """What a layer multiplies with; of ContextAggregation its gate, and not its weights.

    Raises:
        ValueError: If no such layer has a gate, or the model does not run it.
    """
    gates = record_gates(model, lambda: model.extract_feat(scene.inputs))
    found: list[GateValue] = [gate for gate in gates if gate.name == layer]
    if not found:
        names = ', '.join(dict.fromkeys(gate.name for gate in gates))
        raise ValueError(f'no gate comes out of {layer!r}: there are those of {names}')
    return gate_tile(scene, found[-1])
