"""The comparison of input, reference and result: driven from Python, and in a browser, where what is heard is what the library renders."""
import json
import re
import shlex
import shutil
import time

import numpy as np
import pytest
import soundfile
import torch
from browsers import chromium, jupyter, new_page, page_samples, write_notebook

from timbre_palette.audio import PaletteError, db_to_gain, write_audio
from timbre_palette.colours import check_name, find_colour
from timbre_palette.compare import MOST_STEPS, compare, read_sound, settings_words
from timbre_palette.effects.chains import chain
from timbre_palette.effects.settings import load_settings
from timbre_palette.enhance import render_settings_file
from timbre_palette.loudness import loudness_reference
from timbre_palette.songs import find_tracks
from timbre_palette.style_transfer.match import match, match_file
from timbre_palette.style_transfer.presets import learn_presets
from timbre_palette.style_transfer.system import StyleTransfer
from timbre_palette.synth import demo_clip

CLIP = demo_clip()[:, :2 * 44100]
SHELF = "equaliser_high_shelf_gain_db"


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    "A folder of a song, references of other rates and channels, and files that are none."
    folder = tmp_path_factory.mktemp("songs")
    write_audio(folder / "song.wav", CLIP, 44100, "PCM_16")
    write_audio(folder / "record.wav", 0.1 * demo_clip(22050, seed=1)[:1, 22050:3 * 22050], 22050, "PCM_24")
    write_audio(folder / "silence.wav", np.zeros((2, 8000), np.float32), 8000)
    (folder / "bad.wav").write_bytes(b"RIFF and nothing else")
    return folder


@pytest.fixture(scope="module")
def system(songs, tmp_path_factory):
    "Tiny weights that hear something, if not much: what they find differs by what they hear."
    alone = tmp_path_factory.mktemp("alone")
    shutil.copy(songs / "song.wav", alone)
    torch.manual_seed(0)
    plain = StyleTransfer(hidden=8, encoder_arguments={"width": 8, "dimensions": 16}).eval()
    with torch.no_grad():
        plain.controller.layers[-1].weight *= 30
    return learn_presets(plain, find_tracks(alone), count=2)


@pytest.fixture
def comparison(songs, system, tmp_path):
    one = compare(songs / "song.wav", songs / "record.wav", system, tmp_path)
    assert one.rest()
    yield one
    one.close()


def rendered(comparison):
    "What the settings that are heard make of the excerpt, by the chain on the whole of it."
    effects = chain(*comparison.preset.effects)
    with torch.no_grad():
        return effects(torch.from_numpy(comparison.sound.excerpt.samples)[None], comparison.sound.excerpt.sample_rate, **comparison.preset.settings)[0].numpy()


def said(comparison):
    return re.sub("<[^>]*>", "", comparison.status.value)


def test_what_is_found_is_what_the_library_finds_and_plays(comparison, songs, system, tmp_path):
    found, _ = match_file(songs / "song.wav", tmp_path / "out.wav", songs / "record.wav", model=system)
    assert comparison.found.settings == comparison.preset.settings == found.settings
    assert abs(comparison.rendered.samples - rendered(comparison)).max() < 1e-5
    assert comparison.player.names == ["input", "reference", "result"] and comparison.player.current == "result"
    sounds = {name: (header["rate"], samples * (header["step"] or 1), db_to_gain(header["gain_db"])) for name, (header, samples) in comparison.player._sounds.items()}
    assert [rate for rate, *_ in sounds.values()] == [44100, 22050, 44100]
    levels = [loudness_reference(samples * gain, rate) for rate, samples, gain in sounds.values()]
    assert np.ptp(levels) < 0.1 and all(abs(samples).max() * gain <= 1 + 1e-6 for _, samples, gain in sounds.values())
    comparison.equal.value = False
    assert len({header["gain_db"] for header, _ in comparison.player._sounds.values()}) == 1


def test_a_preset_takes_the_reference_away_and_a_file_brings_it_back(comparison, songs, system):
    shown = comparison.response.value, comparison.spectra.value, comparison.table.value
    comparison.choices[1].value = "bright"
    assert comparison.rest() and comparison.player.names == ["input", "result"] and comparison.player.current == "result"
    assert comparison.found.settings == match(read_sound(songs / "song.wav").heard, 44100, preset="bright", model=system).settings
    assert all(before != after for before, after in zip(shown, (comparison.response.value, comparison.spectra.value, comparison.table.value)))
    comparison.paths[1].value = f" {songs / 'record.wav'} "
    assert comparison.rest() and comparison.player.names == ["input", "reference", "result"] and comparison.choices[1].label == "record.wav" and comparison.paths[1].value == ""


def test_uploads_of_one_name_are_kept_apart_and_read_again(comparison, songs):
    for upload, name in zip(comparison.uploads, ("record.wav", "song.wav")):
        content = (songs / name).read_bytes()
        upload._handle_custom_msg({"name": "take.wav", "at": 0, "size": len(content)}, [memoryview(content)])
        assert comparison.rest()
    assert comparison.sound.excerpt.sample_rate == 22050 and comparison.reference.excerpt.sample_rate == 44100
    assert comparison.sound.excerpt.path.name == comparison.reference.excerpt.path.name == "take.wav" != comparison.sound.excerpt.path
    comparison.uploads[0]._handle_custom_msg({"name": "take.wav", "at": 0, "size": len(content)}, [memoryview(content)])
    assert comparison.rest() and comparison.sound.excerpt.sample_rate == 44100
    comparison.save.click()
    assert comparison.rest() and sorted(path.name for path in comparison.folder.iterdir()) == ["take-like-take.json", "take-like-take.wav", "take.wav"]  # the command needs the song


def test_sliders_are_heard_at_once_and_taken_back(comparison):
    before, found = comparison.rendered, comparison.found
    comparison.knobs[SHELF].value = 20.0
    comparison.knobs["compressor_threshold_db"].value = -40.0
    comparison.knobs["output_gain_db"].value = -3.0
    assert comparison.rest() and comparison.preset.settings == {**found.settings, SHELF: 20.0, "compressor_threshold_db": -40.0, "output_gain_db": -3.0}
    assert comparison.found is found and comparison.preset.about["edited"] and abs(comparison.rendered.samples - rendered(comparison)).max() < 1e-5
    assert "+20.0 dB" in comparison.table.value and "threshold -40.0 dB" in comparison.response.value
    for name, knob in comparison.knobs.items():  # what a page makes of values between its steps
        knob.value = round(comparison.preset.settings[name], 1)
    assert comparison.preset.settings == {**found.settings, SHELF: 20.0, "compressor_threshold_db": -40.0, "output_gain_db": -3.0}
    comparison.undo.click()
    assert comparison.rest() and comparison.preset is found and np.array_equal(comparison.rendered.samples, before.samples) and comparison.knobs[SHELF].value == round(found.settings[SHELF], 1)


def test_refinement_goes_on_until_something_else_is_wanted(comparison, monkeypatch):
    comparison.steps.value = 3
    assert comparison.rest() and comparison.found.about["refined"] == "3 steps"
    begun, asked = [], []

    def slow(*arguments, steps, progress, **others):
        asked.append(steps)
        for step in range(steps):
            time.sleep(0.02)
            progress(step + 1, steps)
            begun.append(step)
        return match(*arguments, **others)

    monkeypatch.setattr("timbre_palette.compare.match", slow)
    comparison.steps.value = MOST_STEPS
    while not begun:
        time.sleep(0.01)
    assert f"of {MOST_STEPS}" in said(comparison)
    comparison.steps.value = 0
    assert comparison.rest() and asked[-1] == 0 and len(begun) < MOST_STEPS and said(comparison) == "" and comparison.steps.value == 0


def test_what_is_saved_is_the_whole_file_with_the_saved_settings(comparison, songs, tmp_path):
    comparison.knobs[SHELF].value = 7.3
    comparison.save.click()
    assert comparison.rest() and not comparison.save.disabled
    line = shlex.split(re.search("<code>(.*)</code>", comparison.status.value)[1].replace("&#x27;", "'"))
    assert line[:2] == ["timbre-palette", "match"] and line[2] == str(songs / "song.wav")
    settings, saved = line[line.index("--settings") + 1], line[line.index("-o") + 1]
    assert load_settings(settings).settings[SHELF] == 7.3 and json.loads(open(settings).read())["about"]["reference"] == "record.wav"
    render_settings_file(songs / "song.wav", tmp_path / "again.wav", settings)
    made = [soundfile.read(path, dtype="int32") for path in (saved, tmp_path / "again.wav")]
    assert np.array_equal(*(samples for samples, _ in made)) and made[0][1] == 44100 and made[0][0].shape == (CLIP.shape[1], 2) and soundfile.info(saved).subtype == "PCM_16"

    comparison.knobs[SHELF].value = -7.3
    comparison.colour.click()
    assert comparison.rest()
    line = shlex.split(re.search("<code>(.*)</code>", comparison.status.value)[1].replace("&#x27;", "'"))
    assert line[:2] == ["timbre-palette", "learn"] and check_name(line[2]) == "like-record" and line[-2:] == ["--data", "SONGS"]
    name, spec = line[line.index("--colour") + 1].split("=", 1)
    x = torch.from_numpy(CLIP)[None]
    assert name == "like-record" and abs(find_colour(spec)(x, 44100)[0].numpy() - rendered(comparison)).max() < 1e-3  # settings are rounded, and so is the song
    assert load_settings(settings).settings[SHELF] == 7.3  # nothing was replaced


def test_what_goes_wrong_is_one_line_and_all_stays(comparison, songs, monkeypatch):
    before, sounds = comparison.rendered, (comparison.sound, comparison.reference)
    for set_it, wrong, words in ((comparison.set_reference, songs / "silence.wav", "nothing to hear"), (comparison.set_input, songs / "silence.wav", "nothing to hear"),
                                 (comparison.set_input, songs / "bad.wav", "is not audio"), (comparison.set_reference, "vintage", "no preset 'vintage' here; use one of released"),
                                 (comparison.set_reference, songs / "none.flac", "no such file"), (comparison.set_input, "", "is not a file")):
        set_it(wrong)
        assert comparison.rest() and words in said(comparison).replace("&#x27;", "'") and "\n" not in said(comparison)
        assert comparison.rendered is before and (comparison.sound, comparison.reference) == sounds and [choice.label for choice in comparison.choices] == ["song.wav", "record.wav"]
    comparison.steps.value = 1  # and the next wish is as if nothing had been
    assert comparison.rest() and comparison.found.about["refined"] == "1 steps" and said(comparison) == ""
    comparison.folder = comparison.folder / "missing"
    comparison.save.click()
    assert comparison.rest() and "missing" in said(comparison) and not comparison.save.disabled

    def broken(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr("timbre_palette.compare.render_excerpt", broken)
    comparison.knobs[SHELF].value = 3.0
    assert comparison.rest() and said(comparison) == "MemoryError: no room"


def test_what_cannot_be_compared(songs, system):
    for wrong in (dict(input=songs / "none.wav"), dict(reference="vintage"), dict(reference=songs / "silence.wav"), dict(input=songs / "bad.wav"), dict(model="nothing")):
        with pytest.raises(PaletteError) as error:
            compare(**{"input": songs / "song.wav", "model": system, **wrong})
        assert "\n" not in str(error.value)
    with pytest.raises(PaletteError, match="give a reference"):
        compare(songs / "song.wav", model=StyleTransfer(hidden=8, encoder_arguments={"width": 8, "dimensions": 16}).eval())


def test_nothing_of_the_sound_is_in_the_state_that_notebooks_save(comparison):
    assert not any(isinstance(value, (bytes, memoryview, np.ndarray)) for value in comparison.player.get_state().values())


def test_it_works_in_jupyterlab(songs, system, tmp_path):
    "Opened on the demo clips; a preset is chosen, a slider moved, a file opened, and the result saved: the page plays what the library renders."
    player = "document.querySelector('.tp-player').player"
    with jupyter(tmp_path) as server, chromium() as browser, new_page(browser, height=1500) as page:
        system.save_pretrained(server.folder / "tiny")
        write_notebook(server.folder / "compare.ipynb", "from timbre_palette.compare import compare\ncomparison = compare(model='tiny')\ncomparison")
        errors = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        server.open(page, "lab", "compare.ipynb", ".tp-compare .tp-versions button:nth-child(3):not([disabled])")
        page.click(".tp-play")
        page.wait_for_function(f"{player}.voice?.name === 'result'")

        count = page.evaluate(f"{player}.sounds.get('result').id")
        page.locator(".tp-compare select").nth(1).select_option(label="preset: bright")
        page.wait_for_function(f"{player}.sounds.get('result')?.id > {count} && {player}.voice?.id === {player}.sounds.get('result').id && !{player}.sounds.has('reference')")
        clip = demo_clip()
        bright = match(clip, 44100, preset="bright", model=system)
        wanted = bright(torch.from_numpy(clip)[None], 44100)[0].numpy()
        assert abs(page_samples(page, "result") - wanted).max() < 0.6 * abs(wanted).max() / 32767 + 1e-5
        assert page.evaluate(f"{player}.log.at(-1).name") == "result"
        page.keyboard.press("1")
        page.wait_for_function(f"{player}.voice?.name === 'input'")
        page.keyboard.press("b")
        page.wait_for_function(f"{player}.voice?.name === 'result'")

        count = page.evaluate(f"{player}.sounds.get('result').id")
        page.locator(".widget-hslider", has_text="high shelf").locator(".noUi-handle").focus()
        page.keyboard.press("PageUp")
        page.wait_for_function(f"{player}.sounds.get('result').id > {count}")
        page.set_input_files(".tp-upload >> nth=1 >> input", songs / "record.wav")
        page.wait_for_function(f"{player}.sounds.get('reference')?.buffer.sampleRate === 22050")
        words = settings_words(match(clip, 44100, read_sound(songs / "record.wav").heard, 22050, model=system))
        page.wait_for_selector(f"img[alt$='{words}']")
        page.wait_for_selector("img[alt*='reference, bass']")
        page.click("button:has-text('Save as WAV')")
        page.wait_for_selector("code:has-text('timbre-palette match')")
        line = shlex.split(page.locator("code:has-text('timbre-palette match')").inner_text())
        saved = server.folder / line[line.index("-o") + 1]
        assert saved.name == "demo_clip-like-record.wav" and soundfile.info(saved).frames == clip.shape[1]
        page.screenshot(path=tmp_path / "compare.png")
        assert not errors
