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

READY = ".tp-explorer .tp-versions button:nth-child(2):not([disabled])"
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
    return server.open(page, place, f"{name}.ipynb", READY)


def drag(page, weights, steps=6):
    "Drag the handle from where it is to a point of the triangle."
    box, at = page.locator(".tp-area").bounding_box(), page.locator(".tp-handle").bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (weights[0] / 2 + weights[2]), box["y"] + box["height"] * (1 - weights[0]), steps=steps)
    page.mouse.up()


def heard(page):
    "The blend that the page holds, as rendered, and the gains at which it and the dry clip are played, three values."
    return page_samples(page, "blend"), page.evaluate(f"{PLAYER}.sounds.get('blend').gain"), page.evaluate(f"{PLAYER}.sounds.get('as it was').gain")


def until_heard(page, wanted, seconds=20):
    "Until the page holds these samples, to the rounding of 16 bits from peak to peak."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        samples, wet, dry = heard(page)
        if samples.shape == wanted.shape and abs(samples - wanted).max() < 0.6 * abs(wanted).max() / 32767:
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

        if place == "voila" and "TIMBRE_PALETTE_PICTURE" in os.environ:  # nbs/images/explorer.png is made so
            page.wait_for_timeout(1000)
            page.locator(".tp-explorer").screenshot(path=os.environ["TIMBRE_PALETTE_PICTURE"])
        count = page.evaluate(f"{PLAYER}.log.length")
        page.keyboard.press("b")  # the focus is on the pad
        page.wait_for_function(f"{PLAYER}.log.length > {count} && {PLAYER}.voice.name === 'as it was'")
        page.keyboard.press("b")
        page.wait_for_function(f"{PLAYER}.voice.name === 'blend'")
        page.click(".tp-swap")
        page.wait_for_function(f"{PLAYER}.voice.name === 'as it was'")
        cells = "globalThis.jupyterapp?.shell.currentWidget?.content?.widgets.length"  # Voilà has none
        before = page.evaluate(cells)
        page.click(".tp-swap")
        page.keyboard.press("a")  # with the focus on a button it is no command of the notebook
        page.keyboard.press("b")
        page.keyboard.press("2")
        assert page.evaluate(cells) == before
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
        assert rate == 44100 and abs(samples.T - enhance(clip, 44100, preset, model="dsp")).max() < 1e-6
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
            assert good.stat().st_size > 10 << 20  # more than Jupyter takes in one message
            page.set_input_files(".tp-upload input", good)
            page.wait_for_function(f"{PLAYER}.sounds.get('as it was')?.buffer.sampleRate === 48000")
            until_heard(page, enhance(read_excerpt(good).samples, 48000, preset, model="dsp"))
    server.stop_kernels()


def test_latency(server, browser):
    """From a pointer event to the new sound, both stamped in the page; ten seconds of stereo at 44.1 kHz.

    On a machine with nothing else to do the median is to be at most 150 ms over 30 drags; what a busy one gives is printed, and must only not be a hang:
    TIMBRE_PALETTE_LATENCY="30 150" pytest -n 0 -s tests/test_explore.py -k latency
    """
    drags, bound_ms = map(int, os.environ.get("TIMBRE_PALETTE_LATENCY", "4 3000").split())
    write_notebook(server.folder / "latency.ipynb", "from timbre_palette.explore import explore\nfrom timbre_palette.synth import demo_clip\nexplore(demo_clip()[:, :441000], 44100)")
    with new_page(browser) as page:
        server.open(page, "lab", "latency.ipynb", READY)
        page.click(".tp-play")
        page.wait_for_function(f"{PLAYER}.position() > 0.5")
        for weights in np.random.default_rng(0).dirichlet(np.ones(3), drags):
            count = page.evaluate(f"{PLAYER}.log.length")
            drag(page, weights, steps=4)
            page.wait_for_function(f"{PLAYER}.log.length > {count}")
            page.wait_for_timeout(200)
        page.wait_for_timeout(500)
        sounds = [sound for sound in page.evaluate(f"{PLAYER}.log") if sound.get("stamp")]
    server.stop_kernels()
    assert len(sounds) >= drags
    taken, arrived = (np.array([sound[name] - sound["stamp"] for sound in sounds]) for name in ("started", "came"))
    print(f"\nfrom pointer to sound, {len(taken)} sounds of {drags} drags: median {np.median(taken):.0f} ms, 95th percentile {np.percentile(taken, 95):.0f} ms, "
          f"worst {taken.max():.0f} ms; in the page after {np.median(arrived):.0f} ms")
    assert np.median(taken) <= bound_ms


@pytest.fixture
def explorer(tmp_path):
    "One without a page."
    (tmp_path / "saved").mkdir()
    one = explore(CLIP, 44100, folder=tmp_path / "saved")
    yield one
    one.close()


def test_a_slow_model_blocks_nothing(explorer, monkeypatch):
    "The sliders go on, only the newest wish is rendered to its end, and it shows that it works."
    begun, asked = threading.Event(), []

    def slow(excerpt, style, amount, model, outdated=lambda: False, block=None):
        asked.append(style)
        begun.set()
        for _ in range(200):
            time.sleep(0.01)
            if outdated():
                raise Outdated
        return render_blend(excerpt, style, amount, model)

    assert explorer.rest()
    explorer._spent.update({"dsp": 1.0, "waveunet-v2": 1.0})  # known to be slow
    monkeypatch.setattr("timbre_palette.explore.render_blend", slow)
    before = explorer.rendered
    explorer.model.value = "waveunet-v2"
    explorer.model.value = "dsp"
    assert begun.wait(5)
    started = time.monotonic()
    for percent in range(40, 60):
        explorer.sliders[0].value = percent / 100
    assert time.monotonic() - started < 1
    time.sleep(0.5)
    assert explorer.pad.busy and "rendering" in explorer.status.value and explorer.rendered is before  # the last one plays on
    assert explorer.rest(20) and not explorer.pad.busy and explorer.status.value == ""
    assert explorer.rendered is not before and asked[-1] == explorer.blend_style and len(asked) < 10


def test_a_failure_is_one_line_and_the_next_wish_is_heard(explorer, monkeypatch):
    assert explorer.rest()

    def broken(*_):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("timbre_palette.explore.render_blend", broken)
        explorer.set_style("warmth")
        assert explorer.rest() and "MemoryError: no room" in explorer.status.value
    explorer.set_style("fullness")
    assert explorer.rest() and np.array_equal(explorer.rendered.samples, enhance(CLIP, 44100, "fullness"))
    with pytest.raises(PaletteError):
        explorer.set_style("loudness")
    explorer.folder = explorer.folder / "missing"
    explorer.save.click()
    assert explorer.rest() and "missing" in explorer.status.value and not explorer.save.disabled


def test_what_cannot_be_explored(tmp_path):
    for wrong in (dict(clip=tmp_path / "none.wav"), dict(clip=CLIP), dict(style="loud"), dict(amount=2), dict(model="nothing")):
        with pytest.raises(PaletteError) as error:
            explore(**wrong)
        assert "\n" not in str(error.value)


def test_a_clip_with_the_name_of_another_is_kept_apart(explorer):
    "What is saved beside the blend never replaces a file that was there."
    other = explorer.folder / "clip.wav"
    write_audio(other, 0.1 * CLIP, 44100)
    before = other.read_bytes()
    explorer.save.click()
    assert explorer.rest() and other.read_bytes() == before
    assert sorted(path.name for path in explorer.folder.iterdir()) == ["clip-2-s33_a33_m33-100-graybox.wav", "clip-2.wav", "clip.wav"]
    explorer.save.click()
    assert explorer.rest() and len(list(explorer.folder.iterdir())) == 3
    time.sleep(1.1)  # float WAVs know the second they were written in
    again = explore(CLIP, 44100, folder=explorer.folder)
    again.save.click()
    assert again.rest() and len(list(explorer.folder.iterdir())) == 3
    again.close()


def test_neither_version_passes_full_scale_and_both_are_alike(tmp_path):
    rng = np.random.default_rng(0)
    for scale in (0.01, 0.3, 1.0, 3.0):
        write_audio(tmp_path / "x.wav", scale * CLIP[:, :44100], 44100, "FLOAT")
        dry = read_excerpt(tmp_path / "x.wav")
        wet = render_blend(dry, snap_style(rng.dirichlet(np.ones(3))))
        for equal in (True, False):
            gains = playing_gains_db(dry, wet, equal=equal)
            for version, gain_db in zip((dry, wet), gains):
                assert abs(version.samples).max() * db_to_gain(gain_db) <= 1 + 1e-6
            apart = loudness_reference(dry.samples * db_to_gain(gains[0]), 44100) - loudness_reference(wet.samples * db_to_gain(gains[1]), 44100)
            assert not equal or abs(apart) < 0.05
        assert gains[0] == gains[1] <= 0


def test_sharing_the_rest_is_what_it_says():
    rng = np.random.default_rng(1)
    for weights in rng.dirichlet(np.ones(3), 100):
        moved, value = rng.integers(3), rng.random()
        shared = share_rest(weights, moved, value)
        others = [k for k in range(3) if k != moved]
        assert shared.min() >= 0 and abs(shared.sum() - 1) < 1e-12 and shared[moved] == value
        assert abs(shared[others[0]] * weights[others[1]] - shared[others[1]] * weights[others[0]]) < 1e-12


def test_the_newest_wish_interrupts():
    "Also one that came from another thread; and none is done twice."
    seen, finished = [], []

    def work(wish, outdated):
        seen.append(wish)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            if outdated():
                raise Outdated
            time.sleep(0.005)
        finished.append(wish)

    newest = Newest(work)
    threads = [threading.Thread(target=newest.wish, args=(k,)) for k in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest.wish("last")
    assert newest.rest(5) and finished == ["last"] and len(set(seen)) == len(seen)
    newest.close()


def test_an_upload_stays_in_its_folder(tmp_path):
    upload, came = Upload(tmp_path / "in"), []
    (tmp_path / "in").mkdir()
    upload.on_file(came.append)
    for name in ("../out.wav", "/etc/out.wav", "a/b/out.wav"):
        upload._handle_custom_msg({"name": name, "at": 0, "size": 3}, [memoryview(b"abc")])
    assert set(came) == {tmp_path / "in" / "out.wav"} and not (tmp_path / "out.wav").exists()
    upload._handle_custom_msg({"name": "empty.wav", "at": 0, "size": 0}, [])
    assert came[-1].stat().st_size == 0
