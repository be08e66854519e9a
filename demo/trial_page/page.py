"""The page itself, in Gradio: it hands choices to the models, and shows the HTML of the results."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from mmlska.analysis.attention_maps import short
from mmlska.analysis.before_after import BeforeAfter
from mmlska.engine.inference import describe_error, read_image

from .models import TrainedModel, load
from .results import EMPTY, Shown, render, render_error
from .uploads import FORMATS, MAX_BYTES, MB, UploadError, opened

TITLE = 'What a large kernel sees'
INTRO = (
    f'<div class="lk-intro"><h1>{TITLE}</h1><p>Predictions, receptive field and gate of a model on '
    'one image, before and after its training. All of it is computed on this computer; nothing is '
    'sent anywhere.</p></div>'
)
DROP = f'Drop an image here, or click\n{", ".join(FORMATS)} up to {MAX_BYTES // MB} MB'
# No function of the page is meant for other programs.
SETTINGS = dict(api_visibility='private', show_progress='minimal', concurrency_id='model')
STYLE = Path(__file__).with_name('style.css')
# Fonts of the system: none is fetched.
THEME = gr.themes.Base(
    primary_hue='blue',
    font=['system-ui', 'sans-serif'],
    font_mono=['ui-monospace', 'monospace'],
)


class Page:
    """What the page does, for models that were listed.

    Args:
        models: The models.
        device: Where to run. Defaults to None: a GPU where there is one.
    """

    def __init__(self, models: Sequence[TrainedModel], device: str | None = None) -> None:
        self.models, self.device = models, device
        self.families = list(dict.fromkeys(model.family for model in models))

    def sizes(self, family: str) -> list[tuple[str, int | None]]:
        """Kernel sizes that a family has weights for, each with its words."""
        sizes = [model.kernel_size for model in self.models if model.family == family]
        return [('none' if size is None else str(size), size) for size in sizes]

    def model(self, family: str, size: int | None) -> BeforeAfter:
        """The model of a choice, loaded; of another size where the family has not this one."""
        chosen = [model for model in self.models if model.family == family]
        exact = [model for model in chosen if model.kernel_size == size]
        return load((exact or chosen)[0], self.device)

    def first_size(self, family: str) -> int | None:
        """The middle one of the kernel sizes of a family."""
        sizes = self.sizes(family)
        return sizes[len(sizes) // 2][1]

    def choose_family(self, family: str) -> dict:
        """Offer the kernel sizes of a family."""
        return gr.update(choices=self.sizes(family), value=self.first_size(family))

    def choose_size(self, family: str, size: int | None) -> tuple[dict, dict, dict]:
        """Offer the stages and layers of a model, and a least score where it has scores."""
        try:
            model = self.model(family, size)
        except (OSError, ValueError):
            # The results, which are asked for next, tell it.
            return gr.skip(), gr.skip(), gr.skip()
        stages = [(str(index + 1), index) for index in range(model.stages)]
        layers = [(short(name), name) for name in model.layers]
        return (
            gr.update(choices=stages, value=model.stages // 2),
            gr.update(
                choices=layers,
                value=model.layers[len(layers) // 2] if layers else None,
                visible=bool(layers),
            ),
            gr.update(visible=model.after.is_detector),
        )

    def look(
        self,
        path: str | None,
        family: str,
        size: int | None,
        stage: int,
        layer: str | None,
        score_thr: float,
    ) -> str:
        """The results as HTML, or what went wrong."""
        if path is None:
            return render_error('There is no image yet: drop one, or click on a scene.')
        try:
            with opened(path) as upload:
                model = self.model(family, size)
                start = time.perf_counter()
                findings = model.look(upload.path, stage, layer)
                seconds = time.perf_counter() - start
                image, meta = read_image(upload.path), model.after.visualizer.dataset_meta
                return render(Shown(image, findings, meta, score_thr, upload.notes, seconds))
        except UploadError as error:
            return render_error(str(error))
        except torch.OutOfMemoryError:
            return render_error('The memory of the GPU is full: take a smaller image, or the CPU.')
        # A model refuses an image with exceptions of any kind; the page goes on.
        except Exception as error:
            return render_error(f'The model refuses this image. {describe_error(error)}')


def build(page: Page, scenes: Sequence[Path]) -> gr.Blocks:
    """Lay the page out.

    Args:
        page: What it does.
        scenes: Images to try; the first one is shown at once.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.HTML(INTRO)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image, examples = image_controls(scenes)
                controls = model_controls(page)
                button = gr.Button('Look', variant='primary', elem_id='look')
            with gr.Column(scale=3, min_width=340):
                results = gr.HTML(EMPTY, elem_id='results', padding=False)
        image.clear(lambda: EMPTY, outputs=results, **SETTINGS)
        family, size, *choices = controls
        looking = dict(fn=page.look, inputs=[image, *controls], outputs=results, **SETTINGS)
        for start in (blocks.load, button.click, image.upload, examples.load_input_event.then):
            start(**looking)
        for change in (choices[0].input, choices[1].input, choices[2].release):
            change(**looking)
        offering = dict(fn=page.choose_size, inputs=[family, size], outputs=choices, **SETTINGS)
        chosen = family.input(page.choose_family, family, size, **SETTINGS)
        for start in (size.input, chosen.then):
            start(**offering).then(**looking)
    # One at a time: a model is not meant for several threads at once.
    blocks.queue(default_concurrency_limit=1, max_size=16, api_open=False)
    return blocks


def image_controls(scenes: Sequence[Path]) -> tuple[gr.Image, gr.Examples]:
    """Where an image is dropped, and scenes to choose from."""
    image = gr.Image(
        value=str(scenes[0]),
        label='Image',
        type='filepath',
        image_mode=None,
        sources=['upload', 'clipboard'],
        placeholder=DROP,
        buttons=[],
        height=240,
        elem_id='image',
    )
    # Gradio would open the file before anything of ours could tell what is wrong with it.
    image.preprocess = path_of
    names = [[str(scene)] for scene in scenes]
    label = 'Scenes that no model of the package was trained on'
    return image, gr.Examples(names, image, label=label, api_visibility='private')


def path_of(payload: Any) -> str | None:
    """Path of the file that was dropped, whatever is in it."""
    return payload and payload.path


def model_controls(page: Page) -> list[gr.components.Component]:
    """Model, kernel size, stage, layer and least score, as the first model has them."""
    first = page.families[0]
    sizes, size = page.sizes(first), page.first_size(first)
    stage, layer, score = page.choose_size(first, size)
    return [
        gr.Dropdown(page.families, value=first, label='Model', elem_id='model'),
        gr.Radio(sizes, value=size, label='Kernel size', elem_id='size'),
        gr.Radio(label='Receptive field of stage', elem_id='stage', **options(stage)),
        gr.Dropdown(label='Gate of layer', elem_id='layer', **options(layer)),
        gr.Slider(0, 1, 0.3, step=0.05, label='Least score of a detection', **options(score)),
    ]


def options(update: dict) -> dict:
    """The arguments of an update of a component, for the component itself."""
    return {key: value for key, value in update.items() if key != '__type__'}
