"""Filters against other libraries, at many rates, with gradients and their edges."""
import librosa
import numpy as np
import pytest
import torch
from scipy.signal import butter, fftconvolve, sosfilt

from timbre_palette.audio import PaletteError
from timbre_palette.filters import (Convolver, as_double, bandpass_sos, centred_response, decay_frames, fft_filter, finite_taps, frequency_response, gain_convolver, high_shelf,
                                    impulse_response, low_shelf, mel_filters, minimum_phase, peaking, peaking_sos, per_item, sos_recursion, spectral_tilt, tilt_gain_db, tilt_reference)

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
    frames = min(2000, 300 * block)
    sos, x = bandpass_sos(44100, 250, 4000), torch.tensor(noise(2, 2, frames))
    state, pieces = None, []
    for start in range(0, frames, block):
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


# --- edges, lengths and grids

def test_the_edge_of_reach_is_sharp():
    rate = 10000  # whose edge is 4500 Hz
    for hz, within in ((4499.9, True), (4500.0, False), (4501.0, False), (9000.0, False)):
        assert (peaking_sos(rate, hz, 7, 1.0)[0, 0] != 1) == within
        assert bandpass_sos(rate, 100, hz).shape == ((4, 6) if within else (2, 6)) and bandpass_sos(rate, hz, 9500)[:, :3].any() == within
        for make in (peaking, low_shelf, high_shelf):
            section = make(rate, hz, torch.tensor(7.0), 1.0)[0]
            assert torch.allclose(section[:3], section[3:]) != within
    assert np.allclose(bandpass_sos(rate, 4499.9, 9500), butter(4, 4499.9, "high", fs=rate, output="sos"))
    assert np.array_equal(bandpass_sos(rate, 100, 4501.0, 2), butter(2, 100, "high", fs=rate, output="sos"))
    assert np.array_equal(bandpass_sos(rate, 100, 300, 2), butter(2, [100, 300], "band", fs=rate, output="sos"))


@pytest.mark.parametrize("gain_db, q", ((-24.0, 0.3), (7.0, 1.0), (24.0, 8.0)))
@pytest.mark.parametrize("hz", (20.0, 150.0, 9000.0, 19000.0))
def test_bands_are_the_cookbooks(hz, gain_db, q):
    "Bristow-Johnson's formulas, written out."
    omega, a = 2 * np.pi * hz / 44100, 10 ** (gain_db / 40)
    cosine, alpha = np.cos(omega), np.sin(omega) / (2 * q)
    root = 2 * np.sqrt(a) * alpha
    bell = [1 + alpha * a, -2 * cosine, 1 - alpha * a, 1 + alpha / a, -2 * cosine, 1 - alpha / a]
    low = [a * (a + 1 - (a - 1) * cosine + root), 2 * a * (a - 1 - (a + 1) * cosine), a * (a + 1 - (a - 1) * cosine - root),
           a + 1 + (a - 1) * cosine + root, -2 * (a - 1 + (a + 1) * cosine), a + 1 + (a - 1) * cosine - root]
    high = [a * (a + 1 + (a - 1) * cosine + root), -2 * a * (a - 1 + (a + 1) * cosine), a * (a + 1 + (a - 1) * cosine - root),
            a + 1 - (a - 1) * cosine + root, 2 * (a - 1 - (a + 1) * cosine), a + 1 - (a - 1) * cosine - root]
    for ours, wanted in ((peaking, bell), (low_shelf, low), (high_shelf, high)):
        assert np.allclose(ours(44100, hz, gain_db, q)[0].numpy(), np.array(wanted) / wanted[3], rtol=1e-9, atol=1e-12)
    assert np.allclose(peaking_sos(44100, hz, gain_db, q)[0], np.array(bell) / bell[3], rtol=1e-9, atol=1e-12)


def test_numbers_and_tensors_broadcast_on_the_device_of_the_tensors():
    "The device `meta`, which holds shapes and no numbers, stands for any that is not the CPU."
    assert as_double(torch.ones(2, device="meta")).device.type == "meta" and as_double([1, 2]).tolist() == [1, 2]
    assert peaking(44100, 150.0, torch.ones(3, device="meta"), 1.0).device.type == "meta"
    assert per_item(0.5, torch.empty(4, 2, 9, device="meta", dtype=torch.float16)).shape == (4, 1, 1)
    assert per_item(torch.ones(4), torch.empty(4, 2, 9, dtype=torch.float16)).dtype == torch.float16
    assert peaking(44100, torch.tensor([[100.0], [200.0]]), torch.ones(3), 1.0).shape == (2, 3, 1, 6)


def test_gradients_of_a_response_under_autocast():
    "As precise as without, on both sides: those in double precision are the measure."
    def gradient(dtype, enabled=False):
        sos = torch.tensor(bandpass_sos(44100, 250, 4000), dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            frequency_response(sos, 512, dtype).abs().sum().backward()
        return sos.grad.double()
    for enabled in (False, True):
        assert torch.allclose(gradient(torch.float32, enabled), gradient(torch.float64), rtol=1e-4, atol=1e-4 * gradient(torch.float64).abs().max().item())


def test_how_long_a_resonance_rings():
    "A pair of poles at radius r falls by 20·lg r dB a sample; two that are alike take twice as long."
    def resonance(radius):
        return [1.0, 0, 0, 1, -2 * radius * np.cos(1), radius ** 2]
    for radius in (0.5, 0.9, 0.999):
        frames = 200 / -20 / np.log10(radius)
        assert abs(decay_frames(np.array([resonance(radius)])) - frames - 2) <= 1 and abs(decay_frames(np.array([resonance(radius)]), 60.0) - 0.3 * frames - 2) <= 1
        two = np.array([resonance(radius), resonance(0.4)])
        assert decay_frames(two) == decay_frames(two[:1]) and abs(decay_frames(two[[0, 0]], cascade=True) - 2 * frames - 2) <= 1
        assert decay_frames(2 * two[:1]) == decay_frames(two[:1])  # whatever the first coefficient is
    real = np.array([[1, 0, 0, 1, -0.7 - 0.2, 0.7 * 0.2]])
    assert abs(decay_frames(real) - 200 / -20 / np.log10(0.7) - 2) <= 1 and decay_frames(np.array([[1.0, 0, 0, 1, 0, 0]])) < 100
    with pytest.raises(PaletteError, match="at radius 1.001000"):
        decay_frames(np.array([resonance(1.001)]))
    assert decay_frames(np.full((1, 6), np.nan)) > 0


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_filtering_that_is_not_precise_keeps_140_db(dtype):
    for sos in (peaking_sos(44100, 150, 7, 1.0), peaking_sos(44100, 60, 24, 8.0)):
        for frames in (100, 70000):
            x = noise(2, 2, frames)
            ours, wanted = fft_filter(torch.tensor(x, dtype=dtype), sos, precise=False), sosfilt(sos, x)
            assert ours.dtype == dtype and ours.shape == x.shape
            assert np.abs(ours.numpy() - wanted).max() < (3e-4 if dtype == torch.float32 else 1e-6) * np.abs(wanted).max()


def test_states_of_the_recursion_are_scipys():
    x, sos = noise(2, 3, 300), bandpass_sos(44100, 250, 4000)
    for block in (128, 7):
        y, state = sos_recursion(torch.tensor(x), sos, block=block)
        wanted, final = sosfilt(sos, x, zi=np.zeros((4, 2, 3, 2)))
        assert np.allclose(y.numpy(), wanted) and np.allclose(state.numpy(), final)
    y, state = sos_recursion(torch.zeros(2, 3, 5), 2 * sos, torch.tensor(final))
    assert y.dtype == torch.float32 and np.allclose(y.numpy(), sosfilt(sos, np.zeros((2, 3, 5)), zi=final)[0], atol=1e-6)  # whatever the first coefficient is
    empty, same = sos_recursion(torch.zeros(2, 3, 0), sos, torch.tensor(final))
    assert empty.shape == (2, 3, 0) and np.array_equal(same.numpy(), final)


def one_pole(n_fft, pole=0.99):
    "The response of y[n] = x[n] + pole·y[n − 1], whose taps are powers of the pole."
    return 1 / (1 - pole * torch.exp(-2j * torch.pi / n_fft * torch.arange(n_fft // 2 + 1, dtype=torch.float64)))


def test_taps_of_one_pole():
    for floor_db in (-130.0, -60.0):
        wanted = int(np.ceil(floor_db / 20 / np.log10(0.99)))
        for taps in (impulse_response(one_pole(1 << 15), 10000, floor_db), finite_taps(one_pole, 10000, floor_db)):
            assert abs(len(taps) - wanted) <= 1 and np.allclose(taps, 0.99 ** np.arange(len(taps)), atol=1e-9)
    assert len(impulse_response(one_pole(1 << 15), 100)) == len(finite_taps(one_pole, 100)) == 100
    assert len(impulse_response(one_pole(1 << 15), 10000)) == len(impulse_response(one_pole(1 << 15), 10000, -130.0)) == len(finite_taps(one_pole, 10000))
    assert impulse_response(torch.zeros(9), 5).tolist() == [0]  # one tap at least
    asked = []
    finite_taps(lambda n_fft: asked.append(n_fft) or one_pole(n_fft, 0.999), 100000)
    assert asked[:2] == [8192, 16384] and asked == sorted(set(asked)) and asked[-1] >= 4 * 15000


def test_least_delay():
    "A pole inside the circle has least delay as it is; a zero outside comes inside."
    assert torch.allclose(minimum_phase(one_pole(4096, 0.9).abs()), one_pole(4096, 0.9), atol=1e-9)
    z = torch.exp(-2j * torch.pi / 4096 * torch.arange(2049, dtype=torch.float64))
    assert torch.allclose(minimum_phase((0.5 + z).abs()), 1 + 0.5 * z, atol=1e-9)


def test_taps_about_the_present():
    taps = np.array([[0.1, 0.2, 1.0, 0.4, 0.5], [0, 0, 1, 0, 0.0]])
    response = torch.tensor(np.fft.rfft(np.roll(np.pad(taps, ((0, 0), (0, 27))), -2, 1)))
    assert np.allclose(centred_response(response, 2), taps) and np.allclose(centred_response(response, 4)[:, 2:7], taps)
    assert centred_response(response, 4).shape == (2, 9)


@pytest.mark.parametrize("reach", (0, 1, 300, 20000))
@pytest.mark.parametrize("sizes", ((1, 31, 32, 33, 500), (5,), (31,), (8192, 70000, 3)))
def test_convolving_in_blocks_is_one_convolution(reach, sizes):
    if reach == 20000 and sizes[0] < 100:
        sizes = (20, 40)
    taps, x = noise(reach + 1, seed=1) / (reach + 1) ** 0.5, noise(2, sum(sizes), seed=2)
    convolver = Convolver(torch.tensor(taps))
    y = torch.cat([convolver(block) for block in torch.tensor(x).float().split(list(sizes), -1)], -1)
    assert y.dtype == torch.float32 and np.abs(y.numpy() - fftconvolve(x, taps[None])[:, :x.shape[1]]).max() < 1e-4
    assert convolver.latency == 0 and not convolver.join and Convolver(taps=torch.ones(3), latency=7).latency == 7


@pytest.mark.parametrize("size", (10, 2000))
def test_convolving_many_and_adding_up(size):
    taps, x = noise(3, 2, 50, seed=1), noise(2, 2000, seed=2)
    wanted = fftconvolve(np.broadcast_to(x, (3, 2, 2000)), taps, axes=-1)[..., :2000]
    for join, expected in ((False, wanted), (True, wanted.sum(-2))):
        convolver = Convolver(torch.tensor(taps), join=join)
        y = torch.cat([convolver(block.expand(3, -1, -1)) for block in torch.tensor(x).float().split(size, -1)], -1)
        assert np.abs(y.numpy() - expected).max() < 1e-3


@pytest.mark.parametrize("causal", (False, True))
def test_a_gain_becomes_a_convolver(causal):
    asked, rate = [], 6000

    def gain(n_fft):
        "Smooth in frequency, and up to 12 dB."
        asked.append(n_fft)
        return 10 ** (0.6 * torch.cos(torch.linspace(0, 9, n_fft // 2 + 1, dtype=torch.float64)))
    convolver = gain_convolver(gain, rate, 0.1, causal)
    assert asked[0] == 16384 and convolver.latency == (0 if causal else 600)
    assert len(convolver.taps) <= 1200 if causal else len(convolver.taps) == 1201
    assert torch.allclose(torch.fft.rfft(convolver.taps.double(), 16384).abs(), gain(16384), rtol=2e-3)
    energy = convolver.taps.square().cumsum(0) / convolver.taps.square().sum()
    assert energy[20] > 0.99 if causal else abs(energy[600] - 0.5) < 0.5 and torch.allclose(convolver.taps, convolver.taps.flip(0), atol=1e-6)
    assert gain_convolver(gain, rate, 0.1).latency == 600


@pytest.mark.parametrize("rate", (2000, 44100))
def test_a_causal_tilt_has_the_gain_of_the_other(rate):
    impulse = np.eye(1, 4 * rate)[0]
    causal = tilt_reference(impulse, rate, -3.0, 500.0, causal=True)
    hz = np.fft.rfftfreq(len(impulse), 1 / rate)
    heard = (hz > 60) & (hz < 0.45 * rate)
    level = 20 * np.log10(np.abs(np.fft.rfft(causal)))
    assert np.abs(level[heard] + 3 * np.log2(hz[heard] / 500)).max() < 0.1
    assert np.sum(causal[:rate // 100] ** 2) > 0.9 * np.sum(causal ** 2)
    x = noise(2, 1, 3000)
    ours = spectral_tilt(torch.tensor(x), rate, torch.tensor([-3.0, 1.5]), 500.0, True)
    for y, item, slope in zip(ours, x, (-3.0, 1.5)):
        assert np.abs(y.numpy() - tilt_reference(item, rate, slope, 500.0, True)).max() < 1e-9
    assert not np.allclose(ours, spectral_tilt(torch.tensor(x), rate, torch.tensor([-3.0, 1.5]), 500.0))


def test_a_tilt_turns_about_1_khz_and_stops_at_20_hz():
    assert tilt_gain_db(np.array([0.0, 10, 20, 20.0001, 1000, 2000]), 2.0) == pytest.approx([2 * np.log2(0.02)] * 4 + [0, 2], abs=1e-4)
    x = noise(1, 2, 2000)
    assert torch.equal(spectral_tilt(torch.tensor(x), 8000, -1.5), spectral_tilt(torch.tensor(x), 8000, -1.5, 1000.0, False))
    assert np.array_equal(tilt_reference(x, 8000, -1.5), tilt_reference(x, 8000, -1.5, 1000.0, False)) and tilt_reference(x.astype(np.float32), 8000, -1.5).dtype == np.float64
    assert spectral_tilt(torch.tensor(x).float(), 8000, -1.5).dtype == spectral_tilt(torch.tensor(x).float(), 8000, -1.5, causal=True).dtype == torch.float32


def test_a_tilt_does_not_wrap_around():
    "A click at the end leaves nothing at the beginning, nor a click at the beginning anything at the end."
    for frames, rate in ((300, 8000), (20000, 8000)):
        for place in (0, frames - 1):
            y = tilt_reference(np.eye(1, frames, place)[0], rate, -6.0, 100.0)
            assert abs(y[frames - 1 - place]) < 0.05 * abs(y[place]) / frames * 300


@pytest.mark.parametrize("rate, n_fft, bands", ((1900, 1024, 10), (2000, 1024, 20), (2100, 1024, 20), (16000, 512, 40), (44100, 2048, 128)))
def test_mel_filters_are_librosas(rate, n_fft, bands):
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bands)
    assert np.allclose(mel_filters(rate, n_fft, bands), theirs, atol=1e-6 * theirs.max()) and mel_filters(rate, n_fft).shape == (128, n_fft // 2 + 1)
