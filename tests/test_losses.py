"""Every loss against its formula written out in NumPy, at its defaults; what it does at its floors, to items, to other precisions; what a checkpoint keeps of it."""
import librosa
import numpy as np
import pytest
import torch
from scipy.signal import get_window

from timbre_palette.audio import PaletteError
from timbre_palette.losses import (LOSSES, NOTHING, SCALES, WINDOWS, ErrorLoss, LogSTFTLoss, MultiResolutionSTFTLoss, MultiScaleSpectralLoss, NaiveLogSTFTLoss, ProductionLoss,
                                   RelativeLoss, StableLoss, stft_magnitude)


def magnitudes(x, n_fft=2048, hop=512):
    "Of the centred STFT of `(..., time)`, zeros at the ends, Hann, float64."
    padded = np.pad(np.asarray(x, np.float64), [*(x.ndim - 1) * [(0, 0)], (n_fft // 2, n_fft // 2)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, -1)[..., ::hop, :]
    return np.abs(np.fft.rfft(frames * get_window("hann", n_fft))).swapaxes(-1, -2)


@pytest.fixture(scope="module")
def pair():
    "Two items of two channels, the second item much quieter: what came out, and what it should be."
    generator = np.random.default_rng(0)
    target = generator.standard_normal((2, 2, 6000)) * np.array([0.3, 0.003])[:, None, None]
    return target + 0.1 * generator.standard_normal(target.shape) * np.array([0.3, 0.02])[:, None, None], target


def value(loss, pair, dtype=torch.float32):
    return loss(*(torch.tensor(signal, dtype=dtype) for signal in pair)).item()


def l1(a, b):
    "Mean absolute difference."
    return np.abs(a - b).mean()


def floored(x, n_fft, hop):
    "Magnitudes of 1e-4 at least."
    return np.maximum(magnitudes(x, n_fft, hop), 1e-4)


def resolutions(windows, hops, linear=1.0, logarithmic=1.0, bands=None):
    "Sum over windows of the L1 of magnitudes, or of bands of them, and of their logarithms."
    def loss(y, t):
        total = 0
        for n_fft, hop in zip(windows, hops):
            a, b = (floored(signal, n_fft, hop) for signal in (y, t))
            if bands:
                mel = librosa.filters.mel(sr=16000, n_fft=n_fft, n_mels=min(bands, n_fft // 8))
                a, b = (np.maximum(mel @ signal, 1e-4) for signal in (a, b))
            total += linear * l1(a, b) + logarithmic * l1(np.log(a), np.log(b))
        return total
    return loss


HALVES, QUARTERS = [n // 2 for n in (32, 128, 512, 2048, 8192, 32768)], [n // 4 for n in (2048, 1024, 512, 256, 128, 64)]
MR_STFT, MULTI_SCALE = resolutions((32, 128, 512, 2048, 8192, 32768), HALVES), resolutions((2048, 1024, 512, 256, 128, 64), QUARTERS)
WRITTEN_OUT = {
    "stable": lambda y, t: l1(y, t) + l1(magnitudes(y), magnitudes(t)),
    "relative": lambda y, t: np.mean([l1(a, b) / np.abs(b).mean() + l1(magnitudes(a), magnitudes(b)) / magnitudes(b).mean() for a, b in zip(y, t)]),
    "error": lambda y, t: np.mean([10 * np.log10(((a - b) ** 2).sum() / (b ** 2).sum()) for a, b in zip(y, t)]),
    "production": lambda y, t: MR_STFT(y, t) / 6 + 100 * l1(y, t),
    "log-stft": lambda y, t: l1(np.log(magnitudes(y) + 1e-4), np.log(magnitudes(t) + 1e-4)),
    "multi-scale": MULTI_SCALE,
    "log-mel": resolutions((2048, 1024, 512, 256, 128, 64), QUARTERS, linear=0, bands=64),
}


def test_all_losses_are_written_out():
    assert LOSSES.keys() == WRITTEN_OUT.keys() and (WINDOWS, SCALES) == ((32, 128, 512, 2048, 8192, 32768), (2048, 1024, 512, 256, 128, 64))


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_loss_is_its_formula(name, pair):
    assert value(LOSSES[name](), pair) == pytest.approx(WRITTEN_OUT[name](*pair), rel=1e-4)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_losses_are_computed_in_single_whatever_comes(name, pair):
    loss = LOSSES[name]()
    assert value(loss, pair, torch.float64) == pytest.approx(value(loss, pair), rel=1e-6)
    assert value(loss, pair, torch.bfloat16) == pytest.approx(value(loss, pair), rel=0.1)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_checkpoint_keeps_nothing_of_a_loss_but_windows_follow_it(name):
    loss = LOSSES[name]()
    assert loss.state_dict() == {}
    assert all(buffer.dtype == torch.float64 for buffer in loss.double().buffers())


@pytest.mark.parametrize("make, expected", (
    (lambda: StableLoss(0.5, 512, 128), lambda y, t: l1(y, t) + 0.5 * l1(magnitudes(y, 512, 128), magnitudes(t, 512, 128))),
    (lambda: RelativeLoss(0.5, 512, 128), lambda y, t: np.mean([l1(a, b) / np.abs(b).mean() + 0.5 * l1(magnitudes(a, 512, 128), magnitudes(b, 512, 128)) / magnitudes(b, 512, 128).mean() for a, b in zip(y, t)])),
    (lambda: LogSTFTLoss(0.01, 512, 128), lambda y, t: l1(np.log(magnitudes(y, 512, 128) + 0.01), np.log(magnitudes(t, 512, 128) + 0.01))),
    (lambda: NaiveLogSTFTLoss(), lambda y, t: l1(np.log(magnitudes(y)), np.log(magnitudes(t)))),
    (lambda: NaiveLogSTFTLoss(0.01, 512, 128), lambda y, t: l1(np.log(magnitudes(y, 512, 128) + 0.01), np.log(magnitudes(t, 512, 128) + 0.01))),
    (lambda: MultiResolutionSTFTLoss((64, 512), hop=100), lambda y, t: resolutions((64, 512), (100, 100))(y, t) / 2),
    (lambda: ProductionLoss(3.0, (64, 512), hop=100), lambda y, t: resolutions((64, 512), (100, 100))(y, t) / 2 + 3 * l1(y, t)),
    (lambda: MultiScaleSpectralLoss((512, 64), 0.3, 2.0), resolutions((512, 64), (128, 16), 2.0, 0.3)),
    (lambda: MultiScaleSpectralLoss((2048, 512), 0.3, 2.0, mel_bands=80, sample_rate=16000), resolutions((2048, 512), (512, 128), 2.0, 0.3, bands=80))))
def test_a_loss_with_other_settings_is_its_formula(make, expected, pair):
    assert value(make(), pair) == pytest.approx(expected(*pair), rel=1e-4)


@pytest.mark.parametrize("loss", (MultiResolutionSTFTLoss, MultiScaleSpectralLoss))
def test_one_number_an_item(loss, pair):
    each = loss((512, 64), reduce=False)(*map(torch.tensor, pair))
    assert each.tolist() == pytest.approx([value(loss((512, 64)), [signal[n:n + 1] for signal in pair]) for n in range(2)], rel=1e-5)


def test_a_target_of_silence_counts_as_one_of_minus_120_db(pair):
    quiet, silence = torch.full((1, 1, 4000), 1e-5), torch.zeros(1, 1, 4000)
    assert ErrorLoss()(quiet, silence).item() == pytest.approx(20, abs=1e-3)
    assert RelativeLoss(weight=0)(quiet, silence).item() == pytest.approx(10, rel=1e-4)
    assert RelativeLoss()(quiet, silence).item() == pytest.approx(10 + magnitudes(quiet.numpy()).mean() / 1e-6, rel=1e-4)


def test_the_floor_of_an_error():
    x = torch.ones(1, 1, 100)
    assert ErrorLoss()(x, x).item() == pytest.approx(-120) and ErrorLoss(-40.0)(1.01 * x, x).item() == pytest.approx(-40 + 10 * np.log10(2), abs=1e-3)


def test_floors_of_logarithms_on_silence():
    "Silence against a click in the middle of one frame, whose magnitudes are flat."
    click = torch.zeros(1, 1, 4096)
    click[..., 2048] = 0.5
    silence, x = 0 * click, click.numpy()
    for n_fft in (128, 512):
        assert MultiScaleSpectralLoss((n_fft,), linear=0)(silence, click).item() == pytest.approx(np.log(floored(x, n_fft, n_fft // 4) / 1e-4).mean(), rel=1e-4)
    assert LogSTFTLoss()(silence, click).item() == pytest.approx(np.log(magnitudes(x) / 1e-4 + 1).mean(), rel=1e-3)
    mel = MultiScaleSpectralLoss((512,), linear=0, mel_bands=40, sample_rate=16000)
    assert mel(silence, click).item() == pytest.approx(resolutions((512,), (128,), 0, bands=40)(0 * x, x), rel=1e-4)


def test_magnitudes_of_any_shape_and_precision_and_of_nothing():
    x = np.random.default_rng(1).standard_normal((3, 2, 2, 3000))
    ours = stft_magnitude(torch.tensor(x))
    assert ours.dtype == torch.float64 and ours.shape == (3, 2, 2, 1025, 6) and np.abs(ours.numpy() - magnitudes(x)).max() < 1e-10
    assert stft_magnitude(torch.tensor(x[0, 0, 0]), 256, 64, torch.ones(256, dtype=torch.float64)).shape == (129, 47)
    for gain, heard in ((0.999, False), (1.001, True)):  # −600 dB is where silence begins
        assert stft_magnitude(torch.full((2048,), gain * 1e-30, dtype=torch.float64)).any() == heard
    assert NOTHING == 1e-30


def test_what_mel_bands_need():
    with pytest.raises(PaletteError, match="sample_rate"):
        MultiScaleSpectralLoss(mel_bands=64)
    assert MultiScaleSpectralLoss(sample_rate=16000).mel_bands is None
