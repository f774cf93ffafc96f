"""What holds for every sound: properties, searched for a counterexample by Hypothesis.

A few examples a property, the same ones in every run. `TIMBRE_PALETTE_TIMES=50 pytest tests/test_properties.py` tries fifty times as many, others each time.
"""
import os
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conftest import small_songs
from timbre_palette.anchors import STAGES, palette, palette_reference, palette_stages
from timbre_palette.audio import LOUDEST, db_to_gain, peak_db, read_audio, resample, rms_db, write_audio
from timbre_palette.blend import crossfade, interpolate_styles, parse_style, style_name
from timbre_palette.checkpoint import Pretrained
from timbre_palette.data import DRAWS, Segments
from timbre_palette.effects.chains import EFFECTS, chain
from timbre_palette.effects.compressor import compressor
from timbre_palette.effects.distortion import distort
from timbre_palette.effects.settings import settings_stages
from timbre_palette.enhance import enhance, find_model
from timbre_palette.filters import Convolver, bandpass_sos, fft_filter, peaking, sos_recursion, spectral_tilt
from timbre_palette.loudness import LoudnessMeter, PeakMeter, integrated_loudness, loudness_reference, measure, peak_envelope, true_peak_db
from timbre_palette.mastering import Limiter, dither, limit
from timbre_palette.recipe import find_recipe
from timbre_palette.songs import find_tracks
from timbre_palette.streaming import Spool, Stream, open_stream, render_long
from timbre_palette.style_transfer.pairs import StyleSegments, draw_settings
from timbre_palette.synth import demo_clip
from timbre_palette.timbre_transfer.whistles import whistle
from timbre_palette.training import train_palette

# --- how many examples

TIMES = int(os.environ.get("TIMBRE_PALETTE_TIMES", 1))
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]}


def examples(count):
    "Settings for about `count` examples, the same in every run unless there are to be many times as many."
    return settings(max_examples=TIMES * count, derandomize=TIMES == 1, **COMMON)


# --- what is drawn: sounds by their kind, length, channels and rate

KINDS = {"silence": lambda rng, shape: np.zeros(shape),
         "impulse": lambda rng, shape: np.eye(1, shape[1]).repeat(shape[0], 0) * rng.choice([-1.0, 1.0]),
         "dc": lambda rng, shape: np.full(shape, rng.choice([-1.0, 0.3, 1.0])),
         "square": lambda rng, shape: np.where(np.arange(shape[1]) // rng.integers(1, 50) % 2, 1.0, -1.0) * np.ones((shape[0], 1)),
         "sine": lambda rng, shape: 0.5 * np.sin(rng.uniform(0.01, 3) * np.arange(shape[1]) + rng.uniform(0, 6, (shape[0], 1))),
         "noise": lambda rng, shape: rng.uniform(-1, 1, shape) * db_to_gain(rng.uniform(-60, 0)),
         "bursts": lambda rng, shape: rng.uniform(-1, 1, shape) * (rng.random(shape) < 0.01),
         "denormal": lambda rng, shape: rng.uniform(-1, 1, shape) * 1e-39,
         "faint": lambda rng, shape: rng.uniform(-1, 1, shape) * 1e-12,
         "hot": lambda rng, shape: rng.uniform(-1, 1, shape) * 1e6,
         "hottest": lambda rng, shape: rng.choice([-LOUDEST, LOUDEST], shape)}  # the reader lets no more through
ORDINARY = ("silence", "impulse", "dc", "square", "sine", "noise", "bursts", "faint")
LENGTHS = (1, 2, 3, 31, 32, 33, 127, 128, 800, 3199, 3200, 3201, 4410, 9000)
RATES = (8000, 11025, 22050, 44099, 44100, 48000)


@dataclass
class Sound:
    "Samples `(channels, time)` float32, their rate in Hz and a seed for whatever else is drawn with them."
    samples: np.ndarray
    rate: int
    kind: str
    seed: int

    def __repr__(self):
        return f"make({self.kind!r}, {self.samples.shape}, {self.rate}, {self.seed})"

    @property
    def x(self):
        "The samples as a tensor `(1, channels, time)` of its own."
        return torch.tensor(self.samples[None])

    @property
    def rng(self):
        return np.random.default_rng(self.seed)


def make(kind, shape, rate, seed):
    "The sound that a report names."
    return Sound(KINDS[kind](np.random.default_rng(seed), shape).astype(np.float32), rate, kind, seed)


def sounds(kinds=tuple(KINDS), lengths=LENGTHS, channels=(1, 2, 3, 6), rates=RATES):
    "Sounds of these kinds, lengths, channels and rates."
    return st.builds(lambda kind, frames, count, rate, seed: make(kind, (count, frames), rate, seed),
                     st.sampled_from(kinds), st.sampled_from(lengths), st.sampled_from(channels), st.sampled_from(rates), st.integers(0, 10 ** 6))


def simple(kinds=ORDINARY, **places):
    "Sounds no louder than full scale, of one or two channels: those that tolerances are for."
    return sounds(kinds, **{"channels": (1, 2), **places})


# --- what is done to them: a table of functions of (x, rate, rng), and what each promises

def drawn_style(rng):
    "A corner or a blend, and an amount."
    return (np.eye(3)[rng.integers(3)] if rng.random() < 0.5 else rng.dirichlet(np.ones(3))), rng.choice([1.0, rng.random()])


def by_style(render, **fixed):
    return lambda x, rate, rng: render(x, rate, *drawn_style(rng), **fixed)


def by_effect(effect):
    return lambda x, rate, rng: effect.render(x, rate, effect.random(1, rng.integers(1000))[0])


def corner(number):
    return lambda x, rate, rng: palette(x, rate, np.eye(3)[number], rng.random())


def streamed(form):
    "The palette as a stream, in one block."
    return lambda x, rate, rng: open_stream(palette_stages, rate, *drawn_style(rng), form=form).push(x[0].clone())[None]


@dataclass(frozen=True)
class Processor:
    """A function and its promises: `odd` f(-x) = -f(x); `linear`; `late`, what comes later comes out later and is else the same; `apart`, no channel hears
    another; `linked`, all channels have the same gain; `wide`, float64 is computed as such; `restless`, out of silence may come sound."""
    function: callable
    promises: str = ""
    rates: tuple = RATES
    channels: tuple = (1, 2, 3, 6)
    frames: int = 9000  # at most
    floor: float = 0.0  # what is softer is compared as if it were that loud

    def __call__(self, x, rate, rng):
        with torch.no_grad():
            return self.function(x, rate, rng)


def model(name):
    return by_style(lambda *arguments: find_model(name)(*arguments))


PROCESSORS = {
    "exact palette": Processor(by_style(palette), "odd wide"),
    "stft palette": Processor(by_style(palette, variant="stft"), "odd wide"),
    "causal palette": Processor(by_style(palette, variant="causal"), "odd wide"),
    "fullness": Processor(corner(0), "odd late apart wide"),
    "warmth": Processor(corner(1), "odd late apart wide"),
    "crossfade": Processor(by_style(crossfade), "odd wide"),
    "live stream": Processor(streamed("live"), "odd", floor=0.05),  # its tangent is right to 2e-7, however faint the sound
    "studio stream": Processor(streamed("studio"), "odd", floor=0.05),
    "graybox": Processor(model("graybox"), "odd"),
    "blackbox": Processor(model("blackbox"), rates=(44100, 8000), frames=4500),
    "waveunet": Processor(model("waveunet-v2"), "apart restless", rates=(44100, 8000), channels=(1, 2), frames=1000),
    "bell": Processor(lambda x, rate, rng: fft_filter(x, peaking(rate, rng.uniform(100, 3000), rng.uniform(-20, 20), rng.uniform(0.3, 5))), "odd linear late apart wide"),
    "band": Processor(lambda x, rate, rng: sos_recursion(x, bandpass_sos(rate, 250, 4000))[0], "odd linear late apart wide"),
    "tilt": Processor(lambda x, rate, rng: spectral_tilt(x, rate, rng.uniform(-3, 3), causal=bool(rng.integers(2))), "odd linear apart wide"),
    "convolver": Processor(lambda x, rate, rng: Convolver(torch.tensor(rng.uniform(-1, 1, rng.integers(1, 300))))(x), "odd linear late apart"),
    "equaliser": Processor(by_effect(EFFECTS["equaliser"]), "odd linear late apart"),
    "compressor": Processor(by_effect(compressor()), "odd late linked wide"),
    "compressor, unlinked": Processor(by_effect(compressor(linked=False)), "odd late apart wide"),
    "compressor, one pole": Processor(by_effect(compressor("single_pole")), "odd late linked wide"),
    "distortion": Processor(by_effect(EFFECTS["distortion"]), "late apart wide"),
    "distortion, no bias": Processor(lambda x, rate, rng: distort(x, rate, rng.uniform(0, 48), 0.0, rng.random()), "odd late apart wide"),
    "noise reverb": Processor(by_effect(EFFECTS["noise_reverb"]), "odd linear late apart", rates=(8000,), channels=(1, 2)),
    "room reverb": Processor(by_effect(EFFECTS["room_reverb"]), "odd linear late wide", channels=(1, 2)),
    "gain": Processor(by_effect(EFFECTS["output"]), "odd linear late apart linked wide"),
    "production": Processor(by_effect(chain("input", "equaliser", "compressor", "output")), "odd"),  # where a rounding after 60 dB of gain is heard
    "limiter": Processor(lambda x, rate, rng: limit(x, rate, rng.uniform(-20, 0)), "odd linked"),
}


def promising(word):
    return pytest.mark.parametrize("processor", [pytest.param(value, id=name) for name, value in PROCESSORS.items() if not word or word in value.promises.split()])


def fitting(processor, found):
    "The sound, at a rate and with channels that the processor knows."
    rate = found.rate if found.rate in processor.rates else processor.rates[found.seed % len(processor.rates)]
    samples = found.samples[:max(count for count in processor.channels if count <= len(found.samples)), :processor.frames]
    return Sound(samples, rate, found.kind, found.seed)


def near(a, b, tolerance, x, floor=0.0):
    "Whether two sounds are equal within a share of the loudest of them and what they came from, which counts as `floor` at least."
    reach = max(*(float(sound.abs().max()) for sound in (a, b, x)), 1e-30, floor)
    return float((a - b).abs().max()) <= tolerance * reach


@promising("")
@examples(12)
@given(found=sounds())
def test_whatever_goes_in_something_finite_comes_out_and_the_input_stays(processor, found):
    "Of the same shape and kind; silence stays silence."
    found = fitting(processor, found)
    x = found.x
    y = processor(x, found.rate, found.rng)
    assert y.shape == x.shape and y.dtype == x.dtype and bool(y.isfinite().all())
    assert torch.equal(x, found.x), "the input was edited"
    if not x.any() and "restless" not in processor.promises:
        assert not y.any(), "out of silence came sound"


@promising("odd")
@examples(8)
@given(found=simple())
def test_polarity_goes_through(processor, found):
    found = fitting(processor, found)
    assert near(processor(-found.x, found.rate, found.rng), -processor(found.x, found.rate, found.rng), 1e-5, found.x, processor.floor)


@promising("linear")
@examples(8)
@given(found=simple(), other=st.sampled_from(ORDINARY), gains=st.tuples(st.floats(-4, 4), st.floats(-4, 4)))
def test_sums_and_gains_go_through(processor, found, other, gains):
    found = fitting(processor, found)
    second = make(other, found.samples.shape, found.rate, found.seed + 1).x
    parts = [gain * processor(x, found.rate, found.rng) for gain, x in zip(gains, (found.x, second))]
    whole = processor(gains[0] * found.x + gains[1] * second, found.rate, found.rng)
    reach = max(float(part.abs().max()) for part in (*parts, found.x, second))  # of what may cancel
    assert float((whole - sum(parts)).abs().max()) <= 3e-5 * reach + 1e-30


@promising("late")
@examples(8)
@given(found=simple(), delay=st.sampled_from((1, 7, 64, 255, 256, 3000)))
def test_what_comes_later_comes_out_later(processor, found, delay):
    found = fitting(processor, found)
    late = processor(torch.nn.functional.pad(found.x, (delay, 0)), found.rate, found.rng)
    now = processor(found.x, found.rate, found.rng)
    assert float(late[..., :delay].abs().max()) <= 1e-6 * max(1e-30, float(now.abs().max()), float(found.x.abs().max()))
    assert near(late[..., delay:], now, 3e-5, found.x)


@promising("apart")
@examples(10)
@given(found=sounds(ORDINARY, channels=(2, 3)), other=st.sampled_from(ORDINARY))
def test_no_channel_hears_another(processor, found, other):
    found = fitting(processor, found)
    changed = found.x
    changed[:, 1:] = make(other, found.samples.shape, found.rate, found.seed + 1).x[:, 1:]
    assert near(processor(changed, found.rate, found.rng)[:, :1], processor(found.x, found.rate, found.rng)[:, :1], 1e-5, found.x)


@promising("linked")
@examples(8)
@given(found=sounds(("noise", "sine", "bursts", "square"), channels=(2,)), balance=st.floats(0.01, 1.0))
def test_linked_channels_keep_their_balance(processor, found, balance):
    "The second is a softer copy of the first, and so it comes out."
    x = found.x[:, :1] * torch.tensor([1.0, balance])[:, None]
    y = processor(x, found.rate, found.rng)
    assert near(y[:, 1:], balance * y[:, :1], 1e-5, x)


@promising("wide")
@examples(8)
@given(found=simple())
def test_single_precision_is_close_to_double(processor, found):
    found = fitting(processor, found)
    single, double = processor(found.x, found.rate, found.rng), processor(found.x.double(), found.rate, found.rng)
    assert double.dtype == torch.float64
    reach = max(1.0, float(double.abs().max()))
    assert float((single - double).abs().max()) <= 1e-4 * reach
    if found.kind in ("noise", "sine") and found.samples.shape[1] > 30:
        assert not torch.equal(single.double(), double), "double precision was computed in single"


@pytest.mark.parametrize("name", EFFECTS)
@examples(5)
@given(found=simple(rates=(8000,)))
def test_effects_compute_half_precision_in_single(name, found):
    "What is promised of bf16 and fp16: the rounded result of single precision, no less."
    for kind in (torch.bfloat16, torch.float16):
        x = found.x.to(kind)
        y = by_effect(EFFECTS[name])(x, 8000, found.rng)
        assert y.dtype == kind and torch.equal(y, by_effect(EFFECTS[name])(x.float(), 8000, found.rng).to(kind))


@examples(8)
@given(found=simple(rates=(8000, 44100)))
def test_the_graybox_does_not_care_about_autocast(found):
    "Filters and meters are no place for half precision."
    render, style = find_model("graybox"), drawn_style(found.rng)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = render(found.x, found.rate, *style)
    with torch.no_grad():
        assert y.dtype == torch.float32 and torch.equal(y, render(found.x, found.rate, *style))


@examples(4)
@given(found=simple(("noise", "sine", "square"), rates=(44100,), lengths=(127, 800, 4410)))
def test_the_paper_network_in_half_precision_is_close(found):
    "bf16 has 8 bits: within 5 % of full scale."
    network, style = Pretrained.from_pretrained("waveunet-v2"), torch.eye(3)[found.seed % 3]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = network(found.x, style)
    with torch.no_grad():
        assert float((y.float() - network(found.x, style)).abs().max()) < 0.05


# --- levels and loudness

HEARD = ("noise", "sine", "square", "dc", "impulse", "bursts")


@examples(40)
@given(found=sounds(), gain=st.floats(-40, 40))
def test_levels_follow_a_gain(found, gain):
    x, louder = found.samples.astype(float), found.samples.astype(float) * db_to_gain(gain)
    for level in (peak_db, rms_db):
        assert level(louder) == level(x) == -np.inf or abs(level(louder) - level(x) - gain) < 1e-6
    assert peak_db(x) >= rms_db(x) - 1e-9
    a, b = (true_peak_db(torch.tensor(sound)[None]).item() for sound in (x, louder))
    assert a == b == -np.inf or abs(b - a - gain) < 1e-5
    assert a >= peak_db(x) - 1e-6


@examples(40)
@given(found=sounds(("noise", "sine", "square", "bursts"), lengths=(1, 33, 800, 3199, 3200, 9000), rates=(8000, 11025)), gain=st.floats(-20, 20))
def test_loudness_follows_a_gain_where_no_gate_is_near(found, gain):
    x = found.x.double()
    before, after = integrated_loudness(x, found.rate).item(), integrated_loudness(x * db_to_gain(gain), found.rate).item()
    assume(min(before, after) > -50)  # what fades by 20 dB within is still above the gate
    assert abs(after - before - gain) < 1e-6


@examples(40)
@given(found=sounds(lengths=(1, 33, 800, 3199, 3200, 3201, 9000), rates=(8000, 11025, 44100), channels=(1, 2, 5, 6, 8)))
def test_three_meters_agree(found):
    "pyloudnorm, the batched one and the one in blocks; and none is NaN."
    reference, batched = loudness_reference(found.samples, found.rate), integrated_loudness(found.x.double(), found.rate).item()
    meter = LoudnessMeter(found.rate)
    for part in np.array_split(found.samples, found.rng.integers(1, 5), 1):
        meter.push(torch.tensor(part))
    for value in (reference, batched, meter.read(), *measure(found.samples, found.rate)):
        assert not np.isnan(value) and value < 250
    if min(reference, batched, meter.read()) > -65 and found.kind not in ("bursts", "impulse"):  # not where a gate decides by a rounding
        assert abs(reference - batched) < 1e-3 and abs(meter.read() - batched) < 1e-2


@examples(25)
@given(found=simple(HEARD, lengths=(1, 2, 63, 64, 65, 800, 4410)), blocks=st.integers(1, 6))
def test_true_peaks_in_blocks_are_those_of_the_whole(found, blocks):
    meter = PeakMeter()
    for part in np.array_split(found.samples, blocks, 1):
        meter.push(torch.tensor(part))
    meter.end()
    whole = true_peak_db(found.x).item()
    envelope = 20 * peak_envelope(found.x).max().log10().item()
    assert meter.read() == envelope == whole == -np.inf or max(abs(meter.read() - whole), abs(envelope - whole)) < 1e-4


@examples(25)
@given(found=sounds(kinds=(*HEARD, "hot", "faint", "silence"), lengths=(1, 31, 800, 4410)), ceiling=st.floats(-30, 0))
def test_a_limited_peak_is_under_its_ceiling(found, ceiling):
    y = limit(found.x, found.rate, ceiling)
    assert true_peak_db(y).item() <= max(ceiling, -1e9) + 1e-4
    if true_peak_db(found.x).item() <= ceiling:
        assert torch.equal(y, found.x)
    assert (y.abs() <= found.x.abs() * (1 + 1e-6)).all()  # never louder


@examples(25)
@given(found=simple(("noise", "sine", "square"), lengths=(800, 3200, 9000), rates=(8000, 44100)), gain=st.floats(-15, 15))
def test_layeredness_does_not_hear_the_level(found, gain):
    louder = found.x * db_to_gain(gain)
    assume(min(integrated_loudness(sound, found.rate).item() for sound in (found.x, louder)) > -55)
    assert near(*(palette(sound, found.rate, [0, 0, 1]) for sound in (found.x, louder)), 1e-4, found.x)


# --- anchors and blends

@pytest.mark.parametrize("variant", STAGES)
@examples(20)
@given(found=sounds(lengths=(1, 2, 33, 800, 3200, 9000), rates=(8000, 22050, 44100)))
def test_the_palette_is_its_reference(variant, found):
    style, amount = drawn_style(found.rng)
    y = palette(found.x.double(), found.rate, style, amount, variant)[0].numpy()
    reference = palette_reference(found.samples, found.rate, style, amount, variant)
    assert np.abs(y - reference).max() <= 1e-4 * max(1.0, np.abs(reference).max(), 1e-6 * np.abs(found.samples).max())


@examples(30)
@given(found=simple(lengths=(1, 33, 800), rates=(8000, 44100)), scale=st.floats(1e-3, 1e3))
def test_amount_nought_is_the_input_and_weights_are_proportions(found, scale):
    style, amount = drawn_style(found.rng)
    for name in ("dsp", "graybox", "blackbox"):
        render = find_model(name)
        with torch.no_grad():
            assert torch.equal(render(found.x, found.rate, style, 0.0), found.x)
            assert near(render(found.x, found.rate, scale * style, amount), render(found.x, found.rate, style, amount), 1e-5, found.x)


WEIGHTS = st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any)


@examples(200)
@given(weights=WEIGHTS, other=WEIGHTS, steps=st.integers(1, 20))
def test_a_style_and_its_name_are_one(weights, other, steps):
    style = np.array(weights) / sum(weights)
    assert np.abs(parse_style(style_name(weights)) - style).max() < 2e-4
    assert np.allclose(parse_style(weights), style) and np.allclose(parse_style(",".join(f"{name}={value}" for name, value in zip(("fullness", "warmth", "layeredness"), weights))), style)
    way = interpolate_styles(style, other, steps)
    assert way.shape == (steps + 1, 3) and np.allclose(way.sum(1), 1) and (way >= 0).all() and np.allclose(way[0], style)


# --- resampling

@examples(60)
@given(found=sounds(lengths=(*LENGTHS, 20000), rates=(8000, 11025, 22050, 44100, 48000, 96000)), to=st.sampled_from((8000, 16000, 44100, 44099, 48000, 192000)), gain=st.floats(-4, 4))
def test_resampling_is_linear_and_keeps_length_channels_and_polarity(found, to, gain):
    before = found.samples.copy()
    y = resample(found.samples, found.rate, to)
    assert y.dtype == np.float32 and np.isfinite(y).all() and np.array_equal(found.samples, before)
    assert abs(y.shape[1] - Fraction(found.samples.shape[1] * to, found.rate)) <= 1 and len(y) == len(found.samples)
    reach = 1e-30 + 1e-5 * np.abs(found.samples).max()
    assert np.abs(resample(-found.samples, found.rate, to) + y).max(initial=0) <= reach
    assert np.abs(resample(np.float32(gain) * found.samples, found.rate, to) - np.float32(gain) * y).max(initial=0) <= 5 * reach
    for channel, alone in zip(y, found.samples):
        assert np.abs(resample(alone[None], found.rate, to)[0] - channel).max(initial=0) <= reach
    if not found.samples.any():
        assert not y.any()


@examples(25)
@given(seed=st.integers(0, 10 ** 6), rates=st.tuples(st.sampled_from((8000, 22050, 44100, 48000)), st.sampled_from((8000, 44100, 48000, 96000))))
def test_resampling_there_and_back_keeps_what_both_rates_can_hold(seed, rates):
    rng, (a, b) = np.random.default_rng(seed), rates
    time = np.arange(a) / a
    x = sum(rng.uniform(-0.2, 0.2) * np.sin(2 * np.pi * hz * time) for hz in rng.uniform(50, 0.4 * min(rates), 4)).astype(np.float32)[None]
    back = resample(resample(x, a, b), b, a)
    assert np.abs(back[:, a // 5:-a // 5] - x[:, a // 5:-a // 5]).max() < 1e-4


# --- streams

def stages_for(name, rate, rng):
    "Fresh stages with drawn settings, the same for the same `rng`."
    if name == "settings":
        effects = ("equaliser", "compressor", "distortion")
        together = chain(*effects)
        normalised = together.random(1, rng.integers(1000))[0]
        return settings_stages(effects, {key: value.item() for key, value in together.physical(normalised).items()}, rate)
    if name == "limiter":
        return [Limiter(rate, rng.uniform(-12, -1))]
    source = palette_stages if name.startswith("dsp") else Pretrained.from_pretrained(name.split()[0]).stages
    return source(rate, *drawn_style(rng), causal=name.endswith("live"))


@pytest.mark.parametrize("name", ["dsp live", "dsp studio", "graybox live", "graybox studio", "blackbox studio", "settings", "limiter"])
@examples(12)
@given(found=simple(lengths=(1, 2, 33, 800, 4410, 9000), rates=(8000, 44100)), cuts=st.lists(st.one_of(st.integers(0, 60), st.integers(0, 9000)), max_size=5))
def test_it_does_not_matter_how_a_signal_is_cut(name, found, cuts):
    "In blocks of any size, none included, what comes out is what comes out of the whole."
    rate = 44100 if name.startswith("blackbox") else found.rate
    whole, parts = (Stream(stages_for(name, rate, found.rng)) for _ in range(2))
    if name.startswith("blackbox"):  # it has to know before it begins
        whole, parts = (stream.hold(*[-20.0] * len(stream.listening)) for stream in (whole, parts))
    x, borders = found.x[0], sorted(min(cut, found.samples.shape[1]) for cut in cuts)
    kept = x.clone()
    y = torch.cat([parts.push(part) for part in x.tensor_split(borders, -1)], -1)
    assert torch.equal(x, kept) and y.shape == x.shape
    expected = whole.push(x)
    assert float((y - expected).abs().max()) <= 3e-5 * max(1.0, float(expected.abs().max()))


@examples(12)
@given(found=simple(lengths=(1, 33, 3200, 9000), rates=(8000, 44100)), cuts=st.lists(st.integers(0, 9000), max_size=4))
def test_a_file_in_blocks_is_the_palette_of_the_whole(found, cuts):
    style, amount = drawn_style(found.rng)
    borders = sorted(min(cut, found.samples.shape[1]) for cut in cuts)
    with render_long(palette_stages(found.rate, style, amount), found.x[0].tensor_split(borders, -1), found.rate, len(found.samples), in_memory=0) as spool:
        made = spool.whole()
    exact = palette(found.x, found.rate, style, amount)[0]
    if found.samples.shape[1] >= found.rate * 0.4 or style[2] == 0:
        assert float((made - exact).abs().max()) <= 2e-3 * max(1.0, float(exact.abs().max()))
    assert made.shape == exact.shape and made.isfinite().all()


@examples(20)
@given(found=sounds(lengths=(1, 33, 800)), size=st.integers(1, 900))
def test_a_spool_gives_back_what_was_laid_down(found, size):
    for in_memory in (0, 16):
        with Spool(len(found.samples), in_memory=in_memory) as spool:
            for part in found.x[0].split(size, -1):
                spool.append(part)
            assert torch.equal(spool.whole(), found.x[0]) and torch.equal(torch.cat(list(spool.blocks(7)), -1), found.x[0])


# --- whole calls

@pytest.mark.parametrize("name", ["graybox", "blackbox", "waveunet-v2", "dsp"])
@examples(8)
@given(found=sounds(lengths=(1, 2, 33, 800), channels=(1, 2, 6), rates=(8000, 44100)))
def test_enhance_is_finite_keeps_its_input_and_silence(name, found):
    before, (style, amount) = found.samples.copy(), drawn_style(found.rng)
    y = enhance(found.samples, found.rate, style, amount, name)
    assert y.shape == before.shape and y.dtype == np.float32 and np.isfinite(y).all() and np.array_equal(found.samples, before)
    assert found.samples.any() or not y.any()
    assert np.array_equal(y, enhance(found.samples, found.rate, style, amount, name))  # the same again, bit for bit


@examples(40)
@given(found=sounds(lengths=(1, 2, 800, 4410), channels=(1, 2, 3, 8)))
def test_what_is_written_is_read_again(found, tmp_path_factory):
    "Float bit for bit, integers to half a step, and clipped at full scale."
    folder = tmp_path_factory.getbasetemp()
    write_audio(folder / "float.wav", found.samples, found.rate, "FLOAT")
    again = read_audio(folder / "float.wav")
    assert again.sample_rate == found.rate and np.array_equal(again.samples, found.samples)
    for suffix, subtype, bits in ((".wav", "PCM_16", 16), (".flac", "PCM_24", 24)):
        write_audio(folder / f"whole{suffix}", found.samples, found.rate, subtype)
        read = read_audio(folder / f"whole{suffix}").samples
        top = 1 - 2.0 ** (1 - bits)
        assert np.abs(read - found.samples.clip(-1, top)).max() <= 0.5001 * 2.0 ** (1 - bits)


# --- the same seed, the same numbers

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Three small songs."
    return small_songs(tmp_path_factory.mktemp("songs"), 3, 24000)


@examples(10)
@given(seed=st.integers(0, 2 ** 31 - 1), step=st.integers(0, 10 ** 6))
def test_data_and_pairs_are_functions_of_seed_and_step(folder, seed, step):
    "Also in another order, and another process's share is a part of the same batch."
    tracks, effects = find_tracks(folder), chain("equaliser", "compressor")
    def batches(share=(0, 1)):
        "A batch of each kind, drawn by objects of their own."
        for draw in DRAWS:
            yield Segments(tracks, 2, 0.05, (8000, 11025), draw, 12.0, seed, share)
        yield StyleSegments(tracks, effects, 2, 0.3, 8000, seed=seed, share=share)
    for one, other, half in zip(batches(), batches(), batches((1, 2))):
        other[step + 1]
        a, b, c = one[step], other[step], half[step]
        for left, right in zip(a, b):
            assert np.array_equal(np.asarray(left), np.asarray(right))
        assert not torch.equal(one[step + 1].x[..., :100], a.x[..., :100])
        assert torch.allclose(c.x[:1], a.x[1:2], atol=1e-5)  # an equaliser's grid is chosen for all items together


@examples(20)
@given(seed=st.integers(0, 2 ** 31 - 1))
def test_what_is_drawn_is_drawn_again(seed):
    rng = lambda: np.random.default_rng(seed)
    for effect in EFFECTS.values():
        assert torch.equal(effect.random(2, seed), effect.random(2, seed)) and not torch.equal(effect.random(2, seed), effect.random(2, seed + 1))
        assert torch.equal(draw_settings(effect, 2, rng()), draw_settings(effect, 2, rng()))
    for draw in DRAWS.values():
        for one, other in zip(draw(rng(), 3), draw(rng(), 3)):
            assert np.array_equal(one, other)
    noise = [dither(np.full((2, 300), 0.1, np.float32), 16, number) for number in (seed, seed, seed + 1)]
    assert np.array_equal(noise[0], noise[1]) and not np.array_equal(noise[0], noise[2])


def test_whistles_and_clips_are_functions_of_their_seed():
    one, same, other = (whistle(seed, seconds=1.0, sample_rate=8000, high_hz=2000.0) for seed in (5, 5, 6))
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, same)) and not np.array_equal(one.samples, other.samples)
    assert np.array_equal(demo_clip(8000), demo_clip(8000)) and not np.array_equal(demo_clip(8000), demo_clip(8000, seed=1))


TRAINED = {"graybox": ["graybox", "polish=0", "sample_rates=[8000]", "seconds=0.25"],
           **({"graybox, polished": ["graybox", "polish=2", "sample_rates=[8000]", "seconds=0.25"]} if TIMES > 1 else {}),
           "blackbox": ["blackbox", "sample_rates=[44100]", "seconds=0.05"],
           "waveunet": ["waveunet-v2", "sample_rates=[44100]", "seconds=0.05", 'arguments={"width": 4, "depth": 2}']}


@pytest.mark.parametrize("name", TRAINED)
def test_training_twice_gives_the_same_weights_bit_by_bit(name, folder, tmp_path):
    recipe, *changes = TRAINED[name]
    recipe = find_recipe(recipe, [*changes, "steps=4", "batch=2", "validate_every=2", "validation_batches=1"])
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(number + 3)  # whatever was drawn before
        train_palette(replace(recipe, seed=seed), folder, tmp_path / str(number))
        weights.append(Pretrained.from_pretrained(tmp_path / str(number) / "best").state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][key]) for key, value in weights[0].items())
