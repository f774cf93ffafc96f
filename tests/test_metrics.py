"""Levels in bands: what they add up to, against filters of another kind, and where there is nothing. Measures of a production: closed forms, and other people's libraries."""
import sys

import auraloss
import librosa
import numpy as np
import pyloudnorm
import pytest
import torch
from pesq import pesq
from scipy.signal import butter, sosfiltfilt

from timbre_palette.audio import PaletteError, db_to_gain, rms_db
from timbre_palette.filters import mel_filters
from timbre_palette.metrics import (BANDS_HZ, MEL_DEFINITIONS, PRODUCTION_MEASURES, band_energies, band_levels, centroid_error_hz, crest_error_db,
                                    loudness_error, mel_distance, pesq_mos, rms_error_db)
from timbre_palette.synth import demo_clip

BASS, MIDS, HIGHS = BANDS_HZ


@pytest.mark.parametrize("frames", [1, 2, 3, 1000, 1001, 44100])
@pytest.mark.parametrize("rate", [4000, 8000, 22050, 44100, 96000])
def test_bands_add_up_to_the_whole(frames, rate):
    x = 0.3 + np.random.default_rng(frames).standard_normal((2, frames))
    assert np.isclose(10 * np.log10(sum(10 ** (level / 10) for level in band_levels(x, rate).values())), rms_db(x), atol=1e-9)


def test_a_sine_stands_in_its_band_alone():
    time = np.arange(44100) / 44100
    for hz, name in ((1, BASS), (249, BASS), (250, MIDS), (3999, MIDS), (4000, HIGHS), (22049, HIGHS)):
        levels = band_levels(0.1 * np.sin(2 * np.pi * hz * time)[None], 44100)
        assert abs(levels.pop(name) + 20 + 10 * np.log10(2)) < 1e-6 and max(levels.values()) < -190
    assert band_levels(np.full((1, 100), 0.5), 44100)[BASS] == pytest.approx(20 * np.log10(0.5))


def test_levels_are_those_behind_steep_filters():
    rate = 44100
    x = np.cumsum(np.random.default_rng(0).standard_normal((1, 4 * rate)), 1) * 1e-3 + 0.01 * np.random.default_rng(1).standard_normal((1, 4 * rate))
    levels = band_levels(x, rate)
    for name, band, kind in ((BASS, 250, "low"), (MIDS, (250, 4000), "band"), (HIGHS, 4000, "high")):
        filtered = sosfiltfilt(butter(12, band, kind, fs=rate, output="sos"), x)[:, 100:-100]
        assert abs(rms_db(filtered) - levels[name]) < 0.5, name


def test_shares_follow_from_levels():
    clip = demo_clip(22050)
    power = {name: 10 ** (level / 10) for name, level in band_levels(clip, 22050).items()}
    for name, share in band_energies(clip, 22050).items():
        assert abs(share - power[name] / sum(power.values())) < 0.01


def test_gain_channels_and_nothing():
    clip = demo_clip(22050)
    whole, quieter = band_levels(clip, 22050), band_levels(clip * np.float32(db_to_gain(-20)), 22050)
    assert all(abs(whole[name] - 20 - quieter[name]) < 1e-4 for name in BANDS_HZ)
    assert band_levels(clip[[0, 0]], 22050) == pytest.approx(band_levels(clip[:1], 22050))
    assert set(band_levels(np.zeros((1, 500)), 44100).values()) == set(band_levels(np.zeros((2, 0)), 44100).values()) == {-200.0}
    noise = np.random.default_rng(0).standard_normal((1, 999))
    assert [level > -200 for level in band_levels(noise, 8000).values()] == [True, True, False]
    assert [level > -200 for level in band_levels(noise, 500).values()] == [True, False, False]


# --- how alike two productions are

RATE = 24000


@pytest.fixture(scope="module")
def song():
    "Stereo, and what a filter and a saturator make of it."
    clip = torch.tensor(demo_clip(RATE))
    return clip, torch.tanh(2 * clip.cumsum(-1) / 20)


def cosine(hz, seconds=1.0, rate=RATE):
    "It begins and ends at a peak, so that a reflection goes on with it."
    return torch.cos(2 * np.pi * hz / rate * torch.arange(round(seconds * rate) + 1, dtype=torch.float64))


@pytest.mark.parametrize("gain_db", [-30.0, -6.0, 0.0, 9.5])
def test_a_gain_changes_levels_and_nothing_else(song, gain_db):
    clip, louder = song[0], song[0] * float(db_to_gain(gain_db))
    assert rms_error_db(louder, clip).item() == pytest.approx(abs(gain_db), abs=1e-4)
    assert rms_error_db(louder, clip, paper_compat=True).item() == pytest.approx(abs(gain_db) * np.log(10), abs=1e-3)
    assert loudness_error(louder, clip, RATE).item() == pytest.approx(abs(gain_db), abs=1e-3)
    assert centroid_error_hz(louder, clip, RATE) < 0.01 and crest_error_db(louder, clip) < 1e-4
    for average in (False, True):
        gain = float(db_to_gain(gain_db))
        linear, log = (mel_distance(louder, clip, RATE, definition, average) for definition in ("linear", "log"))
        assert log.item() == pytest.approx(abs(np.log(gain)), rel=2e-3, abs=1e-6)
        assert mel_distance(louder, clip, RATE, "linear_log", average).item() == pytest.approx((linear + log).item(), rel=1e-5)
        assert mel_distance(clip * 0, clip, RATE, "linear", average).item() * abs(1 - gain) == pytest.approx(linear.item(), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000])
def test_mel_distance_is_that_of_auraloss(rate):
    clip = torch.tensor(demo_clip(rate))[:1, :70000 + rate]
    output = torch.tanh(3 * clip)
    for linear, log, definition in ((1, 1, "linear_log"), (0, 1, "log"), (1, 0, "linear")):
        theirs = auraloss.freq.MelSTFTLoss(rate, 65536, 65536, 65536, w_sc=0, w_log_mag=log, w_lin_mag=linear, n_mels=128)(output[None], clip[None])
        assert mel_distance(output, clip, rate, definition).item() == pytest.approx(theirs.item(), rel=1e-4)


@pytest.mark.parametrize("rate", [2000, 22050, 96000])
def test_mel_filters_are_librosas(rate):
    theirs = librosa.filters.mel(sr=rate, n_fft=4096, n_mels=40)
    assert np.allclose(mel_filters(rate, 4096, 40), theirs, atol=1e-6 * theirs.max())


def test_mel_distance_of_other_content_is_less_for_the_same_production(song):
    first, second = song[0].tensor_split(2, -1)
    other = song[1].tensor_split(2, -1)[1]
    for definition in MEL_DEFINITIONS:
        assert mel_distance(second[:, 500:], first, RATE, definition, True) < mel_distance(other[:, 500:], first, RATE, definition, True)


def test_mel_distance_refuses(song):
    with pytest.raises(PaletteError, match="use one of linear_log, log, linear"):
        mel_distance(*song, RATE, "mel")
    with pytest.raises(PaletteError, match="average=True"):
        mel_distance(song[0][:, 1:], song[1], RATE)


def test_centroids():
    noise = torch.randn(1, 20 * RATE, generator=torch.Generator().manual_seed(0))
    assert centroid_error_hz(noise, cosine(3000), RATE).item() == pytest.approx(RATE / 4 - 3000, abs=15)
    assert centroid_error_hz(cosine(1125, 0.4), cosine(3000), RATE).item() == pytest.approx(1875, abs=1e-3)
    halfway = torch.cat([cosine(3000), torch.zeros(RATE)])  # silence has no centroid, and does not pull at it
    assert centroid_error_hz(halfway, cosine(3000), RATE) < 60 < 1000 < centroid_error_hz(halfway * 0, cosine(3000), RATE)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_centroid_error_is_that_of_librosa(rate):
    clip = torch.tensor(demo_clip(rate))
    output = torch.tanh(4 * clip)
    theirs = [librosa.feature.spectral_centroid(y=signal[0].numpy(), sr=rate, n_fft=2048, hop_length=512, pad_mode="reflect").mean() for signal in (output, clip)]
    assert centroid_error_hz(output[:1], clip[:1], rate).item() == pytest.approx(abs(theirs[0] - theirs[1]), rel=1e-3)


def test_crest_factors():
    square = torch.ones(4000, dtype=torch.float64)
    square[::2] = -1
    assert crest_error_db(cosine(1000)[:-1], square).item() == pytest.approx(10 * np.log10(2), abs=1e-6)
    assert crest_error_db(cosine(1000)[:-1], square, paper_compat=True).item() == pytest.approx(10 * np.log(2), abs=1e-6)


def test_loudness_error_is_that_of_pyloudnorm(song):
    meter = pyloudnorm.Meter(RATE)
    theirs = [meter.integrated_loudness(signal.numpy().T) for signal in song]
    assert loudness_error(*song, RATE).item() == pytest.approx(abs(theirs[0] - theirs[1]), abs=1e-3)
    assert loudness_error(song[0][0], song[0][:1].expand(2, -1), RATE) < 1e-5  # one channel is two alike


def test_silence_has_a_finite_distance(song):
    silence = song[0] * 0
    assert rms_error_db(silence, song[0]).item() == pytest.approx(160 + rms_db(song[0].numpy()), abs=1e-4)
    for name, measure in PRODUCTION_MEASURES.items():
        if name != "PESQ":
            for pair in ((silence, song[0]), (song[0], silence)):
                assert 0 < measure.function(*pair, RATE) < torch.inf, name
            assert measure.function(silence, silence, RATE) == 0, name


def test_measures_of_a_batch_are_those_of_its_items(song):
    output, target = (torch.stack([signal, signal.flip(-1) / 3])[..., :4 * RATE] for signal in (song[1], song[0]))
    before = output.clone(), target.clone()
    for name, measure in PRODUCTION_MEASURES.items():
        together = measure.function(output, target, RATE)
        assert together.shape == (2,)
        assert torch.allclose(together, torch.stack([measure.function(*pair, RATE) for pair in zip(output, target)]), rtol=1e-5), name
        best = measure.function(target, target, RATE)
        assert ((best <= together) if measure.lower_is_better else (best >= together)).all(), name
        if measure.any_content:
            assert torch.isfinite(measure.function(output.flip(0), target, RATE)).all()
    assert torch.equal(output, before[0]) and torch.equal(target, before[1])


def test_mono_is_as_good_as_two_channels_alike(song):
    mono = [signal.mean(0) for signal in song]
    for name, measure in PRODUCTION_MEASURES.items():
        assert torch.allclose(measure.function(*mono, RATE), measure.function(mono[0].expand(2, -1), mono[1][None], RATE), rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("frames", [1, 100, 2000])
def test_measures_of_a_moment_are_finite(frames):
    moment = torch.rand(2, frames, generator=torch.Generator().manual_seed(frames)) - 0.5
    for name, measure in PRODUCTION_MEASURES.items():
        score = measure.function(moment / 2, moment, RATE)
        assert score.isnan() if name == "PESQ" else torch.isfinite(score), name


def test_pesq_is_the_packages(song):
    rate = 16000
    speech = torch.tensor(demo_clip(rate))[:, :3 * rate]
    noisy = speech + 0.003 * torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
    assert pesq_mos(noisy, speech, rate).item() == pytest.approx(pesq(rate, speech.mean(0).numpy(), noisy.mean(0).numpy(), "wb"), abs=1e-6)
    assert pesq_mos(speech, speech, rate).item() == pytest.approx(4.644, abs=1e-3)  # the highest there is (P.862.2)
    for output, target in ((0 * speech, speech), (speech, 0 * speech), (speech[:, :3999], speech[:, :3999])):
        assert pesq_mos(output, target, rate).isnan()


def test_pesq_says_how_to_get_it(song, monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(PaletteError, match=r"pip install 'timbre_palette\[eval\]'") as caught:
        pesq_mos(*song, RATE)
    assert "\n" not in str(caught.value)
