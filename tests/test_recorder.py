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
recorder.on_take(keep)
recorder
"""
TONE = np.sin(2 * np.pi * 1500 * np.arange(6000) / 48000).astype(np.float32)
BUTTON = ".tp-recorder button"


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
    "Samples `(time,)` at 48 kHz, a whistle and silence before it, and Chromium's arguments that make them its microphone, over and over."
    sound = np.concatenate([np.zeros(24000, np.float32), whistle(3, 2.0, 48000).samples[0]])
    path = tmp_path_factory.mktemp("microphone") / "whistle.wav"
    write_audio(path, sound[None], 48000, "PCM_16")
    return sound, ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={path}")


ALLOWED = "--use-fake-ui-for-media-stream"


def open_recorder(server, page, longest_s=30.0, place="notebook"):
    write_notebook(server.folder / "recorder.ipynb", CELL.format(longest_s))
    for path in server.folder.glob("take-*"):
        path.unlink()
    return server.open(page, place, "recorder.ipynb", BUTTON)


def taken(server, page, number=1):
    "Samples `(time,)` and rate of a take, once it has come."
    page.wait_for_function(f"document.querySelector('{BUTTON}').textContent === 'Record'")
    path = server.folder / f"take-{number}.npz"
    for _ in range(100):
        try:
            with np.load(path) as kept:
                return kept["samples"][0], int(kept["sample_rate"])
        except Exception:  # not there yet, or half
            page.wait_for_timeout(100)
    raise AssertionError("no take came")


def test_what_the_microphone_plays_is_what_arrives(server, microphone):
    sound, arguments = microphone
    with chromium(ALLOWED, *arguments) as browser, new_page(browser) as page:
        open_recorder(server, page)
        button = page.get_by_role("button", name="Record from the microphone")
        button.click()
        page.wait_for_function("parseFloat(document.querySelector('.tp-seconds').textContent) >= 3.2", timeout=20000)
        level = page.get_by_role("meter", name="Level of the microphone in dB")
        assert level.is_visible() and "of 30 s" in page.locator(".tp-seconds").inner_text()
        page.screenshot(path=server.folder / "recording.png")
        page.get_by_role("button", name="Stop recording").click()
        heard, rate = taken(server, page)
    server.stop_kernels()
    np.savez("/tmp/rec_scratch/heard.npz", heard=heard, rate=rate, sound=sound)
    print(rate, heard.shape, abs(heard).max())
