"""Levels in bands: what they add up to, against filters of another kind, and where there is nothing. Measures of a production: closed forms, and other people's libraries."""
import sys

import auraloss
import librosa
import numpy as np
import pyloudnorm
import pytest
import torch
from pesq import pesq
from scipy.signal import butter, get_window, sosfiltfilt, welch

from timbre_palette.audio import PaletteError, db_to_gain, rms_db
from timbre_palette.filters import mel_filters
from timbre_palette.metrics import (BANDS_HZ, MEL_DEFINITIONS, PRODUCTION_MEASURES, Spectrum, _density, average_spectrum, band_energies, band_levels, centroid_error_hz, crest_error_db,
                                    describe_spectrum, is_inverted, loudness_error, mel_distance, pesq_mos, rms_error_db, sd_sdr, si_snr, stft_distance, upper_end_hz)
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
    assert band_levels(np.sin(2 * np.pi * 4200 / 9000 * np.arange(9000))[None], 9000)[HIGHS] == pytest.approx(-3.0103, abs=1e-3)  # near half the rate
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
    assert pesq_mos(speech, speech, rate).dtype == torch.float64
    assert pesq_mos(speech, speech, rate).item() == pytest.approx(4.644, abs=1e-3)  # the highest there is (P.862.2)
    for output, target in ((0 * speech, speech), (speech, 0 * speech), (speech[:, :3999], speech[:, :3999])):
        assert pesq_mos(output, target, rate).isnan()


def test_pesq_says_how_to_get_it(song, monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(PaletteError, match=r"pip install 'timbre_palette\[eval\]'") as caught:
        pesq_mos(*song, RATE)
    assert "\n" not in str(caught.value)


# --- closeness of waveforms

def test_ratios_in_closed_form():
    "A target, and an error at right angles to it and to a constant."
    time = np.arange(1000)
    target, error = np.sin(2 * np.pi * 10 * time / 1000), 0.1 * np.cos(2 * np.pi * 10 * time / 1000)
    x, e = torch.tensor(target), torch.tensor(error)
    for gain in (2.0, -0.5):
        assert si_snr(gain * (x + e) + 3, x - 1).item() == pytest.approx(20)
        assert sd_sdr(gain * (x + e), x).item() == pytest.approx(10 * np.log10(gain ** 2 / ((gain - 1) ** 2 + 0.01 * gain ** 2)))
    assert sd_sdr(x + 1, x).item() == pytest.approx(10 * np.log10(0.5)) and si_snr((x + e).float(), x.float()).dtype == torch.float64
    both = torch.stack([x, e]), torch.stack([x + e, e - 1e-3 * x])
    for measure in (si_snr, sd_sdr):
        assert measure(*both).tolist() == pytest.approx([measure(*(signal[n] for signal in both)).item() for n in range(2)])
    assert is_inverted(torch.stack([x, -x, e, 0 * x]), torch.stack([x, x, x - e, x])).tolist() == [False, True, True, False]
    assert si_snr(0 * x, 0 * x).isnan() and sd_sdr(0 * x, 0 * x).isnan() and si_snr(x, 0 * x) == -np.inf
    assert si_snr(x, x) > 250 and sd_sdr(x, x) == np.inf


def test_distance_of_spectra_is_written_out():
    x = np.random.default_rng(0).standard_normal((3, 2, 5000))
    def magnitudes(signal):
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(signal, [(0, 0), (0, 0), (1024, 1024)]), 2048, -1)[..., ::512, :]
        return np.abs(np.fft.rfft(frames * get_window("hann", 2048)))
    ours = stft_distance(torch.tensor(np.tanh(x)), torch.tensor(x))
    assert ours.shape == (3, 2) and np.allclose(ours, np.abs(magnitudes(np.tanh(x)) - magnitudes(x)).mean((-2, -1)))


def test_what_is_left_out(song):
    clip, other = (signal[:, :70000] for signal in song)
    assert mel_distance(clip, other, RATE) == mel_distance(clip, other, RATE, "linear_log", False) != mel_distance(clip, other, RATE, average=True)
    assert rms_error_db(clip, other) == rms_error_db(clip, other, RATE, False) and crest_error_db(clip, other) == crest_error_db(clip, other, RATE, False)


def test_sounds_shorter_than_a_window():
    "They have zeros behind them, and are floored at 1e-4 a bin; a click has the window's own height in every bin."
    click = torch.zeros(1, 100, dtype=torch.float64)
    click[0, 50] = 0.5
    window = get_window("hann", 65536)[[32768 - 50, 32768 + 50]].mean()
    expected = 0.5 * window * librosa.filters.mel(sr=RATE, n_fft=65536, n_mels=128).sum(1)
    floor = 1e-4 * librosa.filters.mel(sr=RATE, n_fft=65536, n_mels=128).sum(1)
    assert mel_distance(click, 0 * click, RATE, "log").item() == pytest.approx(np.log(expected / floor).mean() / 2, rel=0.3)
    assert mel_distance(0 * click, 0 * click, RATE) == 0


def test_centroids_of_windows_are_weighed_alike():
    "Loud and quiet windows count alike, and silent ones not."
    low, high = cosine(1500, 2), cosine(6000, 2)
    mixed = torch.cat([low, 0.01 * high])
    assert centroid_error_hz(mixed, 0 * mixed, RATE).item() == pytest.approx(3750, rel=0.02)
    stereo = torch.stack([low, 3 * high])
    assert centroid_error_hz(stereo, torch.stack([low, 0 * low]), RATE).item() == pytest.approx(4500 * 3 / 4, rel=1e-3)  # channels added up
    batch = torch.stack([stereo, stereo.flip(0) * torch.tensor([[1.0], [0.0]])])
    assert centroid_error_hz(batch, 0 * batch, RATE).tolist() == pytest.approx([4875, 6000], rel=1e-3)


def test_levels_of_next_to_nothing():
    quiet, silence = torch.full((1, 2, 1000), 1e-7), torch.zeros(1, 2, 1000)
    assert rms_error_db(quiet, silence).item() == pytest.approx(20) and rms_error_db(1e-9 * quiet, silence) == 0
    assert crest_error_db(quiet, silence).item() == pytest.approx(0, abs=1e-4) and crest_error_db(silence, silence) == 0
    spike = silence.clone()
    spike[0, 0, 0] = 1.0
    assert crest_error_db(spike, quiet).item() == pytest.approx(10 * np.log10(2000), abs=1e-3)
    assert loudness_error(silence[..., None].expand(1, 2, 1000, 40).flatten(2), 1e-5 * torch.ones(1, 2, 40000), RATE) == 0


def test_measures_of_the_table():
    assert list(PRODUCTION_MEASURES) == ["PESQ", "MSD", "MSD-average", "SCE", "RMS", "CFE", "LUFS"]
    better, anything = ({name for name, measure in PRODUCTION_MEASURES.items() if getattr(measure, field)} for field in ("lower_is_better", "any_content"))
    assert better == {"MSD", "MSD-average", "SCE", "RMS", "CFE", "LUFS"} and {"MSD-average", "SCE", "RMS", "CFE", "LUFS"} <= anything and "PESQ" not in anything
    x = torch.tensor(demo_clip(RATE))[:, :70000]
    assert PRODUCTION_MEASURES["MSD-average"].function(x, x.tanh(), RATE) == mel_distance(x, x.tanh(), RATE, average=True)


# --- spectra

@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("sizes", [(100000,), (5000, 95000), (8192,) * 13, (16384, 1, 8191, 40000), (16384,), (24576,), (16383,), (300,), (257, 3)])
def test_a_spectrum_in_blocks_is_welchs(sizes, rate):
    x = np.random.default_rng(0).standard_normal((2, sum(sizes))) + np.array([[0.0], [0.5]])
    spectrum = Spectrum(rate)
    for block in np.split(x, np.cumsum(sizes)[:-1], 1):
        spectrum.push(block)
    hz, density = spectrum.density()
    wanted_hz, wanted = welch(x, rate, nperseg=min(16384, x.shape[1]), detrend=False)
    assert np.allclose(hz, wanted_hz) and np.allclose(density, wanted)


def test_a_spectrum_of_a_few_samples():
    x = np.array([[1.0, -2.0, 3.0]])
    for found, wanted in zip(_density(x, 8000), welch(np.pad(x, ((0, 0), (0, 253))), 8000, nperseg=256, detrend=False)):
        assert np.allclose(found, wanted)
    click = np.zeros((1, 16384 + 8192))
    click[0, 0] = 1  # where the windows are zero
    hz, density = _density(click, 8000)
    assert density.any() and len(hz) == density.shape[1] == 4097
    assert not _density(np.zeros((2, 40000)), 8000)[1].any()


def test_blocks_are_left_as_they_are():
    x = np.random.default_rng(0).standard_normal((1, 20000))
    before, spectrum = x.copy(), Spectrum(8000)
    spectrum.push(x)
    assert np.array_equal(x, before)
    kept = [density.copy() for density in spectrum.density()]
    x[:] = 0  # what is kept of a block is a copy
    assert all(np.array_equal(*pair) for pair in zip(kept, spectrum.density()))


@pytest.mark.parametrize("octave", [1 / 3, 1.0])
def test_white_noise_rises_with_its_bands(octave):
    "A band of width b octaves about f holds f·(2^(b/2) − 2^(−b/2)) Hz of a density that is known."
    rate, x = 44100, np.random.default_rng(0).standard_normal((2, 600000)) * np.array([[1.0], [2.0]])
    for heard in (x, Spectrum(rate)):
        if isinstance(heard, Spectrum):
            heard.push(x)
        centres, level = average_spectrum(heard, rate, octave)
        assert centres[0] == 30 and np.allclose(np.diff(np.log2(centres)), octave) and centres[-1] < 0.45 * rate <= centres[-1] * 2 ** octave * 1.0001
        width = np.minimum(centres * 2 ** (octave / 2), rate / 2) - centres / 2 ** (octave / 2)
        wanted = 10 * np.log10(2.5 * width / (rate / 2))
        assert np.abs(level - wanted)[centres > 200].max() < 0.3
    assert np.array_equal(average_spectrum(x, rate)[0], average_spectrum(x, rate, 1 / 3)[0])
    assert average_spectrum(np.zeros((1, 999)), rate)[1].tolist() == [-200.0] * len(average_spectrum(x, rate)[0])
    assert len(average_spectrum(np.zeros((1, 999)), 50)[0]) == 1


def test_shares_of_three_sines():
    time = np.arange(5 * 44100) / 44100
    x = np.stack([np.sin(2 * np.pi * 100 * time), 2 * np.sin(2 * np.pi * 1000 * time) + np.sin(2 * np.pi * 9000 * time)])
    assert band_energies(x, 44100) == pytest.approx({BASS: 1 / 6, MIDS: 4 / 6, HIGHS: 1 / 6}, abs=1e-4)
    assert band_energies(0 * x, 44100) == {BASS: 0, MIDS: 0, HIGHS: 0}
    spectrum = Spectrum(44100)
    spectrum.push(x)
    assert band_energies(spectrum, 44100) == band_energies(x, 44100)
    assert BANDS_HZ == {"Bass (<250Hz)": (0, 250), "Mids (250-4k Hz)": (250, 4000), "Highs (>4k Hz)": (4000, np.inf)}


@pytest.mark.parametrize("cut", [3000, 8000, 15000])
def test_the_upper_end_is_where_a_filter_cuts(cut):
    noise = np.random.default_rng(0).standard_normal((2, 200000))
    for fall_db, found in ((60, True), (25, True), (15, False)):
        low = sosfiltfilt(butter(24, cut, fs=44100, output="sos"), noise)
        x = low + 10 ** (-fall_db / 20) * (noise - low)
        assert (upper_end_hz(x, 44100) is not None) == found
        if found:
            assert abs(upper_end_hz(x, 44100) - cut) <= 500 and upper_end_hz(x, 44100, fall_db + 5) is None
    assert upper_end_hz(noise, 4000) is None and upper_end_hz(0 * noise, 44100) is None
    assert upper_end_hz(low, 44100) == upper_end_hz(low, 44100, 20.0)


def test_a_spectrum_in_words():
    def coloured(slope_db, rate=44100):
        "Noise whose density falls by so much an octave."
        spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal((1, 1 << 18)))
        hz = np.maximum(np.fft.rfftfreq(1 << 18, 1 / rate), 20)
        return np.fft.irfft(spectrum * (hz / 1000) ** (slope_db / 6.02))
    words = {slope_db: describe_spectrum(coloured(slope_db), 44100) for slope_db in (0, -0.3, -2, -4, -9, -5, 3)}
    assert words[0].startswith("bright (bass 1 %, mids 17 %, highs 82 %)") and words[0].endswith("flat, full to the top") and "flat" in words[-0.3]
    for slope_db in (-2, -4, -9, -5, 3):
        course, amount = words[slope_db].split("), ")[1].split(", ")[0].split()[:2]
        assert course == ("rising" if slope_db > 0 else "falling") and abs(float(amount) - abs(slope_db)) <= 0.2
    assert words[-9].startswith("bass-heavy") and words[-5].startswith("bass-heavy") and words[-2].startswith("bright") and words[3].startswith("bright")
    steep = coloured(-9) - sosfiltfilt(butter(4, 300, fs=44100, output="sos"), coloured(-9))
    assert describe_spectrum(steep, 44100).startswith(("dark", "balanced"))
    middle = coloured(-5) - 0.9 * sosfiltfilt(butter(2, 200, fs=44100, output="sos"), coloured(-5))
    assert describe_spectrum(middle, 44100).startswith("balanced (bass")
    cut = sosfiltfilt(butter(20, 8000, fs=44100, output="sos"), coloured(-3))
    assert describe_spectrum(cut, 44100).endswith(f", little above {upper_end_hz(cut, 44100) / 1000:.1f} kHz")
    spectrum = Spectrum(44100)
    spectrum.push(cut)
    assert describe_spectrum(spectrum, 44100) == describe_spectrum(cut, 44100) and describe_spectrum(0 * cut, 44100) == "silence"
    assert "flat" in describe_spectrum(np.random.default_rng(0).standard_normal((1, 5000)), 200)  # no band is heard, so there is no slope
