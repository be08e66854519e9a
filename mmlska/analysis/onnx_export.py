"""From a config and a checkpoint to an ONNX file that computes the same."""

import os
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmlska.deploy import fuse
from mmlska.deploy.end_to_end import end_to_end_graph, translations_of
from mmlska.deploy.onnx_files import FIXED, ExportOptions, check_packages, export_onnx
from mmlska.deploy.plain_graphs import NetworkGraph
from mmlska.engine.config import load_config
from mmlska.engine.inference import Predictor
from mmlska.engine.media_files import list_images
from mmlska.engine.onnx_metadata import describe_model, fixed_size

from .onnx_check import HALF, SINGLE, Check, check_file, example_images, inputs_for

# What a dynamic file is traced on: no two sides equal, each divided by every stride.
EXAMPLE = (2, 3, 256, 320)


class ExportTask(NamedTuple):
    """What to export.

    Attributes:
        config: Path of a config, or the name of a shipped one.
        checkpoint: File with the weights of that model.
        options: How the file is written.
        fused: Whether norms are fused into convolutions first.
        end_to_end: Whether the file goes on from the maps of the head to the results.
        size: Height and width of a file that is not dynamic; None takes them from the config.
        cfg_options: Overrides of the config by dotted key.
    """

    config: str
    checkpoint: str
    options: ExportOptions = FIXED
    fused: bool = False
    end_to_end: bool = True
    size: tuple[int, int] | None = None
    cfg_options: dict[str, Any] | None = None


def export_and_check(
    task: ExportTask,
    out: Path,
    images: Sequence[str] | None = None,
    max_images: int = 8,
    rounds: int = 7,
) -> Check:
    """Export a model, and compare the file with PyTorch on images.

    Args:
        task: What to export.
        out: Where the file goes. It is there only if all errors are within their limits.
        images: Files or folders. Defaults to photographs.
        max_images: Most images to compare on.
        rounds: How often both are timed.

    Returns:
        Check: The errors and times; ``failures`` tells why there is no file.

    Raises:
        FileNotFoundError: If the config, the checkpoint or an image is missing.
        ImportError: If what exporting needs is not installed.
        TypeError: If there is no graph of this detector.
        ValueError: If the model cannot be exported, or its preparation of images not be told.
    """
    check_packages()
    predictor = Predictor(task.config, task.checkpoint, 'cpu', task.cfg_options)
    cfg, model = load_config(task.config, task.cfg_options), predictor.model
    told = describe_model(
        cfg,
        Path(task.config).stem,
        model,
        predictor.visualizer.dataset_meta,
        task.end_to_end,
    )
    size = None if task.options.dynamic else task.size or fixed_size(told)
    build = end_to_end_graph if task.end_to_end else NetworkGraph
    with tempfile.TemporaryDirectory(prefix='.export-', dir=out.absolute().parent) as folder:
        unchecked = Path(folder) / out.name
        example = torch.rand(EXAMPLE) if size is None else torch.rand(1, 3, *size)
        graph = build(fuse(model) if task.fused else model)
        export_onnx(graph, example, unchecked, task.options, told, translations_of(graph))
        paths = islice(list_images(images) if images else example_images(Path(folder)), max_images)
        inputs = inputs_for((predictor.batch(path)['inputs'] for path in paths), size)
        limits = HALF if task.options.half else SINGLE
        check = check_file(unchecked, build(model), list(inputs), limits, rounds)
        if not check.failures:
            os.replace(unchecked, out)
    return check
