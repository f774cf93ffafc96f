"""The auto-encoder that works: what it hears, how loud it plays, at every rate, and live as offline."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import welch

from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.checkpoint import Pretrained, shipped
from timbre_palette.cli import main
from timbre_palette.losses import MultiScaleSpectralLoss
from timbre_palette.recipe import RECIPES
from timbre_palette.timbre_transfer.instrument import (BANDS, NOISE_BANDS, Features, FeatureStream, HarmonicAutoencoder, balance, extract_features, frame_hop, silence_penalty,
                                                        synthesise)
from timbre_palette.timbre_transfer.learning import AUTOENCODER, HeardBatch, HeardSegments, TimbreObjective, learn_range, score_resynthesis
from timbre_palette.timbre_transfer.takes import find_takes
from timbre_palette.timbre_transfer.transfer import FixedSpectrum
from timbre_palette.timbre_transfer.whistles import whistle
from timbre_palette.training import train_model


def tiny(**given):
    "An untrained model that does something else in each frame."
    torch.manual_seed(0)
    model = HarmonicAutoencoder(**{"harmonics": 20, "hidden": 16, "room_s": 0.05, **given}).eval()
    with torch.no_grad():
        model.heads.weight.mul_(20)
    return model


def tone(rate, hz=220.0, seconds=1.0, harmonics=10):
    "A swelling tone `(1, 1, time)` of falling harmonics."
    moment = np.arange(round(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * hz * n * moment) / n for n in range(1, harmonics + 1))
    return torch.tensor(0.2 * np.sin(np.pi * moment / seconds) * wave, dtype=torch.float32)[None, None]


def heard(x, rate):
    "A batch with its features."
    return HeardBatch(x, rate, *extract_features(x, rate))


@pytest.fixture(scope="module")
def tune():
    return whistle(seed=1, seconds=2.0)


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_features_do_not_depend_on_blocks(rate):
    x = torch.nn.functional.pad(tone(rate, seconds=0.6), (0, rate // 5))
    whole = extract_features(x, rate)
    sizes, stream, parts, left = np.random.default_rng(0).integers(1, rate // 20, 200), FeatureStream(rate), [], torch.nn.functional.pad(x[0], (0, 2 * FeatureStream(rate).latency))
    for size in sizes:
        parts.append(stream.push(left[:, :size]))
        left = left[:, size:]
    assert not left.numel()
    assert not stream.push(left).level.numel()
    for name, together, apart in zip(Features._fields, whole, zip(*parts)):
        assert torch.equal(together, torch.cat(apart, 1)[:, :together.shape[1]]), name
    assert whole.bands.shape[-1] == BANDS and whole.f0_hz.shape[1] == -(-x.shape[2] // frame_hop(rate)) + 1


def test_level_is_what_a_meter_reads():
    "The mean of the squared level is the K-weighted power that pyloudnorm takes for loudness."
    import pyloudnorm
    x = 0.1 * torch.randn(1, 1, 88200, generator=torch.Generator().manual_seed(0))
    power = extract_features(x, 44100).level[0, 5:-5].double().square().mean()
    assert abs(10 * power.log10().item() - 0.691 - pyloudnorm.Meter(44100).integrated_loudness(x[0, 0].numpy())) < 0.2


def test_pitch_of_a_whistle_is_heard(tune):
    f0_hz, voiced = (value[0, :-1].numpy() for value in extract_features(tune.samples[None], 44100)[:2])
    sounds = tune.pitch.voiced & (voiced > 0)
    cents = 1200 * np.abs(np.log2(f0_hz[sounds] / tune.pitch.hz[sounds]))
    assert sounds.sum() > 0.9 * tune.pitch.voiced.sum() and np.mean(cents < 20) > 0.95


def test_silence_in_silence_out():
    model = tiny()
    with torch.no_grad():
        assert not model.resynthesise(torch.zeros(2, 1, 8000), 16000).any()
        assert not model.stream(16000).push(torch.zeros(1, 8000)).any()


def test_unvoiced_frames_have_no_harmonics():
    one = torch.ones(1, 3)
    controls = balance(440 * one, torch.full((1, 3, 5), 0.2), torch.ones(1, 3, NOISE_BANDS), 0.1 * one, torch.tensor([[1.0, 0.0, 1.0]]), 0.5 * one)
    assert not controls.amplitudes[0, 1].any() and controls.amplitudes[0, [0, 2]].all() and torch.equal(controls.noise[0, 0], controls.noise[0, 1])


def test_louder_in_louder_out():
    "By the path around the network: what it may add is bounded."
    model = tiny()
    with torch.no_grad():
        quiet, loud = (model.resynthesise(gain * tone(16000), 16000, reverb=0.0).square().mean().log10() * 10 for gain in (0.01, 1.0))
    assert 40 - 12 <= loud - quiet <= 40 + 12


@pytest.mark.parametrize("size", [64, 441, 1000, "random", 10 ** 6])
@pytest.mark.parametrize("rate, together", [(16000, 1), (44100, 2)])
def test_live_is_offline(size, rate, together):
    model = tiny()
    x = torch.cat([tone(rate, 300.0, 0.3), torch.zeros(1, 1, rate // 20), tone(rate, 700.0, 0.3)], -1)
    with torch.no_grad():
        offline = model.resynthesise(x, rate, expression=0.5)[0]
    player, rng, left, parts = model.stream(rate, expression=0.5, together=together), np.random.default_rng(1), torch.nn.functional.pad(x[0], (0, 50 * rate // 1000)), []
    while left.shape[1]:
        count = int(rng.integers(1, 3000)) if size == "random" else size
        parts.append(player.push(left[:, :count]))
        assert parts[-1].shape[1] == min(count, left.shape[1])
        left = left[:, count:]
    live = torch.cat(parts, 1)
    assert player.latency <= 0.05 * rate and not live[:, :player.latency].any()
    assert (live[:, player.latency:player.latency + x.shape[2]] - offline).abs().max() < 1e-6 and offline.abs().max() > 0.05


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("timbre-")])
def test_small_steps_play_what_torch_plays(name, rate):
    "The shipped instruments, live in NumPy in odd blocks and whole in torch, with half of the colour that was heard."
    model, tune = Pretrained.from_pretrained(name).eval(), whistle(seed=3, seconds=1.5, sample_rate=rate)
    x = torch.tensor(tune.samples)
    features = extract_features(x[None], rate)
    player = model.stream(rate, 0.5, change=lambda features: features._replace(f0_hz=features.f0_hz / 4))
    with torch.no_grad():
        whole = model.play(features._replace(f0_hz=features.f0_hz / 4), x.shape[1], rate, 0.5)[0]
    live = torch.cat([player(block) for block in torch.nn.functional.pad(x, (0, player.latency)).split(357, 1)], 1)[:, player.latency:]
    assert whole.abs().max() > 0.01 and (live - whole).abs().max() < 1e-5 * max(1.0, whole.abs().max())
    controls, steps = model.controls(features, expression=0.5)[0], model.stepper(0.5)
    parts = [steps(Features(*values)) for values in zip(*(value.split(3, 1) for value in features))]
    for here, there in zip(controls, zip(*parts)):
        assert np.abs(here[0].detach().numpy() - np.concatenate(there)).max() < 1e-4 * max(1.0, here.abs().max())


def test_live_state_does_not_grow():
    player = tiny().stream(16000)
    sizes = []
    for _ in range(3):
        for _ in range(20):
            player.push(tone(16000, seconds=0.1)[0])
        sizes.append((len(player._ready), player._features._heard.shape[1], player._features._tracker._heard.shape[0]))
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_model_sounds_alike_at_three_rates():
    model, levels = tiny(harmonics=60), {}
    with torch.no_grad():
        model.heads.weight.zero_()  # a steady sound
        for rate in (16000, 44100, 48000):
            like = torch.ones(1, 301)
            features = Features(150 * like, like, 0.1 * like, torch.full((1, 301, BANDS), -20.0), like)
            sound = model.play(features, 3 * rate, rate)[0, 0].numpy()[rate // 2:]
            hz, density = welch(sound, rate, nperseg=rate // 10, window="hann")
            edges = 100 * 2 ** (np.arange(19) / 3)
            levels[rate] = 10 * np.log10([density[(hz >= low) & (hz < high)].sum() for low, high in zip(edges, edges[1:])])
    assert edges[-1] < 7000 and all(np.abs(levels[rate] - levels[44100]).max() < 1 for rate in levels)


def test_every_parameter_learns_and_both_ways_are_practised():
    model = tiny().train()
    x = tone(44100, seconds=0.3).repeat(4, 1, 1)
    features = extract_features(x, 44100)
    sound, surprise = model.practise(features, x.shape[2], 44100)
    (sound.square().mean() + surprise + silence_penalty(sound, x, 44100)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        sound, _ = model.practise(features, x.shape[2], 44100)
        heard, expected = (model.play(features, x.shape[2], 44100, expression) for expression in (1.0, 0.0))
    assert torch.allclose(sound[::2], heard[::2], atol=1e-6) and torch.allclose(sound[1::2], expected[1::2], atol=1e-6) and (heard - expected).abs().max() > 1e-4


def test_power_has_a_gradient_at_its_edges():
    "Gradients are finite where all is tone, all is noise, nothing sounds, or no harmonic can be heard."
    f0 = torch.tensor([[440.0, 440.0, 440.0, 21000.0]])
    logits, tonal = torch.zeros(1, 4, 5, requires_grad=True), torch.tensor([[60.0, -60.0, 0.0, 0.0]], requires_grad=True)
    controls = balance(f0, logits.softmax(-1), torch.ones(1, 4, NOISE_BANDS), torch.tensor([[0.1, 0.1, 0.0, 0.1]]), torch.tensor([[1.0, 1.0, 0.0, 1.0]]), tonal.sigmoid().clamp(1e-6, 1 - 1e-6))
    synthesise(controls, 44100)[0].square().sum().backward()
    assert logits.grad.isfinite().all() and tonal.grad.isfinite().all()


def test_the_room_learns_slowly_and_costs():
    model = tiny().train()
    rest, room = model.parameter_groups(1e-3)
    assert [id(p) for p in room["params"]] == [id(model.room.response)] and room["lr"] == 1e-5 and len(rest["params"]) + 1 == len(list(model.parameters()))
    features, found = extract_features(tone(16000, seconds=0.1), 16000), []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(model.practise(features, 1600, 16000)[1].item())
        model.room.response.data.zero_()
    energy = tiny().room.response.square().sum().item()
    assert found[0] - found[1] == pytest.approx(energy, rel=1e-3) and energy == pytest.approx(10 ** -2.6, rel=1e-3)


def test_weights_are_saved_with_the_range(tmp_path):
    model = tiny()
    model.range_hz.copy_(torch.tensor([200.0, 800.0]))
    model.save_pretrained(tmp_path)
    again, x = Pretrained.from_pretrained(tmp_path), tone(16000, seconds=0.2)
    with torch.no_grad():
        assert torch.equal(again.resynthesise(x, 16000), model.resynthesise(x, 16000)) and again.range_hz.tolist() == [200.0, 800.0]


def test_errors():
    for x, rate in ((torch.zeros(1, 2, 4000), 16000), (torch.zeros(1, 1, 0), 16000), (torch.zeros(1, 1, 4000), 8000)):
        with pytest.raises(PaletteError):
            extract_features(x, rate)
    with pytest.raises(PaletteError, match="one channel"):
        tiny().stream(16000).push(torch.zeros(2, 100))


# --- learning

class Takes:
    "Synthetic takes: a batch of tones by the step."
    def __init__(self, tracks, recipe, seed, share=(0, 1), report=None, validating=False):
        self.size, self.seconds, self.rate, self.seed = recipe.batch, recipe.seconds, recipe.sample_rates[0], seed

    def __getitem__(self, step):
        rng = np.random.default_rng([self.seed, step])
        return heard(torch.cat([tone(self.rate, hz, self.seconds) for hz in rng.uniform(300, 500, self.size)]), self.rate)


def small(**changes):
    return replace(RECIPES["timbre-trumpet"], arguments={"instrument": "trumpet", "harmonics": 12, "hidden": 16, "room_s": 0.02}, sample_rates=(16000,), seconds=0.3, **changes)


def test_silence_is_penalised_by_decibels():
    x = 0.1 * torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(0))
    assert abs(silence_penalty(0.1 * x, x, 16000) - 20) < 0.1 and silence_penalty(2 * x, x, 16000) == 0
    assert silence_penalty(0 * x, 0 * x, 16000) == 0


def test_loss_falls_and_what_is_learned_is_in_tune(tmp_path):
    torch.manual_seed(0)
    recipe = small(batch=2)
    model, objective, takes = HarmonicAutoencoder(**recipe.arguments), TimbreObjective(MultiScaleSpectralLoss()), Takes(None, recipe, 0)
    optimiser, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(20):
        optimiser.zero_grad()
        loss, figures = objective(model, takes[0])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * losses[0] and set(figures) == {"spectral", "quiet_db", "surprise"}
    write_audio(tmp_path / "take.wav", takes[1].x[0].numpy(), 16000)
    methods = {"learned": model.eval().resynthesise, "baseline": FixedSpectrum(like=model).resynthesise, "itself": lambda x, rate: x, "half": lambda x, rate: x / 2, "a hundredth": lambda x, rate: x / 100}
    rows = {row["method"]: row for row in score_resynthesis(methods, find_takes(tmp_path), 3, 0.5)}
    assert list(rows) == ["silence", *methods] and rows["learned"]["f0_within_20_cents"] > 0.95 and rows["learned"]["loudness_correlation"] > 0.9
    assert rows["learned"]["multi-scale"] < rows["baseline"]["multi-scale"] and rows["itself"]["loudness_correlation"] == pytest.approx(1) and rows["silence"]["f0_within_20_cents"] == 0
    for name in ("multi-scale", "log-mel"):
        assert 0 == rows["itself"][name] < rows["half"][name] < rows["a hundredth"][name] < rows["silence"][name]


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_segments_bring_what_is_heard_in_them(rate, tmp_path):
    for k, hz in enumerate((220.0, 330.0, 440.0)):
        write_audio(tmp_path / f"{k}.wav", tone(rate, hz, 0.7)[0].numpy(), rate)
    segments = HeardSegments(find_takes(tmp_path), 6, 1.503, rate, seed=3)
    batch, anew = segments[2], extract_features(segments[2].x, rate)
    assert batch.x.shape[-1] % segments.hop == 0 and 0 <= batch.x.shape[-1] - 1.503 * rate < segments.hop and batch.f0_hz.shape == anew.f0_hz.shape
    assert all(torch.equal(*pair) for pair in zip(batch[2:], segments[2][2:])) and not torch.equal(batch.x, segments[3].x)
    both = (batch.voiced > 0) & (anew.voiced > 0)
    assert both.sum() > 0.95 * anew.voiced.sum() and both.sum() > 0.8 * batch.voiced.sum()
    assert (1200 * (batch.f0_hz / anew.f0_hz).log2().abs())[both].quantile(0.95) < 5
    loud = anew.level > 0.1 * anew.level.max()
    assert (20 * (batch.level / anew.level).log10().abs())[loud].quantile(0.95) < 0.2
    assert all(torch.equal(torch.cat(pair), whole) for *pair, whole in zip(*(part[2:] for part in batch.parts(2)), batch[2:]))


def test_shares_of_processes_make_the_batch(tmp_path):
    write_audio(tmp_path / "take.wav", tone(16000, 220.0, 0.5)[0].numpy(), 16000)
    whole, first, last = (HeardSegments(find_takes(tmp_path), 4, 0.7, 16000, share=share)[5] for share in ((0, 1), (0, 2), (1, 2)))
    assert all(torch.equal(torch.cat(pair), together) for *pair, together in zip(first[2:], last[2:], whole[2:])) and torch.equal(torch.cat([first.x, last.x]), whole.x)


def test_range_is_that_of_the_takes():
    model = learn_range(tiny(), [heard(torch.cat([tone(16000, hz, 0.3) for hz in (250.0, 400.0)]), 16000)])
    assert abs(model.range_hz[0] / 250 - 1) < 0.01 and abs(model.range_hz[1] / 400 - 1) < 0.01
    before = model.range_hz.clone()
    assert torch.equal(learn_range(model, [heard(torch.zeros(1, 1, 8000), 16000)]).range_hz, before)


def test_it_is_one_more_task(tmp_path, capsys):
    for k, split in enumerate(("train", "train", "val", "test")):
        (tmp_path / "takes" / split).mkdir(parents=True, exist_ok=True)
        write_audio(tmp_path / "takes" / split / f"take {k}.wav", tone(16000, 300 + 50 * k)[0].numpy(), 16000)
    changes = ["steps=2", "batch=2", "seconds=0.3", "sample_rates=[16000]", "validate_every=2", "validation_batches=1", "arguments={instrument: trumpet, harmonics: 12, hidden: 16, room_s: 0.02}"]
    assert main(["train", "timbre-trumpet", "--data", str(tmp_path / "takes"), "--out", str(tmp_path / "run"), "--device", "cpu", "--set", *changes]) == 0
    model = Pretrained.from_pretrained(tmp_path / "run" / "best")
    assert isinstance(model, HarmonicAutoencoder) and 290 < model.range_hz[0] < model.range_hz[1] < 360 and model.card["identity"]["loss"] > 0
    assert [row["method"] for row in model.card["metrics"]] == ["silence", "pitch-tracked", "timbre-trumpet"] and "loudness_correlation" in capsys.readouterr().out

