"""The explorer in a browser: what is heard is what the library renders, at once; and its parts without one."""
import os
import shlex
import subprocess
import threading
import time

import numpy as np
import pytest
import soundfile
from browsers import chromium, jupyter, new_page, page_samples, write_notebook

from timbre_palette.audio import PaletteError, db_to_gain, write_audio
from timbre_palette.blend import PRESETS, parse_style
from timbre_palette.enhance import enhance
from timbre_palette.explore import Newest, Outdated, Upload, explore, playing_gains_db, read_excerpt, render_blend, share_rest, snap_style
from timbre_palette.loudness import loudness_reference
from timbre_palette.synth import demo_clip

PLAYER = "document.querySelector('.tp-player').player"
CLIP = demo_clip()[:, :4 * 44100]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with jupyter(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def open_explorer(server, page, place, call, name="explore"):
    "A notebook with one explorer, ready to play."
    write_notebook(server.folder / f"{name}.ipynb", f"from timbre_palette.explore import explore\nexplorer = explore({call})\nexplorer")
    return server.open(page, place, f"{name}.ipynb", ".tp-explorer .tp-versions button:nth-child(2):not([disabled])")


def drag(page, weights, steps=6):
    "Drag the handle from where it is to a point of the triangle."
    box, at = page.locator(".tp-area").bounding_box(), page.locator(".tp-handle").bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (weights[0] / 2 + weights[2]), box["y"] + box["height"] * (1 - weights[0]), steps=steps)
    page.mouse.up()


def wait_for_blend(page, style):
    "Until the page holds this blend: the name of the pad's weights, and no wish open."
    whole = " · ".join(f"{100 * weight:.0f}" for weight in parse_style(style))
    page.wait_for_function("text => document.querySelector('.tp-feet output').textContent === text", arg=whole)


def heard(page):
    "The blend that the page holds, its playing gain undone from nothing: the buffer is as rendered, the gain stands beside it."
    return page_samples(page, "blend"), page.evaluate(f"{PLAYER}.sounds.get('blend').gain"), page.evaluate(f"{PLAYER}.sounds.get('as it was').gain")


def until_heard(page, wanted, seconds=20):
    "Until the page holds these samples, to the rounding of 32-bit floats."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        samples, wet, dry = heard(page)
        if samples.shape == wanted.shape and abs(samples - wanted).max() < 1e-6:
            return wet, dry
        page.wait_for_timeout(100)
    raise AssertionError(f"not the blend: {abs(samples - wanted).max() if samples.shape == wanted.shape else samples.shape}")


@pytest.mark.parametrize("place", ["lab", "voila"])
def test_the_explorer_end_to_end(server, browser, place, command):
    write_audio(server.folder / "clip.wav", CLIP, 44100, "PCM_24")
    clip = soundfile.read(server.folder / "clip.wav", dtype="float32")[0].T
    with new_page(browser) as page:
        open_explorer(server, page, place, "'clip.wav'", place)
        until_heard(page, enhance(clip, 44100, "s33_a33_m33"))
        page.click(".tp-play")
        page.wait_for_function(f"{PLAYER}.position() > 0.2")

        drag(page, (0.5, 0.2, 0.3))
        style = page.evaluate("document.querySelector('.tp-feet output').textContent").split(" · ")
        style = "s{}_a{}_m{}".format(*style)
        assert abs(parse_style(style) - (0.5, 0.2, 0.3)).max() < 0.03
        wanted = enhance(clip, 44100, style)
        wet, dry = until_heard(page, wanted)
        levels = [loudness_reference(samples * gain, 44100) for samples, gain in ((wanted, wet), (clip, dry))]
        assert abs(levels[0] - levels[1]) < 0.05 and abs(wanted).max() * wet <= 1  # an independent meter finds them alike
        first, *_, last = page.evaluate(f"{PLAYER}.log")
        assert (last["frame"] - first["frame"] - round((last["when"] - first["when"]) * 44100)) % clip.shape[1] == 0  # the place was kept

        count = page.evaluate(f"{PLAYER}.log.length")
        page.keyboard.press("b")  # the focus is on the pad
        page.wait_for_function(f"{PLAYER}.log.length > {count} && {PLAYER}.voice.name === 'as it was'")
        page.keyboard.press("b")
        page.wait_for_function(f"{PLAYER}.voice.name === 'blend'")
        page.click(".tp-swap")
        page.wait_for_function(f"{PLAYER}.voice.name === 'as it was'")
        page.click(".tp-swap")
        page.keyboard.press("b")
        page.keyboard.press("2")
        page.wait_for_function(f"{PLAYER}.voice.name === 'blend'")

        page.locator(".tp-area").focus()
        page.keyboard.press("Shift+ArrowLeft")
        page.click(".tp-corner >> text=warmth")
        until_heard(page, enhance(clip, 44100, "warmth"))
        page.locator("select").filter(has_text="exact palette").select_option(label="exact palette")
        until_heard(page, enhance(clip, 44100, "warmth", model="dsp"))
        page.locator("select").filter(has_text="of your own").select_option(index=1)
        preset = next(iter(PRESETS))
        until_heard(page, enhance(clip, 44100, preset, model="dsp"))

        page.click("button:has-text('Save as WAV')")
        page.wait_for_selector("code:has-text('timbre-palette enhance')")
        line = shlex.split(page.locator("code:has-text('timbre-palette enhance')").inner_text())
        saved = server.folder / line[line.index("-o") + 1]
        made = saved.read_bytes()
        samples, rate = soundfile.read(saved, dtype="float32")
        assert rate == 44100 and abs(samples.T - enhance(clip, 44100, preset, model="dsp")).max() < 2 ** -22
        saved.unlink()
        if place == "lab":  # the line is the same, and starting the command takes seconds
            subprocess.run([*command, *line[1:]], cwd=server.folder, check=True, capture_output=True)
            assert saved.read_bytes() == made

        if place == "voila":
            bad, good = server.folder / "bad.wav", server.folder / "long.wav"
            bad.write_bytes(b"RIFF and nothing else")
            page.set_input_files(".tp-upload input", bad)
            page.wait_for_selector("text=bad.wav: is not audio")
            until_heard(page, enhance(clip, 44100, preset, model="dsp"))
            noise = 0.1 * np.random.default_rng(0).standard_normal((2, 60 * 48000)).astype(np.float32)
            write_audio(good, noise, 48000)
            assert good.stat().st_size > 11 << 20  # more than Jupyter takes in one message
            page.set_input_files(".tp-upload input", good)
            page.wait_for_function(f"{PLAYER}.sounds.get('as it was')?.buffer.sampleRate === 48000")
            until_heard(page, enhance(read_excerpt(good).samples, 48000, preset, model="dsp"))
    server.stop_kernels()


def test_latency(server, browser):
    "From a pointer event to the new sound, both stamped in the page; ten seconds of stereo at 44.1 kHz, thirty drags."
    bound_ms = float(os.environ.get("TIMBRE_PALETTE_LATENCY_MS", 600))
    with new_page(browser) as page:
        write_notebook(server.folder / "latency.ipynb", "from timbre_palette.explore import explore\nfrom timbre_palette.synth import demo_clip\nexplore(demo_clip()[:, :441000], 44100)")
        server.open(page, "lab", "latency.ipynb", ".tp-explorer .tp-versions button:nth-child(2):not([disabled])")
        page.click(".tp-play")
        page.wait_for_function(f"{PLAYER}.position() > 0.5")
        points = np.random.default_rng(0).dirichlet(np.ones(3), 30)
        for weights in points:
            drag(page, weights)
            page.wait_for_timeout(300)
        page.wait_for_timeout(500)
        sounds = [sound for sound in page.evaluate(f"{PLAYER}.log") if sound.get("stamp")]
        taken = np.array([sound["started"] - sound["stamp"] for sound in sounds])
        assert len(sounds) >= 30
        arrived = np.array([sound["came"] - sound["stamp"] for sound in sounds])
        print(f"\nfrom pointer to sound, {len(taken)} sounds of 30 drags: median {np.median(taken):.0f} ms, 95th percentile {np.percentile(taken, 95):.0f} ms, "
              f"worst {taken.max():.0f} ms; in the page after {np.median(arrived):.0f} ms")
        assert np.median(taken) <= bound_ms
    server.stop_kernels()
