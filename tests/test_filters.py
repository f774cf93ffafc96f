"""Filters against other libraries, at many rates, with gradients and their edges."""
import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfilt

from timbre_palette.audio import PaletteError
from timbre_palette.filters import (bandpass_sos, decay_frames, fft_filter, peaking, peaking_sos, sos_recursion, spectral_tilt, tilt_gain_db,
                                    tilt_reference)

RATES = (8000, 11025, 22050, 44100, 48000, 96000, 192000)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("make", (lambda rate: peaking_sos(rate, 150, 7, 1.0), lambda rate: bandpass_sos(rate, 250, 4000)), ids=("bell", "band"))
def test_both_ways_of_filtering_are_the_recursion(make, rate):
    sos, x = make(rate), noise(2, 3, 20011)
    expected = sosfilt(sos, x)
    assert np.abs(fft_filter(torch.tensor(x), sos).numpy() - expected).max() < 1e-9
    assert np.abs(fft_filter(torch.tensor(x).float(), sos).numpy() - expected).max() < 2e-5
    assert np.abs(sos_recursion(torch.tensor(x), sos)[0].numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("frames", (1, 2, 127, 128, 129, 5000, 100000))
def test_any_length(frames):
    sos, x = peaking_sos(44100, 150, 7, 1.0), noise(1, 1, frames)
    assert np.abs(fft_filter(torch.tensor(x), sos).numpy() - sosfilt(sos, x)).max() < 1e-9
    assert np.abs(sos_recursion(torch.tensor(x), sos)[0].numpy() - sosfilt(sos, x)).max() < 1e-10


@pytest.mark.parametrize("block", (1, 7, 64, 1000))
def test_recursion_in_pieces_has_no_seam(block):
    sos, x = bandpass_sos(44100, 250, 4000), torch.tensor(noise(2, 2, 2000))
    state, pieces = None, []
    for start in range(0, 2000, block):
        piece, state = sos_recursion(x[..., start:start + block], sos, state)
        pieces.append(piece)
    assert torch.allclose(torch.cat(pieces, -1), sos_recursion(x, sos)[0], atol=1e-12)


def test_bell_against_torchaudio():
    functional = pytest.importorskip("torchaudio.functional", reason="torchaudio cannot be loaded with this torch", exc_type=(ImportError, OSError, RuntimeError))
    x = torch.tensor(noise(2, 30000)) * 0.05
    theirs = functional.equalizer_biquad(x, 44100, 150.0, 7.0, 1.0)
    ours = fft_filter(x[None], peaking_sos(44100, 150, 7, 1.0))[0]
    assert (ours - theirs).abs().max() < 1e-5


def test_bell_gradients():
    gain, q = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in ([-24.0, -1e-3, 0.0, 7.0, 24.0], [0.3, 1.0, 1.0, 1.0, 8.0]))
    frequency = torch.tensor([20.0, 150.0, 150.0, 1000.0, 15000.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: peaking(44100, *args), (frequency, gain, q))
    x = torch.tensor(noise(5, 1, 64), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, gain: fft_filter(x, peaking(44100, 2000.0, gain, 1.0)), (x, gain), fast_mode=True)


def test_recursion_gradients():
    x = torch.tensor(noise(1, 1, 150), requires_grad=True)
    sos = torch.tensor(bandpass_sos(44100, 2000, 8000), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sos_recursion(x, sos.detach())[0], x, fast_mode=True)
    sos_recursion(x.detach(), sos)[0].square().sum().backward()
    assert torch.isfinite(sos.grad).all() and sos.grad.abs().sum() > 0


def test_tilt_gradients_and_phase():
    x = torch.tensor(noise(2, 1, 300), requires_grad=True)
    slope = torch.tensor([-6.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, slope: spectral_tilt(x, 300, slope, 50.0), (x, slope), fast_mode=True)
    impulse = np.zeros(4001)
    impulse[2000] = 1
    response = tilt_reference(impulse, 44100, -1.5)
    assert np.allclose(response, response[::-1], atol=1e-4)  # zero phase


@pytest.mark.parametrize("rate", RATES)
def test_tilt_of_a_sine_is_its_gain(rate):
    time = np.arange(4 * rate) / rate
    for hz in (100.0, 1000.0, 3000.0):
        y = tilt_reference(np.sin(2 * np.pi * hz * time), rate, -1.5)[rate:-rate]
        assert abs(20 * np.log10(np.sqrt(2 * np.mean(y ** 2))) - tilt_gain_db(np.array(hz), -1.5)) < 0.01


def test_filters_out_of_reach_do_what_is_defined():
    assert np.array_equal(peaking_sos(300, 150, 7, 1.0), [[1, 0, 0, 1, 0, 0]])
    assert np.allclose(peaking(300, 150.0, torch.tensor([7.0]), 1.0)[0, 0, [0, 3]], 1)
    assert np.allclose(bandpass_sos(8000, 250, 4000), butter(4, 250, "high", fs=8000, output="sos"))
    x = torch.tensor(noise(1, 1, 500))
    assert not fft_filter(x, bandpass_sos(500, 250, 4000)).any()
    with pytest.raises(PaletteError, match="does not decay"):
        decay_frames(np.array([[1, 0, 0, 1, -2, 1.0]]))
