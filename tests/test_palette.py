"""Properties of the palette: what a blend keeps, and gradients of every stage."""
import numpy as np
import pyloudnorm
import pytest
import torch
from scipy.signal import butter, lfilter, sosfilt

from timbre_palette.anchors import REFERENCE_STAGES, STAGES, STYLES, palette, palette_reference
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
