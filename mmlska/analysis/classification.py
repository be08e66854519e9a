"""What a classifier decides: under corruptions, on folders of images, and where cues disagree.

A classifier is any function of images. One of mmpretrain becomes such a function by
:func:`load_classifier`; nothing else here needs that library.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.utils import ProgressBar

from mmlska.datasets.corruptions import corrupt
from mmlska.engine.config import CLASSIFICATION, load_config, task_of
from mmlska.engine.inference import (
    channel_order,
    find_device,
    load_model,
    read_image,
    split_pipeline,
    test_dataset,
)
from mmlska.engine.launch import check_checkpoint
from mmlska.engine.media_files import IMAGE_SUFFIXES
from mmlska.shipped import nearest

BATCH_SIZE = 32

# RGB images (H, W, 3) of uint8 to probabilities, or other scores, (N, classes).
Classifier = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class FolderAccuracy:
    """Top-1 accuracy on a folder.

    Attributes:
        accuracy: Percent of all images.
        images: How many images.
        classes: How many classes the folder has; the others cannot be answered.
    """

    accuracy: float
    images: int
    classes: int


def classification_errors(
    classify: Classifier,
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    corruptions: Iterable[str],
    severities: Iterable[int],
    seed: int = 0,
) -> dict[str, dict[int, float]]:
    """Top-1 errors of a classifier under corruptions.

    Args:
        classify: Maps images to scores ``(N, K)``.
        images: RGB ``(H, W, 3)``, uint8; of the size at which the benchmark corrupts them, which
            for ImageNet-C is the crop of 224 pixels.
        labels: The class of each image.
        corruptions: Names, see :data:`mmlska.datasets.CORRUPTIONS`.
        severities: 0 (clean) to 5.
        seed: Seed of the corruptions. Defaults to 0.

    Returns:
        Errors in percent by corruption and severity, as
        :func:`mmlska.analysis.robustness.mean_corruption_error` takes their values.

    Raises:
        ValueError: If there is no image, labels are not as many, or scores have another shape.
    """
    if not len(images) or len(images) != len(labels):
        raise ValueError(f'every image has a label: got {len(images)} and {len(labels)}')
    severities = list(severities)

    def error(corruption: str, severity: int) -> float:
        corrupted = (corrupt(image, corruption, severity, seed) for image in images)
        scores = np.concatenate(list(_scores(classify, corrupted)))
        return 100 * float((scores.argmax(1) != np.asarray(labels)).mean())

    return {c: {severity: error(c, severity) for severity in severities} for c in corruptions}


def _scores(classify: Classifier, images: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Scores ``(N, K)`` of one batch after the other."""
    images = iter(images)
    while batch := list(islice(images, BATCH_SIZE)):
        scores = np.asarray(classify(batch))
        if scores.ndim != 2 or len(scores) != len(batch):
            raise ValueError(
                f'a classifier maps {len(batch)} images to scores ({len(batch)}, classes), this '
                f'one to {scores.shape}'
            )
        yield scores


def read_class_names(source: str | Path) -> list[str]:
    """Names of the folders that hold the classes, in the order of a classifier's outputs.

    Args:
        source: The folder of the training set, whose sorted subfolders are the classes, or a text
            file with a name in each line.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it holds no name, or one twice.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f'no folder or file of class names {str(path)!r}')
    if path.is_dir():
        names = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
    else:
        names = [line.split()[0] for line in path.read_text('utf-8').splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'{str(path)!r} names no class, or one twice: {", ".join(names[:4])}')
    return names


def folder_accuracy(
    classify: Classifier, root: str | Path, class_names: Sequence[str]
) -> FolderAccuracy:
    """Top-1 accuracy on ``root/<class>/*`` as ImageNet-A, -R and -Sketch are laid out.

    Where the folder has fewer classes than the classifier, as ImageNet-A and -R have 200 of 1000,
    the highest score among these counts, as in their own code. Shows its progress on stderr.

    Args:
        classify: Maps images to scores ``(N, K)``.
        root: The folder.
        class_names: Name of the folder of each output, see :func:`read_class_names`.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no image.
        ValueError: If a subfolder is no class, or the outputs are not as many as the names.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder {str(root)!r}')
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    unknown = [folder.name for folder in folders if folder.name not in class_names]
    if unknown:
        raise ValueError(
            f'{str(root)!r} has folders that are no class, such as {unknown[0]!r}'
            f'{nearest(unknown[0], class_names)}'
        )
    chosen = [class_names.index(folder.name) for folder in folders]
    files = [
        (path, place)
        for place, folder in enumerate(folders)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise FileNotFoundError(f'{str(root)!r} holds no folder of images for each class')
    right = 0
    labels = iter(place for _, place in files)
    bar = ProgressBar(len(files), file=sys.stderr)
    for scores in _scores(classify, (read_image(path) for path, _ in files)):
        if scores.shape[1] != len(class_names):
            raise ValueError(
                f'the classifier has {scores.shape[1]} outputs, {len(class_names)} class names '
                'are given'
            )
        answers = scores[:, chosen].argmax(1)
        right += sum(int(a == label) for a, label in zip(answers, labels, strict=False))
        bar.update(len(scores))
    print(file=sys.stderr)
    return FolderAccuracy(100 * right / len(files), len(files), len(folders))


@dataclass(frozen=True)
class CueDecisions:
    """How often a classifier followed the shape, and how often the texture.

    Attributes:
        shape: Images answered with the category of their shape.
        texture: Images answered with that of their texture.
        images: Images whose cues disagree.
        by_category: Decisions for shape and for texture of the images of each shape.
    """

    shape: int
    texture: int
    images: int
    by_category: dict[str, tuple[int, int]]

    @property
    def share_of_shape(self) -> float:
        """Decisions for shape among those for either, 0 to 1; NaN if there is none."""
        decided = self.shape + self.texture
        return self.shape / decided if decided else float('nan')


def cue_decisions(
    probabilities: np.ndarray,
    shapes: Sequence[str],
    textures: Sequence[str],
    categories: Mapping[str, Sequence[int]],
) -> CueDecisions:
    """Decisions on images whose shape and texture are of different categories.

    "ImageNet-trained CNNs are biased towards texture" (arXiv 1811.12231): the probability of a
    category is the mean of those of its classes, the decision the highest. Images whose cues agree
    do not count.

    Args:
        probabilities: Softmax outputs ``(N, K)``.
        shapes: Category of the shape of each image.
        textures: Category of its texture.
        categories: The outputs that belong to each category.

    Raises:
        ValueError: If lengths differ, a category is unknown or empty, or names an output that does
            not exist.
    """
    if not len(probabilities) == len(shapes) == len(textures):
        raise ValueError(
            f'every image has probabilities, a shape and a texture: got {len(probabilities)}, '
            f'{len(shapes)}, {len(textures)}'
        )
    names = list(categories)
    for name in {*shapes, *textures}.difference(names):
        raise ValueError(f'no category {name!r}: there are {", ".join(names)}')
    for name, classes in categories.items():
        outside = [c for c in classes if not 0 <= c < probabilities.shape[1]]
        if outside or not len(classes):
            raise ValueError(
                f'the category {name!r} needs outputs from 0 to {probabilities.shape[1] - 1}, got '
                f'{list(classes)}'
            )
    means = np.stack([probabilities[:, list(c)].mean(1) for c in categories.values()], 1)
    answers = [names[i] for i in means.argmax(1)]
    counts: dict[str, list[int]] = {}
    images = 0
    for answer, shape, texture in zip(answers, shapes, textures, strict=True):
        if shape == texture:
            continue
        images += 1
        count = counts.setdefault(shape, [0, 0])
        count[0] += answer == shape
        count[1] += answer == texture
    by_category = {name: (count[0], count[1]) for name, count in counts.items()}
    total = np.array(list(by_category.values()) or [(0, 0)]).sum(0)
    return CueDecisions(int(total[0]), int(total[1]), images, by_category)


def classify_files(classify: Classifier, files: Sequence[Path]) -> np.ndarray:
    """Scores ``(N, K)`` of image files."""
    return np.concatenate(list(_scores(classify, (read_image(path) for path in files))))


def load_classifier(
    config: str | Path,
    checkpoint: str,
    device: str | None = None,
    options: dict | None = None,
) -> Classifier:
    """A trained classifier of mmpretrain, with the test pipeline of its config, as a function.

    Args:
        config: Path of a config, or the name of a shipped one.
        checkpoint: File with its weights.
        device: Where to run. Defaults to a GPU where there is one.
        options: Overrides of the config by dotted key.

    Returns:
        A function of RGB images ``(H, W, 3)`` of uint8 to probabilities ``(N, K)``.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ImportError: If mmpretrain is not installed.
        ValueError: If the config is of another task, or the checkpoint of another model.
    """
    cfg = load_config(config, options)
    check_checkpoint(checkpoint, 'checkpoint')
    if task_of(cfg) != CLASSIFICATION:
        raise ValueError(f'{config}: a config of {task_of(cfg)}, not of a classifier')
    init_default_scope(cfg.default_scope)
    where = find_device(device)
    model, _ = load_model(cfg, checkpoint)
    model.to(where).eval()
    loading, preparing = split_pipeline(test_dataset(cfg).pipeline)
    prepare, order = Compose(preparing), channel_order(loading[-1])

    def classify(images: Sequence[np.ndarray]) -> np.ndarray:
        batch = []
        for image in images:
            pixels = image[..., ::-1] if order == 'bgr' else image
            shape = image.shape[:2]
            batch.append(prepare(dict(img=pixels.copy(), img_shape=shape, ori_shape=shape)))
        with torch.no_grad():
            samples = model.test_step(pseudo_collate(batch))
        return torch.stack([sample.pred_score for sample in samples]).cpu().numpy()

    return classify
