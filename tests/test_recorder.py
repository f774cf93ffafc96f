"""The recorder: pieces become a take or one line; and in a browser, whose microphone plays a file, that file is what the kernel gets."""
import numpy as np
import pytest
from browsers import chromium, jupyter, new_page, write_notebook
from scipy.signal import correlate

from timbre_palette.audio import PaletteError, resample, write_audio
from timbre_palette.timbre_transfer.recorder import Recorder
from timbre_palette.timbre_transfer.whistles import whistle

CELL = """
import numpy as np
from timbre_palette.timbre_transfer.recorder import Recorder
recorder, takes = Recorder(longest_s={}), []
def keep(samples, sample_rate):
    takes.append(1)
    np.savez(f"take-{{len(takes)}}.npz", samples=samples, sample_rate=sample_rate)
    open(f"take-{{len(takes)}}.done", "w").close()
recorder.on_take(keep)
recorder
"""
TONE = np.sin(2 * np.pi * 1500 * np.arange(6000) / 48000).astype(np.float32)
BUTTON = ".tp-recorder button"
TRIES = 3  # takes: on a busy machine the browser's audio misses a buffer now and then, while a fault of ours is in every take
ALLOWED = "--use-fake-ui-for-media-stream"


def bring(recorder, samples, rate=48000, piece=4096, take="one", **wrong):
    "Send samples as the page does, a piece when the one before has arrived; what the recorder answers last."
    answers, sent, at = [], samples.tobytes(), 0
    recorder.send = lambda content, buffers=None: answers.append(content)
    while at is not None and at < len(sent):
        recorder._handle_custom_msg({"take": take, "at": at, "size": len(sent), "rate": rate, **wrong}, [memoryview(sent[at:at + piece])])
        assert answers[-1]["take"] == take
        at = answers[-1]["next"]
    return at


@pytest.fixture
def recorder():
    one = Recorder()
    one.takes = []
    one.on_take(lambda samples, sample_rate: one.takes.append((samples, sample_rate)))
    yield one
    one.close()


@pytest.mark.parametrize("piece", [4, 4096, 4098, 1 << 20])
def test_pieces_are_put_together(recorder, piece):
    assert bring(recorder, TONE[:1500], piece=piece) == 6000
    assert bring(recorder, -TONE, 44100, take="two") == 24000
    (first, rate), (second, other) = recorder.takes
    assert np.array_equal(first, TONE[None, :1500]) and np.array_equal(second, -TONE[None]) and first.dtype == np.float32 and (rate, other) == (48000, 44100) and isinstance(rate, int)
    first *= 2  # it is the caller's
    assert recorder.error == "" and not any(isinstance(value, (bytes, memoryview, np.ndarray)) for value in recorder.get_state().values())


BAD = {"a gap": dict(at=4000), "a size that is no number": dict(size="24000"), "no rate": dict(rate=None), "a rate of nothing": dict(rate=0), "a rate of much": dict(rate=1e9),
       "half a sample": dict(size=23998), "nothing": dict(size=0), "less than nothing": dict(size=-4), "not a number": dict(size=float("nan")), "less than its piece": dict(size=400), "half a byte": dict(at=0.5)}


@pytest.mark.parametrize("wrong", BAD.values(), ids=BAD)
def test_bad_pieces_are_one_line(recorder, wrong):
    assert bring(recorder, TONE, **wrong) is None
    assert recorder.error.endswith("record it again") and "\n" not in recorder.error and not recorder.takes
    assert bring(recorder, TONE, take="again") and len(recorder.takes) == 1  # and the next one is as if nothing had been


def test_a_piece_of_another_take_an_empty_one_and_a_sound_that_is_none(recorder):
    head = {"take": "one", "at": 0, "size": TONE.nbytes, "rate": 48000}
    recorder._handle_custom_msg(head, [memoryview(TONE.tobytes()[:8000])])
    recorder._handle_custom_msg({**head, "take": "other", "at": 8000}, [memoryview(TONE.tobytes()[8000:])])
    assert "is missing" in recorder.error
    recorder.error = ""
    recorder._handle_custom_msg(head, [])
    assert "is missing" in recorder.error
    assert bring(recorder, np.append(TONE, np.float32(np.nan))) is None and "not finite" in recorder.error and not recorder.takes


def test_longer_than_was_asked_for():
    recorder, takes = Recorder(longest_s=1.0), []
    recorder.on_take(lambda samples, sample_rate: takes.append(samples))
    assert bring(recorder, np.ones(3000, np.float32), 3000) and takes[0].shape == (1, 3000)
    assert bring(recorder, np.ones(3001, np.float32), 3000) is None and "up to 1 s" in recorder.error and len(takes) == 1
    for wrong in (0, 601, float("nan")):
        with pytest.raises(PaletteError, match="from 1 to 600 seconds"):
            Recorder(longest_s=wrong)


# --- in a browser

@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with jupyter(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    "Samples `(time,)` at 44.1 kHz, a whistle with silence around it, and Chromium's arguments that make them its microphone, over and over."
    sound = np.pad(whistle(3, 2.0).samples[0], (22050, 4 * 44100))
    path = tmp_path_factory.mktemp("microphone") / "whistle.wav"
    write_audio(path, sound[None], 44100, "PCM_16")
    return sound, ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={path}")


def open_recorder(server, page, longest_s=30.0, place="notebook"):
    write_notebook(server.folder / "recorder.ipynb", CELL.format(longest_s))
    for path in server.folder.glob("take-*"):
        path.unlink()
    return server.open(page, place, "recorder.ipynb", BUTTON)


def seconds_pass(page, seconds):
    page.wait_for_function(f"parseFloat(document.querySelector('.tp-seconds').textContent) >= {seconds}", timeout=30000)


def taken(server, page, number=1):
    "Samples `(time,)` and rate of a take, once it has come."
    page.wait_for_function(f"document.querySelector('{BUTTON}').textContent === 'Record'")
    for _ in range(100):
        if (server.folder / f"take-{number}.done").exists():
            with np.load(server.folder / f"take-{number}.npz") as kept:
                return kept["samples"][0], int(kept["sample_rate"])
        page.wait_for_timeout(100)
    raise AssertionError("no take came")


def explained_db(heard, rate, sound, taps=64):
    """The level of what no short filter makes of `sound` `(time,)` at 44.1 kHz, against `heard` `(time,)`, in dB, and the filter's gain in dB.

    A browser resamples and delays, both of which are such a filter. An echo canceller, a gain that moves, a gap or a click are none.
    """
    sound = resample(sound[None], 44100, rate)[0].astype(float)
    lag = int(correlate(heard.astype(float), sound, "full", method="fft").argmax()) - len(sound) + 1
    padded = np.pad(sound, (len(heard), len(heard)))
    at = len(heard) - lag - taps // 2
    seen = np.stack([padded[at + k:at + k + len(heard)] for k in range(taps)], 1)
    response, *_ = np.linalg.lstsq(seen[::3], heard[::3].astype(float), rcond=1e-6)
    left = heard - seen @ response
    level = lambda x: 10 * np.log10(np.mean(np.square(x)) + 1e-20)
    return level(left) - level(heard), level(seen @ response) - level(sound[:len(heard)] if lag >= 0 else sound[-lag:][:len(heard)])


def test_what_the_microphone_plays_is_what_arrives(server, microphone):
    sound, arguments = microphone
    with chromium(ALLOWED, *arguments) as browser, new_page(browser) as page:
        open_recorder(server, page)
        page.evaluate("""() => { const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            navigator.mediaDevices.getUserMedia = async wanted => { const stream = await ask(wanted); window.settings = stream.getAudioTracks()[0].getSettings(); window.tracks = stream.getTracks(); return stream; }; }""")
        found = []
        while not found or min(found)[0] > -60 and len(found) < TRIES:
            page.get_by_role("button", name="Record from the microphone").click()
            seconds_pass(page, 1.0)
            assert page.get_by_role("meter", name="Level of the microphone in dB").is_visible() and "of 30 s" in page.locator(".tp-seconds").inner_text()
            seconds_pass(page, 3.2)
            page.get_by_role("button", name="Stop recording").click()
            heard, rate = taken(server, page, len(found) + 1)
            assert 3.1 * rate < len(heard) < 6 * rate  # the seconds shown are rounded
            found.append(explained_db(heard, rate, sound))
        left_db, gain_db = min(found)
        settings = page.evaluate("window.settings")
        assert [settings[name] for name in ("echoCancellation", "noiseSuppression", "autoGainControl")] == [False] * 3
        assert page.evaluate("window.tracks.every(track => track.readyState === 'ended')") and page.locator(".tp-error").inner_text() == ""  # the browser's light goes out
    server.stop_kernels()
    assert left_db < -60 and abs(gain_db) < 0.05


def test_a_missing_piece_a_click_and_a_gain_would_be_found():
    sound = np.pad(whistle(3, 2.0).samples[0], (22050, 44100))
    heard, rate = np.pad(sound, (700, 0))[:3 * 44100], 44100
    assert explained_db(heard, rate, sound)[0] < -100 and explained_db(resample(heard[None], 44100, 48000)[0], 48000, sound)[0] < -60
    click = heard.copy()
    click[60000] += 0.2
    for wrong in (np.delete(heard, slice(60000, 60128)), click, heard * np.linspace(1, 0.9, len(heard))):
        assert explained_db(wrong, rate, sound)[0] > -55


def test_the_longest_length_ends_a_take_by_itself_with_and_without_worklets(server, microphone):
    sound, arguments = microphone
    with chromium(ALLOWED, *arguments) as browser, new_page(browser) as page:
        open_recorder(server, page, 3.0)
        number = 0
        for _ in range(2):
            faults_db = []
            while not faults_db or min(faults_db) > -60 and len(faults_db) < TRIES:
                number += 1
                page.click(BUTTON)
                heard, rate = taken(server, page, number)
                assert len(heard) == 3 * rate
                faults_db.append(explained_db(heard, rate, sound)[0])
            assert min(faults_db) < -60, faults_db
            page.evaluate("Object.defineProperty(BaseAudioContext.prototype, 'audioWorklet', { get: () => undefined })")
    server.stop_kernels()


def line_of(page):
    page.click(BUTTON)
    page.wait_for_selector(".tp-error:not(:empty)")
    assert page.locator(BUTTON).inner_text() == "Record" and page.locator(BUTTON).is_enabled() and page.get_by_role("meter").count() == 0
    return page.get_by_role("alert").inner_text()


def test_why_nothing_is_recorded_is_one_line(server, microphone):
    "The permission is refused, the microphone is missing, held or muted, and the page is an insecure one."
    _, (fake, _) = microphone
    with chromium(fake, "--deny-permission-prompts") as browser, new_page(browser) as page:
        open_recorder(server, page, place="voila")
        assert "does not let this page hear the microphone" in line_of(page)
        for script, words in {"throw new DOMException('x', 'NotFoundError')": "There is no microphone", "throw new DOMException('x', 'NotReadableError')": "another program may hold it",
                              "throw new TypeError('a\\nb')": "cannot be heard: TypeError: a b"}.items():
            page.evaluate(f"void (navigator.mediaDevices.getUserMedia = async () => {{ {script}; }})")
            assert words in line_of(page)
        page.evaluate("void (navigator.mediaDevices.getUserMedia = async () => new AudioContext().createMediaStreamDestination().stream)")
        page.click(BUTTON)
        seconds_pass(page, 0.3)
        assert page.get_by_role("alert").inner_text() == ""  # the last line is gone
        page.click(BUTTON)
        page.wait_for_selector(".tp-error:has-text('nothing but silence')")
        page.evaluate("Object.defineProperty(Navigator.prototype, 'mediaDevices', { get: () => undefined })")  # so it is behind plain http
        assert "behind https" in line_of(page) and not list(server.folder.glob("take-*"))
    server.stop_kernels()
