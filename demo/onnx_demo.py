#!/usr/bin/env python
"""Draw what an exported model finds in images: boxes, masks or segments.

Needs ONNX Runtime, NumPy and Pillow only. The model is a file that tools/deployment/export_onnx.py
has written with --end2end; how images are prepared and what the classes are stands in the file.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont, ImageOps

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
OPACITY = 0.5


class Detections(NamedTuple):
    """What a detector finds: boxes ``(M, 4)`` in pixels of the image, scores and labels ``(M,)``.

    ``masks`` are probabilities ``(M, h, w)`` on a grid over each box, None of a mere detector.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='%(prog)s IMAGE [IMAGE ...] MODEL [options]',
    )
    add = parser.add_argument
    add('images', nargs='+', metavar='IMAGE', help='image files, or folders of them')
    add('model', metavar='MODEL', help='the ONNX file')
    add('--out', type=Path, default=Path('outputs'), help='folder for pictures (default: outputs)')
    add('--score-thr', type=float, default=0.3, help='least score that is drawn (default: 0.3)')
    args = parser.parse_args(arguments)
    if not 0 <= args.score_thr <= 1:
        parser.error(f'--score-thr takes a number from 0 to 1, got {args.score_thr:g}')
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict and draw, image by image; one that cannot be read does not stop the others."""
    args = parse_args(arguments)
    try:
        paths, model = list_images(args.images), Model(args.model)
    except (OSError, ValueError) as error:
        sys.exit(f'onnx_demo.py: error: {error}')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        failed = [path for path in paths if not draw(path, model, args)]
    except OSError as error:
        sys.exit(f'onnx_demo.py: error: {args.out} takes no pictures: {error.strerror}')
    if failed:
        sys.exit(1)


def draw(path: Path, model: 'Model', args: argparse.Namespace) -> bool:
    """Draw what is found in an image; returns whether it can be read."""
    try:
        with Image.open(path) as opened:
            if opened.mode[0] in 'IF':
                raise ValueError(f'its pixels are of mode {opened.mode}, and no bytes')
            image = np.asarray(ImageOps.exif_transpose(opened).convert('RGB'))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        print(f'onnx_demo.py: error: {path} cannot be read: {error}', file=sys.stderr)
        return False
    picture, found = model.show(image, args.score_thr)
    out = args.out / f'{path.stem}.png'
    picture.save(out)
    print(f'{path}: {found} -> {out}')
    return True


def list_images(names: Sequence[str]) -> list[Path]:
    """The files among the names, and the images in the folders.

    Raises:
        FileNotFoundError: If one does not exist, or a folder holds no image.
        ValueError: If two images would share a picture.
    """
    paths: list[Path] = []
    for path in map(Path, names):
        found = [path] if path.is_file() else []
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise FileNotFoundError(f'{str(path)!r} is no image, and no folder with one')
        paths += found
    (stem, count), *_ = Counter(path.stem for path in paths).most_common(1)
    if count > 1:
        raise ValueError(f'{count} images are called {stem!r}: draw them in separate runs')
    return paths


class Model:
    """An exported model, and what its metadata tell.

    Args:
        file: The ONNX file.

    Raises:
        ValueError: If it is no ONNX file, or lacks the metadata.
    """

    def __init__(self, file: str) -> None:
        if not Path(file).is_file():
            raise FileNotFoundError(f'no model {file!r}')
        try:
            self.session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
        # What ONNX Runtime raises has no common base but this.
        except Exception as error:
            raise ValueError(f'{file!r} is no ONNX model: {error}') from error
        entries = self.session.get_modelmeta().custom_metadata_map
        missing = [key for key in ('task', 'classes', 'resize', 'mean') if key not in entries]
        if missing:
            raise ValueError(
                f'{file!r} does not tell its {", ".join(missing)}: export the model with '
                'tools/deployment/export_onnx.py'
            )
        self.told: dict[str, Any] = {key: json.loads(value) for key, value in entries.items()}
        if not self.told['end_to_end']:
            raise ValueError(f'{file!r} ends at the maps of the head: export it with --end2end')
        self.names = [output.name for output in self.session.get_outputs()]
        sides = self.session.get_inputs()[0].shape[2:]
        self.size = None if isinstance(sides[0], str) else (int(sides[0]), int(sides[1]))

    def show(self, image: np.ndarray, score_thr: float) -> tuple[Image.Image, str]:
        """The picture of what is found in an image ``(H, W, 3)``, and the same in words."""
        if self.told['task'] == 'semantic segmentation':
            labels = self.segment(image)
            return self.draw_labels(image, labels), self.describe_areas(labels)
        found = self.detect(image, score_thr)
        counts = Counter(found.labels.tolist()).most_common()
        words = ', '.join(f'{count} x {self.told["classes"][label]}' for label, count in counts)
        return self.draw_boxes(image, found), words or f'nothing above a score of {score_thr}'

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name for a prepared image ``(3, H, W)``, without the batch."""
        values = self.session.run(None, {'image': image[None]})
        return {name: value[0] for name, value in zip(self.names, values, strict=True)}

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """Resize, pad and normalise an RGB image ``(H, W, 3)`` as the model was trained.

        Returns:
            The input ``(3, H', W')`` of float32, and height and width of the image in it, whose
            upper left corner is its own.
        """
        told = self.told
        size = resized(image.shape[:2], told['resize'])
        is_window = bool(told.get('window'))
        if self.size and not is_window and (size[0] > self.size[0] or size[1] > self.size[1]):
            size = fitted(image.shape[:2], self.size)
        pixels = resize(image.astype(np.float32), size)
        pixels = np.clip(np.floor(pixels + 0.5), 0, 255)
        if told['channel_order'] == 'bgr':
            pixels = pixels[..., ::-1]
        if told['pad']:
            pixels = pad(pixels, padded(size, told['pad']), told['pad']['value'])
        pixels = (pixels - np.float32(told['mean'])) / np.float32(told['std'])
        after = told['pad_after']
        target = padded(pixels.shape[:2], after)
        if self.size and not is_window:
            target = self.size
        return np.ascontiguousarray(pad(pixels, target, after['value']).transpose(2, 0, 1)), size

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Label map ``(H, W)`` of an image."""
        prepared, (height, width) = self.prepare(image)
        logits = self.windows(prepared) if self.told['window'] else self.run(prepared)['logits']
        logits = logits[:, :height, :width].transpose(1, 2, 0)
        logits = resize(logits, image.shape[:2], self.told['align_corners'])
        if logits.shape[2] == 1:
            return (1 / (1 + np.exp(-logits[..., 0])) > self.told['threshold']).astype(np.int64)
        return logits.argmax(2)

    def windows(self, image: np.ndarray) -> np.ndarray:
        """Logits of an image ``(3, H, W)``: means over windows, moved as mmseg moves them."""
        size, stride = self.told['window']['size'], self.told['window']['stride']
        total = count = np.float32(0)
        for top, bottom in spans(image.shape[1], size[0], stride[0]):
            for left, right in spans(image.shape[2], size[1], stride[1]):
                part = image[:, top:bottom, left:right]
                shape = part.shape[1:]
                if self.size:
                    part = pad(part.transpose(1, 2, 0), self.size, 0).transpose(2, 0, 1)
                logits = self.run(np.ascontiguousarray(part))['logits'][:, : shape[0], : shape[1]]
                if not np.ndim(total):
                    total = np.zeros((len(logits), *image.shape[1:]), np.float32)
                    count = np.zeros(image.shape[1:], np.float32)
                total[:, top:bottom, left:right] += logits
                count[top:bottom, left:right] += 1
        return total / count

    def detect(self, image: np.ndarray, score_thr: float) -> Detections:
        """Detections of an image whose score is above a threshold."""
        prepared, (height, width) = self.prepare(image)
        found = self.run(prepared)
        kept = (found['scores'] > score_thr) & (found['labels'] >= 0)
        ratio = np.float32([image.shape[1] / width, image.shape[0] / height] * 2)
        border = np.float32([image.shape[1], image.shape[0]] * 2)
        boxes = np.clip(found['boxes'][kept] * ratio, 0, border)
        masks = found['masks'][kept] if 'masks' in found else None
        return Detections(boxes, found['scores'][kept], found['labels'][kept], masks)

    def colour(self, label: int) -> tuple[int, int, int]:
        """Red, green and blue of a class."""
        palette = self.told['palette']
        if palette:
            return tuple(palette[label])
        return tuple(np.random.default_rng(label).integers(40, 256, 3).tolist())

    def draw_labels(self, image: np.ndarray, labels: np.ndarray) -> Image.Image:
        """The image under the colours of its segments."""
        colours = np.uint8([self.colour(label) for label in range(labels.max() + 1)])
        layer = Image.fromarray(colours[labels])
        return Image.blend(Image.fromarray(image), layer, OPACITY)

    def draw_boxes(self, image: np.ndarray, found: Detections) -> Image.Image:
        """The image with boxes, masks where there are any, classes and scores."""
        picture = Image.fromarray(image)
        draw = ImageDraw.Draw(picture, 'RGBA')
        scale = max(1, max(picture.size) // 500)
        font = ImageFont.load_default(10 * scale)
        # The best one lies on top.
        for i in range(len(found.labels))[::-1]:
            label = int(found.labels[i])
            colour = self.colour(label)
            if found.masks is not None:
                left, top, mask = placed(found.masks[i], found.boxes[i], image.shape[:2])
                opacity = Image.fromarray(np.uint8(mask * int(255 * OPACITY)))
                draw.bitmap((left, top), opacity, (*colour, 255))
            draw.rectangle(found.boxes[i].tolist(), outline=colour, width=2 * scale)
            text = f'{self.told["classes"][label]} {found.scores[i]:.2f}'
            corner = tuple(found.boxes[i][:2].tolist())
            draw.rectangle(draw.textbbox(corner, text, font), fill=(*colour, 200))
            draw.text(corner, text, fill=(255, 255, 255), font=font)
        return picture

    def describe_areas(self, labels: np.ndarray) -> str:
        """The classes with the largest areas."""
        counts = Counter(labels.flatten().tolist()).most_common(5)
        classes = self.told['classes']
        return ', '.join(f'{classes[i]} {100 * n / labels.size:.0f} %' for i, n in counts)


def resized(size: Sequence[int], steps: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Height and width after the steps that resize."""
    height, width = size
    for step in steps:
        if 'multiple_of' in step:
            height, width = (
                -(-n // step['multiple_of']) * step['multiple_of'] for n in (height, width)
            )
        elif step['keep_ratio']:
            long, short = max(step['scale']), min(step['scale'])
            ratio = min(long / max(height, width), short / min(height, width))
            height, width = (max(1, int(n * ratio + 0.5)) for n in (height, width))
        else:
            width, height = step['scale']
    return height, width


def fitted(size: Sequence[int], bounds: Sequence[int]) -> tuple[int, int]:
    """The largest height and width of the same ratio within bounds."""
    ratio = min(bounds[0] / size[0], bounds[1] / size[1])
    return tuple(max(1, min(int(n * ratio + 0.5), b)) for n, b in zip(size, bounds, strict=True))


def padded(size: Sequence[int], rule: dict[str, Any]) -> tuple[int, int]:
    """Height and width after padding to a size, a square, or multiples of a divisor."""
    if rule['size']:
        return tuple(max(n, m) for n, m in zip(size, rule['size'], strict=True))
    size = [max(size)] * 2 if rule.get('square') else size
    return tuple(-(-n // rule['divisor']) * rule['divisor'] for n in size)


def pad(pixels: np.ndarray, size: Sequence[int], value: float) -> np.ndarray:
    """Fill up an image ``(H, W, C)`` at its right and lower side."""
    missing = [max(n - m, 0) for n, m in zip(size, pixels.shape[:2], strict=True)]
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=value)


def resize(pixels: np.ndarray, size: Sequence[int], align_corners: bool = False) -> np.ndarray:
    """Resize ``(H, W, C)`` bilinearly without smoothing, as OpenCV and PyTorch do."""
    for axis, length in enumerate(size):
        old = pixels.shape[axis]
        if old == length:
            continue
        places = np.arange(length)
        if align_corners:
            places = places * ((old - 1) / max(length - 1, 1))
        else:
            places = np.clip((places + 0.5) * (old / length) - 0.5, 0, old - 1)
        first = np.minimum(places.astype(int), old - 1)
        share = (places - first).astype(np.float32)
        share = share.reshape(-1, 1, 1) if axis == 0 else share.reshape(1, -1, 1)
        second = np.minimum(first + 1, old - 1)
        pixels = pixels.take(first, axis) * (1 - share) + pixels.take(second, axis) * share
    return pixels


def spans(length: int, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Where windows of a size begin and end; the last one ends with the image."""
    for i in range(max(length - size + stride - 1, 0) // stride + 1):
        end = min(i * stride + size, length)
        yield max(end - size, 0), end


def placed(mask: np.ndarray, box: np.ndarray, size: Sequence[int]) -> tuple[int, int, np.ndarray]:
    """Left and top of a mask in an image, and its pixels ``(h, w)`` of 0 and 1.

    The grid ``(h, w)`` spans the box; a pixel belongs to the object whose centre has a probability
    of half and more.
    """
    left, top = (int(np.floor(value)) for value in box[:2])
    right, bottom = (int(np.ceil(value)) for value in box[2:])
    right, bottom = min(max(right, left + 1), size[1]), min(max(bottom, top + 1), size[0])
    values = mask
    sides = ((top, bottom, box[1], box[3]), (left, right, box[0], box[2]))
    for axis, (start, end, low, high) in enumerate(sides):
        cells = mask.shape[axis]
        places = (np.arange(start, end) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
        places = np.clip(places, 0, cells - 1)
        first = places.astype(int)
        share = (places - first).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        second = np.minimum(first + 1, cells - 1)
        values = values.take(first, axis) * (1 - share) + values.take(second, axis) * share
    return left, top, values >= 0.5


if __name__ == '__main__':
    main()
