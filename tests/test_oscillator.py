"""The synthesiser of timbre transfer: in tune for minutes, without aliasing, the same block by block, with gradients; and the loss it learns by."""
import math

import auraloss
import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve, welch

from timbre_palette.audio import PaletteError
from timbre_palette.losses import SCALES, MultiScaleSpectralLoss
from timbre_palette.timbre_transfer.oscillator import (EDGE, TrainableReverb, audible_gain, exp_sigmoid, fade_in, filter_taps, filtered_noise, harmonic_amplitudes, oscillate,
                                                       phase_turns, upsample)

SEED = torch.Generator().manual_seed(0)


def in_blocks(function, size, *controls):
    "What a synthesiser makes of its controls, `size` frames at a time."
    state, parts = None, []
    for block in zip(*(control.split(size, 1) for control in controls)):
        part, state = function(*block, state=state)
        parts.append(part)
    return torch.cat(parts, -1)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_minute_at_4_khz_stays_in_tune(rate):
    hop = rate // 100
    state = None
    for _ in range(60):  # a second each, as it is played
        sound, state = oscillate(torch.full((1, 100), 4000.0), torch.ones(1, 100, 1), rate, hop, state)
    moment = np.arange(59 * rate, 60 * rate)
    drift = np.angle(np.vdot(np.exp(2j * np.pi * 4000 / rate * moment), sound[0, 0].numpy())) + np.pi / 2  # radians, after a minute
    assert abs(1200 * math.log2(1 + drift / (2 * np.pi) / (4000 * 59.5))) < 1e-6  # cents; 0.1 is asked for
    assert np.abs(sound[0, 0].numpy() - np.sin(2 * np.pi * (4000 * moment % rate) / rate)).max() < 1e-4


def test_pitch_of_a_glide_is_its_derivative():
    pitch = torch.linspace(100, 3000, 5000, dtype=torch.float64)[None]
    turns, end = phase_turns(pitch, 16000, torch.tensor([0.25], dtype=torch.float64))
    assert abs(turns[0, 0] - 0.25) < 1e-12 and turns.abs().max() <= 0.5 and end.abs().max() <= 0.5
    steps = torch.cat([turns, end[:, None]], 1).diff()
    assert ((steps - pitch / 16000) - (steps - pitch / 16000).round()).abs().max() < 1e-10


@pytest.mark.parametrize("rate", [16000, 44100])
def test_nothing_aliases(rate):
    "Rendered at eight times the rate with the harmonics silenced at the same places, a rising glide has nothing above half the rate."
    frames, hop = 100, rate // 100
    glide = 0.02 * rate * 15 ** (torch.arange(frames, dtype=torch.float64)[None] / frames)
    flat = torch.full((1, frames, 12), 1 / 12, dtype=torch.float64)

    def above_db(highest_hz):
        sound, _ = oscillate(glide, flat, 8 * rate, 8 * hop, highest_hz=highest_hz)
        power = np.abs(np.fft.rfft(sound[0, 0].numpy() * np.hanning(sound.shape[-1]))) ** 2
        return 10 * np.log10(power[len(power) // 8:].sum() / power.sum())

    assert above_db(rate / 2) < -80 < -20 < above_db(None)
    assert oscillate(torch.full((1, 4), 0.49 * rate), torch.ones(1, 4, 3), rate, hop)[0].abs().max() == 0


def test_fades_have_no_steps():
    controls = torch.rand(1, 50, generator=SEED, dtype=torch.float64)
    for fade in ("linear", "hann"):
        fine = upsample(controls, 100, fade=fade)
        assert torch.equal(fine[:, 99::100], controls) and fine.diff().abs().max() < 0.016  # pi/2 of a hundredth at most
    with pytest.raises(PaletteError, match="hop of 1"):
        fade_in(0, controls)


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("fade", ["linear", "hann"])
def test_blocks_of_the_oscillator_are_the_whole(size, fade):
    pitch, levels = 50 + 3000 * torch.rand(3, 40, generator=SEED), torch.rand(3, 40, 16, generator=SEED) / 16
    whole = oscillate(pitch, levels, 16000, 64, fade=fade)[0]
    assert (in_blocks(lambda f, a, state: oscillate(f, a, 16000, 64, state, fade), size, pitch, levels) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("size", [1, 5000, 40000])
def test_a_sound_made_in_parts_is_the_whole_and_has_its_gradients(monkeypatch, size):
    "Parts of one frame, of two, of all but a few; the highest pitches in some of them only."
    pitch, levels, weights = 50 + 3000 * torch.rand(2, 21, generator=SEED), torch.rand(2, 21, 16, generator=SEED) / 16, torch.randn(2, 1, 21 * 64, generator=SEED)

    def sound_and_gradients():
        controls = pitch.clone().requires_grad_(), levels.clone().requires_grad_()
        sound, _ = oscillate(*controls, 16000, 64)
        return sound.detach(), *torch.autograd.grad((sound * weights).sum(), controls)

    whole = sound_and_gradients()
    monkeypatch.setattr("timbre_palette.timbre_transfer.oscillator.PART_SIZE", size)
    for ours, theirs in zip(sound_and_gradients(), whole):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    short = (pitch[:, :3].double() / 15).requires_grad_(), levels[:, :3, :4].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, a: oscillate(f, a, 1000, 4)[0], (short[0], short[1]), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("hop", [16, 64, 300])
def test_blocks_of_noise_are_the_whole(size, hop):
    gains = torch.rand(3, 40, 33, generator=SEED)
    whole = filtered_noise(gains, hop, seed=5)[0]
    assert (in_blocks(lambda g, state: filtered_noise(g, hop, 5, state), size, gains) - whole).abs().max() < 1e-5
    assert not torch.equal(whole[0], filtered_noise(gains[:1], hop, seed=6)[0][0])


def test_states_are_not_used_up():
    gains = torch.ones(1, 2, 5)
    _, state = filtered_noise(gains, 50)
    assert torch.equal(filtered_noise(gains, 50, state=state)[0], filtered_noise(gains, 50, state=state)[0])


def test_noise_has_the_spectrum_asked_for():
    gains = torch.linspace(1, 0.1, 33, dtype=torch.float64)
    sound = filtered_noise(gains.expand(1, 600, 33), 200)[0][0, 0].numpy()
    hz, density = welch(sound, 1.0, nperseg=256)
    wanted = np.interp(hz, np.linspace(0, 0.5, 33), gains)
    assert np.abs(np.sqrt(density[8:-8] / 2) / wanted[8:-8] - 1).max() < 0.2  # of power 1 over half a rate
    assert (filtered_noise(torch.zeros(2, 3, 9), 10)[0] == 0).all()
    for shape in ((3, 9), (1, 4, 1)):
        with pytest.raises(PaletteError, match="bands"):
            filtered_noise(torch.ones(shape), 10)
    assert filter_taps(torch.ones(2, 5)).shape == (2, 8)


def test_gradients_are_those_of_finite_differences():
    pitch = torch.tensor([[0.0, 10.0, 14.0, 20.0, 25.0], [250.0, 480.0, 490.0, 499.9, 600.0]], dtype=torch.float64).requires_grad_()  # both ends, and past them
    levels = torch.rand(2, 5, 3, generator=SEED, dtype=torch.float64)
    levels[0, 1] = 0
    assert torch.autograd.gradcheck(lambda f, a: oscillate(f, a, 1000, 4)[0], (pitch, levels.requires_grad_()), eps=1e-7, atol=1e-4)
    gains = torch.rand(2, 3, 5, generator=SEED, dtype=torch.float64)
    gains[1] = 0
    assert torch.autograd.gradcheck(lambda g: filtered_noise(g, 4)[0], (gains.requires_grad_(),))
    raw = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(exp_sigmoid, (raw,))
    shares = torch.rand(1, 3, 4, generator=SEED, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, f: harmonic_amplitudes(torch.ones(1, 3, dtype=s.dtype), s, f, 1000), (shares, torch.tensor([[250.0, 480.0, 495.0]], dtype=torch.float64).requires_grad_()), eps=1e-7, atol=1e-4)
    x = torch.randn(1, 2, 30, generator=SEED, dtype=torch.float64).requires_grad_()
    room = TrainableReverb(1000, 0.02).double()
    assert torch.autograd.gradcheck(lambda x, response: torch.func.functional_call(room, {"response": response}, (x,)), (x, room.response))


def test_silenced_harmonics_leave_their_share_to_others():
    pitch = torch.tensor([[100.0, 3000.0, 8000.0]])
    amplitudes = harmonic_amplitudes(torch.ones(1, 3), torch.rand(1, 3, 8, generator=SEED) + 0.1, pitch, 16000)
    assert torch.allclose(amplitudes.sum(-1), torch.tensor([[1.0, 1.0, 0.0]])) and (amplitudes[0, 1] > 0).sum() == 2
    assert audible_gain(torch.tensor(EDGE), 1.0).tolist() == [1.0, 0.0]


def test_the_room_is_a_convolution():
    room, x = TrainableReverb(4000, 0.1, 0.05, seed=2), torch.randn(2, 1, 1500, generator=SEED)
    with torch.no_grad():
        out = room(x, wet=2.0, dry=0.5)
        expected = 0.5 * x.numpy() + 2 * fftconvolve(x.numpy(), room.response.numpy()[None, None])[..., :1500]
        assert np.abs(out.numpy() - expected).max() < 1e-5 and torch.equal(room(x, wet=0.0), x)
        for size in (1, 37, 400):
            stream = room.stream(wet=2.0, dry=0.5)
            assert (torch.cat([stream(part) for part in x.split(size, -1)], -1) - out).abs().max() < 1e-5
    with pytest.raises(PaletteError, match="longer times"):
        TrainableReverb(4000, 0.0)


def test_it_learns_a_tone():
    "Amplitudes found by descent through the oscillator, on the loss that does not hear phases."
    target = oscillate(torch.full((1, 50), 330.0), torch.tensor([0.5, 0.1, 0.3]).expand(1, 50, 3), 16000, 80)[0]
    raw = torch.zeros(3, requires_grad=True)
    optimiser, loss = torch.optim.Adam([raw], 0.1), MultiScaleSpectralLoss((512, 256))
    for _ in range(80):
        optimiser.zero_grad()
        loss(oscillate(torch.full((1, 50), 330.0), exp_sigmoid(raw, 1.0).expand(1, 50, 3), 16000, 80)[0], target).backward()
        optimiser.step()
    assert torch.allclose(exp_sigmoid(raw, 1.0), torch.tensor([0.5, 0.1, 0.3]), atol=0.02)


def test_the_loss_is_auralosss():
    x, y = (torch.nn.functional.pad(torch.randn(2, 1, 6000, generator=SEED), (2048, 2048)) for _ in range(2))
    theirs = auraloss.freq.MultiResolutionSTFTLoss(list(SCALES), [n // 4 for n in SCALES], list(SCALES), w_sc=0, w_log_mag=0.7, w_lin_mag=1)
    assert torch.allclose(MultiScaleSpectralLoss(alpha=0.7)(x, y), len(SCALES) * theirs(x, y), rtol=1e-4)
    apart = MultiScaleSpectralLoss(mel_bands=64, sample_rate=16000, reduce=False)(x, y)
    assert apart.shape == (2,) and torch.isclose(apart.mean(), MultiScaleSpectralLoss(mel_bands=64, sample_rate=16000)(x, y))
    with pytest.raises(PaletteError, match="sample_rate"):
        MultiScaleSpectralLoss(mel_bands=64)
