#!/usr/bin/env python
"""A page to try models: predictions, receptive field and gate, before and after training.

It offers the models that come with the package, those that `make demo` has left in work_dirs, and
the ones named here. It is served to this computer alone, and nothing is sent anywhere.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmlska.cli import report_errors

SCENES = 6


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--model',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a model of yours; may be given several times',
    )
    add('--port', type=int, default=7860, help='port of the page (default: 7860)')
    add('--device', help='where to run: cpu, cuda, cuda:1 ... (default: a GPU where there is one)')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    args = parse_args(arguments)
    with report_errors(), tempfile.TemporaryDirectory() as folder:
        if find_spec('gradio') is None:
            raise ImportError("the page needs gradio: `pip install 'mmlska[app]'`")
        serve(args, Path(folder))


def serve(args: argparse.Namespace, folder: Path) -> None:
    """Serve the page; uploads and scenes stay in a folder that is removed afterwards."""
    # Gradio and what it imports read these when they are imported.
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    os.environ['GRADIO_TEMP_DIR'] = str(folder / 'uploads')
    from trial_page.models import list_models
    from trial_page.page import MAX_BYTES, STYLE, THEME, Page, build

    from mmlska.datasets import make_digit_scenes

    models = list_models(args.model)
    make_digit_scenes(folder / 'scenes', num_train=1, num_val=SCENES, image_size=64)
    scenes = sorted((folder / 'scenes' / 'images' / 'val').glob('*.png'))
    blocks = build(Page(models, args.device), scenes)
    _, address, _ = blocks.launch(
        server_name='127.0.0.1',
        server_port=args.port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_BYTES,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        css_paths=STYLE,
    )
    print(f'{len(models)} models. Open {address} in a browser; Ctrl-C ends it.', flush=True)
    blocks.block_thread()


if __name__ == '__main__':
    main()
