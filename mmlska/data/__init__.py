"""Data sets, checked before the days of training: files, images, annotations, names of classes."""

from .annotation_file import read_annotations
from .cache import remembered
from .checking import Report, check_source, end_with_parent, quick_faults, rare_classes
from .class_names import check_names
from .coco_annotations import check_annotations
from .contact_sheet import contact_sheet
from .faults import Fault, has_errors, joined
from .pictures import LabelMap, Picture, check_label_map, check_picture
from .repair import repair
from .sources import CocoSource, LabelSource, find_sources, is_path, is_remote, leaf_datasets

__all__ = [
    'CocoSource',
    'Fault',
    'LabelMap',
    'LabelSource',
    'Picture',
    'Report',
    'check_annotations',
    'check_label_map',
    'check_names',
    'check_picture',
    'check_source',
    'contact_sheet',
    'end_with_parent',
    'find_sources',
    'has_errors',
    'is_path',
    'is_remote',
    'joined',
    'leaf_datasets',
    'quick_faults',
    'rare_classes',
    'read_annotations',
    'remembered',
    'repair',
]
