"""The filter transformer: its ranges, its hybrids, when it stops, and that the report says what was measured."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from timbre_palette.audio import PaletteError, db_to_gain, write_audio
from timbre_palette.checkpoint import Pretrained
from timbre_palette.effects.reverb import room_response
from timbre_palette.losses import MultiResolutionSTFTLoss
from timbre_palette.loudness import at_peak
from timbre_palette.songs import load_splits
from timbre_palette.style_transfer.encoder import ENCODER_RATE, PEAK_DB
from timbre_palette.style_transfer.filter_transformer import (BANDS_HZ, EQ_AND_COMPRESSOR, EXPERIMENTS, FILTER_HOP, FILTERS, PRINTED, RANGE_HZ, SECONDS, FILTER_STRATEGIES, WAVE_WEIGHT, FilterProxy,
                                                              FilterTransformer, best_settings, by_effects, distances, draw_clips, energy_decay_db, filter_chain, filter_loss, imitate,
                                                              make_pairs, straight_through, train_filters, train_filter_proxy, until_worse)
from timbre_palette.synth import demo_clip

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 12720  # 0.53 s at 24 kHz
SMALL = {"bands": 24, "width": 8, "dimensions": 8, "hidden": 16}


@pytest.fixture(scope="module")
def clips():
    "Four clips and what follows each, tensors `(4, 1, 6000)`."
    x = at_peak(torch.tensor(demo_clip(ENCODER_RATE))[:1, :48000].view(4, 1, 12000), PEAK_DB)
    return x.chunk(2, -1)


@pytest.fixture(scope="module")
def proxies():
    "Stand-ins that imitate nothing, and have gradients."
    torch.manual_seed(3)
    made = {name: FilterProxy(len(FILTERS[name].parameters), channels=8, taps=64) for name in EQ_AND_COMPRESSOR}
    for proxy in made.values():
        torch.nn.init.normal_(proxy.added.weight, std=0.05)
        torch.nn.init.normal_(proxy.gain.weight, std=0.05)
        proxy.requires_grad_(False)
    return made


# --- what the text prints

def test_eight_controls_in_the_printed_ranges():
    system = filter_chain(*EQ_AND_COMPRESSOR)
    ranges = {parameter.name: (parameter.low, parameter.high) for parameter in filter_chain(*FILTERS).parameters}
    assert [parameter.name for parameter in system.parameters] == list(ranges)[:8]
    assert all(ranges[f"peq_band_{n}_gain_db"] == (-20, 20) for n in range(1, 7))
    assert ranges["compressor_threshold_db"] == (-20, 20) and ranges["compressor_ratio"] == (2, 6)
    assert (ranges["reverb_room"], ranges["reverb_wet"], ranges["reverb_dry"]) == ((0.1, 1), (0.1, 0.8), (0.5, 1))
    assert RANGE_HZ == (20, 1200) and all(20 < hz < 1200 for hz in BANDS_HZ) and np.allclose(np.diff(np.log(BANDS_HZ)), np.log(60) / 6)
    assert round(SECONDS * ENCODER_RATE) == FRAMES


def test_effects_have_their_closed_forms():
    x = 0.2 * torch.randn(2, 1, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drive_db = torch.tensor([10.0, 30.0], dtype=torch.float64)
    assert torch.allclose(FILTERS["distortion"](x, ENCODER_RATE, drive_db=drive_db), torch.tanh(db_to_gain(drive_db)[:, None, None] * x))
    response = room_response(ENCODER_RATE, 4000, torch.tensor([0.7]), torch.tensor([0.5]))[0].numpy()
    wet = np.convolve(x[0, 0].numpy(), response)[:4000]
    assert np.allclose(FILTERS["reverb"](x, ENCODER_RATE, room=0.7, wet=0.4, dry=0.9)[0, 0].numpy(), 2 * 0.9 * x[0, 0].numpy() + 3 * 0.4 * wet, atol=1e-9)  # Freeverb's scales
    for threshold in (0.0, 7.0, 20.0):
        assert torch.equal(FILTERS["compressor"](x.clamp(-1, 1), ENCODER_RATE, threshold_db=threshold, ratio=6.0), x.clamp(-1, 1))


@pytest.mark.parametrize("band", range(6))
def test_a_band_has_its_gain_in_its_place(band):
    time = torch.arange(4 * ENCODER_RATE, dtype=torch.float64) / ENCODER_RATE
    tone = torch.sin(2 * torch.pi * BANDS_HZ[band] * time)[None, None]
    out = FILTERS["peq"](tone, ENCODER_RATE, **{f"band_{band + 1}_gain_db": -13.0})
    period = slice(3 * ENCODER_RATE, None)
    assert abs(20 * torch.log10(out[..., period].abs().max() / tone[..., period].abs().max()) + 13) < 0.05


def test_distances(clips):
    x = clips[0]
    identity = distances(x, x)
    assert (identity["mae"] == 0).all() and (identity["mr_stft"] == 0).all()
    one = torch.full((1, 1, 3000), 1.0)
    assert distances(one, -one)["mae"].item() == 2  # nothing within ±1 is further apart
    assert torch.isclose(filter_loss()(0.5 * x, x), (distances(0.5 * x, x)["mr_stft"] + WAVE_WEIGHT * distances(0.5 * x, x)["mae"]).mean())
    by_hand = []
    for n_fft in (32, 128, 512, 2048):  # frames every 256 samples, whatever their length
        frames = torch.nn.functional.pad(torch.cat([0.5 * x[:1, 0], x[:1, 0]]), (n_fft // 2, n_fft // 2)).unfold(-1, n_fft, FILTER_HOP) * torch.hann_window(n_fft)
        ours, theirs = torch.fft.rfft(frames).abs().clamp(min=1e-4)
        by_hand.append((ours - theirs).abs().mean() + (ours.log() - theirs.log()).abs().mean())
    assert torch.isclose(distances(0.5 * x[:1], x[:1])["mr_stft"][0], torch.stack(by_hand).mean(), rtol=1e-4)


def test_the_hop_is_an_option(clips):
    x = clips[0]
    assert torch.equal(MultiResolutionSTFTLoss((512,), hop=256)(0.5 * x, x), MultiResolutionSTFTLoss((512,))(0.5 * x, x))
    assert MultiResolutionSTFTLoss((128,), hop=256).magnitude(x, 128).shape[-1] == 1 + 6000 // 256


# --- clips and pairs

def test_clips_are_drawn_from_recordings(tmp_path):
    for n in range(3):
        write_audio(tmp_path / f"{n}.wav", demo_clip(ENCODER_RATE, n), ENCODER_RATE, "PCM_16")
    tracks = load_splits([tmp_path], split="90/5/5")
    assert not {track.song for track in tracks["train"]} & {track.song for track in tracks["test"]}
    first, following = draw_clips(tracks["train"], 3, 5)
    assert first.shape == following.shape == (3, 1, FRAMES)
    assert torch.allclose(torch.cat([first, following], -1).abs().amax((1, 2)), torch.tensor(db_to_gain(PEAK_DB)).float(), atol=1e-5)
    assert torch.equal(draw_clips(tracks["train"], 3, 5)[0], first) and not torch.equal(draw_clips(tracks["train"], 3, 6)[0], first)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_pairs(clips, experiment):
    effect = filter_chain(*EXPERIMENTS[experiment])
    same, apart = make_pairs(clips, effect, 1), make_pairs(clips, effect, 1, same=False)
    assert torch.equal(same.x, clips[0]) and torch.equal(same.reference, same.target) and torch.equal(apart.target, same.target)
    assert torch.equal(apart.reference, effect.render(clips[1], ENCODER_RATE, apart.settings))
    assert not torch.equal(make_pairs(clips, effect, 2).settings, same.settings) and torch.equal(same.rows(slice(1, 3)).target, same.target[1:3])


# --- the hybrids

@pytest.mark.parametrize("strategy", FILTER_STRATEGIES)
def test_gradients_reach_the_controller(clips, proxies, strategy):
    pairs = make_pairs(clips, filter_chain(*EQ_AND_COMPRESSOR), 7)
    torch.manual_seed(0)
    model = FilterTransformer(**SMALL)
    filter_loss()(FILTER_STRATEGIES[strategy].learn(model.names, proxies, pairs.x, model(pairs.x, pairs.reference)), pairs.target).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in [model.convolutions[0].weight, *model.controller[-1].parameters()])
    assert all(weight.grad is None for proxy in proxies.values() for weight in proxy.parameters())  # frozen


def test_full_hybrid_is_the_effects_forwards_and_the_proxies_backwards(clips, proxies):
    settings = filter_chain(*EQ_AND_COMPRESSOR).random(4, 2).float()
    knobs = settings.clone().requires_grad_()
    output = straight_through(EQ_AND_COMPRESSOR, proxies, clips[0], knobs)
    assert torch.equal(output, by_effects(EQ_AND_COMPRESSOR, {}, clips[0], settings))  # to the last bit
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    found, = torch.autograd.grad((output * weight).sum(), knobs)
    # the chain rule by hand: each proxy at the input that its effect had
    eq, squeeze = (part.clone().requires_grad_() for part in settings.split([6, 2], 1))
    between = FILTERS["peq"].render(clips[0], ENCODER_RATE, settings[:, :6]).requires_grad_()
    by_input, by_squeeze = torch.autograd.grad((proxies["compressor"](between, squeeze) * weight).sum(), (between, squeeze))
    by_eq, = torch.autograd.grad((proxies["peq"](clips[0], eq) * by_input).sum(), eq)
    assert torch.allclose(found, torch.cat([by_eq, by_squeeze], 1), rtol=1e-4, atol=1e-5 * found.abs().max())


def test_a_threshold_that_nothing_passes_has_no_gradient(clips):
    def slope(threshold_db):
        knobs = FILTERS["compressor"].normalised(threshold_db=threshold_db).float().requires_grad_()
        FILTERS["compressor"].render(clips[0], ENCODER_RATE, knobs).square().sum().backward()
        return knobs.grad.abs().max()

    assert slope(-16.0) > 0 and slope(0.0) == slope(PEAK_DB + 0.1) == 0


def test_proxy_learns(clips):
    proxy, rows = train_filter_proxy("compressor", 4 * clips[0], 4 * clips[0], 60, every=30)
    assert [row["step"] for row in rows] == [0, 30, 60] and rows[-1]["validation"] < 0.8 * rows[0]["validation"]
    assert not any(weight.requires_grad for weight in proxy.parameters())


# --- systems

def test_early_stop_keeps_the_best():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    scores = iter([9.0, 5.0, 6.0, 4.0, 4.0, 7.0, 1.0])
    seen = []

    def validate():
        seen.append(model.weight.item())
        return next(scores)

    rows = until_worse(model, lambda epoch: [(model.weight - 100).abs().sum()], validate, 50, patience=2)
    assert [row["validation"] for row in rows] == [9, 5, 6, 4, 4, 7]  # 6 alone is chance, 4 and 7 are two that are no better; 1 is never reached
    assert model.weight.item() == seen[3] and rows[0]["train"] is None and len(set(seen)) == 6
    with pytest.raises(PaletteError, match="not finite"):
        until_worse(model, lambda epoch: [model.weight.sum() * float("nan")], lambda: 0.0, 1)
    assert len(until_worse(model, lambda epoch: [], lambda: 1 / len(rows), 3, patience=9)) == 4


def test_a_system_learns_and_is_kept(clips, tmp_path):
    effect = filter_chain("distortion")
    pairs = make_pairs(clips, effect, 1)
    torch.manual_seed(0)
    model = FilterTransformer(("distortion",), **SMALL)
    rows = train_filters(model, "AD", None, pairs, pairs, epochs=25, patience=25, learning_rate=1e-2)
    assert min(row["validation"] for row in rows) < 0.7 * rows[0]["validation"]
    heard = imitate(model, "AD", None, pairs)
    assert heard.shape == pairs.x.shape and torch.isclose(filter_loss()(heard, pairs.target), torch.tensor(min(row["validation"] for row in rows)), rtol=1e-3)
    model.save_pretrained(tmp_path / "kept", licence="none")
    again = Pretrained.from_pretrained(tmp_path / "kept")
    assert torch.equal(again(pairs.x, pairs.reference), model(pairs.x, pairs.reference))
    with pytest.raises(PaletteError, match="unknown strategy"):
        train_filters(model, "NP", None, pairs, pairs)


def test_descent_finds_what_made_the_target_and_no_reverb(clips):
    x = clips[0]
    drive = filter_chain("distortion")
    made = make_pairs(clips, drive, 4)
    found = best_settings(drive, x, made.target, 60)
    assert ((drive.physical(found)["distortion_drive_db"] - drive.physical(made.settings)["distortion_drive_db"]).abs() < 0.5).all()
    system, wet = filter_chain(*EQ_AND_COMPRESSOR), make_pairs(clips, filter_chain("reverb"), 4).target
    settings = best_settings(system, x, wet, 15)
    near = lambda output: distances(output, wet)["mr_stft"] + WAVE_WEIGHT * distances(output, wet)["mae"]
    ours = near(system.render(x, ENCODER_RATE, settings))
    assert (ours <= near(x) + 1e-3).all()  # never worse than the untouched input, which is among its settings
    right = near(filter_chain("reverb").render(x, ENCODER_RATE, best_settings(filter_chain("reverb"), x, wet, 60)))
    assert (right < 0.5 * ours).all()


def test_energy_decay():
    click = torch.zeros(1, 1, 100)
    click[..., 0] = 0.5
    assert energy_decay_db(click)[0, 0, 0] == 0 and (energy_decay_db(click)[..., 1:] == -200).all()
    assert torch.isclose(energy_decay_db(torch.ones(1000))[500], torch.tensor(10 * np.log10(0.5)), atol=1e-6)
    assert torch.isfinite(energy_decay_db(torch.zeros(2, 50))).all()


# --- the report

@pytest.fixture(scope="module")
def stored():
    return json.loads((ROOT / "nbs" / "results" / "data" / "filter_transformer.json").read_text(encoding="utf-8"))


def test_the_report_has_its_rows(stored):
    assert sum(stored["clips"].values()) == 1000 and {row["experiment"] for row in stored["rows"]} == set(EXPERIMENTS) == set(PRINTED)
    for experiment in EXPERIMENTS:
        kinds = {row["kind"] for row in stored["rows"] if row["experiment"] == experiment}
        assert {"identity", "controller", "descent"} <= kinds
        assert {"half hybrid", "full hybrid"} <= {row["row"] for row in stored["rows"] if row["experiment"] == experiment}
    for row in stored["rows"]:
        for name in ("mae", "mr_stft"):
            assert len(row["clips"][name]) == stored["clips"]["test"] and np.isclose(np.mean(row["clips"][name]), row[name], rtol=1e-3)
        assert row["mae"] <= 2  # as audio within ±1 and little beyond


def test_the_report_says_what_it_claims(stored):
    rows = {(row["experiment"], row["row"], row["kind"]): row for row in stored["rows"]}
    for experiment, effect in (("reverb", "with a reverb"), ("distortion", "with a distortion")):
        best, right = rows[experiment, "EQ + compressor", "descent"], rows[experiment, effect, "descent"]
        assert right["mae"] < 0.5 * best["mae"] and right["mr_stft"] < 0.5 * best["mr_stft"]
