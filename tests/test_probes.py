"""Linear probes: F1 scores in closed form and against scikit-learn, one layer against the optimum, CDPAM against its own code, recordings kept apart."""
import importlib.util
import json
import pickle
from importlib import metadata

import numpy as np
import pytest
import torch

from timbre_palette.audio import PaletteError, resample, write_audio
from timbre_palette.effects.chains import production
from timbre_palette.filters import mel_filters
from timbre_palette.songs import find_tracks
from timbre_palette.style_transfer import probes
from timbre_palette.style_transfer.encoder import ENCODER_RATE, PEAK_DB
from timbre_palette.style_transfer.probes import (CDPAM_RATE, PAPER_PROBES, PROBE_COLUMNS, REPRESENTATIONS, CDPAMEncoder, StyleExample, cdpam, embed_examples, f1_scores, heard_at, load_old_checkpoint,
                                                  of_system, openl3, probe_rows, probe_scores, random_mel, style_examples, style_labels, train_probe)
from timbre_palette.style_transfer.styles import STYLE_RANGES
from timbre_palette.style_transfer.system import StyleTransfer
from timbre_palette.synth import demo_clip

WEIGHTS = "cdpam/CDPAM_trained/scratchJNDdefault_best_model.pth"


@pytest.fixture(scope="module")
def x():
    "Two seconds of two different sounds at 44.1 kHz."
    return torch.tensor(np.stack([demo_clip(44100, seed)[:1, :88200] for seed in (0, 1)])) / 2


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    for seed, rate in enumerate((24000, 24000, 44100, 24000)):
        write_audio(folder / f"{seed}.wav", demo_clip(rate, seed), rate, "PCM_16")
    return find_tracks(folder)


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return StyleTransfer(hidden=8, encoder_arguments={"width": 8, "dimensions": 16}).eval()


@pytest.fixture(scope="module")
def weights():
    "The file with CDPAM's weights."
    try:
        return metadata.distribution("cdpam").locate_file(WEIGHTS)
    except metadata.PackageNotFoundError:
        pytest.skip("CDPAM's weights are not here: pip install cdpam")


# --- scores

def test_f1_in_closed_form():
    labels = torch.arange(50) % 5
    perfect = f1_scores(labels, labels, PROBE_COLUMNS[:-1])
    assert perfect == dict.fromkeys(PROBE_COLUMNS, 1.0)
    constant = f1_scores(torch.full((50,), 2), labels, PROBE_COLUMNS[:-1])
    assert constant == {"Telephone": 0.0, "Bright": 0.0, "Warm": 2 / 6, "Broadcast": 0.0, "Neutral": 0.0, "Avg": pytest.approx(2 / 30)}  # 10 hits, 40 false alarms
    assert f1_scores(1 - labels % 2, labels % 2, ("even", "odd")) == {"even": 0.0, "odd": 0.0, "Avg": 0.0}
    absent = f1_scores(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), ("there", "not there"))
    assert absent == {"there": 1.0, "not there": 0.0, "Avg": 0.5}  # never NaN
    json.dumps(absent, allow_nan=False)


def test_f1_is_scikit_learns():
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed").f1_score
    for seed in range(20):
        rng = np.random.default_rng(seed)
        predicted, labels = rng.integers(1 + rng.integers(5), size=30), rng.integers(5, size=30)
        ours = f1_scores(torch.tensor(predicted), torch.tensor(labels), PROBE_COLUMNS[:-1])
        assert np.allclose(list(ours.values())[:-1], theirs(labels, predicted, labels=range(5), average=None, zero_division=0))
        assert np.isclose(ours["Avg"], theirs(labels, predicted, labels=range(5), average="macro", zero_division=0))


# --- the probe

@pytest.mark.parametrize("standardise", (False, True))
def test_what_one_layer_can_tell_apart_it_does(standardise):
    labels = torch.arange(100) % 5
    noise = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    apart = torch.cat([4 * torch.eye(5)[labels], noise], 1)
    learned = lambda x: probe_scores(x[:50], labels[:50], x[50:], labels[50:], epochs=100, standardise=standardise, learning_rate=0.05)
    same = learned(noise)
    assert learned(apart) == dict.fromkeys(PROBE_COLUMNS, 1.0)
    assert same["Avg"] < 0.5  # and what it cannot, it does not
    first, again, other = (train_probe(apart, labels, 3, standardise, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)


def test_a_probe_without_features_learns_how_frequent_classes_are():
    "The optimum is known: the bias gives the logarithms of the shares."
    labels = torch.tensor([0] * 48 + [1] * 16)
    probe = train_probe(torch.zeros(64, 3), labels, 400, False, learning_rate=0.02, batch=64)
    assert torch.allclose(probe(torch.ones(1, 3)).softmax(1), torch.tensor([[0.75, 0.25]]), atol=0.005)
    assert train_probe(torch.ones(64, 3), labels, 2, True)(torch.ones(1, 3)).isfinite().all()  # no deviation to divide by


def test_standardised_probes_do_not_hear_scale_or_offset():
    labels, generator = torch.arange(60) % 3, torch.Generator().manual_seed(0)
    embeddings = torch.randn(60, 6, generator=generator) + torch.eye(6)[labels]
    moved = embeddings * torch.tensor([1e-3, 1.0, 10.0, 1.0, 1.0, 0.1]) + 5
    scores, others = (train_probe(some, labels, 50, True)(some) for some in (embeddings, moved))
    assert torch.allclose(scores, others, atol=1e-2)


def test_refused_labels():
    for embeddings, labels in ((torch.zeros(4, 2), torch.arange(3)), (torch.zeros(4), torch.arange(4)), (torch.zeros(0, 2), torch.arange(0)), (torch.zeros(2, 2), torch.rand(2)), (torch.zeros(2, 2), torch.tensor([0, -1]))):
        with pytest.raises(PaletteError, match="one whole number"):
            train_probe(embeddings, labels)


# --- representations

def everything(system):
    return {"random-mel": random_mel(), "ours": of_system(system)}


def test_rate_and_level_do_not_matter(x, system):
    other = torch.tensor(resample(x[:, 0].numpy(), 44100, 48000))[:, None]
    for name, embed in everything(system).items():
        found = embed(x, 44100)
        assert found.shape[0] == 2 and torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5) and not found.requires_grad
        assert torch.allclose(found, embed(x / 20, 44100), atol=1e-5), name
        assert (found - embed(other, 48000)).norm(dim=1).max() < 0.1 * (found[0] - found[1]).norm(), name
        assert torch.allclose(found[1], embed(x[1:], 44100)[0], atol=1e-5), name  # whatever stands beside it
        with pytest.raises(PaletteError, match="mono recordings"):
            embed(x[0], 44100)


def test_random_mel_is_a_mixture_of_bands(x):
    "librosa's mel bands, windows at the ends aside, mixed: as near as their ends allow."
    librosa = pytest.importorskip("librosa", reason="librosa is not installed")
    heard = heard_at(x, 44100, ENCODER_RATE, 0.0)[0, 0].numpy()
    bands = librosa.feature.melspectrogram(y=heard, sr=ENCODER_RATE, n_fft=4096, hop_length=1024, n_mels=128, power=1.0, pad_mode="constant")
    mixtures = torch.rand(128, 4096, generator=torch.Generator().manual_seed(0)).numpy()
    theirs = ((bands + 1e-4) ** 0.3 @ np.ones(bands.shape[1])) @ mixtures
    assert np.allclose(random_mel()(x, 44100)[0], theirs / np.linalg.norm(theirs), atol=1e-5)
    assert mel_filters(ENCODER_RATE, 4096).shape == (128, 2049)


def test_a_system_hears_what_it_always_hears(x, system):
    assert torch.allclose(of_system(system)(x, 44100), system.embed(heard_at(x, 44100, ENCODER_RATE, PEAK_DB)).detach(), atol=1e-6)


def test_cdpam_is_the_packages(x, weights):
    "Against the network that the package defines, loaded with the same weights."
    spec = importlib.util.spec_from_file_location("cdpam_models", metadata.distribution("cdpam").locate_file("cdpam/models.py"))
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    state = load_old_checkpoint(weights)["state"]
    theirs = models.FINnet(encoder_layers=16, encoder_filters=64, ndim=[16, 6], classif_dp=0.05, classif_BN=0, classif_act="no", input_size=512).eval()
    theirs.load_state_dict(state)
    short = x[:, :, 30000:35000]
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(theirs.base_encoder(torch.round(32768 * heard_at(short, 44100, CDPAM_RATE, 0.0)))[1], dim=1)
    embed = cdpam()
    found = embed(short, 44100)
    assert found.shape == (2, 512) and torch.allclose(found, wanted, atol=1e-5) and (found[0] - found[1]).abs().max() > 0.01
    assert 0 < (cdpam(fast=True)(short, 44100) - wanted).norm(dim=1).max() < 0.01
    assert torch.allclose(embed(short[:1] / 4, 44100), found[:1], atol=1e-3)  # rounding to 16 bits comes after the level


def test_cdpams_weights_run_nothing(weights, monkeypatch):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(weights, weights_only=True)  # why they are rewritten
    asked = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: asked.append(options) or load(*arguments, **options))
    assert set(load_old_checkpoint(weights)) >= {"state"} and all(options["weights_only"] is True for options in asked)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_old_checkpoints_with_more_than_numbers_are_refused(tmp_path, capsys):
    torch.save({"a": Harmful()}, tmp_path / "harm.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "words.pth").write_text("words")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"weight": torch.arange(300.0)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-600])
    assert torch.equal(load_old_checkpoint(tmp_path / "whole.pth")["weight"], torch.arange(300.0))
    for name in ("harm", "words", "empty", "cut", "nowhere"):
        with pytest.raises(PaletteError, match=f"{name}.pth: these weights cannot be read") as refused:
            load_old_checkpoint(tmp_path / f"{name}.pth")
        assert "\n" not in str(refused.value)
    assert "run" not in capsys.readouterr().out


def test_a_stride_is_half_of_what_was_computed():
    torch.manual_seed(0)
    encoder, x = CDPAMEncoder(2).eval(), torch.randn(1, 1, 999)
    y = x
    for number, (convolve, norm) in enumerate(zip(encoder.encoder, encoder.ebatch)):
        y = torch.nn.functional.leaky_relu(norm(torch.nn.functional.conv1d(y, convolve.weight, convolve.bias, padding=7)), 0.1)[..., ::2 if number % 4 == 3 else 1]
    assert y.shape == (1, 32, 63) and torch.allclose(encoder(x), torch.nn.functional.normalize(y.mean(-1)[:, :16], dim=1), atol=1e-5)


def test_what_is_missing_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)
    monkeypatch.setattr(probes.metadata, "distribution", missing)
    with pytest.raises(PaletteError, match="pip install cdpam"):
        cdpam()
    with pytest.raises(PaletteError, match="no package registry"):
        openl3()


# --- examples and rows

def test_examples_are_even_and_seeded(tracks):
    examples = style_examples(tracks, production(), 6, 0.5)
    assert [example.style for example in examples] == [style for style in STYLE_RANGES for _ in range(6)] and torch.equal(style_labels(examples), torch.arange(30) // 6)
    for number in range(5):
        paths = [example.path for example in examples[6 * number:6 * number + 6]]
        assert len(set(paths[:4])) == 4 and max(map(paths.count, paths)) == 2
    assert all(example.x.shape == (1, example.sample_rate // 2) and abs(20 * example.x.abs().max().log10() - PEAK_DB) < 0.01 for example in examples)
    again, other, compat = (style_examples(tracks, production(), 6, 0.5, **options) for options in ({}, {"seed": 1}, {"paper_compat": True}))
    assert all(torch.equal(one.x, two.x) for one, two in zip(examples, again)) and not any(one.x.shape == two.x.shape and torch.equal(one.x, two.x) for one, two in zip(examples, other))
    treble = lambda examples: [(torch.fft.rfft(example.x).abs().square()[0, round(8000 * 0.5):].sum() / torch.fft.rfft(example.x).abs().square().sum()).item() for example in examples if example.style == "warm"]
    assert np.mean(treble(compat)) > np.mean(treble(examples))  # published, warm is bright
    with pytest.raises(PaletteError, match="one track or more"):
        style_examples([], production())


def test_embeddings_keep_the_order_of_mixed_rates(tracks, system):
    examples, told = style_examples(tracks, production(), 3, 0.5), []
    assert len({example.sample_rate for example in examples}) == 2
    together = embed_examples(of_system(system), examples, 4, told.append)
    assert torch.allclose(together, torch.cat([of_system(system)(example.x[None], example.sample_rate) for example in examples]), atol=1e-5) and told[-1] == 15


def test_rows_of_what_is_here_and_what_is_not(tracks, system):
    train, test = (style_examples(some, production(), 4, 0.5) for some in (tracks[:2], tracks[2:]))
    told = []
    rows = probe_rows({"openl3": openl3, "ours": lambda: of_system(system)}, train, test, progress=lambda name, done: told.append((name, done)), epochs=5)
    assert rows[0] == {"features": "openl3", **dict.fromkeys(PROBE_COLUMNS), "remark": rows[0]["remark"]} and "registry" in rows[0]["remark"]
    assert list(rows[1]) == ["features", *PROBE_COLUMNS, "remark"] and 0 <= rows[1]["Avg"] <= 1 and rows[1]["remark"] == "" and {name for name, _ in told} == {"ours"}
    assert rows[1] == probe_rows({"ours": lambda: of_system(system)}, train, test, epochs=5)[0]
    with pytest.raises(PaletteError, match="0.wav: this recording is to be trained on and tested on"):
        probe_rows({}, train, [StyleExample(train[0].x, 24000, "warm", tracks[0].path)])


def test_the_papers_table():
    assert PROBE_COLUMNS == ("Telephone", "Bright", "Warm", "Broadcast", "Neutral", "Avg") and set(REPRESENTATIONS) == {"random-mel", "openl3", "cdpam"}
    for rows in PAPER_PROBES.values():
        assert [row["features"] for row in rows] == ["Random Mel", "OpenL3", "CDPAM", "NP-HH", "SPSA", "AD"]
        assert all(abs(np.mean([row[name] for name in PROBE_COLUMNS[:-1]]) - row["Avg"]) < 0.01 for row in rows)
    assert PAPER_PROBES["DAPS"][2]["Avg"] == 0.73 and PAPER_PROBES["MUSDB18"][5]["Neutral"] == 0.50
