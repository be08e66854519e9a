"""The page to try models, as a person meets it: in Chromium, with files of all kinds."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from script_runs import REPOSITORY

CHROMIUM = Path(os.environ.get('CHROMIUM', '/usr/bin/chromium'))
SCRIPT = REPOSITORY / 'demo' / 'app.py'
CONFIG = 'fpn_van-lska-pico_demo_digits-64x64'


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    """The page of two untrained models, served by the script itself."""
    for module in ('gradio', 'playwright', 'mmseg', 'sklearn', 'skimage'):
        pytest.importorskip(module, reason=f'the page and its tests need {module}')
    if not CHROMIUM.is_file():
        pytest.skip(f'no browser: {CHROMIUM} is absent (set CHROMIUM to its place)')
    folder = tmp_path_factory.mktemp('app')
    named = [word for size in (23, 7) for word in ('--model', *save_model(folder, size))]
    port = free_port()
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS='1')
    command = [sys.executable, str(SCRIPT), '--port', str(port), '--device', 'cpu', *named]
    with (folder / 'log').open('w') as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            address = f'http://127.0.0.1:{port}/'
            wait_for(lambda: f'Open {address}' in (folder / 'log').read_text(), server, folder)
            yield address
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def save_model(folder, size):
    """A config of that kernel size, and a checkpoint of random weights."""
    from mmengine.registry import MODELS, init_default_scope

    from mmlska.engine.config import load_config

    cfg = load_config(CONFIG, {'model.backbone.attention.kernel_size': size})
    config, checkpoint = folder / f'k{size}.py', folder / f'k{size}.pth'
    cfg.dump(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(size)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    return str(config), str(checkpoint)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def wait_for(condition, server, folder, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert server.poll() is None and time.monotonic() < end, (folder / 'log').read_text()
        time.sleep(0.2)


@pytest.fixture(scope='module')
def browser(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def page(address, browser):
    """The page after it has shown its first results; knows every address that it asked for."""
    context = browser.new_context(viewport=dict(width=1280, height=900))
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.asked = []
    page.on('request', lambda request: page.asked.append(request.url))
    page.goto(address)
    page.wait_for_selector('.lk-figures')
    yield page
    context.close()


def pictures(page):
    """The six pictures, each by what it is of."""
    return {
        image.get_attribute('alt'): image.get_attribute('src')
        for image in page.query_selector_all('.lk-figures img')
    }


def wait_for_others(page, before):
    """Wait until other pictures than these are shown, and return them."""
    page.wait_for_function(
        "old => { const now = document.querySelector('.lk-figures img');"
        ' return now && now.src !== old; }',
        arg=before['Prediction before training'],
    )
    return pictures(page)


def told(page, words):
    """Wait until the results hold these words."""
    page.wait_for_function(
        "words => document.querySelector('#results').innerText.includes(words)", arg=words
    )


def drop(page, path):
    """Take the image away, and drop a file in its place."""
    page.click('#image button[aria-label="Remove Image"]')
    page.set_input_files('#image input[type=file]', path)


@pytest.mark.slow
def test_the_page_works_at_once_and_asks_nobody_else(page, address):
    assert len(pictures(page)) == 6
    assert 'Computed in' in page.inner_text('#results')
    # The browser tells what it fetched; the page holds its pictures itself.
    elsewhere = [url for url in page.asked if not url.startswith((address, 'data:', 'blob:'))]
    assert page.asked and elsewhere == []


@pytest.mark.slow
def test_scenes_and_choices_change_the_results(page):
    first = pictures(page)
    page.click('.gallery-item >> nth=1')
    second = wait_for_others(page, first)
    page.click('#stage label >> nth=0')
    told(page, 'stage 1 (stride 2 px)')
    third = pictures(page)
    field = 'Receptive field after training'
    assert len({first[field], second[field], third[field]}) == 3
    assert third['Prediction after training'] == second['Prediction after training']


@pytest.mark.slow
def test_another_model_brings_its_kernel_size(page):
    first = pictures(page)
    page.click('#model input')
    page.click('[role=option] >> text=/k7$/')
    page.wait_for_function("document.querySelector('#size').innerText.trim().endsWith('7')")
    assert wait_for_others(page, first) != first


@pytest.mark.slow
def test_what_is_wrong_with_a_file_is_told_and_the_next_one_is_read(page, tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    drop(page, tmp_path / 'text.png')
    told(page, 'This is no image that is read here')
    assert pictures(page) == {}
    Image.new('RGBA', (1, 1)).save(tmp_path / 'one.png')
    drop(page, tmp_path / 'one.png')
    told(page, 'Transparent parts were laid on white.')
    assert len(pictures(page)) == 6


@pytest.mark.slow
@pytest.mark.parametrize('width', [390, 1280])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size(dict(width=width, height=844))
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    sides = [image.bounding_box() for image in page.query_selector_all('.lk-figures img')]
    # On a narrow screen before stands beside after, on a wide one all three of a model.
    beside = [side for side in sides if abs(side['y'] - sides[0]['y']) < 2]
    assert len(beside) == (2 if width == 390 else 3)


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    import app

    monkeypatch.setattr(app, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit):
        app.main([])
    assert "pip install 'mmlska[app]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec('gradio') is None, reason='the page needs gradio')
def test_without_a_model_it_says_what_to_run(tmp_path, monkeypatch, capsys):
    import app
    from trial_page import models

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, 'own_models', lambda: {})
    with pytest.raises(SystemExit):
        app.main([])
    assert re.search(r'error: there is no trained model .*make demo', capsys.readouterr().err)
