"""The player in a browser: what it holds is what was loaded, and a change goes on at the same place. In JupyterLab the explorer's tests play it."""
import numpy as np
import pytest
from browsers import chromium, jupyter, new_page, page_samples, write_notebook

CELL = """
from timbre_palette.player import Player
from timbre_palette.synth import demo_clip
clip = demo_clip()
player = Player()
player.load("dry", clip, 44100)
player.load("other way", -1.5 * clip[::-1], 44100, gain_db=-6)
player
"""
PLAYER = "document.querySelector('.tp-player').player"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with jupyter(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


@pytest.mark.parametrize("place", ["voila", "notebook"])
def test_the_page_plays_what_was_loaded(server, place):
    from timbre_palette.synth import demo_clip
    write_notebook(server.folder / f"{place}.ipynb", CELL)
    with chromium() as browser, new_page(browser) as page:
        server.open(page, place, f"{place}.ipynb", ".tp-player .tp-versions button:nth-child(2):not([disabled])")
        clip = demo_clip()
        assert np.array_equal(page_samples(page, "dry"), clip) and np.array_equal(page_samples(page, "other way"), np.float32(-1.5) * clip[::-1])

        page.click(".tp-play")
        page.wait_for_function(f"{PLAYER}.position() > 0.3")
        page.keyboard.press("2")
        page.wait_for_function(f"{PLAYER}.log.length === 2")
        first, second = page.evaluate(f"{PLAYER}.log")
        assert (first["name"], second["name"]) == ("dry", "other way")
        passed = round((second["when"] - first["when"]) * 44100)
        assert passed > 10000 and (second["frame"] - first["frame"] - passed) % clip.shape[1] == 0  # the very frame
        page.keyboard.press("ArrowRight")
        page.wait_for_function(f"{PLAYER}.position() > 1.2")
        page.keyboard.press(" ")
        page.wait_for_function(f"!{PLAYER}.playing")
        place_then = page.evaluate(f"{PLAYER}.position()")
        page.wait_for_timeout(150)
        assert page.evaluate(f"{PLAYER}.position()") == place_then > 1.2
        if place != "voila":  # the keys were the player's alone
            assert page.locator(".jp-Cell").count() == page.locator(".jp-CodeCell").count() == 1
        assert page.locator(".tp-versions button[aria-checked=true]").inner_text() == "2 other way"
    server.stop_kernels()
