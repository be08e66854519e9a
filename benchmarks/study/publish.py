"""Weights of the study as a small zoo inside the package: ``mmlska://NAME``."""

import hashlib
import json
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from mmlska.analysis.ablation.runs import RESULT, read_json
from mmlska.checkpoint import unwrap
from mmlska.checkpoint.own_models import FOLDER, INDEX
from mmlska.engine.launch import build_test_runner, prepare_testing

from .measuring import checkpoint_of
from .plan import BASE, IMAGE_SIZE, METRIC, SCALES, cell_name

# Attentions whose models are kept. The seed is the first, whatever its figure.
KEPT = (('LSKA', 7), ('LSKA', 23), ('LSKA', 35), ('LKA', 23))
SEED = 0
# Largest change of the figure by half precision, in points.
TOLERANCE = 0.1

CARD = """# {name}

A VAN of the demo's smallest size under Semantic FPN, attention {kind} with k = {size}. It shows
that weights load by name; it segments nothing but these scenes.

- Load: `mmlska://{name}`, in `init_cfg`, `load_from` or `demo/image_demo.py`,
  with the config `{config}` and
  `--cfg-options {options}`.
- Data: digit scenes of {side}×{side} pixels, made by `make_digit_scenes` from scans of scikit-learn
  and photographs of scikit-image and scikit-learn: {num_train} to train, {num_val} to evaluate.
- Training: {iterations} iterations of 8 scenes from random weights, `make study{study}`.
  Seed {seed}, the first of {seeds}; no choice among seeds.
- Figure: mIoU {half:.2f} in half precision, as it lies here ({figure:.2f} before).
- Licence: Apache-2.0, as the code.
"""


def publish(name: str, work_dir: Path, folder: Path = FOLDER) -> list[str]:
    """Keep the weights of some finished trainings in half precision, each with its card.

    Args:
        name: Name of the scale.
        work_dir: Work dir of the study.
        folder: Folder of the zoo.

    Returns:
        Names of the models.

    Raises:
        FileNotFoundError: If a training is not finished.
        ArithmeticError: If half precision changes a figure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = read_json(folder / INDEX) or {}
    kinds = set(SCALES[name].kernel_sizes)
    for kind, size in KEPT:
        if size in kinds:
            model, entry = keep(name, work_dir, folder, kind, size)
            index[model] = entry
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + '\n')
    return list(index)


def keep(scale_name: str, work_dir: Path, folder: Path, kind: str, size: int) -> tuple[str, dict]:
    """Keep one model; returns its name and its entry in the index."""
    cell, scale = cell_name(kind, size), SCALES[scale_name]
    run = work_dir / 'runs' / cell / f'seed{SEED}'
    result = read_json(run / RESULT)
    if result is None:
        raise FileNotFoundError(f'{run} holds no finished training')
    model = f'fpn_van-{kind.lower()}-k{size}-pico_digits'
    path = folder / f'{model}.safetensors'
    trained = CheckpointLoader.load_checkpoint(checkpoint_of(run), map_location='cpu')
    known = {key: trained['meta']['dataset_meta'][key] for key in ('classes', 'palette')}
    halves = {
        key: (value.half() if value.dtype == torch.float32 else value).contiguous()
        for key, value in unwrap(trained).items()
    }
    save_file(halves, path)
    half = evaluate(work_dir / 'configs' / f'{cell}.py', path, work_dir / 'published' / model)
    figure = result['figures'][METRIC]
    if abs(half - figure) > TOLERANCE:
        raise ArithmeticError(f'half precision changes the {METRIC} of {model}: {figure} to {half}')
    options = {
        'model.backbone.attention.type': f'mmlska.{kind}',
        'model.backbone.attention.kernel_size': size,
    }
    card = CARD.format(
        name=model,
        kind=kind,
        size=size,
        config=BASE,
        options=' '.join(f'{key}={value}' for key, value in options.items()),
        side=IMAGE_SIZE,
        num_train=scale.num_train,
        num_val=scale.num_val,
        iterations=scale.iterations,
        study='' if scale_name == 'full' else f' STUDY={scale_name}',
        seed=SEED,
        seeds=scale.seeds,
        half=half,
        figure=figure,
    )
    path.with_suffix('.md').write_text(card, encoding='utf-8')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = dict(file=path.name, sha256=digest, config=BASE, options=options, dataset_meta=known)
    return model, entry


def evaluate(config: Path, checkpoint: Path, work_dir: Path) -> float:
    """Figure of a checkpoint on the validation scenes."""
    cfg = prepare_testing(config, str(checkpoint), work_dir=str(work_dir))
    return build_test_runner(cfg).test()[METRIC]
