"""Stand-ins that are what they say, without clicks; and a separator that leaves what it says."""
import builtins
import inspect

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from timbre_palette import material
from timbre_palette.audio import PaletteError, peak_db, rms_db
from timbre_palette.material import RELEASE_S, STANDINS, choir, degrade, ensemble, flute, piano, play, sawtooth, strings
from timbre_palette.synth import demo_clip, note_hz, pluck

NAMES = ["guitar_prelude", "chorus", "piano_solo_1", "piano_solo_2", "piano_solo_3", "flute", "guzheng", "piano", "strings"]


def test_all_of_the_papers_recordings_have_one():
    assert list(STANDINS) == NAMES


@pytest.fixture(scope="module", params=NAMES)
def standin(request):
    return request.param, STANDINS[request.param], STANDINS[request.param](22050)


def test_a_standin_is_a_mono_clip_at_minus_six(standin):
    name, function, sound = standin
    assert sound.dtype == np.float32 and sound.ndim == 2 and len(sound) == 1 and 6 <= sound.shape[1] / 22050 <= 10
    assert abs(peak_db(sound) + 6) < 0.01 and rms_db(sound) > -32
    assert abs(sound.mean()) < 1e-4 and np.array_equal(sound, function(22050))
    assert not np.array_equal(sound, function(22050, seed=1)) or "piano" in name
    for rate in (8000, 16000):
        other = function(rate)
        assert abs(other.shape[1] / rate - sound.shape[1] / 22050) < 0.001 and abs(peak_db(other) + 6) < 0.01 and np.isfinite(other).all()


def test_pitches_are_those_of_the_notes(standin):
    "At each note's middle the spectrum has a line at its pitch, one of the strongest within a third."
    name, function, sound = standin
    notes, tempo = function.args[0], function.keywords["tempo"]
    spans = [(at * 60 / tempo, length * 60 / tempo, midi) for at, length, midi in notes]
    for at, length, midi in spans:
        first = int((at + 0.02) * 22050)
        part = sound[0, first:first + max(2205, int(0.8 * length * 22050))]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 17))
        cents = 1200 * np.log2(np.maximum(np.arange(len(spectrum)), 1) * 22050 / (1 << 17) / note_hz(midi))
        width = max(50, 2000 * 2 * 22050 / len(part) / note_hz(midi))  # what a window so short can tell apart
        assert spectrum[np.abs(cents) < width].max() > 0.05 * spectrum[np.abs(cents) < 400].max(), (name, at, midi)
        assert spectrum[np.abs(cents) < width].max() > 3 * np.median(spectrum[np.abs(cents) < 2400]), (name, at, midi)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
@pytest.mark.parametrize("instrument", [pluck, piano, flute, choir, strings], ids=lambda function: function.__name__)
def test_notes_neither_begin_nor_end_with_a_click(instrument, rate):
    """One note between silences. Within its first sample it has hardly risen, and what it does while it is let go holds no more treble than the 50 ms before, whereas
    a note that is cut off holds far more."""
    sound = play([(0.5, 1, 64)], instrument, rate, tempo=60)[0].astype(float)
    begins = rate // 2
    assert not sound[:begins].any() and abs(sound[begins]) < 1e-3 and abs(sound[-1]) < 1e-3
    steps = np.abs(np.diff(sound))
    assert steps[begins - 1:begins + 2].max() < 0.5 * steps[begins:begins + rate // 20].max() + 1e-3
    high = butter(4, 0.3 * rate, "high", fs=rate, output="sos")
    treble = lambda samples: np.abs(sosfilt(high, np.append(samples, np.zeros(rate // 100)))[-rate // 10:]).max()
    gap = int(RELEASE_S * rate)
    before = np.abs(sosfilt(high, sound[:-gap])[-rate // 20:]).max()
    assert treble(sound) <= 1.1 * before + 1e-4
    tail = np.abs(sound[:-gap][-rate // 200:])
    cut = sound[:len(sound) - gap - len(tail) + tail.argmax() + 1]
    assert treble(cut) > 1.5 * max(before, treble(sound))


def test_whole_tunes_end_their_notes_softly(standin):
    "Where a note was let go and none begins, the sound has no more treble than nearby."
    name, function, sound = standin
    notes, tempo = function.args[0], function.keywords["tempo"]
    high = sosfilt(butter(4, 7000, "high", fs=22050, output="sos"), sound[0])
    starts = np.array([at for at, _, _ in notes]) * 60 / tempo
    for at, length, _ in notes:
        end = (at + length) * 60 / tempo + RELEASE_S
        if np.abs(starts - end).min() > 0.03:
            around = np.abs(high[int((end - 0.025) * 22050):int((end - 0.002) * 22050)]).max()
            assert np.abs(high[int((end - 0.002) * 22050):int((end + 0.002) * 22050)]).max(initial=0) < 2 * around + 1e-4, (name, at)


def test_a_sawtooth_against_its_ramp():
    phase = np.arange(2000) / 2000
    inside = slice(100, -100)
    assert np.abs(sawtooth(phase, 400) - (1 - 2 * phase))[inside].max() < 0.02
    direct = sum(np.sin(2 * np.pi * k * phase) / k for k in range(1, 41)) * 2 / np.pi
    assert np.allclose(sawtooth(phase, 40), direct, atol=1e-10)


def test_an_ensemble_is_not_one_player():
    one, several = (ensemble(220.0, 2.0, 22050, np.random.default_rng(0), players=count) for count in (1, 6))
    spread = []
    for tone in (one, several):
        power = np.abs(np.fft.rfft(tone * np.hanning(len(tone)))) ** 2
        hz = np.fft.rfftfreq(len(tone), 1 / 22050)
        part = (hz > 1900) & (hz < 2060)  # about the ninth partial
        centre = np.sum(hz[part] * power[part]) / power[part].sum()
        spread.append(np.sqrt(np.sum((hz[part] - centre) ** 2 * power[part]) / power[part].sum()))
    assert spread[1] > 1.3 * spread[0]


@pytest.mark.parametrize("rate", [8000, 44100])
def test_separation_keeps_lines_and_drops_clicks(rate):
    time = np.arange(3 * rate) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    clicks = np.zeros(len(time))
    clicks[rate // 4::rate // 4] = 0.9
    left = degrade(np.stack([tone, clicks, tone + clicks]).astype(np.float32), rate)
    middle = slice(rate // 2, -rate // 2)
    assert abs(rms_db(left[:1, middle]) - rms_db(tone[None, middle])) < 0.2
    assert rms_db(left[1:2]) < rms_db(clicks[None]) - 20
    residual = left[2, middle] - tone[middle]
    assert rms_db(residual[None]) < rms_db(clicks[None, middle]) - 3


def test_holes_grow_with_the_margin():
    clip = demo_clip(22050)[:, :80000]
    power = lambda samples: np.abs(np.stack([np.fft.rfft(samples[:, k:k + 1024] * np.hanning(1024), axis=1) for k in range(0, samples.shape[1] - 1024, 512)])) ** 2
    whole, holes = power(clip), []
    for margin in (1.0, 2.0, 4.0):
        left = power(degrade(clip, 22050, margin))
        loud = whole > 1e-5 * whole.max()
        holes.append(np.mean(left[loud] < 0.01 * whole[loud]))
    assert holes[0] < holes[1] < holes[2] and holes[1] > 0.1


def test_separation_of_anything():
    clip = demo_clip(22050)
    assert np.array_equal(degrade(clip, 22050), degrade(clip, 22050)) and degrade(clip, 22050).dtype == np.float32
    before = clip.copy()
    assert not degrade(0 * clip, 22050).any() and degrade(clip[:1], 22050).shape == (1, clip.shape[1]) and np.array_equal(before, clip)
    for frames in (1, 100, 1023, 5000):
        left = degrade(clip[:, :frames], 22050)
        assert left.shape == (2, frames) and np.isfinite(left).all()
    for margin in (0.5, np.nan):
        with pytest.raises(PaletteError, match="margin"):
            degrade(clip, 22050, margin)


def test_without_librosa(monkeypatch):
    found = builtins.__import__

    def missing(name, *rest):
        if name == "librosa":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(PaletteError, match=r"timbre_palette\[tables\]"):
        degrade(demo_clip(8000), 8000)
    assert "import librosa" not in inspect.getsource(material).split("def degrade")[0]
