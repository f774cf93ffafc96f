"""Solo recordings to learn from: the right ones, on the right side, without silence, and batches that are functions of seed and step."""
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import data_folder
from timbre_palette.audio import PaletteError, db_to_gain, write_audio
from timbre_palette.songs import describe_tracks, split_between
from timbre_palette.timbre_transfer.takes import GAIN_DB, PAUSE_S, PEAK_DB, SyntheticWhistles, TakeBatch, TakeSegments, find_takes, prepare_take, split_takes

RATE = 8000


def tone(hz=440.0, seconds=0.5):
    "A sine `(1, time)` that ends softly."
    t = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * hz * t) * np.minimum(1, 20 * (seconds - t)))[None].astype(np.float32)


def fill(folder, names, sound=None):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_audio(folder / name, tone(300 + 20 * number) if sound is None else sound, RATE)
    return folder


def names_of(tracks, folder):
    return sorted(track.path.relative_to(folder).as_posix() for track in tracks)


# --- which recordings

def test_a_folder_of_recordings_is_taken_whole(tmp_path):
    fill(tmp_path / "mine", ["a.wav", "b.wav"])
    assert names_of(find_takes(tmp_path / "mine", "trumpet"), tmp_path / "mine") == ["a.wav", "b.wav"] == names_of(find_takes(tmp_path / "mine"), tmp_path / "mine")
    fill(tmp_path / "split", ["train/a.wav", "test/b.wav"])
    assert {track.path.name: track.split for track in find_takes(tmp_path / "split", "trumpet")} == {"a.wav": "train", "b.wav": "test"}


def test_in_a_tree_the_instrument_is_a_folder(tmp_path):
    fill(tmp_path, ["one/trumpet/train/a.wav", "one/trumpet/test/b.wav", "two/Trumpet/c.wav", "two/flute/d.wav", "e.wav"])
    assert {track.path.name: track.split for track in find_takes(tmp_path, "trumpet")} == {"a.wav": "train", "b.wav": "test", "c.wav": ""}
    assert names_of(find_takes(tmp_path / "one" / "trumpet", "trumpet"), tmp_path / "one" / "trumpet") == ["test/b.wav", "train/a.wav"]
    assert names_of(find_takes(tmp_path, "flute"), tmp_path) == ["two/flute/d.wav"]
    with pytest.raises(PaletteError, match="nothing here is named oboe; there are flute, one, trumpet, two"):
        find_takes(tmp_path, "oboe")
    with pytest.raises(PaletteError, match="nothing here is named test"):
        find_takes(tmp_path, "test")  # a side of the split is no instrument


PIECES = {"01_Jupiter_vn_vc": "01_Jupiter", "05_Entertainer_tpt_tpt": "05_Entertainer", "15_Surprise_tpt_tpt_tbn": "15_Surprise", "16_Surprise_tpt_tpt_sax": "16_Surprise"}


@pytest.fixture()
def urmp(tmp_path):
    for piece, title in PIECES.items():
        players = piece.split("_")[2:]
        fill(tmp_path / "Dataset" / piece, [f"AuMix_{piece}.wav", *(f"AuSep_{number}_{code}_{title}.wav" for number, code in enumerate(players, 1))])
        for number, code in enumerate(players, 1):
            (tmp_path / "Dataset" / piece / f"F0s_{number}_{code}_{title}.txt").write_text("0 440\n")
    return tmp_path


@pytest.mark.parametrize("name, code, count", [("trumpet", "tpt", 6), ("violin", "vn", 1), ("cello", "vc", 1), ("trombone", "tbn", 1), ("saxophone", "sax", 1)])
@pytest.mark.parametrize("part", ["", "Dataset"])
def test_urmp_by_name_and_by_code(urmp, monkeypatch, name, code, count, part):
    found = find_takes(urmp / part, name)
    assert len(found) == count and all(f"_{code}_" in track.path.name and track.path.name.startswith("AuSep") for track in found)
    assert found == find_takes(urmp / part, code)
    monkeypatch.setenv("URMP_PATH", str(urmp))
    assert {track.path for track in find_takes("urmp", name)} == {track.path for track in found}
    with pytest.raises(PaletteError, match="named tuba; there are sax, tbn, tpt, vc, vn"):
        find_takes(urmp / part, "tuba")


def test_a_piece_of_urmp_is_on_one_side_whoever_plays_it(urmp):
    for seed in range(4):
        splits = split_takes(urmp, "trumpet", seed)
        sides = [{track.song for track in splits[name]} for name in ("train", "val")]
        assert not sides[0] & sides[1] and sides[0] | sides[1] == {"urmpentertainer", "urmpsurprise"}
    assert describe_tracks(splits["train"])["sources"] == ["urmp"]


# --- sides

def test_the_manifest_says_what_is_a_test(tmp_path):
    fill(tmp_path, [f"{number}.wav" for number in range(30)])
    (tmp_path / "manifest.csv").write_text("file,split\n" + "".join(f"{number}.wav,{'test' if number % 5 == 0 else 'train'}\n" for number in range(30)))
    splits = split_takes(tmp_path)
    assert {int(track.path.stem) for track in splits["test"]} == set(range(0, 30, 5))
    judged, models = split_between([track for track in find_takes(tmp_path) if track.split == "train"], 0.5, 0)
    ours = {track.path for name in ("train", "val") for track in splits[name]}
    assert ours == {track.path for track in models} and judged and not ours & {track.path for track in judged}


def test_recordings_of_ones_own_are_all_taken_but_never_those_of_the_test(tmp_path):
    fill(tmp_path, [*(f"train/{number}.wav" for number in range(40)), "train/same.wav", "test/same.wav"])
    splits = split_takes(tmp_path)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [38, 2, 1]
    assert "same" not in {track.song for name in ("train", "val") for track in splits[name]}
    assert split_takes([tmp_path, tmp_path])["train"] == splits["train"]  # named twice
    fill(tmp_path, ["val/held.wav"])
    assert [track.path.stem for track in split_takes(tmp_path)["val"]] == ["held"]


def test_too_few_recordings_are_an_error(tmp_path):
    fill(tmp_path, ["one.wav"])
    with pytest.raises(PaletteError, match="cannot be split"):
        split_takes(tmp_path)
    fill(tmp_path / "sides", ["val/a.wav", "test/b.wav"])
    with pytest.raises(PaletteError, match="left to train on"):
        split_takes(tmp_path / "sides")


def test_the_shared_trumpets_are_not_the_judges():
    place = data_folder()
    if place is None:
        pytest.skip("no real audio here: set TIMBRE_PALETTE_DATA to a folder with music/test in it")
    splits = split_takes(place / "instruments", "trumpet")
    train = [track for track in find_takes(place / "instruments", "trumpet") if track.split == "train"]
    judged, _ = split_between(train, 0.5, 0)
    ours = {track.path for name in ("train", "val") for track in splits[name]}
    assert not ours & {track.path for track in judged} and len(ours) + len(judged) == len(train)
    assert all("test" not in track.path.parts and not track.path.name.startswith(("test-", "validation-")) for name in ("train", "val") for track in splits[name])
    assert abs(len(splits["val"]) / len(ours) - 0.05) < 0.01 and sum(track.seconds for track in splits["train"]) > 300
    x = TakeSegments(splits["train"], 4, 2.0, seed=0)[0].x
    assert x.shape == (4, 1, 32000) and (x.square().mean((1, 2)) > 1e-6).all()


# --- preparation

@pytest.mark.parametrize("pause", [0.1, 0.28, 0.6, 3.0])
def test_pauses_are_shortened_and_ends_cut(pause):
    silence, part = np.zeros((1, RATE)), tone(seconds=0.5)
    raw = np.concatenate([silence, part, np.zeros((1, int(pause * RATE))), part, silence], 1)
    wanted = 1.0 + min(pause, PAUSE_S)
    for gain in (1e-4, 1.0):
        assert len(prepare_take(gain * raw, RATE)) / RATE == pytest.approx(wanted, abs=0.09)
    assert np.allclose(prepare_take(1e-3 * raw, RATE), prepare_take(raw, RATE), atol=1e-5)


def test_the_gate_follows_the_loudest():
    soft = lambda db: np.concatenate([tone(seconds=0.5), db_to_gain(db) * tone(seconds=1.0)], 1)
    assert len(prepare_take(soft(-30), RATE)) > 1.3 * RATE and len(prepare_take(soft(-70), RATE)) < 0.6 * RATE


def test_level_channels_and_nothing():
    left = tone()
    take = prepare_take(np.concatenate([left, 0 * left]), RATE)
    assert np.abs(take).max() == pytest.approx(db_to_gain(PEAK_DB), rel=1e-5) and take.dtype == np.float32 and np.allclose(take, prepare_take(left, RATE), atol=1e-6)
    assert prepare_take(np.zeros((2, 100)), RATE).shape == prepare_take(np.zeros((1, 0)), RATE).shape == (0,)
    kept = left.copy()
    prepare_take(left, RATE)
    assert np.array_equal(kept, left)


# --- batches

@pytest.fixture()
def tracks(tmp_path):
    return find_takes(fill(tmp_path, [f"{number}.wav" for number in range(5)]))


def test_batches_are_functions_of_seed_and_step(tracks):
    make = lambda **changes: TakeSegments(tracks, **{"size": 4, "seconds": 1.5, "sample_rate": RATE, "seed": 3, **changes})
    one = make()
    late, early = one[9].x, one[2].x
    assert torch.equal(make()[2].x, early) and torch.equal(make()[9].x, late) and not torch.equal(late, early) and not torch.equal(make(seed=4)[2].x, early)
    assert torch.equal(torch.cat([make(share=(place, 4))[2].x for place in range(4)]), early)
    assert early.shape == (4, 1, int(1.5 * RATE)) and one[2].sample_rate == RATE
    assert torch.equal(torch.cat([part.x for part in one[2].parts(2)]), early) and isinstance(one[2].parts(2)[0], TakeBatch)


def test_short_takes_are_strung_together_with_gaps(tracks):
    x = TakeSegments(tracks, 8, 4.0, RATE, seed=0, augment=False)[0].x[:, 0]
    frames = x.unfold(1, 160, 160).square().mean(2).sqrt()
    silent = (frames < 1e-4).float().mean(1)
    assert silent.max() < 0.4 and (silent > 0.02).all()  # gaps of 0.16 s on average between half seconds
    pitches = {round(hz) for row in x for hz in np.abs(np.fft.rfft(row.numpy().reshape(-1, RATE), axis=1)).argmax(1)}
    assert len(pitches) >= 3  # several notes


def test_long_takes_are_cut_not_strung(tmp_path):
    ramp = np.linspace(0.1, 0.3, 6 * RATE)[None] * np.sign(np.sin(np.arange(6 * RATE) * 0.5))[None]
    long = find_takes(fill(tmp_path, ["long.wav"], ramp.astype(np.float32)))
    x = TakeSegments(long, 16, 1.0, RATE, seed=0, augment=False)[0].x[:, 0].abs()
    assert (x[:, RATE // 10:-RATE // 10].diff(dim=1).abs() < 1e-3).all()  # nothing joined
    assert len({round(row[400].item(), 3) for row in x}) > 8  # from everywhere in it


def test_levels_vary_by_so_much_and_only_when_wanted(tracks):
    peak = lambda augment: torch.cat([TakeSegments(tracks, 16, 2.0, RATE, seed=1, augment=augment)[step].x for step in range(8)]).abs().amax((1, 2)).log10() * 20
    assert torch.allclose(peak(False), torch.tensor(PEAK_DB), atol=0.2)
    varied = peak(True) - PEAK_DB
    assert varied.abs().max() <= GAIN_DB + 0.01 and varied.max() > 9 and varied.min() < -9 and abs(varied.mean()) < 2


def test_what_cannot_be_read_is_drawn_around_and_told_once(tmp_path, tracks):
    fill(tmp_path, ["zero.wav"], np.zeros((1, RATE), np.float32))
    fill(tmp_path, ["gone.wav"])
    every, told = find_takes(tmp_path), []
    (tmp_path / "gone.wav").unlink()
    segments = TakeSegments(every, 8, 2.0, RATE, report=told.append)
    assert all((segments[step].x.square().mean((1, 2)) > 1e-7).all() for step in range(4))
    assert len(told) == 2 and sum("silent" in line for line in told) == 1
    silent = [track for track in every if track.path.name == "zero.wav"]
    with pytest.raises(PaletteError, match="none of the recordings"):
        TakeSegments(silent, 2, 1.0, RATE)[0]


def test_recordings_are_decoded_once(tracks):
    segments = TakeSegments(tracks, 8, 2.0, RATE)
    first = segments[0].x
    for track in tracks:
        segments.take(track)
        Path(track.path).unlink()
    assert torch.equal(segments[0].x, first) and segments[1].x.any()


def test_whistles_are_whistles():
    whistles = SyntheticWhistles(4, 2.0, 16000, seed=5)
    x = whistles[3].x
    assert torch.equal(x, SyntheticWhistles(4, 2.0, 16000, seed=5)[3].x) and not torch.equal(x, whistles[4].x) and torch.equal(x[2:], SyntheticWhistles(4, 2.0, 16000, seed=5, share=(1, 2))[3].x)
    spectrum = torch.fft.rfft(x[:, 0]).abs().square()
    assert x.shape == (4, 1, 32000) and (spectrum[:, 900:10500].sum(1) / spectrum.sum(1) > 0.98).all()
    peaks = 20 * SyntheticWhistles(8, 2.0, augment=False)[0].x.abs().amax((1, 2)).log10()
    assert (peaks <= PEAK_DB + 0.01).all() and (peaks > PEAK_DB - 9.5).all()  # its loudest note may lie behind the end
