"""The judge of timbre transfer: it does not hear level, pauses or what lies above 7.2 kHz, its recordings are nobody else's, and its shipped weights do what their card says."""
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import data_folder
from timbre_palette.audio import PaletteError, read_audio, resample
from timbre_palette.checkpoint import Pretrained
from timbre_palette.songs import Track, split_between
from timbre_palette.timbre_transfer.classifier import CLASSES, JUDGE_RATE, InstrumentClassifier, judge_windows, timbre_features


@pytest.fixture(scope="module")
def judge():
    return Pretrained.from_pretrained("instrument-classifier")


def tone(hz=440.0, seconds=2.0, rate=JUDGE_RATE):
    "A decaying tone of ten harmonics, with a little noise, `(1, time)`."
    t = np.arange(int(seconds * rate)) / rate
    sound = sum(np.sin(2 * np.pi * k * hz * t) / k for k in range(1, 11)) * np.exp(-t) + 1e-3 * np.random.default_rng(0).standard_normal(len(t))
    return sound[None].astype(np.float32)


def test_features_do_not_hear_level_rate_or_what_is_high():
    x = torch.from_numpy(tone()[None, :, :JUDGE_RATE])
    features = timbre_features(x)
    for gain in (1e-3, 30.0):
        assert torch.allclose(timbre_features(gain * x), features, atol=1e-3)
    t = torch.arange(JUDGE_RATE) / JUDGE_RATE
    assert (timbre_features(x + 0.3 * torch.sin(2 * torch.pi * 7700 * t)) - features).abs().max() < 0.3
    assert (timbre_features(x + 0.3 * torch.sin(2 * torch.pi * 5000 * t)) - features).abs().max() > 1  # which it does hear
    assert torch.isfinite(timbre_features(torch.zeros(1, 1, JUDGE_RATE))).all()


def test_windows_cover_a_recording_without_its_pauses():
    assert judge_windows(tone(seconds=0.3), JUDGE_RATE).shape == (1, 1, JUDGE_RATE)
    assert judge_windows(tone(seconds=2.2), JUDGE_RATE).shape[0] == 4
    assert judge_windows(np.concatenate([tone(seconds=1), np.zeros((1, 5 * JUDGE_RATE), np.float32)], 1), JUDGE_RATE).shape[0] == 2
    for silence in (np.zeros((2, 4000), np.float32), np.zeros((1, 0), np.float32)):
        with pytest.raises(PaletteError, match="silent"):
            judge_windows(silence, 44100)


def test_a_recording_is_judged_the_same_at_any_rate_and_level(judge):
    sound = tone(rate=48000)
    named = judge.judge(sound, 48000)
    for other, rate in ((0.01 * sound, 48000), (np.repeat(sound, 2, 0), 48000), (resample(sound, 48000, 44100), 44100)):
        assert max(abs(judge.judge(other, rate)[name] - chance) for name, chance in named.items()) < 0.02
    assert set(named) == set(CLASSES) and abs(sum(named.values()) - 1) < 1e-5


def test_a_file_brings_back_the_classifier(tmp_path):
    model = InstrumentClassifier(hidden=4).eval()
    model.spread.mul_(3)
    model.save_pretrained(tmp_path)
    again = Pretrained.from_pretrained(tmp_path)
    x = torch.from_numpy(tone()[None, :, :JUDGE_RATE])
    assert isinstance(again, InstrumentClassifier) and torch.equal(again(x), model(x))


def test_sides_depend_on_names_alone():
    tracks = [Track(Path(f"{n}.flac"), 44100, 1, f"song{n}") for n in range(400)]
    first, rest = split_between(tracks, 0.5, seed=0)
    assert len(first) + len(rest) == 400 and 160 < len(first) < 240
    alone = [split_between([track], 0.5, seed=0)[0] for track in tracks]
    assert [track for found in alone for track in found] == first
    assert set(first) < set(split_between(tracks, 0.8, seed=0)[0])  # a larger share keeps what a smaller one had


def test_the_card_says_how_it_came_about_and_how_good_it_is(judge):
    card = judge.card
    assert {"data", "licence", "steps", "seed", "hardware", "metrics", "made_again_by", "share"} <= set(card)
    metrics = card["metrics"]
    for part in ("held out", "test"):
        right, total = (int(number) for number in metrics[part]["right"]["all"].split(" of "))
        assert right + sum(metrics[part]["confused"].values()) == total and abs(right / total - metrics[part]["accuracy"]) < 1e-3
    assert len(metrics["whistles"]) == 5


def test_held_out_trumpets_are_trumpets(judge):
    folder = data_folder()
    if folder is None:
        pytest.skip("no real music here: set TIMBRE_PALETTE_DATA to a folder with music/test in it")
    paths = sorted((folder / "instruments" / "philharmonia").glob("*/test/*"))[::9]
    named = [next(iter(judge.judge(recording.samples, recording.sample_rate))) for recording in map(read_audio, paths)]
    expected = ["strings" if path.parts[-3] == "violin" else path.parts[-3] for path in paths]
    assert np.mean([name == wanted for name, wanted in zip(named, expected)]) >= 0.9
