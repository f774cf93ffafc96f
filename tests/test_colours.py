"""Colours: found by their words, learned from songs or recordings, blended beside the anchors."""
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import butter, lfilter

from timbre_palette.anchors import STYLES, palette
from timbre_palette.audio import PaletteError, read_audio, write_audio
from timbre_palette.blend import parse_style, style_name
from timbre_palette.checkpoint import Pretrained
from timbre_palette.cli import main
from timbre_palette.colours import (RECIPE, ColourBox, ColourPalette, Curve, Dynamics, LongFilter, Pairs, PairSegments, Sections, check_name, choose_learner,
                                    describe_palette, error_ratio, find_colour, find_delay, find_palette, known_palettes, learn_colour, learn_palette, palette_table,
                                    palettes_folder, solve_filter)
from timbre_palette.data import excerpt
from timbre_palette.effects.chains import production
from timbre_palette.effects.settings import Preset, load_settings, save_settings
from timbre_palette.graybox import GrayBox
from timbre_palette.loudness import at_peak, integrated_loudness
from timbre_palette.songs import find_tracks
from timbre_palette.synth import demo_clip

RATE = 44100
TOY = replace(RECIPE, steps=80, batch=2, seconds=0.25, validate_every=40, validation_batches=1)


@pytest.fixture(scope="module")
def clip():
    return torch.tensor(demo_clip()[None, :1, RATE:3 * RATE])


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TIMBRE_PALETTE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def few_songs(tmp_path_factory):
    "Three songs that sound different: noise through filters, and the demo clip."
    folder = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)
    for number, (low, high) in enumerate(((80, 4000), (300, 9000))):
        noise = lfilter(*butter(1, [low, high], "band", fs=RATE), rng.normal(size=4 * RATE)) * (1 + np.sin(np.arange(4 * RATE) / RATE * (3 + number)))
        write_audio(folder / f"noise {number}.wav", 0.5 * noise[None] / np.abs(noise).max(), RATE, "FLOAT")
    write_audio(folder / "demo.wav", demo_clip()[:1, :4 * RATE], RATE, "FLOAT")
    return folder


def in_blocks(stages, x, sizes):
    "`x` `(channels, frames)` through stages in blocks of changing sizes, latency taken off."
    late = sum(getattr(stage, "latency", 0) for stage in stages)
    x, parts, start = torch.nn.functional.pad(x, (0, late)), [], 0
    while start < x.shape[-1]:
        part = x[:, start:start + sizes[len(parts) % len(sizes)]]
        start += part.shape[-1]
        for stage in stages:
            part = stage(part)
        parts.append(part)
    return torch.cat(parts, -1)[:, late:]


# Finding

@pytest.mark.parametrize("spec", ["", "tape", "plugin:", "python:", "python:x", "python:os.path:nothing", "python:no/such/file.py:f", "pairs:", "pairs:no/such/folder", None, 3,
                                  "plugin:Distortion(25)", "plugin:Distortion(drive_db=__import__('os'))", "plugin:Distortion(drive_db=25", "plugin:__import__('os').getcwd()",
                                  "plugin:Distortion(**{'drive_db': 3})", "plugin:no/such.vst3", "plugin:(lambda: 1)()", "plugin:" + "(" * 500])
def test_what_cannot_be_found_is_said_in_one_line(spec):
    with pytest.raises(PaletteError) as caught:
        find_colour(spec)
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 20


def test_saved_settings_are_a_colour(tmp_path, clip, few_songs):
    "The chain as it stands in the file, on batches; and learned, it is an axis like any other."
    preset = Preset({"equaliser_low_shelf_gain_db": 6, "equaliser_low_shelf_frequency_hz": 150, "compressor_threshold_db": -30, "compressor_ratio": 3, "compressor_makeup_db": 6})
    save_settings(tmp_path / "match.json", preset)
    colour = find_colour(f"settings:{tmp_path / 'match.json'}")
    x, kept = torch.cat([clip, 0.1 * clip]), load_settings(tmp_path / "match.json")
    assert colour.spec == f"settings:{tmp_path / 'match.json'}" and torch.equal(colour(x, RATE), production()(x, RATE, **kept.settings))
    made = learn_palette("radio", {"radio": f"settings:{tmp_path / 'match.json'}"}, few_songs, tmp_path / "radio", "memory", "dsp", replace(TOY, steps=40))
    assert made.axes == (*STYLES, "radio") and made.card["colours"]["radio"]["colour"] == colour.spec
    assert error_ratio(made.render(clip, RATE, [0, 0, 0, 1]), colour(clip, RATE)) < 0.5 * error_ratio(clip, colour(clip, RATE))


@pytest.mark.parametrize("text", [None, "", "{}", '{"settings": {"chorus": {}}}', '{"settings": {"compressor": {"ratio": 90}}}'])
def test_a_bad_file_of_settings_is_one_line(tmp_path, capsys, few_songs, text):
    if text is not None:
        (tmp_path / "bad.json").write_text(text)
    assert main(["learn", "radio", "--colour", f"radio=settings:{tmp_path / 'bad.json'}", "--data", str(few_songs), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "bad.json" in said and not (tmp_path / "out").exists()


def test_settings_are_read_and_never_run(tmp_path):
    mark = tmp_path / "run"
    for text in (f"Distortion(drive_db=open({str(mark)!r}, 'w'))", f"open({str(mark)!r}, 'w')", f"Distortion(drive_db=[open({str(mark)!r}, 'w') for _ in (1,)])"):
        with pytest.raises(PaletteError):
            find_colour(f"plugin:{text}")
    assert not mark.exists()


def test_a_function_of_a_file(tmp_path, clip):
    (tmp_path / "tape.py").write_text("import torch\n\ndef tape(x, sample_rate):\n    return torch.tanh(sample_rate / 22050 * x)\n")
    assert torch.equal(find_colour(f"python:{tmp_path / 'tape.py'}:tape")(clip, RATE), torch.tanh(2 * clip))
    (tmp_path / "broken.py").write_text("def tape(:\n")
    with pytest.raises(PaletteError, match="SyntaxError"):
        find_colour(f"python:{tmp_path / 'broken.py'}:tape")


def test_a_pedalboard_effect_is_that_effect_from_rest_for_each_item(clip):
    pedalboard = pytest.importorskip("pedalboard", reason="pedalboard is not installed (extra plugins)")
    mode = pedalboard.LadderFilter.Mode.HPF24
    theirs = pedalboard.LadderFilter(mode=mode, cutoff_hz=800, resonance=0.5, drive=2)(clip[0].numpy(), RATE, reset=True)
    ladder = find_colour("plugin:LadderFilter(mode=HPF24, cutoff_hz=800, resonance=0.5, drive=2)")
    twice = ladder(torch.cat([clip, clip]), RATE)
    assert np.abs(twice[0].numpy() - theirs).max() < 1e-6 and torch.equal(twice[0], twice[1]) and torch.equal(ladder(clip, RATE)[0], twice[0])
    for wrong in ("Distortion(loudness=3)", "LadderFilter(mode=XYZ)", "LadderFilter(mode=12)", "Convolution(impulse_response_filename='x')", "Reverb(room_size=1000)", "Compressor(ratio=0.1)"):
        with pytest.raises(PaletteError) as caught:
            find_colour(f"plugin:{wrong}")(clip, RATE)
        assert "\n" not in str(caught.value)


# Pairs

def a_pair(folder, name, dry, wet, rate=RATE):
    for side, samples in (("dry", dry), ("wet", wet)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        write_audio(folder / side / f"{name}.wav", np.atleast_2d(samples).astype(np.float32), rate, "FLOAT")


@pytest.mark.parametrize("delay", [0, 3, 441, -200])
def test_a_delay_is_found_and_the_filter_s_own_is_left(delay):
    dry = demo_clip()[0, :4 * RATE].astype(float)
    b, a = butter(2, 800, fs=RATE)
    for colour in (np.tanh(5 * dry), -0.3 * dry, lfilter(b, a, dry)):
        assert abs(find_delay(dry, np.roll(colour, delay), RATE) - delay) <= (3 if colour.std() < dry.std() else 0)
    assert find_delay(dry, 0 * dry, RATE) == 0


def test_pairs_that_do_not_belong_together_are_named(tmp_path):
    dry = demo_clip()[:1, :3 * RATE]
    for name in ("one", "two"):
        a_pair(tmp_path, name, dry, np.tanh(3 * np.roll(dry, 50)))
    assert Pairs(tmp_path).delay == 50 and len(Pairs(tmp_path).split()[1]) == 1
    a_pair(tmp_path, "late", dry, np.roll(dry, 400))
    with pytest.raises(PaletteError, match="late is delayed by 400"):
        Pairs(tmp_path)
    a_pair(tmp_path, "late", dry, dry, 48000)
    with pytest.raises(PaletteError, match="several sample rates"):
        Pairs(tmp_path)
    a_pair(tmp_path, "late", dry, dry)
    write_audio(tmp_path / "wet" / "late.wav", dry, 48000)
    with pytest.raises(PaletteError, match="late.wav"):
        Pairs(tmp_path)
    (tmp_path / "wet" / "late.wav").unlink()
    with pytest.raises(PaletteError, match="late stands in only one"):
        Pairs(tmp_path)


def test_batches_of_pairs_are_pure_and_aligned():
    rng = np.random.default_rng(0)
    takes = [(dry, 2 * dry) for dry in (rng.normal(size=RATE).astype(np.float32), rng.normal(size=4 * RATE).astype(np.float32))]
    drawn = PairSegments(takes, RATE, size=4, seconds=0.2, seed=3)
    batch = drawn[17]
    assert torch.equal(batch.target, 2 * batch.x) and torch.equal(batch.x, drawn[17].x) and batch.run_in + round(0.2 * RATE) == batch.x.shape[-1]


# Models

def test_everything_begins_as_the_identity(clip):
    for model in (ColourBox(), ColourBox(memory=True), LongFilter(500), LongFilter()):
        for rate in (RATE, 48000, 22050):
            assert (model(clip, rate) - clip).abs().max() < 1e-5


@pytest.mark.parametrize("kind, mix", [("low", (1, 0, 0)), ("high", (0, 0, 1))])
def test_sections_are_the_filters_of_a_synthesiser(kind, mix, clip):
    "Against SciPy's Butterworth, which has a Q of one over root two."
    sections = Sections(1, 1000.0, 1000.0)
    with torch.no_grad():
        sections.mix.copy_(torch.tensor([mix])), sections.log_q.fill_(-0.5 * np.log(2))
        heard = sections(clip, RATE)
    expected = lfilter(*butter(2, 1000, kind, fs=RATE), clip.double().numpy())
    assert np.abs(heard.numpy() - expected).max() < 2e-4


def test_a_curve_becomes_soft_and_hard_and_uneven():
    x = torch.linspace(-1, 1, 201)
    curve = Curve(1)
    with torch.no_grad():
        curve.straight.zero_(), curve.height.copy_(torch.tensor([0.9, 0.2])), curve.log_drive.copy_(torch.tensor([18.0, 5.0]).log()), curve.offset.copy_(torch.tensor([0.3, 0.0]))
        expected = 0.9 * (torch.tanh(18 * x + 0.3) - np.tanh(0.3)) + 0.2 * (5 * x).clamp(-1, 1)
        assert torch.allclose(curve(x), expected, atol=1e-5) and curve(torch.zeros(1)) == 0


def test_dynamics_at_rest_and_on_the_way():
    "A step of level: the ratio at rest, and 63 % of the way of the amplitude after the attack time."
    dynamics = Dynamics()
    with torch.no_grad():
        dynamics.slope.fill_(0.75), dynamics.threshold.fill_(-2.4), dynamics.log_knee.fill_(-12.0), dynamics.log_time.copy_(torch.tensor([20.0, 200.0]).log())
        x = torch.full((1, 1, RATE), 10 ** (-4 / 20))
        y = 20 * torch.log10(dynamics(x, RATE)[0, 0])
    assert abs(y[-1] - (-24 + 20 / 4)) < 1e-2
    level = -4 + 20 * np.log10(1 - np.exp(-1))  # after 20 ms
    assert abs(y[round(0.02 * RATE) - 1] - (-4 - 0.75 * (level + 24))) < 0.02


@pytest.mark.parametrize("name, parameters", [("before", ("octave", "log_q", "mix")), ("dynamics", ("slope", "threshold", "log_knee", "log_time")),
                                              ("curve", ("straight", "height", "log_drive", "offset")), ("gain", ("log_gain",))])
def test_gradients(name, parameters):
    "Against finite differences, away from the identity, in float64."
    torch.manual_seed(1)
    block = ColourBox(memory=True, sections=2, units=1).double().blocks[name]
    x = 0.5 * torch.randn(2, 1, 500, dtype=torch.float64)
    weight = torch.randn_like(x)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter) + 0.1)
    for parameter in parameters:
        value = getattr(block, parameter)
        gradient, = torch.autograd.grad((weight * block(x, 8000)).sum(), value)
        flat, by_difference = value.data.view(-1), []
        for place in range(flat.numel()):
            sides = []
            for step in (1e-5, -1e-5):
                flat[place] += step
                sides.append((weight * block(x, 8000)).sum().item())
                flat[place] -= step
            by_difference.append((sides[0] - sides[1]) / 2e-5)
        assert torch.allclose(gradient.view(-1), torch.tensor(by_difference, dtype=torch.float64), rtol=2e-2, atol=2e-3), parameter


@pytest.mark.parametrize("sizes", [(4096,), (1, 37, 5000, 128)])
def test_blocks_are_the_whole(sizes, clip):
    torch.manual_seed(2)
    x = torch.cat([clip, 0.3 * clip.flip(-1)], 1)[..., :30000]
    for model in (ColourBox(memory=True), LongFilter(3000)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter) / max(1, parameter.numel()) ** 0.5)
        whole = model(x, RATE)[0].detach()
        assert (in_blocks(model.stages(RATE), x[0], sizes) - whole).abs().max() < 2e-4 * whole.abs().max()


def test_a_long_filter_by_least_squares_is_the_room():
    rng = np.random.default_rng(0)
    room = rng.normal(size=2000) * np.exp(-np.arange(2000) / 300)
    pairs = []
    for _ in range(3):
        dry = lfilter(*butter(1, 3000, fs=RATE), rng.normal(size=30000))  # coloured, as music is
        pairs.append((dry, np.convolve(dry, room)))
    found = solve_filter(iter(pairs), 2500)
    assert np.abs(found[:2000] - room).max() < 0.01 and np.abs(found[2000:]).max() < 0.01


# Learning

def test_what_recordings_teach(tmp_path):
    "An amplifier that was late and uneven; then the run again, which has nothing left to do, and another, which is refused."
    dry = at_peak(torch.tensor(demo_clip()[None, :1, :5 * RATE]), -6.0)[0, 0].numpy()
    a_pair(tmp_path / "amp", "riff", dry, np.roll(np.tanh(4 * dry + 0.2) - np.tanh(0.2), 300))
    told, steps = [], []
    recipe = replace(TOY, steps=150)
    model = learn_colour(f"pairs:{tmp_path / 'amp'}", None, tmp_path / "run", "static", recipe, report=told.append, progress=lambda *news: steps.append(news))
    assert "300 frames" in told[0] and len(steps) == 150
    assert model.card["error_ratio"] < 0.01 < 0.3 < model.card["identity"] and model.card["data"]["delay_frames"] == 300
    again = learn_colour(f"pairs:{tmp_path / 'amp'}", None, tmp_path / "run", "static", recipe, progress=lambda *news: steps.append(news))
    assert len(steps) == 150 and all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    with pytest.raises(PaletteError, match="another"):
        learn_colour(f"pairs:{tmp_path / 'amp'}", None, tmp_path / "run", "memory", recipe)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(few_songs, tmp_path):
    recipe = replace(TOY, steps=30, validate_every=10)

    def stop(kind, step, steps, figures):
        if step == 17:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        learn_colour(bend, few_songs, tmp_path / "stopped", "memory", recipe, progress=stop)
    seen = []
    stopped = learn_colour(bend, few_songs, tmp_path / "stopped", "memory", recipe, progress=lambda kind, step, *news: seen.append(step))
    whole = learn_colour(bend, few_songs, tmp_path / "whole", "memory", recipe)
    assert seen[0] == 18 and all(torch.equal(a, b) for a, b in zip(stopped.state_dict().values(), whole.state_dict().values()))


def bend(x, sample_rate):
    return 2 * x / (1 + 4 * x.abs())


COLOURS = {"curve": (lambda x, rate: 0.5 * torch.tanh(6 * x), "static", 0.02), "echo": (lambda x, rate: x + 0.7 * torch.nn.functional.pad(x, (9000, 0))[..., :x.shape[-1]], "room", 0.01)}


@pytest.mark.parametrize("name", COLOURS)
def test_auto_finds_the_kind_and_says_so(name, few_songs, tmp_path):
    colour, kind, error = COLOURS[name]
    told = []
    model = learn_colour(colour, few_songs, tmp_path, "auto", TOY, report=told.append)
    assert model.card["learner"] == kind and any(f"{kind} goes on" in line for line in told)
    assert model.card["error_ratio"] < error < model.card["identity"]
    print(f"\n{name}: " + "; ".join(told[-2:]))


def test_the_simplest_that_is_nearly_as_good():
    assert choose_learner({"room": 0.010, "memory": 0.006, "static": 0.011}) == "static"
    assert choose_learner({"static": 0.2, "memory": 0.09, "room": 0.5}) == "memory"


def test_songs_are_needed_and_a_bad_colour_stops_at_once(tmp_path, few_songs):
    with pytest.raises(PaletteError, match="learned from songs"):
        learn_colour(torch.nn.Tanh(), None, tmp_path / "a", recipe=TOY)
    with pytest.raises(PaletteError, match="finite"):
        learn_colour(lambda x, rate: x / 0, few_songs, tmp_path / "b", recipe=TOY)
    with pytest.raises(PaletteError, match="no such folder"):
        learn_colour(lambda x, rate: x, tmp_path / "nowhere", tmp_path / "c", recipe=TOY)


# Palettes

@pytest.fixture
def mine():
    torch.manual_seed(3)
    three, tape, hall = GrayBox(), ColourBox(memory=True), LongFilter(4000)
    with torch.no_grad():
        for parameter in [*three.parameters(), *tape.parameters(), *hall.parameters()]:
            parameter.add_(0.05 * torch.randn_like(parameter) / max(1, parameter.shape[-1] if parameter.ndim else 1) ** 0.5)
    return ColourPalette.assemble({"tape": tape, "hall": hall}, three)


def test_the_axes_are_in_series_each_at_its_strength(mine, clip):
    "x + w·(colour(x) − x), one after the other; weights normalised, amount multiplied."
    x = torch.cat([clip, -0.4 * clip])
    y = mine.base.render(x, RATE, [1, 1, 0], 0.8 * 0.5)
    y = y + 0.8 * 0.2 * (mine.colours[0](y, RATE) - y)
    y = y + 0.8 * 0.3 * (mine.colours[1](y, RATE) - y)
    assert torch.allclose(mine.render(x, RATE, [2.5, 2.5, 0, 2, 3], 0.8), y, atol=1e-5)
    assert torch.equal(mine.render(x, RATE, [1, 2, 3, 4, 5], 0), x)
    assert torch.equal(mine.render(x, RATE, [0, 0, 0, 7, 0]), mine.colours[0](x, RATE))
    styles, amounts = [[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]], [0.0, 0.7]
    mixed = mine.render(x, RATE, styles, torch.tensor(amounts))
    assert torch.equal(mixed[0], x[0]) and torch.allclose(mixed[1:], mine.render(x[1:], RATE, styles[1], 0.7), atol=1e-6)


def test_exact_anchors_may_be_the_base(clip):
    exact = ColourPalette.assemble({"tape": ColourBox()})
    assert torch.allclose(exact.render(clip, RATE, [1, 2, 1, 0]), palette(clip, RATE, [1, 2, 1]), atol=1e-6)
    for weights, amount in (([1, 0, 0], 1), ([0, 0, 0, 0], 1), ([1, 0, 0, -1], 1), ([1, 0, 0, 1], 1.5), ([1, 0, 0, 1], np.nan)):
        with pytest.raises(PaletteError):
            exact.render(clip, RATE, weights, amount)
        with pytest.raises(PaletteError):
            exact.stages(RATE, weights, amount)


def test_a_palette_in_blocks_is_the_whole(mine, clip):
    x = torch.cat([clip, 0.3 * clip], 1)[..., :60000]
    weights = [1, 0, 2, 1, 1]
    whole = mine.render(x, RATE, weights, 0.9)[0].detach()
    before, y = mine.stages(RATE, weights, 0.9), x[0]
    while not getattr(before[0], "listens", False):  # the level listens at its place in the chain
        y = before.pop(0)(y)
    stages = mine.stages(RATE, weights, 0.9)
    stages[len(stages) - len(before)].hold(integrated_loudness(y[None], RATE).item())
    heard = in_blocks(stages, x[0], (4096, 100))
    assert (heard - whole).abs().max() < 5e-3 * whole.abs().max()
    assert mine.stages(RATE, weights, 0) == []


def test_a_palette_is_saved_and_found_by_its_axes(mine, home, clip):
    mine.save_pretrained(home / "studio", name="studio", colours={"tape": {"colour": "plugin:Distortion()", "learner": "memory", "error_ratio": 0.01, "identity": 0.5, "steps": 3}})
    kept = Pretrained.from_pretrained(home / "studio")
    assert type(kept) is ColourPalette and kept.axes == (*STYLES, "tape", "hall")
    assert torch.equal(kept.render(clip, RATE, [1, 0, 1, 1, 1]), mine.render(clip, RATE, [1, 0, 1, 1, 1]))
    (home / "broken").mkdir()
    (home / "broken" / "card.json").write_text("{")
    assert list(known_palettes().values()) == [kept.axes]
    assert find_palette("warmth=1,tape=2") == find_palette("hall") == home / "studio" and find_palette("warmth") is None
    for wrong in ("drum", "tape=1,drum=1", "../../etc=1", "tape=1,/=1", "s50_x50"):
        with pytest.raises(PaletteError):
            find_palette(wrong)
    rows = describe_palette(kept)
    assert [row["axis"] for row in rows] == ["tape", "hall"] and rows[0]["error_ratio"] == 0.01 and "attack" in rows[0]["words"]
    assert "plugin:Distortion()" in palette_table(kept) and len(palette_table(kept).splitlines()) == 3


def test_loading_runs_nothing_that_a_card_names(mine, tmp_path):
    mine.save_pretrained(tmp_path / "p")
    card = json.loads((tmp_path / "p" / "card.json").read_text())
    card["arguments"]["colours"][0] = ["os.system", {"command": "true"}]
    (tmp_path / "p" / "card.json").write_text(json.dumps(card))
    with pytest.raises(PaletteError, match="damaged"):
        Pretrained.from_pretrained(tmp_path / "p")


def test_learning_a_palette_keeps_it_under_its_name(home, few_songs):
    told = []
    made = learn_palette("studio", {"tape": lambda x, rate: torch.tanh(3 * x)}, few_songs, kind="static", base="dsp", recipe=TOY, report=told.append)
    card = json.loads((home / "studio" / "card.json").read_text())
    assert card["axes"] == [*STYLES, "tape"] and card["colours"]["tape"]["steps"] == TOY.steps and card["colours"]["tape"]["data"]["train"]["songs"] >= 1
    assert card["colours"]["tape"]["error_ratio"] < 0.05 < card["colours"]["tape"]["identity"]
    assert find_palette("tape") == home / "studio" == palettes_folder() / "studio" and made.axes[-1] == "tape"
    with pytest.raises(PaletteError, match="another"):
        learn_palette("studio", {"tube": torch.nn.Tanh()}, few_songs, base="dsp", recipe=TOY)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "/abs", "C:x", "x y", "Tape", "warmth", "s80_a10_m10", "t50", "dsp", "graybox", "x" * 41, "tape\n", None])
def test_names_that_are_refused(name, home):
    for learn in (lambda: learn_palette(name, {"tape": torch.nn.Tanh()}, None, base="dsp"), lambda: learn_palette("ok", {name: torch.nn.Tanh()}, None, base="dsp")):
        with pytest.raises(PaletteError):
            learn()
    assert not home.exists()
    assert check_name("tape-2_b") == "tape-2_b"


def test_styles_with_more_axes():
    axes = (*STYLES, "tape")
    assert np.allclose(parse_style("fullness=0.5,tape=0.5", axes), [0.5, 0, 0, 0.5]) and np.allclose(parse_style("s50_m50", axes), [0.5, 0, 0.5, 0])
    for style in ([1, 0, 0, 3], [0, 0, 0, 1], [1, 1, 0, 0], [1, 2, 3, 4]):
        assert np.allclose(parse_style(style_name(style, axes), axes), parse_style(style, axes), atol=1e-4)
    for wrong in ("tube", "fullness=1,tube=1", "tape=1,tape=1", "tape=-1", [1, 0, 0]):
        with pytest.raises(PaletteError):
            parse_style(wrong, axes)
    with pytest.raises(PaletteError, match="unknown style 'tape'; use fullness, warmth, layeredness, percentages such as s80_a10_m10, or fullness=0.5,warmth=0.5"):
        parse_style("tape")


# Six effects, as they are: what is left of them is the energy of the error relative to the target's.

EFFECTS = {"distortion": ("Distortion(drive_db=25)", 0.002), "clipping": ("Clipping(threshold_db=-12)", 0.002),
           "compressor": ("Compressor(threshold_db=-24, ratio=4, attack_ms=5, release_ms=100)", 0.02),
           "ladder": ("LadderFilter(mode=LPF12, cutoff_hz=800, resonance=0.5, drive=2)", 0.02),
           "chorus": ("Chorus()", None), "reverb": ("Reverb(room_size=0.5)", None)}
WHY = {"chorus": "its delay swings with a clock, which none of the learners has: what is learned is the sound it has on average",
       "reverb": "it is linear and does not change, so one long filter is all of it"}


def score(model, colour, songs):
    "Mean error ratio of a model, and of doing nothing, over the first 10 s of songs at a peak of -6 dBFS."
    ratios = []
    for song in songs:
        x = at_peak(excerpt(song), -6.0)
        target = colour(x, song.sample_rate)
        with torch.no_grad():
            ratios.append([error_ratio(y, target).item() for y in (model(x, song.sample_rate), x)])
    return np.mean(ratios, 0)


@pytest.mark.parametrize("name", EFFECTS)
def test_six_effects_in_seconds(name, few_songs, tmp_path):
    "A toy form: three short songs, some eighty steps, the learner given."
    pytest.importorskip("pedalboard", reason="pedalboard is not installed (extra plugins)")
    spec, _ = EFFECTS[name]
    kind = {"compressor": "memory", "chorus": "room", "reverb": "room"}.get(name, "static")
    model = learn_colour(f"plugin:{spec}", few_songs, tmp_path, kind, TOY)
    print(f"\n{name} by {kind}: error to signal {model.card['error_ratio']:.4f}, doing nothing {model.card['identity']:.4f}")
    assert model.card["error_ratio"] < (0.9 if name == "chorus" else 0.3) * model.card["identity"]


if os.environ.get("TIMBRE_PALETTE_LONG"):  # half an hour
    @pytest.mark.parametrize("name", EFFECTS)
    def test_six_effects_on_real_music(name, songs, tmp_path):
        pytest.importorskip("pedalboard", reason="pedalboard is not installed (extra plugins)")
        music, (spec, most) = songs[0].parent.parent, EFFECTS[name]
        told = []
        model = learn_colour(f"plugin:{spec}", music / "train", tmp_path, report=told.append)
        ratio, nothing = score(model, find_colour(f"plugin:{spec}"), find_tracks(music / "test"))
        print(f"\n{name} by {model.card['learner']}: error to signal {ratio:.2g}, doing nothing {nothing:.2g}" + (f" ({WHY[name]})" if name in WHY else "") + "\n  " + told[-2])
        assert ratio < nothing and (most is None or ratio <= most)


def test_the_commands_learn_and_enhance(few_songs, home, tmp_path, capsys):
    "A function in a file becomes an axis, and a style that names it finds its palette; files, blocks and formula agree."
    (tmp_path / "tape.py").write_text("def tape(x, sample_rate):\n    return (3 * x).tanh() / 2\n")
    arguments = ["learn", "tapes", "--colour", f"tape=python:{tmp_path / 'tape.py'}:tape", "--data", str(few_songs), "--kind", "static", "--steps", "60", "--device", "cpu"]
    assert main(arguments) == 0 and (home / "tapes" / "card.json").is_file()
    assert "tape" in capsys.readouterr().out and not STYLES[0] in known_palettes()
    dry, wet = few_songs / "demo.wav", tmp_path / "wet.wav"
    assert main(["enhance", str(dry), "-o", str(wet), "--style", "fullness=0.5,tape=0.5", "--amount", "0.8"]) == 0
    out = capsys.readouterr().out
    assert "fullness=0.5,tape=0.5" in out and "tapes" in out
    made, x = Pretrained.from_pretrained(home / "tapes"), torch.tensor(read_audio(dry).samples[None])
    with torch.no_grad():
        expected = made.render(x, RATE, [0.5, 0, 0, 0.5], 0.8)
        full = GrayBox.from_pretrained("graybox").render(x, RATE, [1, 0, 0], 0.4)
        tape = made.colours[0](full, RATE)
    assert torch.allclose(expected, full + 0.4 * (tape - full), atol=2e-4)
    assert np.abs(read_audio(wet).samples - expected[0].numpy()).max() < 1e-3
    assert main(["enhance", str(dry), "-o", str(wet), "--style", "fullness=0.5,vinyl=0.5"]) == 2
    assert "tapes has tape" in capsys.readouterr().err
    assert main(["learn", "tapes", "--colour", "tape", "--data", str(few_songs)]) == 2 and "AXIS=WHAT" in capsys.readouterr().err
