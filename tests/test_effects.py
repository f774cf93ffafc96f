"""Effects against their definitions, other libraries and finite differences; every gradient at every end."""
import math
import time
from types import SimpleNamespace

import numpy as np
import pedalboard
import pyloudnorm
import pytest
import torch
from scipy.signal import butter, lfilter, sosfilt

from timbre_palette.audio import PaletteError
from timbre_palette.effects.ballistics import attack_release, time_coefficient
from timbre_palette.effects.chains import EFFECTS, chain
from timbre_palette.effects.compressor import BALLISTICS, compress, compressor, compressor_gain_db, gain_reduction_db
from timbre_palette.effects.equaliser import band_settings, eq_sections, equaliser, parametric_eq
from timbre_palette.effects.parameters import Effect, Parameter, gradient_table
from timbre_palette.effects.plugins import plugin
from timbre_palette.effects.reverb import noise_response, room_response
from timbre_palette.filters import frequency_response, high_shelf, low_shelf, peaking

RATES = (16000, 22050, 24000, 44100, 48000, 96000)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def bursts(*shape, seed=0):
    "Noise whose level jumps every few milliseconds, over 60 dB."
    rng = np.random.default_rng(seed)
    level = np.repeat(10 ** rng.uniform(-3, 0, (*shape[:-1], -(-shape[-1] // 200))), 200, -1)[..., :shape[-1]]
    return rng.standard_normal(shape) * level


# ---- equaliser

@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gain", (-24.0, 6.0))
def test_bands_against_pyloudnorm(rate, gain):
    "An independent implementation of the same cookbook."
    for ours, kind in ((low_shelf, "low_shelf"), (high_shelf, "high_shelf"), (peaking, "peaking")):
        for frequency, q in ((100.0, 0.5), (5000.0, 2.0)):
            theirs = pyloudnorm.IIRfilter(gain, q, frequency, rate, kind)
            assert np.allclose(ours(rate, frequency, gain, q)[0].numpy(), np.concatenate([theirs.b, theirs.a]), atol=1e-12)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dtype, tolerance", ((torch.float64, 1e-6), (torch.float32, 1e-5)))
def test_equaliser_is_the_recursion(rate, dtype, tolerance):
    effect = equaliser()
    settings = effect.random(4, seed=rate)
    x = noise(4, 2, 30000)
    expected = np.stack([sosfilt(sections, item) for sections, item in zip(eq_sections(rate, **band_settings(effect.physical(settings))).numpy(), x)])
    ours = effect.render(torch.tensor(x, dtype=dtype), rate, settings).numpy()
    assert ours.dtype == str(dtype)[6:] and np.abs(ours - expected).max() < tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name, ours", (("PeakFilter", peaking), ("LowShelfFilter", low_shelf), ("HighShelfFilter", high_shelf)))
def test_bands_against_pedalboard(name, ours):
    x = noise(1, 20000).astype(np.float32)
    theirs = getattr(pedalboard, name)(cutoff_frequency_hz=1000, gain_db=9, q=0.9)(x, 44100)
    assert np.abs(theirs - sosfilt(ours(44100, 1000.0, 9.0, 0.9).numpy(), x)).max() < 2e-3


def test_bands_out_of_reach_do_nothing():
    x = torch.tensor(noise(1, 1, 5000))
    flat = parametric_eq(x, 16000, [0.0, 0.0, 24.0], [100.0, 1000.0, 9000.0], [1.0, 1.0, 1.0])
    assert torch.allclose(flat, x, atol=1e-9)


def test_response_in_single_precision_where_it_is_hardest():
    "The naive sum of coefficients times delays, in single precision, is wrong by percents here."
    sections = torch.cat([peaking(48000, 20.0, gain, 10.0) for gain in (-24.0, 24.0, 12.0)])
    exact = frequency_response(sections, 2 ** 17)
    ours = frequency_response(sections, 2 ** 17, torch.float32)
    assert ((ours - exact).abs() / exact.abs()).max() < 1e-5
    delays = torch.exp(-2j * math.pi / 2 ** 17 * torch.outer(torch.arange(3), torch.arange(2 ** 16 + 1))).to(torch.complex64)
    sections = sections.to(torch.complex64)
    naive = ((sections[:, :3] @ delays) / (sections[:, 3:] @ delays)).prod(0)
    assert ((naive - exact).abs() / exact.abs())[1:].max() > 1e-3


def test_any_number_of_bands():
    for peaks in (0, 1, 12):
        effect = equaliser(peaks)
        x = torch.tensor(noise(2, 1, 4000))
        assert effect.render(x, 44100, effect.random(2, seed=1)).shape == x.shape and len(effect.parameters) == 3 * (peaks + 2)


# ---- compressor

def giannoulis(x, rate, threshold_db, ratio, attack_ms, release_ms, knee_db, makeup_db):
    "The tutorial's feed-forward compressor with the smooth branching detector, in the log domain, sample by sample."
    smoothed, out = 0.0, np.empty_like(x)
    attack, release = math.exp(-1000 / (attack_ms * rate)), math.exp(-1000 / (release_ms * rate))
    for n, sample in enumerate(x):
        level = 20 * math.log10(max(abs(sample), 1e-8))
        if 2 * (level - threshold_db) < -knee_db:
            target = level
        elif 2 * abs(level - threshold_db) <= knee_db and knee_db > 0:
            target = level + (1 / ratio - 1) * (level - threshold_db + knee_db / 2) ** 2 / (2 * knee_db)
        else:
            target = threshold_db + (level - threshold_db) / ratio
        wanted = level - target
        pole = attack if wanted > smoothed else release
        smoothed = pole * smoothed + (1 - pole) * wanted
        out[n] = sample * 10 ** ((makeup_db - smoothed) / 20)
    return out


@pytest.mark.parametrize("settings", (
    {"threshold_db": -80.0, "ratio": 20.0, "attack_ms": 0.1, "release_ms": 5.0, "knee_db": 0.0, "makeup_db": 24.0},
    {"threshold_db": 0.0, "ratio": 1.0, "attack_ms": 100.0, "release_ms": 1000.0, "knee_db": 24.0, "makeup_db": -24.0},
    {"threshold_db": -30.0, "ratio": 4.0, "attack_ms": 5.0, "release_ms": 100.0, "knee_db": 6.0, "makeup_db": 0.0},
    {"threshold_db": -30.0, "ratio": 4.0, "attack_ms": 100.0, "release_ms": 5.0, "knee_db": 6.0, "makeup_db": 0.0}))
@pytest.mark.parametrize("rate", (24000, 48000))
def test_compressor_is_the_tutorials(settings, rate):
    x = bursts(1, 1, 12000)
    expected = giannoulis(x[0, 0], rate, **settings)
    scale = np.abs(expected).max()
    assert np.abs(compress(torch.tensor(x), rate, **settings)[0, 0].numpy() - expected).max() < 1e-9 * scale
    assert np.abs(compress(torch.tensor(x).float(), rate, **settings)[0, 0].numpy() - expected).max() < 2e-5 * scale


def test_compressor_at_rest_against_pedalboard():
    "Both stand still after a second of a steady level: the static curve alone. A square wave has one level at every sample."
    square = np.where(np.arange(44100) % 100 < 50, 0.5, -0.5).astype(np.float32)[None]
    theirs = pedalboard.Compressor(threshold_db=-20, ratio=4, attack_ms=1, release_ms=50)(square, 44100)
    ours = compress(torch.tensor(square)[None], 44100, -20.0, 4.0, 1.0, 50.0)[0]
    assert np.abs(theirs - ours.numpy())[0, -100:].max() < 1e-3


@pytest.mark.parametrize("frames", (1, 2, 255, 256, 257, 4097, 20000))
@pytest.mark.parametrize("attack, release", ((0.0, 0.99), (0.9, 0.99999), (0.999, 0.5), (0.7, 0.7), (0.99999, 0.0)))
def test_recursion(frames, attack, release):
    x = 30 * np.maximum(0, bursts(3, frames, seed=frames))
    x[1] = 0
    state, expected = np.zeros(3), np.empty_like(x)
    for n in range(frames):
        pole = np.where(x[:, n] > state, attack, release)
        state = expected[:, n] = pole * state + (1 - pole) * x[:, n]
    assert np.abs(attack_release(torch.tensor(x), attack, release).numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("scale", (1e-9, 1e6))
def test_recursion_at_any_scale(scale):
    x = torch.tensor(np.abs(bursts(2, 6000)))
    assert torch.allclose(attack_release(scale * x, 0.9, 0.9999) / scale, attack_release(x, 0.9, 0.9999), rtol=1e-9, atol=0)


def test_recursion_with_one_pole_is_scipys():
    x = noise(2, 50000)
    assert np.abs(attack_release(torch.tensor(x), 0.999, 0.999).numpy() - lfilter([0.001], [1, -0.999], x)).max() < 1e-12


def test_recursion_goes_on_from_its_last_output():
    x = torch.tensor(np.abs(bursts(2, 5000)))
    whole, state, pieces = attack_release(x, 0.9, 0.999), 0.0, []
    for piece in x.split(700, 1):
        pieces.append(attack_release(piece, 0.9, 0.999, state))
        state = pieces[-1][:, -1]
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-10)


def test_recursion_ends_where_nothing_is_a_number():
    x = torch.tensor(np.abs(bursts(3, 9000)))
    whole = attack_release(x, 0.9, 0.9999)
    x[0, 4000], x[1, 4000] = math.nan, math.inf
    y = attack_release(x, 0.9, 0.9999)
    assert torch.isnan(y[0, 4000:]).all() and not torch.isfinite(y[1, 4000:]).any()
    assert torch.allclose(y[:2, :4000], whole[:2, :4000]) and torch.allclose(y[2], whole[2])


def test_recursion_in_single_precision_would_be_wrong():
    "A release of seconds moves by less than float32 can add; the defective form stands still."
    x = torch.full((1, 300000), 20.0)
    pole = time_coefficient(5000.0, 48000)
    naive, step = np.float32(0), np.float32(1 - pole.item())
    for _ in range(300000):
        naive = naive + step * (np.float32(20) - naive)
    exact = 20 * (1 - pole.item() ** 300000)
    assert abs(attack_release(x, pole, pole)[0, -1].item() - exact) < 1e-5 < abs(naive - exact)


def test_linked_and_separate():
    x = torch.tensor(bursts(2, 2, 4000))
    settings = {"threshold_db": -30.0, "ratio": 4.0, "attack_ms": 1.0, "release_ms": 50.0}
    apart = compress(x, 44100, **settings, linked=False)
    assert torch.allclose(apart, torch.cat([compress(x[:, :1], 44100, **settings), compress(x[:, 1:], 44100, **settings)], 1))
    linked = compressor_gain_db(x, 44100, **settings)
    assert linked.shape == (2, 1, 4000)
    assert torch.allclose(linked, compressor_gain_db(x.abs().amax(1, keepdim=True), 44100, **settings))


# ---- DESIGN 4.6: what was wrong elsewhere, each with the defective form beside it

def jumps(**settings):
    "The largest step of the output level over a fine grid of input levels, beyond the grid's own."
    levels = torch.linspace(-60, 0, 60001, dtype=torch.float64)
    output = levels - gain_reduction_db(levels, -30.0, 4.0, 6.0, **settings)
    return output.diff().abs().max().item() - 1e-3


def test_the_knee_has_no_jump():
    assert jumps() < 1e-6
    assert 2.6 < jumps(paper_compat=True) < 2.8


def test_the_release_is_alive():
    x, time_ms = torch.tensor(bursts(1, 1, 8000), requires_grad=True), torch.tensor([50.0], dtype=torch.float64)

    def gradient(ballistics):
        release = time_ms.clone().requires_grad_()
        y = compress(x, 24000, -30.0, 4.0, time_ms, release, ballistics=ballistics)
        return torch.autograd.grad(y.square().sum(), release, allow_unused=True)[0]
    assert gradient("branching").abs() > 1e-3
    assert gradient("single_pole") is None and gradient("single_pole_fir") is None  # the simplification: no release at all


@pytest.mark.filterwarnings("ignore")
def test_knee_zero_is_a_number():
    dasp = pytest.importorskip("dasp_pytorch.functional")
    x = bursts(1, 1, 2048)
    values = {"threshold_db": -30.0, "ratio": 4.0, "attack_ms": 5.0, "release_ms": 50.0, "knee_db": 0.0}

    def gradients(function, makeup):
        settings = {name: torch.tensor([[value]], requires_grad=True) for name, value in {**values, makeup: 3.0}.items()}
        y = function(torch.tensor(x).float(), 24000, **settings)
        return torch.stack([gradient for gradient in torch.autograd.grad(y.square().mean(), settings.values(), allow_unused=True) if gradient is not None])
    ours = gradients(lambda x, rate, **settings: compress(x, rate, **{name: value[:, 0] for name, value in settings.items()}), "makeup_db")
    assert torch.isfinite(ours).all() and len(ours) == 6
    assert not torch.isfinite(gradients(dasp.compressor, "makeup_gain_db")).all()


def test_paper_ballistics():
    "The FIR approximation is the pole, where its response has room; the public code's is a Butterworth low-pass at half the inverse attack."
    x = torch.tensor(np.abs(noise(1, 6000)))
    fir = BALLISTICS["single_pole_fir"]
    ten = torch.tensor([10.0], dtype=torch.float64)
    assert torch.allclose(fir(x, 24000, ten, None, False), BALLISTICS["single_pole"](x, 24000, ten, None, False), atol=1e-8)
    branching = [BALLISTICS["branching"](x, 24000, ten, 5 * ten, compat)[0, 20:] for compat in (False, True)]
    assert torch.allclose(branching[1], BALLISTICS["branching"](x, 24000, ten / math.log(9), 5 * ten / math.log(9), False)[0, 20:]) and not torch.allclose(*branching)
    b, a = butter(1, 1 / (2 * 0.010), fs=24000)
    assert np.abs(fir(x, 24000, ten, None, True).numpy() - lfilter(b, a, x.numpy())).max() < 1e-8


# ---- distortion and reverb

def test_distortion_against_pedalboard():
    x = noise(2, 10000).astype(np.float32)
    theirs = pedalboard.Distortion(drive_db=25)(x, 44100)
    assert np.abs(EFFECTS["distortion"](torch.tensor(x)[None], 44100, drive_db=25.0)[0].numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize("rate", (24000, 44100, 48000))
@pytest.mark.parametrize("channels", (1, 2))
@pytest.mark.parametrize("room, damping, width", ((0.0, 0.0, 1.0), (0.5, 0.5, 0.3), (1.0, 1.0, 0.0), (1.0, 0.2, 1.0)))
def test_room_against_pedalboard(rate, channels, room, damping, width):
    x = 0.5 * noise(channels, rate).astype(np.float32)
    theirs = pedalboard.Reverb(room_size=room, damping=damping, wet_level=0.4, dry_level=0.6, width=width)(x, rate)
    settings = {"room": room, "damping": damping, "wet": 0.4, "dry": 0.6, "width": width}
    ours = EFFECTS["room_reverb"](torch.tensor(x)[None], rate, **settings)[0].numpy()
    beginning = rate // 50  # pedalboard slides from its defaults to the settings
    dry = 2 * 0.6 * x
    assert np.abs(ours - theirs)[:, beginning:].max() < 1e-5 * np.abs(theirs - dry)[:, beginning:].max()


def test_noise_reverb_decays_alike_at_any_rate():
    gains, decays = torch.zeros(1, 8), torch.full((1, 8), 0.5)
    energies = [noise_response(rate, 1, gains, decays)[0, 0].square().sum().item() for rate in RATES]
    assert np.allclose(energies, 0.5, rtol=0.1)


def test_a_large_room_does_not_wrap_around():
    "Ten seconds of ringing on a grid of two: the first second is the same as on a grid of twenty."
    short, long = (room_response(8000, frames, torch.ones(1), torch.zeros(1))[0, :8000] for frames in (8000, 80000))
    assert (short - long).abs().max() < 1e-8 * long.abs().max()


# ---- every effect

@pytest.mark.parametrize("name", EFFECTS)
def test_normalised_and_physical_are_one(name):
    effect = EFFECTS[name]
    settings = torch.cat([effect.random(20, seed=5), torch.zeros(1, len(effect.parameters)), torch.ones(1, len(effect.parameters))]).double()
    assert torch.allclose(effect.normalised(**effect.physical(settings)), settings, atol=1e-12)
    assert torch.allclose(effect.normalised(), effect.normalised(**effect.defaults))
    x = torch.tensor(noise(2, 1, 3000)).float()
    assert torch.allclose(effect(x, 44100), effect.render(x, 44100, effect.normalised()), atol=1e-5)


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_keep_their_input_and_its_kind(name):
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(noise(2, 2, 3000), dtype=dtype)
        before = x.clone()
        y = EFFECTS[name].render(x, 44100, EFFECTS[name].random(2, seed=0))
        assert torch.equal(x, before) and y.shape == x.shape and y.dtype == dtype
        assert not EFFECTS[name](torch.zeros_like(x), 44100).any()


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_are_causal(name):
    "What comes later changes nothing that came before; so a shared or ringing state would show."
    x = torch.tensor(noise(1, 2, 6000))
    later = x.clone()
    later[..., 4000:] = 0
    settings = EFFECTS[name].random(1, seed=2)
    both = [EFFECTS[name].render(signal, 44100, settings)[..., :4000] for signal in (x, later)]
    assert (both[0] - both[1]).abs().max() < 1e-6 * both[0].abs().max()


@pytest.mark.parametrize("name", EFFECTS)
def test_items_do_not_touch_each_other(name):
    x, effect = torch.tensor(bursts(3, 2, 5000)), EFFECTS[name]
    settings = effect.random(3, seed=4)
    together = effect.render(x, 24000, settings)
    apart = torch.cat([effect.render(x[n:n + 1], 24000, settings[n:n + 1]) for n in range(3)])
    assert torch.allclose(together, apart, atol=1e-6 * together.abs().max().item())


def test_what_is_refused():
    x = torch.zeros(1, 1, 100)
    for call, message in ((lambda: EFFECTS["compressor"](x, 44100, ratio=0.5), "ratio of compressor lies between 1 and 20"),
                          (lambda: EFFECTS["compressor"](x, 44100, threshold=-3), "no setting 'threshold'; it has threshold_db"),
                          (lambda: EFFECTS["distortion"].render(x, 44100, torch.tensor([0.0, 0.5, 1.1])), "between 0 and 1"),
                          (lambda: EFFECTS["distortion"].render(x, 44100, torch.zeros(1, 4)), "has 3 settings, not the 4 given"),
                          (lambda: compress(x, 44100, -20, 2, 5), "need release_ms"), (lambda: compressor("fast"), "unknown ballistics 'fast'"),
                          (lambda: EFFECTS["room_reverb"](torch.zeros(1, 6, 100), 44100), "cannot place 6 channels"),
                          (lambda: noise_response(44100, 1, torch.zeros(1, 8), torch.full((1, 8), 6.0)), "decays within 5 s"),
                          (lambda: attack_release(x[0], 0.5, 1.0), "between 0 and 1"), (lambda: Parameter("a", "", 1, 0, 0), "not a range")):
        with pytest.raises(PaletteError, match=message):
            call()


@pytest.mark.parametrize("name", EFFECTS)
def test_not_a_number_passes_to_where_training_finds_it(name):
    "And no further: the other item of the batch is untouched."
    effect, x = EFFECTS[name], torch.tensor(noise(2, 1, 500)).float()
    settings = effect.random(2, seed=0)
    whole = effect.render(x, 44100, settings)
    settings[0] = math.nan
    y = effect.render(x, 44100, settings)
    assert not torch.isfinite(y[0]).all() and torch.allclose(y[1], whole[1], atol=1e-4)


@pytest.mark.parametrize("name", EFFECTS)
def test_what_does_not_fit_is_one_error(name):
    effect, x = EFFECTS[name], torch.zeros(2, 2, 50)
    first = effect.parameters[0]
    for call, message in ((lambda: effect(x, 44100, **{first.name: torch.full((2, 1), first.default)}), "one for each of 2 items"),
                          (lambda: effect(x, 44100, **{first.name: [first.default] * 3}), "one for each of 2 items"),
                          (lambda: effect.render(x, 44100, torch.zeros(2, 1, len(effect.parameters))), "one for each of 2 items"),
                          (lambda: effect(x, 44100, **{first.name: None}), "is a number"), (lambda: effect(x.numpy(), 44100), "takes waveforms"),
                          (lambda: effect(x.long(), 44100), "floating point"), (lambda: effect(x, 0), "above 0 Hz")):
        with pytest.raises(PaletteError, match=message):
            call()
    assert effect(x[..., :0], 44100).shape == (2, 2, 0) and effect(x[:0], 44100).shape == (0, 2, 50)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_is_computed_in_single(name, dtype):
    effect = EFFECTS[name]
    x, settings = torch.tensor(0.1 * noise(1, 2, 800)).to(dtype), effect.random(1, seed=3)
    y = effect.render(x, 24000, settings)
    assert y.dtype == dtype and torch.equal(y, effect.render(x.float(), 24000, settings).to(dtype))
    effect.render(x, 24000, torch.ones(len(effect.parameters), dtype=dtype))


def test_what_was_made_for_inference_serves_training():
    effect, x = EFFECTS["noise_reverb"], torch.tensor(noise(1, 1, 500))
    with torch.inference_mode():
        effect(x, 12345)
    settings = effect.normalised().requires_grad_()
    effect.render(x, 12345, settings).sum().backward()


@pytest.mark.parametrize("peaks", (4, 10))
def test_bands_at_one_frequency(peaks):
    "Poles on top of each other ring longer than one."
    settings = {"gain_db": [6.0] * (peaks + 2), "frequency_hz": [1000.0] * (peaks + 2), "q": [10.0] * (peaks + 2)}
    x = noise(1, 1, 60000)
    expected = sosfilt(eq_sections(44100, **settings).numpy(), x)
    assert np.abs(parametric_eq(torch.tensor(x).float(), 44100, **settings).numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_gradients_of_the_equaliser_under_autocast():
    effect, x = EFFECTS["equaliser"], torch.tensor(noise(1, 1, 4000)).float()

    def gradient(enabled):
        settings = effect.random(1, seed=0).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            effect.render(x, 24000, settings).square().sum().backward()
        return settings.grad
    assert torch.allclose(gradient(True), gradient(False), rtol=1e-4, atol=1e-6 * gradient(False).abs().max().item())


@pytest.mark.parametrize("knee", (1e-9, 1e-19, 1e-30, 1e-42))
def test_a_knee_of_almost_nothing(knee):
    settings = torch.tensor([-20.0, knee]).requires_grad_()
    gain_reduction_db(torch.linspace(-80, 0, 1001), settings[0], 4.0, settings[1]).sum().backward()
    assert torch.isfinite(settings.grad).all()


def test_a_rest_takes_no_longer_than_a_change():
    "A state that settles on a constant is a tie at every sample, which once cost a round for every block."
    x = torch.full((1, 262144), 20.0)
    for _ in range(2):
        started = time.perf_counter()
        attack_release(x, 0.9, 0.99999, initial=20.0001)
        rest = time.perf_counter() - started
        started = time.perf_counter()
        attack_release(20 * torch.rand(1, 262144), 0.9, 0.99999)
        change = time.perf_counter() - started
    assert rest < 4 * change


def test_names_that_meet():
    one, other = Effect("a", (Parameter("b_gain", "", 0, 1, 0),), torch.mul), Effect("a_b", (Parameter("gain", "", 0, 1, 0),), torch.mul)
    with pytest.raises(PaletteError, match="two settings of one name: a_b_gain"):
        chain(one, other)


# ---- gradients

def gradients(effect, x, settings, rate=24000):
    "By normalised settings and by the signal, of a loss that weighs every sample on its own."
    settings, x = settings.clone().requires_grad_(), x.clone().requires_grad_()
    y = effect.render(x, rate, settings)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return torch.autograd.grad((y * weight).sum() + y.square().sum(), (settings, x))


@pytest.mark.parametrize("name", [*EFFECTS, "single_pole", "single_pole_fir"])
def test_gradient_table(name):
    "Each setting at both ends and inside, the others where all of them act."
    effect = EFFECTS[name] if name in EFFECTS else compressor(name)
    acting = {"equaliser": {parameter.name: 9.0 for parameter in effect.parameters if parameter.name.endswith("gain_db")},
              "distortion": {"bias": 0.3, "mix": 0.7}}.get(name, {"threshold_db": -40.0, "ratio": 4.0} if effect.name == "compressor" else {})
    rows = gradient_table(effect, torch.tensor(bursts(1, 2, 4800)), 24000, (0.0, 0.37, 1.0), **acting)
    assert len(rows) == 3 * len(effect.parameters)
    for row in rows:
        print(f"{name:16} {row['setting']:28} {row['place']:4.2f} {row['gradient']:12.4g}")
        assert math.isfinite(row["gradient"]), row
        if (row["setting"], row["place"]) != ("knee_db", 0):  # a corner's width enters by its square: nothing, at nothing
            assert abs(row["gradient"]) > 1e-9, row


@pytest.mark.parametrize("name", [*(name for name in EFFECTS if name != "noise_reverb"), "single_pole", "single_pole_fir"])
def test_gradients_at_both_ends_are_the_slopes_there(name):
    "Against one-sided differences into the range. The ratio's, at 1, is where a tie between attack and release would show. (The noise of one reverb is single precision, too coarse for this.)"
    effect = EFFECTS[name] if name in EFFECTS else compressor(name)
    base = effect.normalised(**({"threshold_db": -40.0, "ratio": 4.0} if effect.name == "compressor" else {}))
    x = torch.tensor(bursts(1, 2, 800))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(settings):
        return (effect.render(x, 24000, settings) * weight).sum()
    for n, parameter in enumerate(effect.parameters):
        for end, step in ((0.0, 1e-4), (1.0, -1e-4)):
            at = [base.clone() for _ in range(3)]
            for k, settings in enumerate(at):
                settings[n] = end + k * step
            slope = ((-3 * loss(at[0]) + 4 * loss(at[1]) - loss(at[2])) / (2 * step)).item()
            gradient = torch.autograd.grad(loss(at[0].requires_grad_()), at[0])[0][n].item()
            assert gradient == pytest.approx(slope, rel=2e-2, abs=1e-3 * abs(loss(at[0]).item()) + 1e-6), (parameter.name, end)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("level", (0.0, 1e-6, 1.0, 1e3))
def test_gradients_are_finite_on_silence_and_on_hot_signals(name, level):
    effect = EFFECTS[name]
    x = torch.tensor(level * bursts(1, 2, 3000)).float()
    corners = [torch.zeros(len(effect.parameters)), torch.ones(len(effect.parameters)), *effect.random(3, seed=9).float()]
    for settings in corners:
        assert all(torch.isfinite(gradient).all() for gradient in gradients(effect, x, settings))


@pytest.mark.parametrize("name", [*EFFECTS, "single_pole", "single_pole_fir"])
@pytest.mark.parametrize("seed", (0, 1))
def test_gradcheck(name, seed):
    effect = EFFECTS[name] if name in EFFECTS else compressor(name)
    x = torch.tensor(bursts(1, 2, 300, seed=seed), requires_grad=True)
    settings = (0.1 + 0.8 * effect.random(1, seed=seed)).requires_grad_()
    loose = name == "noise_reverb"  # its noise is single precision
    assert torch.autograd.gradcheck(lambda x, settings: effect.render(x, 24000, settings), (x, settings), fast_mode=True,
                                    eps=1e-3 if loose else 1e-6, atol=1e-2 if loose else 1e-5, rtol=1e-2 if loose else 1e-3)


@pytest.mark.parametrize("attack, release", ((0.3, 0.95), (0.95, 0.3), (0.6, 0.6), (0.0, 0.9)))
def test_gradcheck_of_the_recursion(attack, release):
    x = torch.tensor(np.abs(noise(2, 700)), requires_grad=True)
    poles = [torch.full((2,), max(pole, 1e-3), dtype=torch.float64, requires_grad=True) for pole in (attack, release)]
    assert torch.autograd.gradcheck(attack_release, (x, *poles), fast_mode=True)


def test_a_compressor_learns_its_times():
    "Attack and release among them: found again, by gradients alone, from a wrong start."
    effect, x = compressor(), torch.tensor(bursts(1, 1, 12000))
    truth = effect.normalised(threshold_db=-35, ratio=4, attack_ms=2, release_ms=40, knee_db=6, makeup_db=6)
    target = effect.render(x, 24000, truth)
    start = effect.normalised(threshold_db=-35, ratio=4, attack_ms=20, release_ms=300, knee_db=6, makeup_db=6)
    moving = torch.logit(start[2:4]).requires_grad_()
    optimiser = torch.optim.Adam([moving], lr=0.05)
    for _ in range(150):
        settings = torch.cat([truth[:2], torch.sigmoid(moving), truth[4:]])
        loss = (effect.render(x, 24000, settings) - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = effect.physical(settings.detach())
    assert found["attack_ms"].item() == pytest.approx(2, rel=0.1) and found["release_ms"].item() == pytest.approx(40, rel=0.1)


# ---- plugins

def test_a_plugin_is_an_effect_without_gradient():
    boxed = plugin("Compressor")
    x = torch.tensor(0.9 * noise(2, 2, 4000)).float()
    y = boxed(x, 44100, threshold_db=torch.tensor([-40.0, 0.0]))
    assert y.shape == x.shape and (y[0].abs() <= x[0].abs() + 1e-4).all() and torch.allclose(y[1], x[1], atol=1e-4)
    assert torch.equal(y, boxed(x, 44100, threshold_db=torch.tensor([-40.0, 0.0])))  # nothing left over from the last time
    with pytest.raises(PaletteError, match="no gradient"):
        boxed.render(x, 44100, torch.zeros(4, requires_grad=True))
    both = chain("equaliser", boxed)
    assert len(both.parameters) == 22 and not both.differentiable


@pytest.mark.parametrize("shape", ((1, 1, 1), (1, 2, 1), (1, 2, 2), (2, 2, 3)))
def test_a_plugin_and_a_few_samples(shape):
    "Which of the two is time has to be told."
    x = torch.zeros(shape)
    x[:, 0] = 1
    y = plugin("LowpassFilter")(x, 44100)
    assert y.shape == x.shape and y[:, 0].any() and not y[:, 1:].any()


def test_a_plugin_of_the_users_own():
    table = (Parameter("drive_db", "dB", 0.0, 30.0, 10.0),)
    effect = plugin(pedalboard.Distortion(), table, name="fuzz")
    assert effect.name == "fuzz" and effect.parameters == table
    with pytest.raises(PaletteError, match="has no setting 'warmth'"):
        plugin(pedalboard.Distortion(), (Parameter("warmth", "", 0, 1, 0),))
    with pytest.raises(PaletteError, match="nothing is known of the settings of Invert"):
        plugin(pedalboard.Invert())


def test_a_plugin_that_describes_itself():
    "As pedalboard presents a VST3: numbers become settings, switches and lists do not. (No VST3 is free to be had by a package manager here.)"
    class Loaded:
        name = "Tape"
        drive, bypass, mode = 3.0, False, "old"
        parameters = {"drive": SimpleNamespace(type=float, min_value=0.0, max_value=10.0, label="dB"),
                      "bypass": SimpleNamespace(type=bool, min_value=False, max_value=True, label=""),
                      "mode": SimpleNamespace(type=str, min_value=None, max_value=None, label="")}

        def __call__(self, samples, sample_rate, reset):
            assert reset and samples.dtype == np.float32
            return samples * self.drive
    effect = plugin(Loaded())
    assert effect.name == "Tape" and effect.parameters == (Parameter("drive", "dB", 0.0, 10.0, 3.0),)
    x = torch.ones(2, 1, 5)
    assert effect(x, 44100, drive=torch.tensor([1.0, 2.0]))[:, 0, 0].tolist() == [1, 2]


def test_a_file_that_is_no_plugin(tmp_path):
    (tmp_path / "no.vst3").write_bytes(b"no")
    with pytest.raises(PaletteError, match="cannot be loaded as a plugin"):
        plugin(tmp_path / "no.vst3")


# ---- speed

def test_far_faster_than_sample_by_sample():
    "The same recursion in autograd, one step after the other; a short one, since the long one takes minutes."
    x = torch.tensor(np.abs(bursts(6, 8192)), requires_grad=True)
    attack, release = (torch.full((6,), pole, dtype=torch.float64, requires_grad=True) for pole in (0.9, 0.999))
    started, state, states = time.perf_counter(), torch.zeros(6, dtype=torch.float64), []
    for sample in x.unbind(1):
        pole = torch.where(sample > state, attack, release)
        state = pole * state + (1 - pole) * sample
        states.append(state)
    slow = torch.stack(states, 1)
    by_sample = torch.autograd.grad(slow.square().sum(), (x, attack, release))
    between = time.perf_counter()
    fast = attack_release(x, attack, release)
    ours = torch.autograd.grad(fast.square().sum(), (x, attack, release))
    ended = time.perf_counter()
    assert torch.allclose(fast, slow, atol=1e-9) and all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(ours, by_sample))
    assert (between - started) / (ended - between) > 5
