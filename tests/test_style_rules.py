"""The rule-based baseline of style transfer: spectra and filters in closed form, the threshold against a search of all, and the public code's way against NumPy, SciPy and pyloudnorm."""
import math

import numpy as np
import pyloudnorm
import pytest
import torch
from scipy.signal import firwin2, lfilter, savgol_filter

from timbre_palette.audio import PaletteError, db_to_gain
from timbre_palette.effects.compressor import compress
from timbre_palette.filters import fft_filter, high_shelf, low_shelf
from timbre_palette.loudness import integrated_loudness
from timbre_palette.metrics import centroid_error_hz, mel_distance
from timbre_palette.style_transfer.rules import (N_FFT, SETTINGS, TAPS, THRESHOLDS_DB, TOLERANCE_LU, average_magnitude, lower_threshold, match_by_rules,
                                                 matching_taps)
from timbre_palette.synth import demo_clip

RATE = 22050


@pytest.fixture(scope="module")
def clip():
    return torch.tensor(demo_clip(RATE))[:, :6 * RATE]


@pytest.fixture(scope="module")
def noise():
    return torch.randn(2, 8 * RATE, generator=torch.Generator().manual_seed(0)) * 0.1


def at_peak(x, peak_db=-12.0):
    return x * (db_to_gain(peak_db) / x.abs().max().item())


def gain_at(taps, hz):
    return 20 * np.log10(abs(np.sum(taps * np.exp(-2j * np.pi * hz / RATE * np.arange(len(taps))))))


# --- the spectrum

@pytest.mark.parametrize("frames", [3, 1000, 65535, 65536, 65537, 150000])
def test_spectrum_is_level_whatever_the_length(noise, frames):
    magnitude = average_magnitude(noise[:, :frames])
    assert magnitude.shape == (N_FFT // 2 + 1,) and np.isfinite(magnitude).all()
    if frames >= 1000:
        assert np.sqrt((magnitude ** 2).mean()) == pytest.approx(0.1, rel=0.2)  # about the RMS


def test_every_sample_is_heard():
    for place in (0, 70000, 99999):
        click = torch.zeros(1, 100000)
        click[0, place] = 1
        assert average_magnitude(click).max() > 0


@pytest.mark.parametrize("frames", [40000, 65536, 131072])
def test_paper_spectrum_is_torchs(clip, frames):
    x = clip[:1, :frames]
    theirs = torch.stft(x, N_FFT, N_FFT // 4, window=torch.ones(N_FFT), normalized=True, return_complex=True).abs().mean((0, 2))
    assert np.allclose(average_magnitude(x, paper_compat=True), theirs, rtol=1e-3, atol=1e-5)


# --- the filter

def test_taps_of_one_sound_do_nothing_but_delay(clip):
    for gain in (1.0, 0.25):
        assert np.allclose(matching_taps(clip, gain * clip, RATE), gain * np.eye(TAPS)[TAPS // 2], atol=1e-9)


@pytest.mark.parametrize("gain_db", [-9.0, 9.0])
def test_taps_have_the_response_between_two_sounds(noise, gain_db):
    for shelf, flat, raised in ((high_shelf, 600, 9000), (low_shelf, 9000, 150)):
        corner = 3000.0
        taps = matching_taps(noise, fft_filter(noise[None], shelf(RATE, corner, gain_db, 0.7))[0], RATE)
        assert gain_at(taps, raised) == pytest.approx(gain_db, abs=0.7) and gain_at(taps, flat) == pytest.approx(0, abs=0.7)
        assert np.allclose(taps, taps[::-1])


def test_the_fraction_is_not_the_printed_one(noise):
    brighter = fft_filter(noise[None], high_shelf(RATE, 3000.0, 9.0, 0.7))[0]
    ours, printed = (lfilter(matching_taps(*pair, RATE), 1, noise.numpy()) for pair in ((noise, brighter), (brighter, noise)))
    before, after, away = (centroid_error_hz(torch.tensor(sound), brighter, RATE).item() for sound in (noise.numpy(), ours, printed))
    assert after < 0.2 * before and away > 1.5 * before


def test_what_is_not_there_is_not_brought_back(noise):
    dull = torch.fft.irfft(torch.fft.rfft(noise) * (torch.fft.rfftfreq(noise.shape[1], 1 / RATE) < 6000), noise.shape[1])
    taps = matching_taps(dull, noise, RATE)
    assert np.isfinite(taps).all() and gain_at(taps, 9000) < 81 and gain_at(taps, 2000) == pytest.approx(0, abs=1)


def test_taps_refuse(clip):
    for sounds, name in (((0 * clip, clip), "input is silent"), ((clip, 0 * clip), "reference is silent"), ((clip[:, :0], clip), "without samples")):
        with pytest.raises(PaletteError, match=name):
            matching_taps(*sounds, RATE)


# --- the threshold

def search_all(x, lufs, peak):
    "The rule step by step."
    nearest = math.inf, math.inf
    for threshold_db in THRESHOLDS_DB:
        sound = x if threshold_db == math.inf else compress(x[None], RATE, threshold_db, **SETTINGS)[0]
        sound = sound if peak is None else sound * peak / sound.abs().max()
        louder = integrated_loudness(sound[None], RATE).item() - lufs
        if abs(louder) < nearest[0]:
            nearest = abs(louder), threshold_db
        if abs(louder) <= TOLERANCE_LU or peak is None and louder < 0:
            break
    return nearest[1]


@pytest.mark.parametrize("makeup", [False, True])
@pytest.mark.parametrize("wanted_lu", [-20.0, -6.0, -0.3, 1.0, 5.0])
def test_threshold_is_that_of_a_search_of_all(clip, wanted_lu, makeup):
    x = clip[:, :RATE]
    lufs, peak = integrated_loudness(x[None], RATE).item(), x.abs().max().item() if makeup else None
    found = lower_threshold(x, lufs + wanted_lu, RATE, peak)
    assert found.threshold_db == search_all(x, lufs + wanted_lu, peak)
    assert integrated_loudness(found.sound[None], RATE).item() - lufs - wanted_lu == pytest.approx(found.louder_lu, abs=1e-3)
    if abs(wanted_lu) < TOLERANCE_LU or wanted_lu > 0 and not makeup:  # nothing to do, or nothing that would help
        assert found.threshold_db == math.inf and torch.equal(found.sound, x if peak is None else x * (peak / x.abs().max()))


def test_threshold_is_sought_to_the_end():
    swell = 0.001 * torch.randn(2, RATE // 2, generator=torch.Generator().manual_seed(0))
    swell[:, 5000:9000] += 0.5 * torch.hann_window(4000) * torch.sin(torch.arange(4000) / 5)
    lufs, peak = integrated_loudness(swell[None], RATE).item(), swell.abs().max().item()
    found = lower_threshold(swell, lufs + 40, RATE, peak)
    assert -40 < found.louder_lu < -TOLERANCE_LU and found.threshold_db == search_all(swell, lufs + 40, peak) < -50


# --- both

@pytest.mark.parametrize("makeup", [False, True])
def test_a_production_is_taken_on(clip, makeup):
    dry, other = clip.tensor_split(2, -1)
    reference = compress(fft_filter(other[None], high_shelf(RATE, 3000.0, 10.0, 0.7)), RATE, -30.0, 4.0, 5.0, 100.0)[0]
    dry, reference = at_peak(dry), at_peak(reference)
    matched = match_by_rules(dry, reference, RATE, makeup)
    assert centroid_error_hz(matched.output, reference, RATE) < 0.5 * centroid_error_hz(dry, reference, RATE)
    assert mel_distance(matched.output, reference, RATE, "log", True) < 0.7 * mel_distance(dry, reference, RATE, "log", True)
    assert abs(matched.louder_lu) < abs(integrated_loudness(dry[None], RATE) - integrated_loudness(reference[None], RATE))
    if makeup:
        assert matched.output.abs().max() == pytest.approx(reference.abs().max().item(), rel=1e-5)


def test_nothing_is_late_but_with_the_paper(noise):
    for paper_compat in (False, True):
        matched = match_by_rules(noise, noise, RATE, paper_compat=paper_compat)
        late = TAPS // 2 if paper_compat else 0
        heard, given = matched.output[:, late:].flatten(), noise[:, :noise.shape[1] - late].flatten()
        assert heard @ given > (0.99 if paper_compat else 1 - 1e-6) * heard.norm() * given.norm()  # the code's filter ends at zero


def test_batch_is_its_items_and_nothing_is_changed(clip):
    x = torch.stack([at_peak(clip[:, :30000]), at_peak(clip[:, 50000:80000].cumsum(-1), -6.0)])
    references = torch.stack([at_peak(clip[:1, 20000:40000].tanh()), at_peak(clip[1:, :20000])])
    before = x.clone(), references.clone()
    together = match_by_rules(x, references, RATE)
    assert together.output.shape == x.shape and together.output.dtype == x.dtype and together.taps.shape == (2, TAPS) and together.threshold_db.shape == (2,)
    for index in range(2):
        alone = match_by_rules(x[index], references[index], RATE)
        assert torch.equal(alone.output, together.output[index]) and alone.threshold_db == together.threshold_db[index]
    one = match_by_rules(x, references[0], RATE)
    assert torch.equal(one.output[0], together.output[0]) and not torch.equal(one.output[1], together.output[1])
    assert torch.equal(x, before[0]) and torch.equal(references, before[1])


def test_silence_and_refusals(clip):
    silent = match_by_rules(torch.stack([0 * clip, clip]), clip, RATE)
    assert not silent.output[0].any() and silent.threshold_db[0] == math.inf and silent.louder_lu[0] < -20 and silent.output[1].any()
    short = match_by_rules(clip[:, 9000:9010], clip, RATE)
    assert short.output.shape == (2, 10) and torch.isfinite(short.output).all()
    for x, reference, said in ((clip, 0 * clip, "reference is silent"), (clip, clip[:, :0], "reference is silent"), (clip[:, :0], clip, "no samples"),
                               (clip / 0, clip, "not finite"), (clip[None], clip.expand(3, -1, -1), "do not go together")):
        with pytest.raises(PaletteError, match=said) as caught:
            match_by_rules(x, reference, RATE)
        assert "\n" not in str(caught.value)


def public_code(x, reference):
    "What DeepAFx-ST's public code does to mono sounds, in NumPy."
    meter = pyloudnorm.Meter(RATE)

    def spectrum(sound):
        padded = np.pad(sound, N_FFT // 2, mode="reflect")
        frames = np.stack([padded[start:start + N_FFT] for start in range(0, len(sound) + 1, N_FFT // 4)])
        return savgol_filter(np.abs(np.fft.rfft(frames)).mean(0), 1025, 2)

    def levelled(sound):
        return sound / np.abs(sound).max() * 10 ** (-12 / 20)

    def compressed(sound, threshold_db):
        level_db = 20 * np.log10(np.abs(sound) + 1e-8)
        over = level_db - threshold_db
        wanted = np.where(2 * over > 6, over * 2 / 3, np.where(2 * over < -6, 0, -((over + 6) / 2) ** 2 / (3 * 12)))
        attack, release = (np.exp(-np.log(9) / (RATE * seconds)) for seconds in (0.001, 0.05))
        y, gains = 0.0, []
        for value in wanted:
            pole = attack if value > y else release
            y = pole * y + (1 - pole) * value
            gains.append(y)
        return sound * 10 ** (-np.array(gains) / 20)

    def loudness(sound):
        return meter.integrated_loudness(np.stack([sound, sound], 1))

    response = spectrum(reference) / spectrum(x)
    response[-1] = 0
    filtered = levelled(lfilter(firwin2(63, np.linspace(0, RATE / 2, len(response)), response, fs=RATE), 1, x))
    missing, threshold_db, kept, tried = loudness(reference) - loudness(filtered), 0.0, filtered, filtered
    while missing > 0.5 and threshold_db > -80:
        kept, tried = tried, levelled(compressed(filtered, threshold_db))
        missing, threshold_db = loudness(reference) - loudness(tried), threshold_db - 0.5
    return kept, threshold_db


@pytest.mark.parametrize("depth", [0.9, 1.2])
def test_paper_compat_is_the_public_code(depth):
    generator = torch.Generator().manual_seed(3)
    swells = torch.sin(torch.linspace(0, 40, 34000)).square()  # room for a compressor
    x, reference = (at_peak(torch.randn(1, 34000, generator=generator).clamp(-1.5, 1.5) * swells ** power) for power in (2, depth))
    wanted, below = public_code(x[0].double().numpy(), reference[0].double().numpy())
    matched = match_by_rules(x, reference, RATE, paper_compat=True)
    assert -70 < below < -15 and matched.threshold_db == below + 1  # the one before the last; `below` would be the next
    assert np.abs(matched.output[0].numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert not torch.allclose(match_by_rules(x, reference, RATE).output, matched.output, atol=1e-2)


def test_paper_compat_ends_before_the_last_threshold(noise):
    x = at_peak(noise[:, :5000])
    assert lower_threshold(x, 0.0, RATE, 0.25, paper_compat=True).threshold_db == -79  # the last it tries is -79.5
    assert lower_threshold(x, -60.0, RATE, 0.25, paper_compat=True).threshold_db == math.inf
