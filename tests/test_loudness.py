"""The meters on the conditions of EBU Tech 3341 and ITU-R BS.2217, and where pyloudnorm ends."""
import numpy as np
import pyloudnorm
import pytest
import torch
from scipy.signal import sosfreqz, windows

from timbre_palette.audio import PaletteError
from timbre_palette.loudness import (Leveller, LoudnessMeter, PeakMeter, _between, _interpolator, at_peak, channel_weights, integrated_loudness, k_weighting_sos, loudness_reference, measure, peak_envelope,
                                     running_loudness, true_peak_db)

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


# --- gates at their edges, in all three forms, and meters that listen block by block

def three(samples, rate=48000):
    "Integrated loudness of stereo samples: our recipe in NumPy, which six channels ask for, the batched form, and the meter in blocks."
    meter = LoudnessMeter(rate)
    for block in torch.tensor(samples, dtype=torch.float32).split(5000, -1):
        meter.push(block)
    return loudness_reference(np.concatenate([samples, np.zeros((4, samples.shape[1]))]), rate), integrated_loudness(batch(samples), rate).item(), meter.read()


@pytest.mark.parametrize("parts", ([(-24, 1), (-35, 5)], [(-20, 5), (-31.8, 2)], [(-20, 5), (-31.0, 2)], [(-66, 3), (-74, 3)], [(-69.5, 3)], [(-30, 1), (-120, 3), (-52, 0.35)]))
@pytest.mark.parametrize("rate", (8000, 44100))
def test_gates_are_pyloudnorms(parts, rate):
    "Levels on both sides of the relative gate and of the absolute one."
    samples = stereo(*parts, rate=rate)
    expected = pyloudnorm.Meter(rate).integrated_loudness(samples.T)
    assert three(samples, rate) == pytest.approx((expected,) * 3, abs=2e-3)


def test_under_a_block_nothing_is_gated():
    short, long = stereo((-80, 0.399)), stereo((-80, 0.4))
    assert three(short) == pytest.approx((-80,) * 3, abs=0.2) and three(long) == (-np.inf,) * 3
    assert loudness_reference(short, 48000) == pytest.approx(-80, abs=0.2) and loudness_reference(long, 48000) == -np.inf
    assert integrated_loudness(batch(np.zeros((1, 100))), 48000).item() == -np.inf


def test_items_and_channels_are_measured_by_themselves():
    samples = np.stack([stereo((-20, 1)), stereo((-30, 0.5), (-45, 0.5)), np.stack([tone(-20, 1), 0 * tone(-20, 1)])])
    together = integrated_loudness(torch.tensor(samples), 48000)
    assert together.dtype == torch.float64 and together.tolist() == pytest.approx([three(one)[0] for one in samples], abs=1e-6)
    assert integrated_loudness(torch.tensor(samples).float(), 48000).dtype == torch.float32
    assert torch.equal(integrated_loudness(batch(samples[0]), 48000), integrated_loudness(batch(samples[0]), 48000, "pyloudnorm"))
    assert np.array_equal(k_weighting_sos(44100), k_weighting_sos(44100, "pyloudnorm")) and not np.allclose(k_weighting_sos(44100), k_weighting_sos(44100, "itu"), rtol=1e-4)


@pytest.mark.parametrize("design", ("pyloudnorm", "itu"))
def test_weighting_at_any_rate_is_that_of_the_highest(design):
    "A filter is the same curve at every rate, up to the warping near half of it; the shelf lifts by 4 dB, and there is nothing at 0 Hz."
    hz = np.array([10.0, 38, 100, 500, 1500, 3000])
    def level(rate):
        return 20 * np.log10(np.abs(sosfreqz(k_weighting_sos(rate, design), hz, fs=rate)[1]))
    for rate in (32000, 44100, 96000):
        assert np.abs(level(rate) - level(384000)).max() < 0.3
    assert np.abs(sosfreqz(k_weighting_sos(48000, design), [0, 23999], fs=48000)[1]) == pytest.approx([0, 10 ** (4 / 20)], abs=1e-2)
    low = k_weighting_sos(2000, design)  # whose edge, 900 Hz, lies below the shelf's corner
    assert np.isfinite(low).all() and np.array_equal(low[:, 3], [1, 1]) and np.allclose(low[1], k_weighting_sos(2000, design)[1])
    assert np.abs(sosfreqz(low[:1], [0, 900], fs=2000)[1])[0] == pytest.approx(1)


def test_weights_of_every_number_of_channels():
    table = {n: [1] * n for n in (1, 2, 3, 9, 12)} | {4: [1, 1, 1, 1.41], 5: [1, 1, 1, 1.41, 1.41], 6: [1, 1, 1, 0, 1.41, 1.41], 7: [1, 1, 1, 0, 1, 1.41, 1.41], 8: [1, 1, 1, 0, 1, 1, 1.41, 1.41]}
    for channels, expected in table.items():
        assert channel_weights(channels).tolist() == expected and channel_weights(channels).dtype == float


def test_readings_of_sliding_windows():
    x = batch(stereo((-20, 2), (-40, 2)))
    assert torch.equal(running_loudness(x, 48000), running_loudness(x, 48000, 3.0, 0.1, "pyloudnorm")) and running_loudness(x, 48000).shape == (1, 11)
    readings = running_loudness(x, 48000, 0.5, 0.25)[0]
    assert len(readings) == 15 and readings[[0, 5, 6]].tolist() == pytest.approx([-20] * 3, abs=0.1) and readings[[8, 14]].tolist() == pytest.approx([-40] * 2, abs=0.1)
    assert readings[7].item() == pytest.approx(-20 + 10 * np.log10(0.5), abs=0.1)  # half of it is loud
    assert running_loudness(x[..., :4800], 48000).tolist() == [[pytest.approx(-20, abs=0.2)]]
    assert running_loudness(torch.cat([x, 0.1 * x]).double(), 48000)[:, 0].diff().item() == pytest.approx(-20)


@pytest.mark.parametrize("rate", (11025, 48000))
@pytest.mark.parametrize("design", ("pyloudnorm", "itu"))
def test_a_meter_that_listens_is_the_batched_one(rate, design):
    samples = torch.tensor(stereo((-30, 0.7), (-18, 0.55), (-27, 0.83), rate=rate)).float()
    meter = LoudnessMeter(rate, design)
    assert meter.read() == meter.highest(0.4) == -np.inf
    for end in range(0, samples.shape[1], 1777):
        meter.push(samples[:, end:end + 1777])
        meter.push(samples[:, :0])
        heard = samples[:, :end + 1777]
        assert meter.frames == heard.shape[1] and meter.read() == pytest.approx(integrated_loudness(heard[None], rate, design).item(), abs=2e-3)
    for window_s in (0.4, 1.0, 2.0):
        readings = running_loudness(samples[None], rate, window_s, design=design)
        assert meter.highest(window_s) == pytest.approx(readings.max().item(), abs=0.02)
    assert meter.highest(2.1) == -np.inf
    assert meter.read(6.0) == pytest.approx(meter.read() + 6, abs=1e-3) and meter.read(0.0) == meter.read()
    assert LoudnessMeter(rate).read() == -np.inf and np.isclose(_first(LoudnessMeter(rate), samples), _first(LoudnessMeter(rate, "pyloudnorm"), samples))


def _first(meter, samples):
    meter.push(samples[:, :1000])
    return meter.read()


@pytest.mark.parametrize("rate", (8000, 11025))
def test_a_leveller_glides_from_reading_to_reading(rate):
    "No gain in the first tenth of a second; each tenth then goes, linear in dB, from the gain before to the one that was wanted at its beginning."
    wanted, asked = iter([-6.0, 12.0, 0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]), []
    def gain_db(lufs):
        asked.append(lufs)
        return next(wanted)
    leveller, x = Leveller(gain_db, rate), torch.tensor(stereo((-20, 0.55), rate=rate)).float()
    y = torch.cat([leveller(block) for block in x.split(333, -1)], -1)
    ends = [int(0.1 * rate * n) for n in range(7)]
    gains = np.interp(np.arange(x.shape[1]), ends, [0, 0, -6, 12, 0, 3, 3])
    assert torch.allclose(y, x * torch.tensor(10 ** (gains / 20)).float(), rtol=2e-3, atol=1e-6)
    for n, lufs in enumerate(asked, 1):
        assert lufs == pytest.approx(integrated_loudness(x[None, :, :ends[n]], rate).item(), abs=0.01)
    leveller.hold(-30.0)
    assert leveller.latency == 0 and leveller.listens and len(asked) == 6 and asked[-1] == -30
    assert torch.allclose(leveller(x), x * 10 ** (3 / 20))


@pytest.mark.parametrize("place", (0, 1, 40, 95, 100000, 299998, 299999))
def test_peaks_anywhere(place):
    "Half a sample beside a click of two samples, the curve of a sinc has 4/π of their height."
    x = torch.zeros(2, 2, 300000)
    x[1, 0, place:place + 2] = 0.5
    x[0, 1, 7] = -0.25
    expected = [20 * np.log10(0.25), 20 * np.log10(0.5 * (4 / np.pi if place < 299999 else 1))]
    assert true_peak_db(x).tolist() == pytest.approx(expected, abs=0.05)
    assert true_peak_db(x, 2).tolist() == pytest.approx(expected, abs=0.05)
    if place in (0, 100000, 299999):
        meters = [PeakMeter(), PeakMeter()]
        for meter, item in zip(meters, x):
            assert meter.read() == -np.inf
            for block in item.split(70001, -1):
                meter.push(block)
            meter.push(item[:, :0])
            meter.end()
        assert [meter.read() for meter in meters] == pytest.approx(true_peak_db(x).tolist(), abs=1e-4)
    envelope = peak_envelope(x[..., max(0, place - 300):place + 300])
    assert 20 * np.log10(envelope[1].max().item()) == pytest.approx(true_peak_db(x)[1].item(), abs=0.02) and envelope.shape[:2] == (2, 2)
    assert (envelope >= x[..., max(0, place - 300):place + 300].abs()).all()


def test_a_peak_meter_before_anything():
    meter = PeakMeter()
    meter.end()
    assert meter.read() == -np.inf


@pytest.mark.parametrize("oversample", (2, 4, 8))
def test_points_between_samples_are_those_of_the_sine(oversample):
    "Of a sine at a third of the rate, between all samples, away from the ends."
    angle = 2 * np.pi / 3
    x = torch.tensor(np.sin(angle * np.arange(5000) + 0.3))[None].float()
    points = torch.cat(list(_between(x, oversample, chunk=16)), 1)[0, 100:4900].numpy()
    assert points.shape[1] == oversample - 1
    at = np.arange(100, 4900)[:, None] + np.arange(1, oversample) / oversample
    assert np.abs(points - np.sin(angle * at + 0.3)).max() < 1e-3


def test_the_envelope_looks_to_both_sides():
    x = torch.zeros(1, 1, 600)
    x[..., 300:302] = 0.5
    envelope = peak_envelope(x)[0, 0].numpy()
    assert envelope[[300, 301]].tolist() == pytest.approx([2 / np.pi] * 2, abs=0.01) and envelope[299] == pytest.approx(envelope[302], abs=1e-3) and envelope[299] > 0.1


def test_scaling_to_a_peak():
    x = torch.tensor([[[0.5, -1.0]], [[2e-6, 0]], [[0.9e-6, 0]], [[0, 0]]])
    assert at_peak(x, -6.0).flatten(1).tolist() == [pytest.approx(values, rel=1e-5) for values in ([0.5 * 10 ** -0.3, -(10 ** -0.3)], [10 ** -0.3, 0], [0.9e-6, 0], [0, 0])]


def test_two_numbers():
    samples = stereo((-20, 1), (-26, 0.5)).astype(np.float64)
    loudness, peak = measure(samples, 48000)
    assert loudness == pytest.approx(pyloudnorm.Meter(48000).integrated_loudness(samples.T), abs=1e-3) and peak == pytest.approx(-20, abs=0.05)


@pytest.mark.parametrize("oversample", (2, 8))
def test_the_interpolator_is_a_sinc_in_scipys_kaiser_window(oversample):
    long = windows.kaiser(2 * 32 * oversample + 1, 9) * np.sinc(np.arange(-32 * oversample, 32 * oversample + 1) / oversample)
    for phase, filters in enumerate(_interpolator(oversample), 1):
        assert np.allclose(filters, long[phase::oversample][::-1][:64], atol=1e-6)
    assert _interpolator(oversample).shape == (oversample - 1, 64)
