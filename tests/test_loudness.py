"""The meters on the conditions of EBU Tech 3341 and ITU-R BS.2217, and where pyloudnorm ends."""
import numpy as np
import pyloudnorm
import pytest
import torch

from timbre_palette.audio import PaletteError
from timbre_palette.loudness import channel_weights, integrated_loudness, k_weighting_sos, loudness_reference, running_loudness, true_peak_db

RATES = (8000, 16000, 22050, 44100, 48000, 88200, 96000, 192000)


def tone(level_db, seconds, rate=48000, hz=1000.0):
    return 10 ** (level_db / 20) * np.sin(2 * np.pi * hz * np.arange(int(round(seconds * rate))) / rate)


def stereo(*parts, rate=48000):
    return np.stack([np.concatenate([tone(level, seconds, rate) for level, seconds in parts])] * 2)


def batch(samples):
    return torch.tensor(np.asarray(samples)[None], dtype=torch.float32)


CONDITIONS = {1: (stereo((-23, 20)), -23), 2: (stereo((-33, 20)), -33), 3: (stereo((-36, 10), (-23, 60), (-36, 10)), -23),
              4: (stereo((-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)), -23), 5: (stereo((-26, 20), (-20, 20.1), (-26, 20)), -23),
              6: (np.stack([tone(level, 20) for level in (-28, -28, -24, -30, -30)]), -23)}


@pytest.mark.parametrize("design", ("pyloudnorm", "itu"))
@pytest.mark.parametrize("number", CONDITIONS)
def test_ebu_integrated(number, design):
    samples, expected = CONDITIONS[number]
    assert abs(integrated_loudness(batch(samples), 48000, design).item() - expected) <= 0.1
    assert abs(loudness_reference(samples, 48000) - expected) <= 0.1


@pytest.mark.parametrize("rate", (44100, 48000))
@pytest.mark.parametrize("hz", (25.0, 100.0, 500.0, 1000.0, 2000.0, 10000.0))
def test_itu_sines_across_the_spectrum(rate, hz):
    "BS.2217 has a sine of each of these frequencies that must read −23 or −24 LKFS within 0.1."
    gain = [-10.393, -1.133, 0.042, 0.698, 3.071, 4.042][(25, 100, 500, 1000, 2000, 10000).index(int(hz))]  # printed filters at 48 kHz
    samples = np.stack([tone(-23 - gain + 0.691, 20, rate, hz)] * 2)
    for design in ("pyloudnorm", "itu"):
        assert abs(integrated_loudness(batch(samples), rate, design).item() + 23) <= 0.1


@pytest.mark.parametrize("channel, offset", ((0, 0), (1, 0), (2, 0), (4, 1.5), (5, 1.5)))
def test_itu_single_channels_of_surround(channel, offset):
    samples = np.zeros((6, 48000 * 5))
    samples[channel] = tone(-20, 5)
    expected = -23.01 + offset - 0.0  # one channel of a −20 dBFS tone; the surrounds count 1.41
    assert abs(integrated_loudness(batch(samples), 48000).item() - expected) <= 0.1
    assert abs(loudness_reference(samples, 48000) - expected) <= 0.1


def test_the_low_frequency_channel_does_not_count():
    samples = np.zeros((6, 48000))
    samples[3] = tone(-3, 1)
    assert integrated_loudness(batch(samples), 48000).item() == loudness_reference(samples, 48000) == -np.inf


@pytest.mark.parametrize("number, parts, window, expected", ((9, [(-20, 1.34), (-30, 1.66)] * 5, 3.0, -23), (12, [(-20, 0.18), (-30, 0.22)] * 25, 0.4, -23)))
def test_ebu_constant_under_a_changing_signal(number, parts, window, expected):
    "Conditions 9 and 12: alternating levels whose mean in every window is the same."
    readings = running_loudness(batch(stereo(*parts)), 48000, window)[0]
    assert (readings - expected).abs().max() <= 0.1


def test_ebu_true_peak():
    "Conditions 15 to 19, tolerance +0.2 and −0.4 dB."
    for divisor, degrees, amplitude, expected in ((4, 0, 0.5, -6), (4, 45, 0.5, -6), (6, 60, 0.5, -6), (8, 67.5, 0.5, -6), (4, 45, 1.41, 3)):
        samples = amplitude * np.sin(2 * np.pi * np.arange(48000) / divisor + np.deg2rad(degrees))
        samples *= np.minimum(1, np.minimum(np.arange(48000), np.arange(48000)[::-1]) / 4800)
        assert -0.4 <= true_peak_db(batch(samples[None])).item() - expected <= 0.2


@pytest.mark.parametrize("offset", range(4))
def test_ebu_true_peak_between_samples(offset):
    "Conditions 20 to 23: a burst made at four times the rate, decimated at four offsets, must read the same 0 dBTP."
    from scipy.signal import firwin, fftconvolve
    fine = np.zeros(4 * 4800)
    fine[4 * 2400: 4 * 2400 + 16] = np.sin(2 * np.pi * np.arange(16) / 16)
    smooth = fftconvolve(fine, firwin(1023, 0.2), "same")
    smooth /= np.abs(smooth).max()
    reading = true_peak_db(batch(smooth[offset::4][None])).item()
    assert -0.4 <= reading <= 0.2


@pytest.mark.parametrize("rate", RATES)
def test_pyloudnorm_at_every_rate(rate):
    samples = np.random.default_rng(rate).standard_normal((2, int(3.37 * rate))) * np.linspace(0.001, 0.3, int(3.37 * rate))
    theirs = pyloudnorm.Meter(rate).integrated_loudness(samples.T)
    assert abs(integrated_loudness(batch(samples), rate).item() - theirs) < 1e-3


@pytest.mark.parametrize("channels", (1, 2, 3, 4, 5, 6, 7, 8, 12))
@pytest.mark.parametrize("seconds", (1 / 48000, 0.1, 0.399, 0.4, 0.6, 2.0))
def test_torch_and_reference_agree_where_pyloudnorm_ends(channels, seconds):
    samples = np.random.default_rng(0).standard_normal((channels, max(1, round(seconds * 48000)))) * 0.1
    ours, reference = integrated_loudness(batch(samples), 48000).item(), loudness_reference(samples, 48000)
    assert ours == reference or abs(ours - reference) < 1e-3


def test_our_recipe_is_pyloudnorms():
    "The part of the reference that replaces pyloudnorm, on a case where both are defined."
    samples = np.random.default_rng(1).standard_normal((2, 48000)) * np.repeat([0.3, 0.001, 0.02, 0.3], 12000)
    doubled = np.concatenate([samples, np.zeros((4, 48000))])  # six channels: ours; the rest is silence
    assert abs(loudness_reference(doubled, 48000) - pyloudnorm.Meter(48000).integrated_loudness(samples.T)) < 1e-9


def test_absurd_rates_and_silence_are_defined():
    for rate in (50, 1000, 3000):
        assert np.isfinite(k_weighting_sos(rate)).all()
        assert np.isfinite(integrated_loudness(batch(np.random.default_rng(0).standard_normal((1, 4000))), rate).item())
    for seconds in (0.1, 3):
        assert integrated_loudness(torch.zeros(1, 2, int(seconds * 48000)), 48000).item() == -np.inf
    assert integrated_loudness(batch(stereo((-80, 2))), 48000).item() == -np.inf
    assert true_peak_db(torch.zeros(1, 2, 100)).item() == -np.inf
    assert channel_weights(1).tolist() == [1]


def test_every_running_reading_covers_its_whole_window():
    for seconds in (1.06, 3.0, 3.04, 3.09):
        readings = running_loudness(batch(stereo((-20, seconds))), 48000, 0.4)[0]
        assert (readings + 20).abs().max() < 0.1 and len(readings) == int((seconds - 0.4) / 0.1 + 1e-9) + 1


@pytest.mark.parametrize("seconds", (0.1, 0.399, 0.4, 3.0))
def test_silence_has_finite_gradients(seconds):
    x = torch.zeros(2, 2, int(seconds * 48000), requires_grad=True)
    integrated_loudness(x, 48000).nan_to_num(neginf=0.0).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_unknown_weighting_is_named():
    with pytest.raises(PaletteError, match="pyloudnorm or itu"):
        k_weighting_sos(48000, "A")


def test_gradient_is_that_of_the_gain():
    "Loudness rises by 8.686 dB for every neper: the directional derivative along x itself is known."
    x = batch(stereo((-23, 2))).double().requires_grad_()
    integrated_loudness(x, 48000).backward()
    assert abs((x.grad * x).sum().item() - 20 / np.log(10)) < 1e-6
