"""The tables of effects, number by number, for a trained controller's settings mean something only as long as they stay; and what parameters, effects and chains do at their edges."""
import inspect
import math

import numpy as np
import pedalboard
import pytest
import torch

from timbre_palette.audio import PaletteError
from timbre_palette.effects.ballistics import attack_release, time_coefficient
from timbre_palette.effects.chains import EFFECTS, PRODUCTION, amplify, chain, gain, production
from timbre_palette.effects.compressor import BALLISTICS, compress, compressor, compressor_gain_db
from timbre_palette.effects.distortion import distort
from timbre_palette.effects.equaliser import band_settings, equaliser
from timbre_palette.effects.parameters import Effect, Parameter, by_kind, gradient_table, parameter_table
from timbre_palette.effects.plugins import BUILT_IN, find_effect, plugin
from timbre_palette.effects.reverb import convolve, noise_response, noise_reverb, noise_reverberator, room_response, room_reverb, room_reverberator
from timbre_palette.effects.settings import Preset, describe_settings, load_settings, save_settings, settings_rows, settings_stages

STEP = 250 ** 0.2  # four peaks share 40 Hz to 10 kHz: five steps, of which each peak has two
BANDS = {"low_shelf": (20, 400), **{f"peak_{n}": (40 * STEP ** (n - 1), 40 * STEP ** (n + 1)) for n in range(1, 5)}, "high_shelf": (1500, 10000)}
TABLES = {
    "equaliser": [row for band, (low, high) in BANDS.items() for row in (
        (f"{band}_gain_db", "dB", -24, 24, 0, "linear"), (f"{band}_frequency_hz", "Hz", low, high, math.sqrt(low * high), "log"), (f"{band}_q", "", 0.1, 10, 1 if "peak" in band else math.sqrt(0.5), "log"))],
    "compressor": [("threshold_db", "dB", -80, 0, -12, "linear"), ("ratio", "", 1, 20, 2, "log"), ("attack_ms", "ms", 0.1, 100, 5, "log"), ("release_ms", "ms", 5, 1000, 100, "log"),
                   ("knee_db", "dB", 0, 24, 6, "linear"), ("makeup_db", "dB", -24, 24, 0, "linear")],
    "distortion": [("drive_db", "dB", 0, 48, 12, "linear"), ("bias", "", -1, 1, 0, "linear"), ("mix", "", 0, 1, 1, "linear")],
    "noise_reverb": [*((f"band_{n}_gain_db", "dB", -48, 0, -12, "linear") for n in range(1, 9)), *((f"band_{n}_decay_s", "s", 0.05, 5, 1, "log") for n in range(1, 9)), ("mix", "", 0, 1, 0.3, "linear")],
    "room_reverb": [("room", "", 0, 1, 0.5, "linear"), ("damping", "", 0, 1, 0.5, "linear"), ("wet", "", 0, 1, 0.33, "linear"), ("dry", "", 0, 1, 0.4, "linear"), ("width", "", 0, 1, 1, "linear")],
    "input": [("gain_db", "dB", -60, 60, 0, "linear")],
    "output": [("gain_db", "dB", -60, 60, 0, "linear")],
}
PLUGINS = {  # low and high of each knob
    "Bitcrush": {"bit_depth": (1, 16)}, "Chorus": {"rate_hz": (0.1, 20), "depth": (0, 1), "centre_delay_ms": (1, 50), "feedback": (0, 0.95), "mix": (0, 1)}, "Clipping": {"threshold_db": (-60, 0)},
    "Compressor": {"threshold_db": (-80, 0), "ratio": (1, 20), "attack_ms": (0.1, 100), "release_ms": (5, 1000)}, "Delay": {"delay_seconds": (0.01, 2), "feedback": (0, 0.95), "mix": (0, 1)},
    "Distortion": {"drive_db": (0, 48)}, "Gain": {"gain_db": (-48, 48)}, "HighShelfFilter": {"cutoff_frequency_hz": (500, 10000), "gain_db": (-24, 24), "q": (0.1, 10)}, "HighpassFilter": {"cutoff_frequency_hz": (20, 10000)},
    "LadderFilter": {"cutoff_hz": (20, 10000), "resonance": (0, 1), "drive": (1, 20)}, "Limiter": {"threshold_db": (-40, 0), "release_ms": (5, 1000)},
    "LowShelfFilter": {"cutoff_frequency_hz": (20, 2000), "gain_db": (-24, 24), "q": (0.1, 10)}, "LowpassFilter": {"cutoff_frequency_hz": (20, 10000)},
    "NoiseGate": {"threshold_db": (-100, 0), "ratio": (1, 20), "attack_ms": (0.1, 100), "release_ms": (5, 1000)}, "PeakFilter": {"cutoff_frequency_hz": (20, 10000), "gain_db": (-24, 24), "q": (0.1, 10)},
    "Phaser": {"rate_hz": (0.1, 20), "depth": (0, 1), "centre_frequency_hz": (50, 10000), "feedback": (0, 0.95), "mix": (0, 1)}, "PitchShift": {"semitones": (-12, 12)},
    "Reverb": {"room_size": (0, 1), "damping": (0, 1), "wet_level": (0, 1), "dry_level": (0, 1), "width": (0, 1)},
}
# Defaults that are ours: pedalboard's do nothing, or too much.
OWN = {"Compressor": {"threshold_db": -12, "ratio": 2, "attack_ms": 5}, "Distortion": {"drive_db": 12}, "Gain": {"gain_db": 0}, "HighShelfFilter": {"cutoff_frequency_hz": 4000}, "LowShelfFilter": {"cutoff_frequency_hz": 200},
       "LowpassFilter": {"cutoff_frequency_hz": 5000}, "NoiseGate": {"threshold_db": -60}, "PeakFilter": {"cutoff_frequency_hz": 1000}}
LOG = {"rate_hz", "delay_seconds", "cutoff_frequency_hz", "cutoff_hz", "centre_frequency_hz", "q", "ratio", "attack_ms", "release_ms"}
UNITS = {"bit_depth": "bit", "semitones": "semitones", "delay_seconds": "s"}


# ---- tables

@pytest.mark.parametrize("name", EFFECTS)
def test_tables_of_effects(name):
    assert EFFECTS.keys() == TABLES.keys() and EFFECTS[name].name == name and EFFECTS[name].differentiable
    for parameter, (knob, unit, low, high, default, scale) in zip(EFFECTS[name].parameters, TABLES[name], strict=True):
        assert (parameter.name, parameter.unit, parameter.scale) == (knob, unit, scale) and (parameter.low, parameter.high, parameter.default) == pytest.approx((low, high, default), rel=1e-9)


@pytest.mark.parametrize("name", BUILT_IN)
def test_tables_of_plugins(name):
    "Their defaults are pedalboard's own, but for a few."
    assert BUILT_IN.keys() == PLUGINS.keys()
    assert {parameter.name: (parameter.low, parameter.high) for parameter in BUILT_IN[name]} == PLUGINS[name]
    machine = getattr(pedalboard, name)()
    for parameter in BUILT_IN[name]:
        assert parameter.default == pytest.approx(OWN.get(name, {}).get(parameter.name, float(getattr(machine, parameter.name))), rel=1e-4), parameter.name
        assert parameter.scale == ("log" if parameter.name in LOG else "linear")
        assert parameter.unit == UNITS.get(parameter.name, next((unit for ending, unit in (("_db", "dB"), ("_hz", "Hz"), ("_ms", "ms")) if parameter.name.endswith(ending)), ""))


def test_other_tables():
    assert PRODUCTION == ("equaliser", "compressor") and production().name == "chain" and len(production().parameters) == 24
    assert {name: [one.name for one in compressor(name).parameters] for name in BALLISTICS} == {
        name: [row[0] for row in TABLES["compressor"] if row[0] != "release_ms" or name == "branching"] for name in ("branching", "single_pole", "single_pole_fir")}
    assert [one.name for one in equaliser(0).parameters] == [f"{band}_{kind}" for band in ("low_shelf", "high_shelf") for kind in ("gain_db", "frequency_hz", "q")]
    assert equaliser(1).parameters[4].low == pytest.approx(40) and equaliser(1).parameters[4].high == pytest.approx(10000) and equaliser().parameters == equaliser(4).parameters
    with pytest.raises(PaletteError, match="0 peaks or more"):
        equaliser(-1)
    assert gain().name == "input" and (room_reverberator().name, noise_reverberator().name, compressor().name, equaliser().name) == ("room_reverb", "noise_reverb", "compressor", "equaliser")


def test_a_table_in_markdown():
    effect = Effect("toy", (Parameter("gain_db", "dB", -6.5, 24.0, 0.0), Parameter("q", "", 0.1, 10.0, 1.0, "log")), amplify)
    assert parameter_table(effect).splitlines() == ["| setting | range | default | scale |", "|---|---|---|---|", "| `gain_db` | -6.5 to 24 dB | 0 | linear |", "| `q` | 0.1 to 10 | 1 | log |"]


# ---- what is left out

@pytest.mark.parametrize("function, defaults", (
    (compress, {"release_ms": None, "knee_db": 0.0, "makeup_db": 0.0, "ballistics": "branching", "linked": True, "paper_compat": False}),
    (compressor_gain_db, {"release_ms": None, "knee_db": 0.0, "ballistics": "branching", "linked": True, "paper_compat": False}),
    (compressor, {"ballistics": "branching", "linked": True, "paper_compat": False}), (distort, {"bias": 0.0, "mix": 1.0}), (attack_release, {"initial": 0.0}), (noise_response, {"seed": 0, "frames": None}),
    (noise_reverb, {"seed": 0}), (noise_reverberator, {"seed": 0}), (room_response, {"right": False}), (room_reverb, {"damping": 0.5, "wet": 0.33, "dry": 0.4, "width": 1.0}),
    (chain, {"name": "chain"}), (gain, {"name": "input"}), (equaliser, {"peaks": 4}), (gradient_table, {"places": (0.0, 0.5, 1.0)}), (Parameter, {"scale": "linear"}), (Effect, {"differentiable": True})))
def test_what_is_left_out(function, defaults):
    assert {name: one.default for name, one in inspect.signature(function).parameters.items() if one.default is not inspect.Parameter.empty} == defaults


@pytest.mark.parametrize("settings", ({"linked": False}, {"paper_compat": True}, {"ballistics": "single_pole"}, {"ballistics": "single_pole_fir", "paper_compat": True}))
def test_settings_of_a_compressor_reach_it(settings):
    x = torch.tensor(np.random.default_rng(0).standard_normal((1, 2, 3000)) * np.array([[1.0], [0.1]]))
    knobs = {name: value for name, value in {"threshold_db": -30.0, "ratio": 5.0, "attack_ms": 3.0, "release_ms": 40.0, "knee_db": 8.0, "makeup_db": 3.0}.items() if "ballistics" not in settings or name != "release_ms"}
    y = compressor(**settings)(x, 24000, **knobs)
    assert torch.equal(y, compress(x, 24000, **knobs, **settings)) and not torch.allclose(y, compress(x, 24000, **{"release_ms": 40.0, **knobs}))
    without_makeup = compress(x, 24000, **{**knobs, "makeup_db": 0.0}, **settings)
    assert torch.allclose(y, without_makeup * 10 ** (3 / 20))
    reduction = compressor_gain_db(x, 24000, **{name: value for name, value in knobs.items() if name != "makeup_db"}, **settings)
    assert torch.allclose(without_makeup, x * 10 ** (-reduction / 20))


# ---- parameters and effects

def test_scales_in_closed_form():
    linear, log = Parameter("a", "", -10.0, 30.0, 0.0), Parameter("b", "", 10.0, 1000.0, 10.0, "log")
    for place, low_high, ratio in ((0.0, -10, 10), (0.25, 0, 10 ** 1.5), (0.5, 10, 100), (1.0, 30, 1000)):
        for kind in (float, lambda value: torch.tensor(value, dtype=torch.float64)):
            assert float(linear.physical(kind(place))) == pytest.approx(low_high) and float(log.physical(kind(place))) == pytest.approx(ratio)
            assert float(linear.normalised(kind(low_high))) == pytest.approx(place) and float(log.normalised(kind(ratio))) == pytest.approx(place)
    assert Parameter("a", "", 0.0, 1.0, 0.0).default == 0 and Parameter("a", "", 0.0, 1.0, 1.0).default == 1
    for wrong in ((0, 1, -0.1), (0, 1, 1.1), (1, 1, 1), (-math.inf, 0, 0), (0, math.inf, 0), (0, 1, math.nan), (0, 1, 0.5, "log"), (-1, 1, 0.5, "log"), (1, 2, 1, "mel")):
        with pytest.raises(PaletteError):
            Parameter("a", "", *wrong)


def toy(function=lambda x, sample_rate, a, b: a[..., None, None] * x + b if isinstance(a, torch.Tensor) and a.ndim else a * x + b, differentiable=True):
    return Effect("toy", (Parameter("a", "", 0.0, 4.0, 1.0), Parameter("b", "", 1.0, 16.0, 2.0, "log")), function, differentiable)


def test_settings_of_an_effect():
    effect = toy()
    assert effect.defaults == {"a": 1.0, "b": 2.0} and {name: float(value) for name, value in effect.complete({"a": 3}).items()} == {"a": 3, "b": 2}
    assert effect.normalised(a=1.0, b=4.0).tolist() == pytest.approx([0.25, 0.5]) and effect.normalised().dtype == torch.float64
    assert effect.normalised(a=torch.tensor([0.0, 4.0])).shape == (2, 2)
    physical = effect.physical([[0.5, 0.5], [1.0, 0.0]])
    assert physical["a"].tolist() == [2, 4] and physical["b"].tolist() == pytest.approx([4, 1])
    drawn = effect.random(500, seed=3)
    assert drawn.shape == (500, 2) and drawn.dtype == torch.float64 and torch.equal(drawn, effect.random(500, seed=3)) and not torch.equal(drawn, effect.random(500, seed=4))
    assert 0 <= drawn.min() < 0.01 and 0.99 < drawn.max() <= 1 and abs(drawn.mean() - 0.5) < 0.03
    x = torch.ones(1, 1, 3)
    assert effect(x, 8000).tolist() == [[[3, 3, 3]]] and effect.render(x, 8000, [0.5, 0.5]).flatten()[0] == pytest.approx(6)
    for settings in ({"a": 4 + 3.9e-6}, {"a": -3.9e-6}, {"b": 16 + 1.4e-5}):  # float32 cannot say every end
        effect(x, 8000, **settings)
    for settings in ({"a": 4 + 4.1e-6}, {"a": -4.1e-6}, {"b": 1 - 1.6e-5}, {"c": 1}, {"a": "x"}, {"a": [[1], [1, 2]]}):
        with pytest.raises(PaletteError):
            effect(x, 8000, **settings)
    for normalised in ([0.5, 1 + 1e-9], [-1e-9, 0.5], [0.5], 0.5, [0.5] * 3):
        with pytest.raises(PaletteError):
            effect.physical(torch.tensor(normalised, dtype=torch.float64))
    assert effect.physical(torch.tensor([0.0, 1.0])).keys() == {"a", "b"}
    fine = effect.physical(torch.tensor([0.5, 1 / 3], dtype=torch.bfloat16))["b"]
    assert fine.dtype == torch.float32
    with pytest.raises(PaletteError, match="two settings of one name: a$"):
        Effect("twins", (Parameter("a", "", 0, 1, 0), Parameter("b", "", 0, 1, 0), Parameter("a", "", 0, 1, 0)), amplify)


def test_waveforms_of_an_effect():
    effect, seen = toy(lambda x, sample_rate, a, b: seen.append(x.dtype) or x), []
    for dtype, inside in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        assert effect(torch.ones(1, 1, 3, dtype=dtype), 8000).dtype == dtype and seen[-1] == inside
    count = len(seen)
    for x, rate in ((torch.ones(1, 3), 8000), (torch.ones(1, 1, 3).long(), 8000), (np.ones((1, 1, 3)), 8000), (torch.ones(1, 1, 3), 0), (torch.ones(1, 1, 3), -1), (torch.ones(1, 1, 3), math.nan)):
        with pytest.raises(PaletteError):
            effect(x, rate)
    for value in (torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(PaletteError, match="for each of 3 items"):
            effect(torch.ones(3, 1, 4), 8000, a=value)
    assert len(seen) == count
    for value in (1.0, torch.tensor(1.0), torch.ones(1), torch.ones(3)):
        effect(torch.ones(3, 1, 4), 0.5, a=value)


def test_effects_without_a_gradient():
    stiff, x = toy(lambda x, sample_rate, a, b: x.clone(), differentiable=False), torch.ones(1, 1, 3)
    for wave, settings in ((x.clone().requires_grad_(), {}), (x, {"a": torch.tensor(1.0, requires_grad=True)})):
        with pytest.raises(PaletteError, match="no gradient"):
            stiff(wave, 8000, **settings)
        with torch.no_grad():
            stiff(wave, 8000, **settings)
    assert torch.equal(stiff(x, 8000), x)


def test_a_table_of_gradients_in_closed_form():
    "y = a·x + b with a = 4·n and b = 16^n: the weighed sum, and that of squares, by either n."
    effect, x = toy(), torch.tensor(np.random.default_rng(0).standard_normal((1, 1, 50)))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = gradient_table(effect, x, 8000, a=2.0)
    assert [(row["setting"], row["place"]) for row in rows] == [(name, place) for name in "ab" for place in (0.0, 0.5, 1.0)]
    for row in rows:
        a, b = (4 * row["place"], 2.0) if row["setting"] == "a" else (2.0, 16 ** row["place"])
        outer = weight + 2 * (a * x + b)
        expected = (outer * 4 * x).sum() if row["setting"] == "a" else (outer * b * math.log(16)).sum()
        assert row["gradient"] == pytest.approx(expected.item())
    assert len(gradient_table(effect, x, 8000, (0.3,))) == 2
    with pytest.raises(PaletteError, match="one setting"):
        gradient_table(effect, x, 8000, a=torch.ones(2))


def test_settings_by_kind():
    found = by_kind({"b_gain_db": 1, "a_q": 2.0, "a_gain_db": torch.tensor([3.0, 4.0]), "gain_db": 9}, "gain_db", "q")
    assert found["gain_db"].tolist() == [[1, 3], [1, 4]] and found["q"].tolist() == [2] and found["q"].dtype == torch.float64
    assert {kind: values.tolist() for kind, values in band_settings({"x_q": 1, "x_gain_db": 2, "x_frequency_hz": 3}).items()} == {"gain_db": [2], "frequency_hz": [3], "q": [1]}


# ---- ballistics

def test_a_time_is_that_to_63_percent():
    pole = time_coefficient(10.0, 48000)
    assert 1 - pole ** 480 == pytest.approx(1 - math.exp(-1)) and pole.dtype == torch.float64 and time_coefficient(0.0, 48000) == 0
    y = attack_release(torch.ones(1, 480, dtype=torch.float64), pole, 0.0)
    assert y[0, -1] == pytest.approx(1 - math.exp(-1))


def by_sample(x, attack, release, initial):
    "The recursion, in autograd."
    state, states = initial, []
    for sample in x.unbind(1):
        pole = torch.where(sample > state, attack, release)
        state = pole * state + (1 - pole) * sample
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("frames", (1, 300, 1025))
def test_lanes_of_every_kind_side_by_side(frames):
    "Slow and fast attacks in one batch, each begun at its own state: outputs and gradients are those of the recursion."
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, frames, generator=generator, dtype=torch.float64) * torch.where(torch.rand(4, frames, generator=generator) < 0.3, 1.0, 0.05)
    weight = torch.randn(4, frames, generator=generator, dtype=torch.float64)
    initial = torch.tensor([0.5, 0.0, 2.0, -1.0], dtype=torch.float64)
    results = []
    for function in (attack_release, by_sample):
        leaves = [x.clone().requires_grad_(), *(torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([0.3, 0.95, 0.7, 0.0], [0.95, 0.3, 0.7, 0.99]))]
        y = function(*leaves, initial)
        results.append((y, *torch.autograd.grad((y * weight).sum(), leaves)))
    for ours, expected in zip(*results):
        assert torch.allclose(ours, expected, rtol=1e-7, atol=1e-9)


def test_edges_of_the_recursion():
    assert attack_release(torch.ones(2, 0), 0.5, 0.5).shape == (2, 0) and attack_release(torch.ones(1, 3).half(), 0.5, 0.5).dtype == torch.float16
    assert attack_release(torch.ones(1, 3), 0.0, 0.0).tolist() == [[1, 1, 1]]
    for attack, release in ((1.0, 0.5), (0.5, 1.0), (-0.1, 0.5), (0.5, torch.tensor([0.5, -1e-9]))):
        with pytest.raises(PaletteError, match="between 0 and 1"):
            attack_release(torch.ones(2, 3), attack, release)


# ---- chains, distortion, reverbs

def test_chains():
    x = torch.tensor([[[0.1, -0.2]]])
    effect = chain("input", gain("mine"), "output", name="three")
    assert effect.name == "three" and [one.name for one in effect.parameters] == ["input_gain_db", "mine_gain_db", "output_gain_db"] and effect.differentiable
    assert torch.allclose(effect(x, 8000, input_gain_db=20.0, mine_gain_db=-6.0, output_gain_db=6.0), 10 * x)
    assert torch.allclose(amplify(x.expand(2, -1, -1), 8000, torch.tensor([0.0, 20.0]))[1], 10 * x[0])
    crossed = chain("distortion", "input")(x, 8000, distortion_drive_db=20.0, input_gain_db=-20.0)
    assert torch.allclose(crossed, torch.tanh(10 * x) / 10)
    assert not chain("input", Effect("stiff", (), lambda x, sample_rate: x, False)).differentiable
    for effects in ((), ("input", "input"), ("input", "chorus"), (3,)):
        with pytest.raises(PaletteError):
            chain(*effects)


def test_distortion_in_closed_form():
    x = torch.tensor([[[0.3, -0.7]], [[0.3, -0.7]]], dtype=torch.float64)
    y = distort(x, 8000, torch.tensor([6.0, 20.0]), torch.tensor([0.5, -0.2]), torch.tensor([0.25, 1.0]))
    for item, g, bias, mix in zip(y, (10 ** 0.3, 10), (0.5, -0.2), (0.25, 1)):
        assert torch.allclose(item, mix * (torch.tanh(g * x[0] + bias) - math.tanh(bias)) + (1 - mix) * x[0])


def test_bands_of_noise():
    "Each band by itself has its energy where it belongs; their seeds, lengths and rates are kept apart."
    rate, silent = 24000, -400.0
    for band, hz in enumerate((62.5, 125, 250, 500, 1000, 2000, 4000, 8000)):
        gains = torch.full((1, 8), silent)
        gains[0, band] = 0.0
        spectrum = torch.fft.rfft(noise_response(rate, 1, gains, torch.full((1, 8), 0.5))[0, 0]).abs().square()
        place = torch.fft.rfftfreq(2 * (len(spectrum) - 1), 1 / rate)
        inside = (place > (0 if band == 0 else hz / 2.1)) & (place < (rate if band == 7 else hz * 2.1))
        assert spectrum[inside].sum() > 0.95 * spectrum.sum()
    flat, decays = torch.zeros(2, 8), torch.tensor([[0.5] * 8, [0.1] * 8])
    whole = noise_response(rate, 2, flat, decays)
    assert whole.shape == (2, 2, rate) and whole.dtype == torch.float32 and torch.equal(whole[..., :100], noise_response(rate, 2, flat, decays, frames=100))
    assert torch.equal(whole, noise_response(rate, 2, flat, decays, seed=0)) and not torch.allclose(whole, noise_response(rate, 2, flat, decays, seed=1))
    assert abs(np.corrcoef(whole[0])[0, 1]) < 0.05  # channels have noise of their own
    tail = whole[:, :, -200:].square().mean((1, 2)) / whole[:, :, :200].square().mean((1, 2))
    assert 10 * math.log10(tail[0]) == pytest.approx(-119, abs=3)  # -60 dB after half a second, twice over
    for wrong in (torch.zeros(1, 7), torch.zeros(8)):
        with pytest.raises(PaletteError, match="has 8 bands"):
            noise_response(rate, 1, wrong, 0.5)
    noise_response(2000, 1, flat, torch.full((2, 8), 5.0 + 4e-6, dtype=torch.float64), frames=10)
    with pytest.raises(PaletteError, match="within 5 s"):
        noise_response(2000, 1, flat, torch.full((2, 8), 5.0 + 6e-6, dtype=torch.float64), frames=10)


def test_convolving_whole():
    generator = np.random.default_rng(0)
    x, response = generator.standard_normal((2, 1, 700)), generator.standard_normal((2, 1, 900))
    for length in (1, 30, 900):
        y = convolve(torch.tensor(x), torch.tensor(response[..., :length]))
        assert np.allclose(y[1, 0], np.convolve(x[1, 0], response[1, 0, :length])[:700])


def test_a_wide_room():
    "Mono in the left channel: what comes out of the right is the right side's response, at full width alone."
    click = torch.zeros(1, 2, 9000)
    click[0, 0, 0] = 1
    sides = [room_response(24000, 9000, torch.tensor([0.6]), torch.tensor([0.2]), right)[0] for right in (False, True)]
    for width in (0.0, 0.4, 1.0):
        y = room_reverb(click, 24000, 0.6, 0.2, 0.5, 0.25, width)[0].double()
        y[0, 0] -= 0.5  # dry, times 2
        for n in range(2):
            assert torch.allclose(y[n], 1.5 * ((1 + width) / 2 * sides[n] + (1 - width) / 2 * sides[1 - n]), atol=1e-6)
    mono = room_reverb(click[:, :1], 24000, 0.6, 0.2, 0.5, 0.0, 0.4)[0, 0].double()
    assert torch.allclose(mono, 1.5 * 0.7 * sides[0], atol=1e-6)
    with pytest.raises(PaletteError, match="cannot place 3"):
        room_reverb(torch.zeros(1, 3, 10), 24000, 0.5)


# ---- plugins

def test_effects_by_name():
    assert find_effect("compressor") is EFFECTS["compressor"] and find_effect(EFFECTS["input"]) is EFFECTS["input"]
    boxed = find_effect("plugin:Gain")
    x = torch.tensor(np.random.default_rng(0).uniform(-0.4, 0.4, (2, 1, 600))).double().requires_grad_(False)
    y = boxed(x, 44100, gain_db=torch.tensor([-6.0, 6.0]))
    assert boxed.name == "gain" and not boxed.differentiable and y.dtype == torch.float64
    assert torch.allclose(y, x * torch.tensor([10 ** -0.3, 10 ** 0.3])[:, None, None], atol=1e-6)
    for name in ("chorus", "plugin:chorus", "plugin:"):
        with pytest.raises(PaletteError):
            find_effect(name)


def test_plugins_that_misbehave():
    class Toy:
        level, name = 1.0, None
        def __call__(self, samples, sample_rate, reset):
            if self.level > 5:
                raise RuntimeError("too loud\nby far")
            return samples[:, :10] if self.level > 3 else self.level * samples
    table = [Parameter("level", "", 0.0, 10.0, 1.0)]
    effect, x = plugin(Toy(), table), torch.ones(1, 1, 30)
    assert effect.name == "toy" and torch.allclose(effect(x, 8000, level=2.0), 2 * x) and plugin(Toy(), table, "mine").name == "mine"
    with pytest.raises(PaletteError, match="Toy: too loud$"):
        effect(x, 8000, level=6.0)
    with pytest.raises(PaletteError, match=r"made \(1, 10\) of \(1, 30\)"):
        effect(x, 8000, level=4.0)


# ---- settings

def test_values_as_people_write_them(tmp_path):
    preset = Preset({"equaliser_peak_1_gain_db": 12.345678, "equaliser_peak_1_frequency_hz": 123.456789, "equaliser_peak_1_q": 0.123456, "compressor_threshold_db": -0.00004, "compressor_makeup_db": -3.0})
    save_settings(tmp_path / "a.json", preset)
    back = load_settings(tmp_path / "a.json")
    assert [back.settings[f"equaliser_peak_1_{kind}"] for kind in ("gain_db", "frequency_hz", "q")] == [12.346, 123.46, 0.1235] and str(back.settings["compressor_threshold_db"]) == "0.0"
    text = (tmp_path / "a.json").read_text()
    assert text.startswith('{\n "about": {},\n "settings": {\n  "equaliser": {\n   "low_shelf_gain_db": 0, "low_shelf_frequency_hz": 89.443, "low_shelf_q": 0.7071,\n   "peak_1_gain_db": 12.346, ')
    assert text.endswith('  "compressor": {\n   "threshold_db": 0, "ratio": 2, "attack_ms": 5, "release_ms": 100, "knee_db": 6, "makeup_db": -3\n  }\n }\n}\n')
    rows = settings_rows(preset)
    assert rows["equaliser"] == [{"band": "peak 1", "gain": "+12.3 dB", "frequency": "123 Hz", "q": "0.123"}]
    assert rows["compressor"] == [{"threshold": "-0.0 dB", "ratio": "2", "attack": "5 ms", "release": "100 ms", "knee": "6.0 dB", "makeup": "-3.0 dB"}]
    assert describe_settings(preset).splitlines() == [
        "**equaliser**", "", "| band | gain | frequency | q |", "| --- | --- | --- | --- |", "| peak 1 | +12.3 dB | 123 Hz | 0.123 |", "",
        "Under 0.1 dB and left out: low shelf, peak 2, peak 3, peak 4, high shelf.", "", "**compressor**", "",
        "| threshold | ratio | attack | release | knee | makeup |", "| --- | --- | --- | --- | --- | --- |", "| -0.0 dB | 2 | 5 ms | 100 ms | 6.0 dB | -3.0 dB |"]
    assert "**room reverb**" in describe_settings(Preset({}, ("room_reverb",)))


def test_gains_in_blocks():
    x = torch.ones(2, 5)
    stages = settings_stages(("input", "output"), {"input_gain_db": 20.0, "output_gain_db": -6.0}, 8000)
    assert len(stages) == 2 and torch.allclose(stages[1](stages[0](x)), 10 ** (14 / 20) * x)
