"""COCO evaluation by faster-coco-eval: the figures of pycocotools in a fraction of the time."""

from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from mmlska.patches import evaluate_coco_by
from mmlska.registry import METRICS

# pycocotools takes mAP, and it alone, at this count of boxes, whatever maxDets says.
AP_MAX_DETS = 100
# The C++ of faster-coco-eval keeps ids in 64 bits; a double holds whole numbers up to here.
LARGEST_ID = 2**53


@METRICS.register_module()
def FasterCocoMetric(**settings: Any) -> Any:
    """Build mmdet's ``CocoMetric`` with the evaluation of faster-coco-eval.

    Takes the options of ``CocoMetric`` and gives the same numbers, to the last bit or two, in a
    fraction of the time. mmdet's own metric of this name is missing in the original distribution,
    fails only when it evaluates if faster-coco-eval is absent, and reports another ``mAP`` where an
    image has more than 100 boxes of one class.

    Args:
        **settings: Options of ``mmdet.CocoMetric``. ``use_mp_eval`` has no effect.

    Raises:
        ImportError: If mmdet or faster-coco-eval is not installed.
    """
    for module, distribution in (('mmdet', 'mmdet'), ('faster_coco_eval', 'faster-coco-eval')):
        if find_spec(module) is None:
            raise ImportError(
                f"type='mmlska.FasterCocoMetric' needs {module}, which is not installed: "
                f'`pip install {distribution}`, or take CocoMetric, which gives the same numbers'
            )
    return metric_class()(**settings)


@lru_cache
def metric_class() -> type:
    """The metric, made when it is first needed: nothing of mmlska needs mmdet to be imported."""
    from mmdet.evaluation import CocoMetric

    class FasterCocoMetric(CocoMetric):
        def compute_metrics(self, results: list) -> dict[str, float]:
            with evaluate_coco_by(evaluation_class()):
                return super().compute_metrics(results)

    return FasterCocoMetric


@lru_cache
def evaluation_class() -> type:
    """``COCOeval`` of faster-coco-eval with any ids and with the summary of pycocotools."""
    from faster_coco_eval import COCOeval_faster

    class FastCOCOeval(COCOeval_faster):
        def __init__(self, cocoGt: Any = None, *args: Any, **settings: Any) -> None:
            if cocoGt is not None:
                numbers('image', cocoGt.imgs)
                numbers('category', cocoGt.cats)
            super().__init__(cocoGt, *args, **settings)

        def evaluate(self) -> None:
            if not all(has_plain_ids(coco) for coco in (self.cocoGt, self.cocoDt)):
                self._renumber()
            super().evaluate()

        def _renumber(self) -> None:
            images = numbers('image', [*self.cocoGt.imgs, *self.params.imgIds])
            categories = numbers('category', [*self.cocoGt.cats, *self.params.catIds])
            self.cocoGt = renumbered(self.cocoGt, images, categories)
            self.cocoDt = renumbered(self.cocoDt, images, categories)
            self.params.imgIds = [images[key] for key in self.params.imgIds]
            self.params.catIds = [categories[key] for key in self.params.catIds]

        def summarize(self) -> None:
            super().summarize()
            if self.params.iouType != 'keypoints' and AP_MAX_DETS in self.params.maxDets:
                self.stats[0] = self._summarize(1, maxDets=AP_MAX_DETS)

    return FastCOCOeval


def has_plain_ids(coco: Any) -> bool:
    """Whether the ids of a ``COCO`` are whole numbers from 0 on, the only ones that C++ keeps."""
    return all(
        type(key) is int and 0 <= key < LARGEST_ID
        for keys in (coco.imgs, coco.cats, coco.anns)
        for key in keys
    )


def numbers(kind: str, ids: Iterable[Any]) -> dict[Any, int]:
    """Number ids from 1 in their order, in which pycocotools evaluates them.

    Raises:
        TypeError: If numbers and text are mixed, which have no order.
    """
    try:
        return {key: number for number, key in enumerate(sorted(set(ids)), 1)}
    except TypeError as error:
        raise TypeError(
            f'the {kind} ids of the annotation file are of several types ({error}); '
            'write all as whole numbers'
        ) from error


def renumbered(coco: Any, images: dict[Any, int], categories: dict[Any, int]) -> Any:
    """A copy of a ``COCO`` with whole numbers for ids; the annotations are counted from 1.

    pycocotools takes an annotation with the id 0 for none at all, so it keeps that number. What
    belongs to no known image or category is left out, as it is there.
    """
    copy = type(coco)()
    copy.dataset = dict(
        images=[dict(image, id=images[key]) for key, image in coco.imgs.items()],
        categories=[dict(entry, id=categories[key]) for key, entry in coco.cats.items()],
        annotations=[
            dict(
                entry,
                id=0 if entry['id'] in (0, '0') else number,
                image_id=images[entry['image_id']],
                category_id=categories[entry['category_id']],
            )
            for number, entry in enumerate(coco.loadAnns(coco.getAnnIds()), 1)
            if entry['image_id'] in images and entry['category_id'] in categories
        ],
    )
    copy.createIndex()
    return copy
