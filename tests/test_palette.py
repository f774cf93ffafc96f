"""Properties of the palette: what a blend keeps, and gradients of every stage."""
import numpy as np
import pyloudnorm
import pytest
import torch
from scipy.signal import butter, istft, lfilter, sosfilt, stft

from timbre_palette.anchors import (REFERENCE_STAGES, STAGES, STYLES, layeredness, layeredness_reference, layeredness_stft, layeredness_stft_reference, normalise_style, palette,
                                    palette_reference, palette_stages, stage_strengths, warmth_stft_reference)
from timbre_palette.audio import PaletteError
from timbre_palette.synth import demo_clip


def written_out(x, rate):
    "Algorithms 1 to 3 of the paper's appendix A.2 with DESIGN's choices, in literal numbers, SciPy and pyloudnorm only."
    omega = 2 * np.pi * 150 / rate
    alpha, a = np.sin(omega) / 2, 10 ** (7 / 40)
    eq = lfilter([1 + alpha * a, -2 * np.cos(omega), 1 - alpha * a], [1 + alpha / a, -2 * np.cos(omega), 1 - alpha / a], x)
    yield np.tanh(eq + 0.3 * np.tanh(0.2 * eq))

    middle = sosfilt(butter(4, [250, 4000], "band", fs=rate, output="sos"), x)
    yield np.tanh(1.1 * middle) + (x - middle)

    loud = x * 10 ** ((-14 - pyloudnorm.Meter(rate).integrated_loudness(x.T)) / 20)
    padded = 1 << int(np.ceil(np.log2(2 * x.shape[1])))
    hz = np.maximum(np.fft.rfftfreq(padded, 1 / rate), 20)
    yield np.fft.irfft(np.fft.rfft(loud, padded) * 10 ** (-1.5 * np.log2(hz / 1000) / 20), padded)[:, : x.shape[1]]


def test_the_anchors_are_the_papers():
    x = demo_clip()
    for corner, expected in zip(np.eye(3), written_out(x.astype(float), 44100)):
        assert np.abs(palette(torch.tensor(x[None]), 44100, corner)[0].numpy() - expected).max() < 1e-4
        assert np.abs(palette_reference(x, 44100, corner) - expected).max() < 1e-4


def test_a_blend_is_the_stages_in_series_at_their_strengths():
    "DESIGN, section 3: half of everything, written out."
    x, rate = demo_clip().astype(float), 44100
    omega = 2 * np.pi * 150 / rate
    alpha, a = np.sin(omega) / 2, 10 ** (0.2 * 7 / 40)
    eq = lfilter([1 + alpha * a, -2 * np.cos(omega), 1 - alpha * a], [1 + alpha / a, -2 * np.cos(omega), 1 - alpha / a], x)
    y = 0.8 * eq + 0.2 * np.tanh(eq + 0.3 * np.tanh(0.2 * eq))
    middle = sosfilt(butter(4, [250, 4000], "band", fs=rate, output="sos"), y)
    y = y + 0.1 * (np.tanh(1.1 * middle) - middle)
    y = y * 10 ** (0.2 * (-14 - pyloudnorm.Meter(rate).integrated_loudness(y.T)) / 20)
    padded = 1 << int(np.ceil(np.log2(2 * x.shape[1])))
    hz = np.maximum(np.fft.rfftfreq(padded, 1 / rate), 20)
    y = np.fft.irfft(np.fft.rfft(y, padded) * 10 ** (0.2 * -1.5 * np.log2(hz / 1000) / 20), padded)[:, : x.shape[1]]
    assert np.abs(palette(torch.tensor(x[None]), rate, [2, 1, 2], amount=0.5)[0].numpy() - y).max() < 1e-4


@pytest.fixture(scope="module")
def clip():
    return torch.tensor(demo_clip()[None, :, 20000:80000])


@pytest.mark.parametrize("variant", STAGES)
def test_amount_zero_is_the_input_bit_for_bit(clip, variant):
    for style in (*np.eye(3), [1, 1, 1]):
        assert torch.equal(palette(clip, 44100, style, 0, variant), clip)
    mixed = palette(clip.expand(3, -1, -1), 44100, [1, 1, 1], np.array([0, 0.5, 1.0]), variant)
    assert torch.equal(mixed[0], clip[0]) and not torch.allclose(mixed[1], clip[0], atol=1e-3)


@pytest.mark.parametrize("variant", STAGES)
def test_a_batch_is_its_items(clip, variant):
    styles, amounts = np.random.default_rng(0).dirichlet(np.ones(3), 4), np.array([0.2, 0.5, 0.9, 1.0])
    x = torch.cat([clip, 0.3 * clip, -clip, 2 * clip])
    together = palette(x, 44100, styles, amounts, variant)
    for k in range(4):
        assert torch.allclose(together[k:k + 1], palette(x[k:k + 1], 44100, styles[k], amounts[k], variant), atol=2e-6)
        reference = palette_reference(x[k].numpy(), 44100, styles[k], amounts[k], variant)
        assert np.abs(together[k].numpy() - reference).max() < 1e-4


@pytest.mark.parametrize("variant", STAGES)
def test_polarity_is_kept(clip, variant):
    assert torch.allclose(palette(-clip, 44100, [1, 1, 1], variant=variant), -palette(clip, 44100, [1, 1, 1], variant=variant), atol=1e-5)


def test_layeredness_does_not_depend_on_the_input_level(clip):
    assert torch.allclose(palette(0.1 * clip, 44100, [0, 0, 1]), palette(clip, 44100, [0, 0, 1]), atol=1e-4)


def test_channels_share_one_loudness_and_nothing_else(clip):
    quiet_right = clip * torch.tensor([1.0, 0.01])[None, :, None]
    for style in ([1, 0, 0], [0, 1, 0]):
        assert torch.allclose(palette(quiet_right, 44100, style)[:, :1], palette(clip, 44100, style)[:, :1], atol=1e-6)
    layered = palette(quiet_right, 44100, [0, 0, 1])
    assert 30 < 20 * torch.log10(layered[0, 0].norm() / layered[0, 1].norm()) < 50  # the balance stays


@pytest.mark.parametrize("rate", (8000, 22050, 96000))
@pytest.mark.parametrize("channels", (1, 2, 4, 6, 7))
@pytest.mark.parametrize("frames", (1, 2, 800, 4000))
def test_defined_cases_agree_and_are_finite(rate, channels, frames):
    samples = np.random.default_rng(frames).standard_normal((channels, frames)).astype(np.float32) * 0.2
    for variant in STAGES:
        y = palette(torch.tensor(samples[None]), rate, [1, 1, 1], variant=variant)[0].numpy()
        assert np.isfinite(y).all() and np.abs(y - palette_reference(samples, rate, [1, 1, 1], variant=variant)).max() < 1e-4


@pytest.mark.parametrize("variant", STAGES)
@pytest.mark.parametrize("strength", (0.0, 0.5, 1.0))
def test_every_stage_has_gradients(variant, strength):
    signal = torch.tensor(np.random.default_rng(0).standard_normal((1, 1, 6000)) * 0.3, requires_grad=True)
    for name, stage in zip(STYLES, STAGES[variant]):
        y = stage(signal, 8000, strength)
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        (gradient,) = torch.autograd.grad((y * direction).sum(), signal)
        step = 1e-6 * torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        with torch.no_grad():
            change = ((stage(signal + step, 8000, strength) - stage(signal - step, 8000, strength)) * direction).sum() / 2
        assert torch.isclose((gradient * step).sum(), change, rtol=1e-4, atol=1e-12), name


@pytest.mark.parametrize("variant", STAGES)
@pytest.mark.parametrize("strength", (0.0, 0.5, 1.0))
def test_every_stage_has_a_gradient_in_its_strength(variant, strength):
    "Against a one-sided difference at the ends of the range, where the stage must still learn."
    signal = torch.tensor(demo_clip()[None, :1, 9000:19000].astype(float))
    inwards = -1e-6 if strength == 1 else 1e-6
    for name, stage in zip(STYLES, STAGES[variant]):
        s = torch.tensor([strength], dtype=torch.float64, requires_grad=True)
        stage(signal, 44100, s).square().sum().backward()
        with torch.no_grad():
            difference = (stage(signal, 44100, strength + inwards).square().sum() - stage(signal, 44100, strength).square().sum()) / inwards
        assert s.grad.abs() > 1e-3 and torch.isclose(s.grad[0], difference, rtol=1e-3), name


def test_weights_may_be_any_tensor():
    x = torch.tensor(demo_clip()[None, :, :20000])
    weights = torch.tensor([0.8, 0.1, 0.1], requires_grad=True)
    assert torch.equal(palette(x, 44100, weights), palette(x, 44100, weights.tolist()))


@pytest.mark.parametrize("frames", (4000, 30000))
@pytest.mark.parametrize("level", (0.0, 1e-30, 1.0, 1e4))
def test_gradients_are_finite_for_silence_and_hot_signals(level, frames):
    signal = (level * torch.tensor(demo_clip()[None, :, :frames])).requires_grad_()
    for variant in STAGES:
        palette(signal, 44100, [1, 1, 1], variant=variant).square().mean().backward()
    assert torch.isfinite(signal.grad).all()


def test_double_precision_and_inputs_left_alone(clip):
    x, before = clip.double(), clip.double().clone()
    y = palette(x, 44100, [1, 1, 1])
    assert y.dtype == torch.float64 and torch.equal(x, before)
    assert np.abs(y[0].numpy() - palette_reference(clip[0].numpy(), 44100, [1, 1, 1])).max() < 1e-8


def test_references_and_batched_forms_stand_in_pairs():
    assert REFERENCE_STAGES.keys() == STAGES.keys()
    with pytest.raises(PaletteError, match="exact, causal, stft"):
        palette(torch.zeros(1, 1, 10), 44100, [1, 0, 0], variant="wavelet")
    with pytest.raises(PaletteError, match="between 0 and 1"):
        palette(torch.zeros(1, 1, 10), 44100, [1, 0, 0], amount=1.5)


# --- the variants on short-time spectra, and what is left out

def short_time(x, gain_db):
    "Samples `(channels, time)` with a gain by spectrum, by SciPy's own transform, in which a full-scale sine is 1 high."
    spectra = stft(np.pad(x, ((0, 0), (2048, 2048))), window="hann", nperseg=2048, noverlap=1536)[2]
    return istft(spectra * 10 ** (gain_db(2 * np.abs(spectra)) / 20), window="hann", nperseg=2048, noverlap=1536)[1][:, 2048:2048 + x.shape[1]]


def curves(rate):
    "Gain in dB of the bell and of the tilt on the grid of the short-time spectra."
    hz = np.fft.rfftfreq(2048, 1 / rate)
    omega = 2 * np.pi * 150 / rate
    alpha, a, z = np.sin(omega) / 2, 10 ** (7 / 40), np.exp(-2j * np.pi * hz / rate)
    bell = (1 + alpha * a - 2 * np.cos(omega) * z + (1 - alpha * a) * z ** 2) / (1 + alpha / a - 2 * np.cos(omega) * z + (1 - alpha / a) * z ** 2)
    return 20 * np.log10(np.abs(bell))[:, None], -1.5 * np.log2(np.maximum(hz, 20) / 1000)[:, None]


def complementary(rate):
    "Gain in dB of the complementary equaliser: 3, 3, 2, 2 and 1 dB at most in octaves about 177 Hz to 2.8 kHz, less by 20 times how strong they are, and linear in octaves between."
    hz = np.fft.rfftfreq(2048, 1 / rate)
    middles = np.array([1000 / 2 ** 2.5, 1000 / 2 ** 1.5, 1000 / 2 ** 0.5, 1000 * 2 ** 0.5, 1000 * 2 ** 1.5])

    def gain_db(spectra):
        gains = np.zeros_like(spectra)
        for middle, most in zip(middles, (3, 3, 2, 2, 1)):
            inside = (hz > middle / 2 ** 0.5) & (hz < middle * 2 ** 0.5)
            near = np.clip(1 - np.abs(np.log2(np.maximum(hz, 1e-9) / middle)), 0, 1)
            gains = gains + near[:, None] * most * np.maximum(0, 1 - 20 * spectra[:, inside].mean(1, keepdims=True))
        return gains
    return gain_db


@pytest.mark.parametrize("strength", (0.4, 1.0))
@pytest.mark.parametrize("rate", (22050, 44100))
def test_the_short_time_anchors_are_written_out(rate, strength):
    x = 0.3 * demo_clip(rate)[:, :40000].astype(float)
    bell, tilt = curves(rate)
    full = short_time(x, lambda spectra: strength * bell)
    warm_db = complementary(rate)
    loud = x * 10 ** (strength * (-14 - pyloudnorm.Meter(rate).integrated_loudness(x.T)) / 20)
    expected = ((1 - strength) * full + strength * np.tanh(full), short_time(x, lambda spectra: strength * warm_db(spectra)), short_time(loud, lambda spectra: strength * tilt))
    for reference, stage, wanted in zip(REFERENCE_STAGES["stft"], STAGES["stft"], expected):
        assert np.abs(reference(x, rate, strength) - wanted).max() < 1e-6
        assert np.abs(stage(torch.tensor(x[None]), rate, strength)[0].numpy() - wanted).max() < 1e-6
    assert np.abs(warmth_stft_reference(x, rate, strength) - x).max() > 1e-3  # its bands are not all full


def test_quiet_and_loud_bands_of_the_complementary_equaliser():
    "A quiet sine at the middle of a band gets its whole gain, a loud one in a narrow band none; below 88 Hz and above 5.7 kHz nothing happens."
    time = np.arange(20000) / 44100
    for level, hz, gain_db in ((1e-4, 1000 / 2 ** 2.5, 3), (0.9, 1000 / 2 ** 2.5, 0), (1e-4, 1000 * 2 ** 1.5, 1), (1e-4, 60, 0), (1e-4, 8000, 0)):
        sine = level * np.sin(2 * np.pi * hz * time)[None]
        change = 20 * np.log10(np.std(warmth_stft_reference(sine, 44100)[:, 4000:-4000]) / np.std(sine[:, 4000:-4000]))
        assert abs(change - gain_db) < 0.15, (level, hz)


def test_what_is_left_out_is_the_whole_effect():
    x = 0.2 * demo_clip(22050)[:, 5000:17000]
    batch = torch.tensor(x[None])
    for variant in STAGES:
        for reference, stage in zip(REFERENCE_STAGES[variant], STAGES[variant]):
            assert np.array_equal(reference(x, 22050), reference(x, 22050, 1.0)) and torch.equal(stage(batch, 22050), stage(batch, 22050, 1.0))
        weights = [1, 2, 3]
        assert torch.equal(palette(batch, 22050, weights, variant=variant), palette(batch, 22050, weights, 1.0, variant))
        assert np.array_equal(palette_reference(x, 22050, weights, variant=variant), palette_reference(x, 22050, weights, 1.0, variant))
    assert torch.equal(palette(batch, 22050, weights), palette(batch, 22050, weights, 1.0, "exact"))
    assert np.array_equal(palette_reference(x, 22050, weights), palette_reference(x, 22050, weights, 1.0, "exact"))
    assert stage_strengths([1, 1, 2]).tolist() == [0.25, 0.25, 0.5] and not np.allclose(layeredness_reference(x, 22050), layeredness_reference(x, 22050, causal=True))
    assert torch.equal(layeredness(batch, 22050), layeredness(batch, 22050, causal=False))


def test_strengths_of_zero_change_nothing_in_the_references_either():
    x = demo_clip(22050)[:, :4000]
    for reference in REFERENCE_STAGES["exact"] + REFERENCE_STAGES["causal"]:
        assert np.array_equal(reference(x, 22050, 0.0), x) and reference(x, 22050, 0.0).dtype == np.float64
    assert palette_reference(x, 22050, [1, 0, 0], 0.0).dtype == np.float64


def test_weights_and_amounts_at_their_edges():
    assert normalise_style([1e308, 1e308, 0]).tolist() == [0.5, 0.5, 0] and normalise_style([5e-324, 0, 0]).tolist() == [1, 0, 0]
    assert normalise_style([[2, 0, 0], [0, 1, 3]]).tolist() == [[1, 0, 0], [0, 0.25, 0.75]]
    assert stage_strengths([1, 0, 0], 0.0).tolist() == [0, 0, 0] and stage_strengths([1, 0, 0], 1).tolist() == [1, 0, 0]
    assert stage_strengths([3, 1], 0.5, ("a", "b")).tolist() == [0.375, 0.125]
    for weights in ([[1, 0, 0], [0, 0, 0]], [0, 0, 0], [1, np.inf, 0], [-1e-9, 1, 1], [1, 1, 1, 1], 1.0):
        with pytest.raises(PaletteError):
            normalise_style(weights)
    for amount in (-1e-9, 1 + 1e-9, np.nan, [0.5, 1.1]):
        with pytest.raises(PaletteError):
            stage_strengths([1, 0, 0], amount)


def test_quiet_clips_and_silence_are_not_raised():
    "Below −70 LUFS there is no loudness to correct: only the tilt is left."
    hiss = np.random.default_rng(0).standard_normal((1, 30000))
    for level, raised in ((1e-5, False), (1e-3, True)):
        x = level * hiss
        for reference, stage in zip((layeredness_reference, layeredness_stft_reference), (layeredness, layeredness_stft)):
            for y in (reference(x, 44100), stage(torch.tensor(x[None]), 44100)[0].numpy()):
                assert (np.std(y) > 10 * level) == raised
    stages = palette_stages(44100, [0, 0, 1])
    for lufs, gain in ((-70.0, 10 ** (56 / 20)), (-70.01, 1), (-np.inf, 1), (-14.0, 1)):
        stages[0].hold(lufs)
        assert torch.allclose(stages[0](torch.ones(1, 10)), torch.full((1, 10), float(gain)))


@pytest.mark.parametrize("causal", (False, True))
def test_stages_for_blocks_are_the_blend(causal):
    rate, x = 22050, 0.5 * demo_clip(22050)
    for weights, amount, count in (([1, 0, 0], 0.6, 2), ([0, 1, 0], 0.6, 1), ([0, 0, 1], 0.6, 2), ([2, 1, 1], 1.0, 5)):
        stages, y, late = palette_stages(rate, weights, amount, causal), torch.tensor(x), 0
        assert len(stages) == count
        for stage in stages:
            if hasattr(stage, "hold"):
                stage.hold(pyloudnorm.Meter(rate).integrated_loudness(y[:, late:].numpy().T))
            delay = getattr(stage, "latency", 0)
            assert delay == (0 if causal or not hasattr(stage, "taps") else delay)
            y, late = stage(torch.nn.functional.pad(y, (0, delay))), late + delay
        assert late == (round(0.5 * rate) if weights[2] and not causal else 0)
        assert np.abs(y[:, late:].numpy() - palette_reference(x, rate, weights, amount, "causal" if causal else "exact")).max() < 1e-3
    assert len(palette_stages(rate, [1, 1, 1])) == len(palette_stages(rate, [1, 1, 1], 1.0, False)) == 5
    assert palette_stages(rate, [0, 0, 1])[-1].latency == 11025
