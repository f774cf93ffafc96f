"""The panel that plays what is whistled: driven from Python, and in a browser, where a take of the microphone is played, heard and saved."""
import re
import shlex
import time

import numpy as np
import pytest
import soundfile
from browsers import chromium, jupyter, new_page, page_samples, write_notebook

from timbre_palette.audio import PaletteError, db_to_gain, read_audio, write_audio
from timbre_palette.checkpoint import shipped
from timbre_palette.cli import make_parser
from timbre_palette.loudness import loudness_reference
from timbre_palette.timbre_transfer.pitch import Pitch
from timbre_palette.timbre_transfer.transfer import find_instrument, pitch_tracked_synthesis, transfer, transfer_file
from timbre_palette.timbre_transfer.whistles import whistle
from timbre_palette.timbre_transfer.whistling import OCTAVES, VERSIONS, Playing, follow, instruments, octaves_between, plot_voices, transfer_command, voices_words, whistle_to

TUNE = whistle(4, 2.0, low_hz=700, high_hz=1900)


@pytest.fixture(scope="module")
def takes(tmp_path_factory):
    "A folder of whistles, and of files that are none."
    folder = tmp_path_factory.mktemp("takes")
    write_audio(folder / "tune.wav", TUNE.samples, 44100, "FLOAT")
    write_audio(folder / "other.wav", np.repeat(whistle(1, 1.5, 48000).samples, 2, 0), 48000, "PCM_24")
    write_audio(folder / "low.wav", whistle(1, 1.0, 8000, high_hz=2000).samples, 8000)
    write_audio(folder / "silence.wav", np.zeros((2, 8000), np.float32), 8000)
    write_audio(folder / "short.wav", TUNE.samples[:, 10000:14000], 44100)
    write_audio(folder / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal((1, 44100)), 44100)
    write_audio(folder / "apart.wav", np.concatenate([TUNE.samples, -TUNE.samples]), 44100)
    (folder / "bad.wav").write_bytes(b"RIFF and nothing else")
    return folder


@pytest.fixture
def panel(takes, tmp_path):
    one = whistle_to("trumpet", takes / "tune.wav", folder=tmp_path)
    assert one.rest()
    yield one
    one.close()


def said(panel):
    return re.sub("<[^>]*>", "", panel.status.value)


def command_of(panel):
    return shlex.split(re.search("<code>(.*)</code>", panel.status.value)[1].replace("&#x27;", "'"))


def test_what_is_heard_is_what_the_library_plays(panel):
    trumpet = find_instrument("trumpet")
    wanted = TUNE.samples, pitch_tracked_synthesis(TUNE.samples, 44100, trumpet), transfer(TUNE.samples, 44100, trumpet)
    assert panel.player.names == list(VERSIONS) and panel.player.current == "instrument"
    heard = [(samples, db_to_gain(header["gain_db"])) for header, samples in panel.player._sounds.values()]
    assert all(np.array_equal(samples, sound) for (samples, _), sound in zip(heard, wanted))
    assert np.ptp([loudness_reference(samples * gain, 44100) for samples, gain in heard]) < 0.1 and all(abs(samples).max() * gain <= 1 for samples, gain in heard)
    panel.equal.value = False
    assert len({header["gain_db"] for header, _ in panel.player._sounds.values()}) == 1
    assert said(panel) == "" and "trumpet, pitch from" in panel.picture.value and not any(isinstance(value, (bytes, memoryview)) for value in panel.player.get_state().values())


def test_every_setting_is_played_anew_and_named_in_the_command(panel, tmp_path):
    settings = {"to": "violin", "octaves": -3, "loudness": 5.0, "expression": 0.5, "reverb": 0.25}
    for name, value in settings.items():
        before, shown = panel.played, panel.picture.value
        getattr(panel, name).value = value
        assert panel.rest() and panel.played is not before and not np.array_equal(panel.played.samples, before.samples) and panel.picture.value != shown
    assert panel.playing == Playing(*settings.values())
    assert np.array_equal(panel.played.samples, transfer(TUNE.samples, 44100, find_instrument("violin"), -3, 5.0, 0.5, 0.25))
    panel.save.click()
    assert panel.rest()
    options = make_parser().parse_args(command_of(panel)[1:])
    assert (options.to, options.octaves, options.loudness, options.expression, options.reverb) == tuple(settings.values())
    transfer_file(options.input, tmp_path / "again.wav", options.to, options.octaves, options.loudness, options.expression, options.reverb)
    assert np.array_equal(*(soundfile.read(path, dtype="float64")[0] for path in (options.out, tmp_path / "again.wav")))
    panel.octaves.value = "automatic"
    assert panel.rest() and panel.playing.octaves is None


def test_all_shipped_instruments_can_be_chosen(panel):
    assert list(panel.to.options) == instruments() and {"trumpet", "flute", "violin"} <= set(instruments()) and all(f"timbre-{name}" in shipped() for name in instruments())
    assert [value for _, value in panel.octaves.options] == ["automatic", *OCTAVES] and (min(OCTAVES), max(OCTAVES)) == (-4, 2)


def test_takes_of_the_microphone_are_kept_apart_and_the_latest_wins(panel, monkeypatch):
    panel.player.playing = True
    panel.recorder.recording = True
    assert not panel.player.playing  # or it would be recorded
    panel.recorder.recording = False
    first, second = whistle(1, 1.0, 48000).samples, whistle(2, 1.5, 16000).samples
    for number, (samples, rate) in enumerate([(first, 48000), (second, 16000)], 1):
        sent = samples.tobytes()
        panel.recorder._handle_custom_msg({"take": f"{number}", "at": 0, "size": len(sent), "rate": rate}, [memoryview(sent)])
    assert panel.rest() and panel.voice.sample_rate == 16000 and np.array_equal(panel.voice.samples, second)
    panel.set_sound(panel._temporary.name + "/recording-1.wav")
    assert panel.rest() and np.array_equal(panel.voice.samples, first) and panel.choice.label == "recording-1.wav" and panel.player.position == 0.0
    panel.save.click()
    assert panel.rest() and sorted(path.name for path in panel.folder.iterdir()) == ["recording-1-trumpet.wav", "recording-1.wav"]  # the command needs the take
    assert np.array_equal(read_audio(panel.folder / "recording-1.wav").samples, first)
    panel.to.value = "flute"
    panel.set_playing(Playing("trumpet", -4))
    assert panel.rest() and panel.playing == Playing("trumpet", -4)
    panel.save.click()
    assert panel.rest() and (panel.folder / "recording-1-trumpet-2.wav").exists() and command_of(panel)[-2:] == ["--octaves", "-4"]


def test_an_outdated_wish_is_given_up(panel, monkeypatch):
    begun, ended = [], []

    def slow(*arguments, progress, **settings):
        begun.append(1)
        for step in range(500):
            time.sleep(0.01)
            progress(step / 500)
        ended.append(1)

    with monkeypatch.context() as patch:
        patch.setattr("timbre_palette.timbre_transfer.whistling.transfer", slow)
        panel.octaves.value = -1
        while "listening and playing" not in said(panel):
            time.sleep(0.01)
    panel.octaves.value = -3
    assert panel.rest(5) and begun and not ended and panel.playing.octaves == -3 and said(panel) == ""


def test_uploads_are_read_again(panel, takes):
    for name, rate in (("tune.wav", 44100), ("other.wav", 48000)):
        content = (takes / name).read_bytes()
        panel.upload._handle_custom_msg({"name": "take.wav", "at": 0, "size": len(content)}, [memoryview(content)])
        assert panel.rest() and panel.voice.sample_rate == rate and panel.choice.label == "take.wav"
    assert panel.played.samples.shape == (1, 72000) and panel.voice.samples.shape == (2, 72000)
    panel.path.value = f" {takes / 'low.wav'} "
    assert panel.rest() and panel.voice.sample_rate == 8000 and panel.path.value == "" and "pitch from" in panel.picture.value


def test_what_goes_wrong_is_one_line_and_all_stays(panel, takes, monkeypatch):
    before = panel.voice, panel.playing, panel.tracked, panel.played
    for name, words in {"silence.wav": "silence", "short.wav": "too short", "noise.wav": "no single voice can be followed", "apart.wav": "cancel each other", "bad.wav": "is not audio", "none.wav": "no such file", "": "is a folder"}.items():
        panel.set_sound(takes / name)
        assert panel.rest() and words in said(panel) and "\n" not in said(panel) and (panel.voice, panel.playing, panel.tracked, panel.played) == before and panel.choice.label == "tune.wav"
    panel.reverb.value = 0.5
    assert panel.rest() and said(panel) == "" and panel.playing.reverb == 0.5  # and the next wish is as if nothing had been
    panel.folder = panel.folder / "missing"
    panel.save.click()
    assert panel.rest() and "missing" in said(panel) and not panel.save.disabled

    def broken(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr("timbre_palette.timbre_transfer.whistling.transfer", broken)
    panel.to.value = "flute"
    assert panel.rest() and said(panel) == "MemoryError: no room" and panel.to.value == "trumpet"


def test_a_page_that_opens_late_is_told_what_it_missed(panel, monkeypatch):
    sent = []
    for part in (panel.player, panel.picture, panel.status, panel.save):
        monkeypatch.setattr(type(part), "send_state", lambda self, *_: sent.append(self))
    panel.player._handle_custom_msg({"want": "all"}, [])
    assert {panel.player, panel.picture, panel.status, panel.save} <= set(sent)


def test_what_cannot_begin(takes):
    for wrong in (dict(to="kazoo"), dict(to=find_instrument("trumpet")), dict(octaves=9), dict(octaves=0.5), dict(loudness_db=99), dict(expression=2), dict(reverb=-1), dict(source=takes / "silence.wav"), dict(source=takes / "none.wav")):
        with pytest.raises(PaletteError) as error:
            whistle_to(**wrong)
        assert "\n" not in str(error.value)


def test_weights_of_ones_own_and_settings_of_the_command(takes, tmp_path):
    find_instrument("flute").save_pretrained(tmp_path / "my flute")
    with_own = whistle_to(tmp_path / "my flute", takes / "tune.wav", octaves=-5, folder=tmp_path)
    assert with_own.rest() and with_own.to.value == str(tmp_path / "my flute") and with_own.octaves.value == -5
    assert np.array_equal(with_own.played.samples, transfer(TUNE.samples, 44100, find_instrument("flute"), -5))
    with_own.save.click()
    assert with_own.rest() and (tmp_path / "tune-my flute.wav").exists() and make_parser().parse_args(command_of(with_own)[1:]).to == str(tmp_path / "my flute")
    with_own.close()


def test_the_picture_shows_pitch_and_multiples():
    steady = np.sin(2 * np.pi * 1000 * np.arange(22050) / 44100)[None].astype(np.float32)
    pitches = {"one": follow(steady, 44100), "low": follow(np.sin(2 * np.pi * 251 * np.arange(22050) / 44100)[None], 44100)}
    assert octaves_between(pitches["one"], pitches["low"]) == -2
    assert voices_words(pitches) == "Spectrograms with the pitch and its multiples: one, pitch from 1000 to 1000 Hz; low, pitch from 251 to 251 Hz, 2 octaves below"
    [axes] = plot_voices({"one": steady}, 44100).axes
    [image], lines = axes.images, [np.nanmedian(line.get_ydata()) for line in axes.lines]
    assert np.allclose(sorted(lines), np.arange(1, 11), atol=0.01)
    level, (_, seconds, low, high) = image.get_array(), image.get_extent()
    assert abs(low + (high - low) * (level[:, level.shape[1] // 2].argmax() + 0.5) / len(level) - 1.0) < 0.03 and seconds >= 0.5  # where it is drawn
    nothing = Pitch(np.arange(10) / 100, np.zeros(10), np.zeros(10, bool), np.zeros(10))
    assert octaves_between(nothing, pitches["one"]) == 0 and "two, no pitch" in voices_words({"one": pitches["one"], "two": nothing})
    assert plot_voices({"one": steady}, 44100, {"one": nothing}).axes[0].lines


def test_the_command_says_what_differs():
    assert transfer_command("a.wav", "b.wav", Playing(octaves=0)) == "timbre-palette transfer a.wav --to trumpet -o b.wav --octaves 0"
    options = make_parser().parse_args(shlex.split(transfer_command("a b.wav", "c.wav", Playing("flute", -4, -3.0)))[1:])
    assert (options.input, options.to, options.octaves, options.loudness, options.expression, options.reverb) == ("a b.wav", "flute", -4, -3.0, 0.0, 1.0)


def test_it_works_in_jupyterlab(tmp_path):
    "Opened on the whistle that is made up; the microphone is recorded, another instrument chosen and the result saved: the page plays what the library makes of the take."
    player = "document.querySelector('.tp-player').player"
    write_audio(tmp_path / "microphone.wav", np.pad(TUNE.samples, ((0, 0), (8000, 22050))), 44100, "PCM_16")
    (tmp_path / "lab").mkdir()
    microphone = "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={tmp_path / 'microphone.wav'}"
    with jupyter(tmp_path / "lab") as server, chromium(*microphone) as browser, new_page(browser, height=1300) as page:
        write_notebook(server.folder / "whistle.ipynb", "from timbre_palette.timbre_transfer.whistling import whistle_to\nwhistle_to()")
        errors = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        server.open(page, "lab", "whistle.ipynb", ".tp-whistling .tp-versions button:nth-child(3):not([disabled])")
        page.click(".tp-play")
        page.wait_for_function(f"{player}.voice?.name === 'instrument'")
        count = page.evaluate(f"{player}.sounds.get('instrument').id")
        page.get_by_role("button", name="Record from the microphone").click()
        page.wait_for_function(f"!{player}.playing && parseFloat(document.querySelector('.tp-seconds').textContent) >= 2.5", timeout=20000)
        page.get_by_role("button", name="Stop recording").click()
        page.wait_for_function(f"{player}.sounds.get('instrument').id > {count}")
        assert page.evaluate("document.activeElement === document.querySelector('.tp-recorder button')")  # the keys go on
        page.locator(".tp-whistling select").nth(1).select_option(label="flute")
        page.wait_for_selector("img[alt*='flute, pitch from']")
        page.click(".tp-play")
        page.keyboard.press("1")
        page.wait_for_function(f"{player}.voice?.name === 'recorded'")
        page.click("button:has-text('Save as WAV')")
        page.wait_for_selector("code:has-text('timbre-palette transfer')")
        assert shlex.split(page.locator("code:has-text('timbre-palette transfer')").inner_text())[2:] == ["recording-1.wav", "--to", "flute", "-o", "recording-1-flute.wav"]
        take = read_audio(server.folder / "recording-1.wav")
        assert np.array_equal(page_samples(page, "recorded"), take.samples) and 2.5 < take.samples.shape[1] / take.sample_rate < 6
        found, truth = follow(take.samples, take.sample_rate).hz, TUNE.pitch.hz[TUNE.pitch.voiced]
        assert abs(np.log2(np.median(found[found > 0]) / np.median(truth))) < 0.1  # it is the tune
        assert np.array_equal(page_samples(page, "instrument"), transfer(take.samples, take.sample_rate, find_instrument("flute")))
        page.screenshot(path=tmp_path / "whistling.png")
        assert not errors, errors
