"""The article's auto-encoder: its frames are CREPE's, its pitch is bounded, its frozen encoder stays frozen, and the loss it learns by has its pitch in a narrow well."""
import math

import numpy as np
import pytest
import torch

from timbre_palette.audio import PaletteError, read_audio, write_audio
from timbre_palette.checkpoint import Pretrained
from timbre_palette.cli import main
from timbre_palette.losses import LOSSES, MultiScaleSpectralLoss
from timbre_palette.recipe import RECIPES, find_recipe
from timbre_palette.timbre_transfer.article import (ARTICLE, ARTICLE_RATE, FRAME, HIGHEST_HZ, HOP, LOWEST_HZ, ArticleObjective, FrameDecoder, FrameEncoder, Silence, WaveformAutoencoder,
                                                    find_recordings, train_article)
from timbre_palette.timbre_transfer.oscillator import oscillate
from timbre_palette.timbre_transfer.takes import TakeBatch

SMALL = {"widths": [8, 4, 4, 8], "latent": 8, "width": 32, "harmonics": 20}
CHANGES = ["steps=4", "batch=2", "seconds=0.5", "validate_every=4", "validation_batches=1"]


def arguments(instrument, **changes):
    "A recipe's arguments of a small model, as the command line takes them."
    settings = {"instrument": instrument, **SMALL, **changes}
    return "arguments={" + ", ".join(f"{name}: {value}" for name, value in settings.items()) + "}"


def noise(batch=2, frames=4000, seed=0):
    return 0.1 * torch.randn(batch, 1, frames, generator=torch.Generator().manual_seed(seed))


@pytest.fixture()
def model():
    torch.manual_seed(0)
    return WaveformAutoencoder(**SMALL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A whistle model and a trumpet model from its encoder, by the command line, and their folder."
    folder = tmp_path_factory.mktemp("article")
    (folder / "trumpets" / "test").mkdir(parents=True)
    (folder / "trumpets" / "train").mkdir()
    for number in range(5):
        tone, _ = oscillate(torch.full((1, 120), 300.0 + 60 * number), torch.full((1, 120, 8), 0.1), ARTICLE_RATE, HOP)
        write_audio(folder / "trumpets" / ("train" if number else "test") / f"{number}.wav", tone[0].numpy(), ARTICLE_RATE)
    assert main(["train", "whistle-article", "-o", str(folder / "whistle"), "--device", "cpu", "--set", *CHANGES, arguments("whistle")]) == 0
    assert main(["train", "trumpet-article", "-d", str(folder / "trumpets"), "-o", str(folder / "trumpet"), "--device", "cpu", "--set", *CHANGES, arguments("trumpet"),
                 f"start={folder / 'whistle' / 'best'}"]) == 0
    return folder


# --- the network

def test_frames_by_themselves_are_the_frames_of_the_whole():
    "Each frame of 1024 samples, cut out and encoded alone, gives the latent that it has within the clip."
    encoder, x = FrameEncoder((8, 4, 4, 8), 8).eval(), noise(1, 12 * HOP)
    padded = torch.nn.functional.pad(x, (FRAME // 2 - HOP, FRAME // 2))
    with torch.no_grad():
        whole = encoder(x)
        for frame in (0, 5, 11):
            alone = padded[..., frame * HOP:frame * HOP + FRAME]
            heard = encoder.first(alone)
            assert torch.allclose(encoder.last(encoder.rest(heard).flatten(1)), whole[:, frame], atol=1e-5)


@pytest.mark.parametrize("frames", [1, HOP - 1, HOP, HOP + 1, 3000])
def test_any_length(model, frames):
    x = noise(3, frames)
    assert model.encode(x).shape == (3, -(-frames // HOP), 8) and model(x).shape == x.shape and model.resynthesise(x, ARTICLE_RATE).shape == x.shape


def test_pitch_and_amplitudes_keep_their_bounds():
    decoder = FrameDecoder(8, 32, 20)
    for scale in (1.0, 1e4):
        played = decoder(scale * torch.randn(4, 30, 8, generator=torch.Generator().manual_seed(1)))
        assert played.f0_hz.min() >= LOWEST_HZ - 1e-3 and played.f0_hz.max() <= HIGHEST_HZ + 1e-2
        assert played.amplitudes.min() >= 0 and played.amplitudes.sum(-1).max() <= 2.001
    with torch.no_grad():
        decoder.heads.weight.zero_()
        decoder.heads.bias.fill_(0.0)
    assert decoder(torch.zeros(1, 1, 8)).f0_hz.item() == pytest.approx(math.sqrt(LOWEST_HZ * HIGHEST_HZ), rel=1e-5)


def test_what_it_plays_is_the_oscillator(model):
    x = noise()
    with torch.no_grad():
        played = model.decode(model.eval().encode(x))
        assert torch.equal(oscillate(*played, ARTICLE_RATE, HOP)[0][..., :x.shape[-1]], model(x)) and torch.equal(model.resynthesise(x, ARTICLE_RATE), model(x))


def test_gradients_reach_every_weight_and_are_finite_for_silence(model):
    for x in (noise(), torch.zeros(2, 1, 4000)):
        model.zero_grad()
        LOSSES["multi-scale"]()(model(x), x).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    model.zero_grad()
    LOSSES["multi-scale"]()(model(noise()), noise()).backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if "weight" in name)


def test_under_bfloat16_the_pitch_is_float32(model):
    model.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        latent = model.encode(noise())
        played = model.decode(latent)
        assert latent.dtype == torch.bfloat16 and played.f0_hz.dtype == played.amplitudes.dtype == model(noise()).dtype == torch.float32
    with torch.no_grad():
        exact = model.decode(model.encode(noise()))
    assert (1200 * torch.log2(played.f0_hz / exact.f0_hz)).abs().max() < 60


def test_wrong_sounds_are_one_line(model):
    for x, rate in ((noise(), 44100), (torch.zeros(1, 2, 100), ARTICLE_RATE), (torch.zeros(100), ARTICLE_RATE)):
        with pytest.raises(PaletteError, match="one channel at 16000 Hz"):
            model.resynthesise(x, rate)


def test_sizes_are_those_that_are_stated():
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())
    full = WaveformAutoencoder()
    assert count(full.encoder) == 49376 and count(full.decoder) == 3206206
    assert 100 < 22239976 / count(full.encoder) < 1000  # "a few orders of magnitude"
    latent, seconds = 32, 4.0
    assert latent * seconds * ARTICLE_RATE / HOP < seconds * ARTICLE_RATE  # a bottleneck


# --- frozen

def test_a_frozen_encoder_stays_bit_for_bit(model):
    other = model.retarget("trumpet")
    assert other.arguments == {**model.arguments, "instrument": "trumpet"} and not torch.equal(other.decoder.heads.weight, model.decoder.heads.weight)
    before = {name: value.clone() for name, value in other.encoder.state_dict().items()}
    optimiser = torch.optim.AdamW(other.parameters(), 1e-2, weight_decay=0.5)
    other.train()
    for step in range(3):
        optimiser.zero_grad()
        other(noise(seed=step)).square().mean().backward()
        optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in other.encoder.state_dict().items())
    assert all(torch.equal(value, model.encoder.state_dict()[name]) for name, value in before.items())
    assert not other.encoder.training and other.decoder.training
    model.train()(noise())
    assert any(not torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())  # the source's own normalisation does move


def test_an_encoder_of_another_size_is_an_error(model):
    with pytest.raises(PaletteError, match="encoder has other sizes"):
        WaveformAutoencoder(**{**SMALL, "latent": 4}).adopt_encoder(model)


# --- training

def test_recipes_are_the_articles():
    for name, instrument, start in (("whistle-article", "whistle", ""), ("trumpet-article", "trumpet", "whistle-article")):
        recipe = RECIPES[name]
        assert (recipe.batch, recipe.seconds, recipe.sample_rates) == (16, 4.0, (16000,)) and recipe.arguments["instrument"] == instrument and recipe.start == start
    assert [round(share * 500) for share in ARTICLE.listen] == [0, 250, 470]  # the article's epochs
    assert abs(RECIPES["trumpet-article"].steps * 16 * 4.0 / (8.75 * 60) - 500) < 5  # as often through the shared takes, of which 8.75 minutes are trained on
    assert isinstance(LOSSES[find_recipe("whistle-article", ["loss=log-mel"]).loss](), MultiScaleSpectralLoss)
    assert find_recordings(RECIPES["whistle-article"], []) == {"train": [], "val": []}
    with pytest.raises(PaletteError, match="no place was named"):
        find_recordings(RECIPES["trumpet-article"], [])


def test_the_second_run_has_the_encoder_of_the_first(runs):
    whistler, trumpeter = (Pretrained.from_pretrained(runs / name / "best") for name in ("whistle", "trumpet"))
    assert all(torch.equal(value, whistler.encoder.state_dict()[name]) for name, value in trumpeter.encoder.state_dict().items())
    assert not torch.equal(trumpeter.decoder.heads.weight, whistler.decoder.heads.weight) and trumpeter.arguments["instrument"] == "trumpet"
    assert trumpeter.card["data"]["train"]["songs"] == 3 and whistler.card["data"]["train"]["songs"] == 0
    assert [row["method"] for row in trumpeter.card["metrics"]] == ["silence", "pitch-tracked", "trumpet-article"] and "metrics" not in whistler.card
    x = noise(1)
    assert torch.equal(Pretrained.from_pretrained(runs / "trumpet" / "best")(x), trumpeter(x))


def test_examples_are_written_when_the_article_listens(runs):
    for name in ("whistle", "trumpet"):
        assert sorted(path.name for path in (runs / name).glob("examples*")) == ["examples", "examples-0", "examples-2", "examples-4"]
    names = {path.name for path in (runs / "trumpet" / "examples-0").iterdir()}
    assert {"1-input.wav", "1-output.wav", "whistle-1-input.wav", "whistle-1-output.wav"} <= names
    sounds = [read_audio(runs / "trumpet" / f"examples-{step}" / "1-output.wav").samples for step in (0, 4)]
    assert not np.array_equal(*sounds) and sounds[0].shape == (1, 8000)
    assert np.array_equal(*(read_audio(runs / "trumpet" / f"examples-{step}" / "1-input.wav").samples for step in (0, 4)))


def test_a_stopped_run_goes_on_frozen(runs, tmp_path):
    recipe = find_recipe("trumpet-article", [*CHANGES, arguments("trumpet"), f"start={runs / 'whistle' / 'best'}"])

    def stop(step, figures):
        if step == 2:
            import signal
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_article(recipe, runs / "trumpets", tmp_path / "run", "cpu", progress=stop)
    assert not (tmp_path / "run" / "best").exists()
    resumed, straight = train_article(recipe, runs / "trumpets", tmp_path / "run", "cpu"), Pretrained.from_pretrained(runs / "trumpet" / "best")
    assert all(torch.equal(value, straight.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_a_start_that_does_not_fit_is_one_line(runs, tmp_path, capsys):
    assert main(["train", "trumpet-article", "-d", str(runs / "trumpets"), "-o", str(tmp_path / "a"), "--device", "cpu", "--set", *CHANGES, arguments("trumpet", latent=4), f"start={runs / 'whistle' / 'best'}"]) == 2
    assert "the encoder has other sizes" in capsys.readouterr().err
    assert main(["train", "trumpet-article", "-o", str(tmp_path / "b"), "--device", "cpu"]) == 2
    assert "no place was named" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_the_same_instrument_goes_on_with_all_of_it(runs):
    begun = Pretrained.from_pretrained(runs / "whistle" / "best")
    assert ARTICLE.begin(WaveformAutoencoder("whistle", **SMALL), begun) is begun and not begun.frozen


def test_the_objective_of_silence_is_the_losses(model):
    x = noise()
    objective = ArticleObjective(LOSSES["multi-scale"]())
    loss, figures = objective(Silence(), TakeBatch(x, ARTICLE_RATE))
    assert torch.equal(loss, LOSSES["multi-scale"]()(torch.zeros_like(x), x)) and figures["level_db"] < -70
    half = lambda x: x / 2
    assert objective(half, TakeBatch(x, ARTICLE_RATE))[1]["level_db"] == pytest.approx(-6.02, abs=0.01)


# --- the finding

@pytest.mark.parametrize("f0_hz", [300.0, 800.0, 2000.0])
def test_a_wrong_pitch_costs_more_than_silence_and_the_well_is_narrow(f0_hz):
    def tones(hz):
        return oscillate(torch.tensor(hz)[:, None].expand(-1, 40), (0.2 / torch.arange(1, 9.0)).expand(len(hz), 40, 8), ARTICLE_RATE, HOP)[0]

    cents = np.arange(-700, 701, 25)
    linear = MultiScaleSpectralLoss(reduce=False, alpha=0.0)
    target = tones([f0_hz])
    curve, silent = linear(tones(list(f0_hz * 2 ** (cents / 1200))), target.expand(len(cents), -1, -1)).numpy(), linear(0 * target, target).item()
    assert curve[cents == 0] == 0 and (curve[np.abs(cents) >= 100] > 0.6 * np.median(curve)).all()
    assert np.median(curve) > silent
