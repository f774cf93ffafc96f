"""A whistle in, an instrument out: in tune, in step, never too loud, live as at once; and what is refused."""
import json

import numpy as np
import pytest
import torch

from timbre_palette.audio import PaletteError, peak_db, read_audio, write_audio
from timbre_palette.checkpoint import WEIGHTS
from timbre_palette.cli import main
from timbre_palette.timbre_transfer.instrument import HarmonicAutoencoder, extract_features
from timbre_palette.timbre_transfer.pitch import track
from timbre_palette.timbre_transfer.transfer import (LEAST_PITCHED, FixedSpectrum, LiveTransfer, find_instrument, find_mapping, map_features, pitch_tracked_synthesis, pitched_share,
                                                     transfer)
from timbre_palette.timbre_transfer.whistles import add_noise, whistle

RATE = 16000


@pytest.fixture(scope="module")
def tune():
    return whistle(seed=4, seconds=2.0, sample_rate=RATE, high_hz=3000.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return HarmonicAutoencoder(harmonics=20, hidden=16, room_s=0.05).eval()


def cents_off(sound, pitch, octaves):
    "Cents between the pitch of a sound, by Praat, and a known one so many octaves lower, where both sound; and the share of the known one's frames that sound."
    found = track(sound, RATE, "praat_ac", low_hz=75, high_hz=3000)
    both = found.voiced & pitch.voiced
    return np.abs(1200 * np.log2(found.hz[both] / pitch.hz[both]) - 1200 * octaves), both.sum() / pitch.voiced.sum()


@pytest.mark.parametrize("octaves", [-1, -2])
def test_result_is_in_tune_and_in_step(tune, model, octaves):
    result = transfer(np.repeat(tune.samples, 2, 0), RATE, model, octaves=octaves, reverb=0.0)
    cents, share = cents_off(result[0], tune.pitch, octaves)
    assert result.shape == (2, tune.samples.shape[1]) and result.dtype == np.float32 and np.array_equal(result[0], result[1])
    assert np.mean(cents < 20) > 0.9 and share > 0.9
    quiet = np.abs(result[0][: round((tune.onsets_s[0] - 0.05) * RATE)]).max()  # nothing before the first note
    assert quiet < 1e-3 < 0.02 < np.abs(result).max()


@pytest.mark.parametrize("shift", [-3, -1, 0, 2])
def test_octaves_follow_the_register(shift):
    "A source moved by octaves is moved back by as many."
    heard = extract_features(whistle(seed=4, seconds=2.0, sample_rate=RATE, low_hz=700, high_hz=1200).samples[None], RATE)
    moved = heard._replace(f0_hz=heard.f0_hz * 2.0 ** shift)
    assert find_mapping(moved, FixedSpectrum()).octaves == find_mapping(heard, FixedSpectrum()).octaves - shift


def test_loudness_does_not_depend_on_the_source_s_and_obeys(tune, model):
    sounds = {(gain, louder): transfer(gain * tune.samples, RATE, model, -1, louder) for gain, louder in ((0.1, -12.0), (1.0, -12.0), (1.0, -6.0))}
    assert np.abs(sounds[0.1, -12.0] - sounds[1.0, -12.0]).max() < 0.02 * np.abs(sounds[1.0, -12.0]).max()
    assert abs(peak_db(sounds[1.0, -6.0]) - peak_db(sounds[1.0, -12.0]) - 6) < 1
    assert peak_db(transfer(tune.samples, RATE, model, -1, 24.0)) == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 96000])
def test_any_rate(rate, model):
    tune = whistle(seed=4, seconds=1.5, sample_rate=rate, high_hz=1500.0)
    result = transfer(tune.samples, rate, model, -1)
    assert result.shape == tune.samples.shape and np.isfinite(result).all() and np.abs(result).max() > 0.01


def test_silence_stays_silence_and_an_end_is_an_end(model):
    assert not transfer(np.zeros((2, 5000), np.float32), RATE, model).any()
    assert transfer(np.zeros((1, 1), np.float32), RATE, model).shape == (1, 1)
    assert not pitch_tracked_synthesis(np.zeros((1, 5000)), RATE).any()


def test_what_is_not_one_voice_is_refused_or_played_unbroken(model, tune):
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((1, RATE))
    chord = 0.1 * sum(np.sin(2 * np.pi * hz * np.arange(RATE) / RATE) for hz in (310.0, 412.0, 563.0, 745.0))[None]
    for sound in (noise, chord):
        assert pitched_share(extract_features(sound[None], RATE)) < LEAST_PITCHED / 2
        with pytest.raises(PaletteError, match="no single voice"):
            transfer(sound, RATE, model)
    breathy = tune.samples + 0.01 * rng.standard_normal(tune.samples.shape)
    assert np.isfinite(transfer(breathy, RATE, model)).all()
    with pytest.raises(PaletteError, match="no note"):
        transfer(noise, RATE, model, least_pitched=0.0)


def test_breath_is_not_played(tune, model):
    "Between notes there is breath; what comes out is silent there."
    breathy = tune.samples + 0.004 * np.random.default_rng(0).standard_normal(tune.samples.shape)
    result = transfer(breathy, RATE, model, -1, reverb=0.0)[0]
    between = np.repeat(~tune.pitch.voiced, RATE // 100)[: len(result)]
    inner = np.convolve(between, np.ones(1601), "same") > 1600.5  # 50 ms away from every note
    assert inner.sum() > 500 and np.abs(result[inner]).max() < 1e-4 * np.abs(result).max()


@pytest.mark.parametrize("size", [150, 1000])
def test_live_in_blocks_is_live_at_once(size, tune, model):
    def live(size):
        player = LiveTransfer(model, RATE)
        return torch.cat([player.push(block) for block in torch.nn.functional.pad(torch.tensor(tune.samples), (0, player.latency)).split(size, 1)], 1), player

    (sound, player), (whole, _) = live(size), live(777)
    assert (sound - whole).abs().max() < 1e-5 and player.latency <= 0.05 * RATE and peak_db(sound.numpy()) < -0.9
    cents, share = cents_off(sound[:, player.latency:].numpy(), tune.pitch, player.mapping.octaves)
    assert np.mean(cents < 20) > 0.85 and share > 0.85


def test_live_keeps_its_octave_once_it_has_decided(model):
    player = LiveTransfer(model, RATE)
    moment = np.arange(2 * RATE) / RATE
    tone = lambda hz: torch.tensor(0.3 * np.sin(2 * np.pi * hz * moment) * (moment % 0.5 < 0.4), dtype=torch.float32)[None]
    player.push(tone(1500.0))
    decided = player.mapping.octaves
    player.push(tone(400.0))
    assert decided == -2 == player.mapping.octaves


def test_bridged_frames_do_not_depend_on_blocks():
    rng = np.random.default_rng(0)
    heard = extract_features(whistle(seed=4, seconds=1.0, sample_rate=RATE).samples[None], RATE)
    heard = heard._replace(voiced=torch.tensor(rng.random(heard.level.shape) < 0.5).float())
    mapping = find_mapping(heard, FixedSpectrum())
    whole, after = map_features(heard, mapping, 1e-3)
    parts, silent = [], 3
    for frames in zip(*(value.split(3, 1) for value in heard)):
        part, silent = map_features(type(heard)(*frames), mapping, 1e-3, silent)
        parts.append(part.level)
    assert torch.equal(torch.cat(parts, 1), whole.level) and silent == after


@pytest.mark.parametrize("settings, message", [({"octaves": 9}, "octaves"), ({"octaves": 0.5}, "octaves"), ({"loudness_db": 99}, "loudness"), ({"expression": 2}, "expression"), ({"reverb": -1}, "reverb")])
def test_settings_out_of_range(settings, message, tune, model):
    with pytest.raises(PaletteError, match=message):
        transfer(tune.samples, RATE, model, **settings)


def test_unknown_instruments():
    with pytest.raises(PaletteError, match="no weights for 'kazoo'"):
        find_instrument("kazoo")
    with pytest.raises(PaletteError, match="holds a GrayBox"):
        find_instrument(WEIGHTS / "graybox")


def test_the_command(tmp_path, capsys, model, tune):
    model.save_pretrained(tmp_path / "mine")
    write_audio(tmp_path / "whistle.wav", tune.samples, RATE, "PCM_16")
    write_audio(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal((1, RATE)), RATE)
    before = (tmp_path / "whistle.wav").read_bytes()
    call = lambda *arguments: main(["transfer", *map(str, arguments)])
    assert call(tmp_path / "whistle.wav", "--to", tmp_path / "mine", "-o", tmp_path / "out.wav", "--octaves", -1, "--loudness", -6, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    expected = transfer(read_audio(tmp_path / "whistle.wav").samples, RATE, model, -1, -6.0)
    assert report["format"] == "PCM_16" and np.abs(read_audio(tmp_path / "out.wav").samples - expected).max() < 1e-4
    assert report["octaves"] == -1 and report["followed"] > 0.9
    for name, snr_db in (("clean", 60), ("noisy", 5)):
        write_audio(tmp_path / f"{name}.wav", 0.1 * add_noise(tune.samples, snr_db), RATE)
        assert call(tmp_path / f"{name}.wav", "--to", tmp_path / "mine", "-o", tmp_path / f"{name} out.wav") == 0
        assert ("could be followed" in capsys.readouterr().out) == (name == "noisy")
    for arguments, said in (((tmp_path / "noise.wav", "--to", tmp_path / "mine", "-o", tmp_path / "no.wav"), "no single voice"), ((tmp_path / "whistle.wav", "--to", "kazoo", "-o", tmp_path / "no.wav"), "no weights"),
                            ((tmp_path / "none.wav", "--to", tmp_path / "mine", "-o", tmp_path / "no.wav"), "no such file"), ((tmp_path / "whistle.wav", "--to", tmp_path / "mine", "-o", tmp_path / "whistle.wav"), "input itself"),
                            ((tmp_path / "whistle.wav", "--to", tmp_path / "mine", "-o", tmp_path / "no.wav", "--expression", 3), "expression"), ((tmp_path / "whistle.wav", "--to", tmp_path / "mine", "-o", tmp_path / "no.xyz"), "cannot write")):
        assert call(*arguments) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and said in errors[0] and not (tmp_path / "no.wav").exists()
    assert (tmp_path / "whistle.wav").read_bytes() == before and not list(tmp_path.glob(".*"))
