"""From a command line to a runner of mmengine, for detection and segmentation alike."""

import copy
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .config import DETECTION, SEGMENTATION, load_config, task_of, type_name
from .data_check import check_content, check_data
from .distributed import prepare_launcher, tell_rank
from .folders import make_folder
from .hooks.whole_weights_hook import WholeWeightsHook

# Heads of mmdet that work without their masks, and metrics that always need masks.
BOXES_WITHOUT_MASKS = ('StandardRoIHead', 'CascadeRoIHead')
MASK_METRICS = ('CityScapesMetric', 'CocoOccludedSeparatedMetric', 'CocoPanopticMetric')


def prepare_training(
    config: str | Path,
    options: dict[str, Any] | None = None,
    work_dir: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    launcher: str = 'none',
    data_check: bool = True,
) -> Config:
    """Make a config ready for ``Runner.train``.

    Args:
        config: Path, or name of a shipped config.
        options: Overrides by dotted key.
        work_dir: Where logs and checkpoints go.
        amp: Whether to train with automatic mixed precision.
        auto_scale_lr: Whether to scale the learning rate with the total batch size.
        resume: Checkpoint to go on from, ``'auto'`` for the latest one of the work dir.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        data_check: Whether to look into the annotation files too, see :func:`check_content`.

    Raises:
        FileNotFoundError: If the config, its data or a checkpoint is missing.
        OSError: If the work dir cannot be written into.
        ValueError: If an argument does not fit the config or the machine.
    """
    tell_rank(launcher)
    cfg = load_config(config, options)
    set_work_dir(cfg, config, work_dir)
    if amp:
        enable_amp(cfg)
    if auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if resume:
        set_resume(cfg, resume)
    check_checkpoint(cfg.get('load_from'), '--resume' if resume else 'load_from')
    check_data(cfg, ('train', 'val'))
    if not data_check:
        drop_data_check(cfg)
    elif int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
        check_content(cfg, ('train', 'val'))
    make_folder(cfg.work_dir, '--work-dir')
    prepare_launcher(cfg, launcher)
    return cfg


def prepare_testing(
    config: str | Path,
    checkpoint: str,
    options: dict[str, Any] | None = None,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    tta: bool = False,
    launcher: str = 'none',
    fuse: bool = False,
) -> Config:
    """Make a config ready for ``Runner.test``.

    Args:
        config: Path, or name of a shipped config.
        checkpoint: What to evaluate.
        options: Overrides by dotted key.
        work_dir: Where the log and the figures go.
        out: Where predictions go: a ``.pkl`` file for a detector, a folder for a segmentor.
        show: Whether to show the predictions in a window.
        show_dir: Folder for drawn predictions.
        wait_time: Seconds to hold each picture that is shown.
        tta: Whether to augment at test time.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        fuse: Whether to fuse norms into convolutions, see :func:`mmlska.deploy.fuse`.

    Raises:
        FileNotFoundError: If the config, its data or the checkpoint is missing.
        OSError: If the work dir cannot be written into.
        ValueError: If an argument does not fit the config or the machine.
    """
    tell_rank(launcher)
    cfg = load_config(config, options)
    set_work_dir(cfg, config, work_dir)
    check_checkpoint(checkpoint, 'checkpoint')
    cfg.load_from = checkpoint
    if show or show_dir:
        enable_drawing(cfg, show, show_dir, wait_time)
    if tta:
        enable_tta(cfg)
    if out:
        set_prediction_output(cfg, out)
    if fuse:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='mmlska.FusingHook')]
    check_data(cfg, ('test',))
    make_folder(cfg.work_dir, '--work-dir')
    prepare_launcher(cfg, launcher)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config asks for."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def build_test_runner(cfg: Config, out: str | None = None) -> Runner:
    """Build the runner of an evaluation; a detector's predictions are dumped to ``out``."""
    runner = build_runner(cfg)
    runner.register_hook(WholeWeightsHook())
    if out and task_of(cfg) == DETECTION:
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    return runner


def set_work_dir(cfg: Config, config: str | Path, work_dir: str | None) -> None:
    """Set the work dir: the argument, else the config's own, else one named like the config."""
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(config).stem}'


def set_resume(cfg: Config, checkpoint: str) -> None:
    """Go on from a checkpoint, or with ``'auto'`` from the newest whole one of the work dir.

    Where there is none, the training starts from what ``load_from`` of the config named.
    """
    if checkpoint == 'auto' and cfg.get('load_from'):
        cfg.start_from = cfg.load_from
    cfg.resume = True
    cfg.load_from = None if checkpoint == 'auto' else checkpoint


def check_checkpoint(path: str | None, origin: str) -> None:
    """Check that a local checkpoint is there; addresses such as ``https://`` are not looked at.

    Raises:
        FileNotFoundError: If it is not.
    """
    if path and os.path.isdir(path):
        advice = '; --work-dir FOLDER --resume finds the newest' if origin == '--resume' else ''
        raise FileNotFoundError(f'{origin}: {path!r} is a folder, name a file in it{advice}')
    is_local = path and '://' not in path and not path.startswith('file:')
    if is_local and not os.path.isfile(os.path.expanduser(path)):
        raise FileNotFoundError(
            f'{origin}: no checkpoint file {path!r} (relative paths start at {Path.cwd()})'
        )


def drop_data_check(cfg: Config) -> None:
    """Take the hook that checks the data out of a config."""
    hooks = cfg.get('default_hooks') or {}
    for name in [name for name, hook in hooks.items() if is_data_check(hook)]:
        hooks[name] = None
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not is_data_check(hook)]


def is_data_check(hook: dict | None) -> bool:
    """Whether a hook of a config is the one that checks the data."""
    return bool(hook) and type_name(hook) == 'DataCheckHook'


def enable_amp(cfg: Config) -> None:
    """Switch to automatic mixed precision.

    Raises:
        ValueError: If there is no GPU, or the config has an optimizer wrapper of another kind.
    """
    if get_device() == 'cpu':
        raise ValueError('--amp needs a GPU: AmpOptimWrapper of mmengine does not run on the CPU')
    kind = type_name(cfg.optim_wrapper) or 'OptimWrapper'
    if kind == 'AmpOptimWrapper':
        print_log('mixed precision is already enabled in the config', logger='current')
        return
    if kind != 'OptimWrapper':
        raise ValueError(f"--amp replaces optim_wrapper.type='OptimWrapper', the config has {kind}")
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Switch scaling of the learning rate on.

    Raises:
        ValueError: If the config does not say for which batch size its rate holds.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: the '
            'total batch size that its learning rate is meant for'
        )
    cfg.auto_scale_lr.enable = True


def enable_drawing(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Let the visualization hook draw the predictions.

    Raises:
        ValueError: If the config has no such hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show and --show-dir need default_hooks.visualization in the config')
    hook.draw = True
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir and task_of(cfg) == DETECTION:
        hook.test_out_dir = show_dir
    elif show_dir:
        cfg.visualizer.save_dir = show_dir


def enable_tta(cfg: Config) -> None:
    """Wrap the model and replace the test pipeline for test-time augmentation.

    A detector whose config defines none is tested on each image and its mirror image.

    Raises:
        ValueError: If a segmentor's config defines none, or a detector's metrics want masks, which
            mmdet does not merge.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if task_of(cfg) == DETECTION:
        cfg.setdefault('tta_model', default_detection_tta_model())
        cfg.setdefault('tta_pipeline', mirror_pipeline(dataset.pipeline))
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise ValueError(f'--tta needs {" and ".join(missing)} in the config')
    if type_name(cfg.tta_model) == 'DetTTAModel':
        keep_to_boxes(cfg)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def keep_to_boxes(cfg: Config) -> None:
    """Leave masks out, for mmdet's ``DetTTAModel`` merges boxes only and stops at a mask.

    Raises:
        ValueError: If a metric of the config wants masks, or the model has no boxes without them.
    """
    metrics = cfg.get('test_evaluator') or []
    for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
        wanted = metric.get('metric', 'bbox')
        if 'segm' in wanted or type_name(metric) in MASK_METRICS:
            raise ValueError(
                f'--tta merges the boxes of all views, not their masks, and {type_name(metric)} '
                f'wants masks (metric={wanted}): test without --tta, or the boxes alone with '
                '--cfg-options test_evaluator.metric=bbox'
            )
    roi_head = cfg.model.get('roi_head') or {}
    if type_name(roi_head) in BOXES_WITHOUT_MASKS:
        roi_head.update(mask_head=None, mask_roi_extractor=None)
    elif 'mask_head' in roi_head or 'mask_head' in cfg.model:
        raise ValueError(
            f'--tta merges the boxes of all views, not their masks, and a {type_name(cfg.model)} '
            'predicts both at once: test without --tta'
        )


def default_detection_tta_model() -> ConfigDict:
    """Merge the boxes of all views by NMS, as mmdet does where a config says nothing."""
    return ConfigDict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    )


def mirror_pipeline(pipeline: list[dict]) -> list[dict]:
    """Test pipeline whose packing step gives each image and its mirror image."""
    pipeline = copy.deepcopy(pipeline)
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    pack = dict(type='PackDetInputs', meta_keys=(*meta_keys, 'flip', 'flip_direction'))
    return [*pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]


def set_prediction_output(cfg: Config, out: str) -> None:
    """Keep the predictions: checked here for a detector, by its metrics for a segmentor.

    Raises:
        ValueError: If a detector's predictions would go to something else than a pickle file, or
            a segmentor's to a file, or the config is for another task.
    """
    task = task_of(cfg)
    if task == DETECTION:
        if not out.endswith(('.pkl', '.pickle')):
            raise ValueError(f'--out of a detector is a .pkl file, got {out!r}')
        return
    if task != SEGMENTATION:
        raise ValueError(f'--out is for detectors and segmentors, not for {task}')
    if out.endswith(('.pkl', '.pickle', '.json')) or os.path.isfile(out):
        raise ValueError(f'--out of a segmentor is a folder of label maps, got {out!r}')
    metrics = cfg.test_evaluator
    for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
        metric.output_dir = out
