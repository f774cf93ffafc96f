"""Real music in miniature copies of MUSDB18-HQ and DSD100, with what goes wrong in real folders."""
import json
import os

import numpy as np
import pytest

from timbre_palette.audio import PaletteError, read_audio, write_audio
from timbre_palette.cli import main
from timbre_palette.data import Segments
from timbre_palette.recipe import find_recipe
from timbre_palette.songs import LAYOUTS, LICENCES, SPLITTINGS, STEMS, describe_overlap, describe_tracks, find_tracks, load_splits, read_headers, recognise, title_key
from timbre_palette.synth import demo_clip
from timbre_palette.training import train_palette

# Two songs that both sets have and agree on, one that DSD100 trains on and MUSDB18 tests by, and some of their own.
MUSDB = {"train": ["Actions - Devil's Words", "ANiMAL - Easy Tiger", "Band A - One", "Band B - Two", "Band C - Three"],
         "test": ["AM Contra - Heart Peripheral", "Band D - Four"]}
DSD = {"Dev": ["051 - AM Contra - Heart Peripheral", "052 - ANiMAL - Easy Tiger", "053 - Actions - Devil’s Words"], "Test": ["001 - Band D - Four"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIMBRE_PALETTE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sets(songs, tmp_path_factory):
    "The two sets: every song three seconds of another test song, its stems the same at another level."
    root = tmp_path_factory.mktemp("sets")
    sounds = [read_audio(path, frames=3 * 44100, start=44100 * 5) for path in songs]
    titles = {}

    def write(folder, title, stems):
        sound = sounds[titles.setdefault(title_key(title.lstrip("0123456789 -")), len(titles))]
        for stem in stems:
            (folder / title).mkdir(parents=True, exist_ok=True)
            write_audio(folder / title / f"{stem}.wav", sound.samples * (1.0 if stem == "mixture" else 0.2), sound.sample_rate, "PCM_16")

    for split, names in MUSDB.items():
        for title in names:
            write(root / "musdb18hq" / split, title, STEMS)
    for split, names in DSD.items():
        for title in names:
            write(root / "DSD100" / "Mixtures" / split, title, STEMS[:1])
            write(root / "DSD100" / "Sources" / split, title, STEMS[1:])
    return root


def test_layouts_are_recognised_and_found_by_name(sets, monkeypatch):
    assert (recognise(sets / "musdb18hq"), recognise(sets / "DSD100"), recognise(sets)) == ("musdb18hq", "dsd100", None)
    with pytest.raises(PaletteError, match="MUSDB_PATH"):
        monkeypatch.delenv("MUSDB_PATH", raising=False)
        find_tracks("musdb18hq")
    monkeypatch.setenv("MUSDB_PATH", str(sets / "musdb18hq"))
    monkeypatch.setenv("DSD_PATH", str(sets / "DSD100"))
    assert [len(find_tracks(name)) for name in ("musdb18hq", "dsd100")] == [7, 4]
    assert len(find_tracks("dsd100", stems=STEMS)) == 20
    monkeypatch.setenv("MUSDB_PATH", str(sets / "DSD100"))
    with pytest.raises(PaletteError, match="not laid out"):
        find_tracks("musdb18hq")
    with pytest.raises(PaletteError, match="unknown stem"):
        find_tracks(sets / "DSD100", stems=("piano",))


@pytest.mark.parametrize("order", (("musdb18hq", "DSD100"), ("DSD100", "musdb18hq")))
def test_songs_in_both_sets_count_once_and_musdb_wins(sets, order):
    reports = []
    splits = load_splits([sets / name for name in order], report=reports.append)
    everything = [track for tracks in splits.values() for track in tracks]
    assert len(everything) == len({track.song for track in everything}) == 7 and {track.source for track in everything} == {"musdb18hq"}
    assert {track.song for track in splits["test"]} == {"amcontraheartperipheral", "banddfour"}
    assert reports == ["4 songs stand in several data sets and count once"]
    assert describe_overlap(splits)["test_songs_trained_on"] == 0 and len(splits["val"]) == 1 and len(splits["train"]) == 4


def test_paper_compat_keeps_every_file_and_says_what_leaks(sets):
    splits = load_splits([sets / "DSD100", sets / "musdb18hq"], paper_compat=True)
    overlap = describe_overlap(splits)
    assert overlap == {"files": 11, "songs": 7, "songs_in_several_sets": 4, "train_files": 8, "train_songs": 6, "test_songs": 2, "test_songs_trained_on": 1}
    assert {track.path for track in splits["val"]} <= {track.path for track in splits["train"]}


def test_random_splits_have_every_song_on_one_side(sets):
    for seed in range(5):
        splits = load_splits([sets / "musdb18hq", sets / "DSD100"], seed=seed, split="random", stems=("mixture", "drums"))
        sides = [{track.song for track in tracks} for tracks in splits.values()]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 7 and sum(len(tracks) for tracks in splits.values()) == 14
    assert load_splits(sets / "musdb18hq", seed=1, split="random") == load_splits(sets / "musdb18hq", seed=1, split="random")


def test_training_on_both_sets_with_a_broken_song(sets, tmp_path, capsys):
    "As a user: the command, two sets, one broken song, one that breaks after it was found."
    broken = sets / "musdb18hq" / "train" / "Band E - Broken" / "mixture.wav"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"RIFF and nothing else")
    places = [str(sets / "DSD100"), str(sets / "musdb18hq")]
    try:
        settings = ["steps=4", "batch=2", "seconds=0.5", "validate_every=2", "validation_batches=1", "stems=[mixture, vocals]", "polish=0"]
        assert main(["train", "graybox", "--data", *places, "--out", str(tmp_path / "run"), "--device", "cpu", "--set", *settings]) == 0
        error = capsys.readouterr().err
        assert error.count("Band E - Broken/mixture.wav: left out") == 1 and error.count("it has no vocals.wav") == 1 and "4 songs stand in several" in error
        card = json.loads((tmp_path / "run" / "best" / "card.json").read_text())
        assert card["data"]["train"]["sources"] == ["musdb18hq"] and card["overlap"]["songs"] == 7
        assert "educational" in list(card["data"]["train"]["licences"])[0]
        assert {row["model"] for row in card["metrics"]} == {"identity", "oracle", "graybox"}
        assert {row["worst_song"] for row in card["metrics"]} <= {f"{title}/{stem}.wav" for title in MUSDB["test"] for stem in ("mixture", "vocals")}
        examples = sorted(path.name for path in (tmp_path / "run" / "examples").iterdir())
        assert len(examples) == 6 and examples[0].startswith("1-") and read_audio(tmp_path / "run" / "examples" / examples[0]).frames == 0.5 * read_audio(tmp_path / "run" / "examples" / examples[0]).sample_rate
        assert main(["train", "graybox", "--show", "--data", *places, "--set", "paper_compat=true"]) == 0
        assert "1 of 2 test songs are also trained on" in capsys.readouterr().out
        assert main(["evaluate", places[1], "--models", "dsp", "--seconds", "1"]) == 0
        shown = capsys.readouterr().out
        assert ("AM Contra" in shown or "Band D" in shown) and "Band A" not in shown
    finally:
        broken.unlink()
        broken.parent.rmdir()


def test_a_song_that_breaks_later_is_named_once_and_drawn_around(tmp_path):
    for number in range(3):
        write_audio(tmp_path / f"{number}.wav", np.roll(demo_clip(8000), 999 * number, 1), 8000)
    tracks = find_tracks(tmp_path)
    (tmp_path / "1.wav").write_bytes(b"gone bad")
    reports = []
    segments = Segments(tracks, 4, 0.1, (8000,), report=reports.append)
    batches = [segments[step] for step in range(20)]
    assert len(reports) == 1 and "1.wav" in reports[0] and all(batch.x.abs().amax((1, 2)).all() for batch in batches)


def test_the_index_is_remembered_and_checked(tmp_path, monkeypatch):
    from timbre_palette import songs as module
    path = tmp_path / "song.wav"
    write_audio(path, demo_clip(8000), 8000)
    read, real = [], module.read_header
    monkeypatch.setattr(module, "read_header", lambda path: read.append(path) or real(path))
    first = read_headers(tmp_path, [path])
    assert read_headers(tmp_path, [path]) == first and len(read) == 1
    write_audio(path, demo_clip(16000), 16000)
    assert read_headers(tmp_path, [path])[path][0] == 16000 and len(read) == 2
    index = next((tmp_path / "cache" / "headers").iterdir())
    for damage in (b"", b"[[1]]", b"[5]", b"[null]", b'[["a", 8000]]', b"{", b'[["a", 1, 2, 3, 4, 5]]', b"null", b'[[null, 1, 2]]', b"\xff"):
        index.write_bytes(damage)
        assert read_headers(tmp_path, [path])[path][0] == 16000, damage
    monkeypatch.setenv("TIMBRE_PALETTE_CACHE", os.devnull)  # cannot be a folder
    assert read_headers(tmp_path, [path])[path][0] == 16000


def test_a_failure_is_tried_again(tmp_path, monkeypatch):
    "Rights and networks change; a size and a time do not tell."
    from timbre_palette import songs as module
    path, real = tmp_path / "song.wav", module.read_header
    write_audio(path, demo_clip(8000), 8000)
    monkeypatch.setattr(module, "read_header", lambda path: (_ for _ in ()).throw(PaletteError(f"{path}: is away")))
    assert read_headers(tmp_path, [path])[path] == "is away"
    monkeypatch.setattr(module, "read_header", real)
    assert read_headers(tmp_path, [path])[path][0] == 8000


def test_folders_that_repeat_names_keep_all_their_songs(tmp_path):
    "`01 Intro` of two albums are two songs; a place named twice is one."
    for album in "AB":
        for number in range(3):
            (tmp_path / album).mkdir(exist_ok=True)
            write_audio(tmp_path / album / f"0{number}.wav", demo_clip(8000), 8000)
    for places in ([tmp_path / "A", tmp_path / "B"], [tmp_path / "A", tmp_path / "B", tmp_path / "A"]):
        assert sum(len(tracks) for tracks in load_splits(places).values()) == 6


def test_a_part_of_a_published_set_is_songs_not_stems(sets):
    for part, count in (("musdb18hq/train", 5), ("DSD100/Mixtures/Dev", 3), ("DSD100/Sources/Dev", 12)):
        tracks = find_tracks(sets / part)
        assert len(tracks) == count and len({track.song for track in tracks}) == min(count, 3 if "Dev" in part else 5)


def test_a_folder_with_nothing_to_train_on(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(PaletteError, match="no songs that can be read"):
        load_splits(tmp_path)
    write_audio(tmp_path / "train" / "cover.wav", demo_clip(8000), 8000)
    with pytest.raises(PaletteError, match="one song"):
        load_splits(tmp_path)
    test = tmp_path / "set" / "test" / "A - B"
    test.mkdir(parents=True)
    write_audio(test / "mixture.wav", demo_clip(8000), 8000)
    with pytest.raises(PaletteError, match="none to train on"):
        load_splits(tmp_path / "set")


def test_yaml_and_command_line_give_the_same_run(tmp_path):
    "A recipe from a file, and the named one with the same changes, are one object; the run keeps it, and can be made again from what it keeps."
    (tmp_path / "songs").mkdir()
    for number in range(3):
        write_audio(tmp_path / "songs" / f"{number}.wav", np.roll(demo_clip(8000), 999 * number, 1), 8000)
    changes = ["steps=3", "batch=2", "seconds=0.2", "sample_rates=[8000]", "validate_every=3", "validation_batches=1", "learning_rate=1e-3", "ema=0.5", "polish=0"]
    named = find_recipe("graybox", changes)
    train_palette(named, tmp_path / "songs", tmp_path / "run", "cpu")
    assert find_recipe(tmp_path / "run" / "recipe.yaml") == named == find_recipe(tmp_path / "run" / "best" / "card.json")
    (tmp_path / "mine.yaml").write_text("model: GrayBox\narguments: {peaks: 4, units: 2}\nloss: error\nclip: 1.0\nbeta2: 0.99\ngain_db: 12\noptimiser: Adam\n" + "\n".join(change.replace("=", ": ") for change in changes))
    assert find_recipe(tmp_path / "mine.yaml") == named


# Published sets in miniature: what of each is a recording, of which song, in which split; and what is not one.
PUBLISHED = {
    "libritts": ({f"LibriTTS/{part}/{voice}/{chapter}/{voice}_{chapter}_{line:06d}_000000.wav": (f"libritts{voice}", part.partition("-")[0].replace("dev", "val"))
                  for part, voice in (("train-clean-100", 103), ("train-clean-360", 14), ("train-clean-360", 16), ("train-other-500", 20), ("dev-clean", 84), ("test-clean", 61), ("test-other", 367))
                  for chapter in (121, 208) for line in (1, 2)},
                 ["LibriTTS/train-clean-360/14/208/15_208_000001_000000.wav"]),
    "daps": ({f"daps/clean/{voice}_script{script}_clean.wav": (f"daps{voice}", "") for voice in ("f1", "f10", "m1") for script in range(1, 6)},
             ["daps/clean/._f1_script1_clean.wav", "daps/cleanraw/f1_script1_cleanraw.wav", "daps/produced/f1_script1_produced.wav", "daps/ipad_office1/f1_script1_ipad_office1.wav"]),
    "vctk": ({f"VCTK-Corpus-0.92/wav48_silence_trimmed/{voice}/{voice}_{line:03d}_mic1.flac": (f"vctk{voice}", "") for voice in ("p225", "p280", "s5") for line in (1, 2)},
             [f"VCTK-Corpus-0.92/wav48_silence_trimmed/{voice}/{voice}_{line:03d}_mic2.flac" for voice in ("p225", "s5") for line in (1, 2)]),
    "vctk, older": ({f"wav48/{voice}/{voice}_{line:03d}.wav": (f"vctk{voice}", "") for voice in ("p225", "p376") for line in (1, 2)}, []),
    "mtg_jamendo": ({"14/214.mp3": ("jamendo214", ""), "14/1014.mp3": ("jamendo1014", ""), "00/1000.low.mp3": ("jamendo1000", "")}, ["15/15.mp3", "14/02 Intro.mp3"]),
    "urmp": ({f"Dataset/{piece}/AuSep_{player}_{code}_{piece[:2]}_{title}.wav": (f"urmp{title.lower()}", "")
              for piece, title, players in (("01_Jupiter_vn_vc", "Jupiter", ("vn", "vc")), ("15_Surprise_tpt_tpt_tbn", "Surprise", ("tpt", "tpt", "tbn")), ("16_Surprise_tpt_tpt_sax", "Surprise", ("tpt", "tpt", "sax")))
              for player, code in enumerate(players, 1)}, ["Dataset/01_Jupiter_vn_vc/AuMix_01_Jupiter_vn_vc.wav"]),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for name, (files, others) in PUBLISHED.items():
        for file in (*files, *others):
            (root / name / file).parent.mkdir(parents=True, exist_ok=True)
            write_audio(root / name / file, demo_clip(8000)[:, :800], 8000)
    return root


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_are_known_by_their_layout(published, name, monkeypatch):
    source, root = name.partition(",")[0], published / name
    tracks = find_tracks(root)
    assert recognise(root) == source and {track.source for track in tracks} == {source}
    assert {track.path.relative_to(root).as_posix(): (track.song, track.split) for track in tracks} == PUBLISHED[name][0] and len(tracks) == len(PUBLISHED[name][0])
    monkeypatch.setenv(LAYOUTS[source].variable, str(root))
    assert find_tracks(source) == tracks
    monkeypatch.setenv(LAYOUTS[source].variable, str(root / "nothing"))
    with pytest.raises(PaletteError, match="no such folder"):
        find_tracks(source)
    assert list(describe_tracks(tracks)["licences"]) == [LICENCES[source]]


@pytest.mark.parametrize("part, songs", (("libritts/LibriTTS", 7), ("libritts/LibriTTS/train-clean-360", 2), ("daps/daps", 3), ("daps/daps/clean", 3), ("vctk/VCTK-Corpus-0.92", 3),
                                         ("vctk/VCTK-Corpus-0.92/wav48_silence_trimmed", 3), ("vctk, older/wav48", 2)))
def test_parts_of_published_sets_are_voices_too(published, part, songs):
    tracks = find_tracks(published / part)
    assert len({track.song for track in tracks}) == songs < len(tracks) and recognise(published / part) == part.partition("/")[0].partition(",")[0]


def test_the_second_microphone_is_the_same_voice(published, monkeypatch):
    monkeypatch.setenv("VCTK_PATH", str(published / "vctk"))
    first, second = find_tracks("vctk"), find_tracks("vctk_mic2")
    assert {track.path.name[-9:] for track in second} == {"mic2.flac"} and {track.song for track in second} == {"vctkp225", "vctks5"}
    splits = load_splits(["vctk", "vctk_mic2"], split="90/5/5")
    assert {track for tracks in splits.values() for track in tracks} == set(first)


def test_numbers_of_different_sets_are_different_songs(published, tmp_path):
    "Track 1014 of one, speaker 1014 of another, and a song of that name in a folder."
    for file in ("train-clean-360/1014/5/1014_5_000001_000000.wav",):
        (tmp_path / "libri" / file).parent.mkdir(parents=True)
        write_audio(tmp_path / "libri" / file, demo_clip(8000), 8000)
    (tmp_path / "songs").mkdir()
    write_audio(tmp_path / "songs" / "1014.wav", demo_clip(8000), 8000)
    splits = load_splits([published / "mtg_jamendo", tmp_path / "libri", tmp_path / "songs"])
    assert {track.song for tracks in splits.values() for track in tracks} == {"jamendo214", "jamendo1014", "jamendo1000", "libritts1014", "1014"}


def test_the_official_split_of_libritts_is_its_own(published):
    splits = load_splits(published / "libritts")
    assert {name: {track.song for track in tracks} for name, tracks in splits.items()} == {
        "train": {"libritts103", "libritts14", "libritts16", "libritts20"}, "val": {"libritts84"}, "test": {"libritts61", "libritts367"}}


def test_sets_without_stems_say_so(published, sets):
    reports = []
    assert len(find_tracks(published / "daps", reports.append, ("mixture", "vocals"))) == 15 and "daps has no vocals" in reports[0]
    with pytest.raises(PaletteError, match="only whole recordings"):
        find_tracks(published / "daps", stems=("vocals",))


def test_splits_of_ninety_five_five(tmp_path):
    "Sixty speakers of three chapters: 54, 3 and 3, all of a speaker on one side, another seed another choice."
    clip = demo_clip(8000)[:, :80]
    for voice in range(60):
        for chapter in range(3):
            path = tmp_path / "train-clean-360" / str(voice) / str(chapter) / f"{voice}_{chapter}_000001_000000.wav"
            path.parent.mkdir(parents=True)
            write_audio(path, clip, 8000)
    drawn = [load_splits(tmp_path, seed=seed, split="90/5/5") for seed in (0, 0, 1)]
    for splits in drawn:
        sides = {name: {track.song for track in tracks} for name, tracks in splits.items()}
        assert {name: len(voices) for name, voices in sides.items()} == {"train": 54, "val": 3, "test": 3} and len(set.union(*sides.values())) == 60
        assert {name: len(tracks) for name, tracks in splits.items()} == {"train": 162, "val": 9, "test": 9}
    assert drawn[0] == drawn[1] != drawn[2]
    assert find_recipe("graybox", ["split=90/5/5"]).split == "90/5/5" and "90/5/5" in SPLITTINGS
    with pytest.raises(PaletteError, match="90/5/5"):
        load_splits(tmp_path, split="80/20")


def write_stems(path, sounds, rate=44100):
    "An MP4 of several AAC streams, as Native Instruments' stems are."
    av = pytest.importorskip("av", reason="PyAV is not installed (extra m4a)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        streams = [container.add_stream("aac", rate=rate, layout="stereo") for _ in sounds]
        for start in range(0, sounds[0].shape[1], 1024):
            for stream, sound in zip(streams, sounds):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start:start + 1024]), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = rate, start
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


def test_compressed_musdb18_is_its_mixtures(tmp_path, monkeypatch):
    "Five streams, the first the mixture; lengths stand in the header, and a part that is sought is the part that is read in order."
    time = np.arange(44100 * 4) / 44100
    mixture = np.stack([0.4 * np.sin(2 * np.pi * (200 * time + 300 * time ** 2)), 0.3 * np.sin(2 * np.pi * 3000 * time) * (time % 0.5 < 0.1)]).astype(np.float32)
    for file in ("train/A - One.stem.mp4", "train/B - Two.stem.mp4", "test/C - Three.stem.mp4"):
        write_stems(tmp_path / file, [mixture, *[0.1 * np.roll(mixture, 1000 * k, 1) for k in range(1, 5)]])
    (tmp_path / "train" / "._A - One.stem.mp4").write_bytes(b"what macOS leaves beside a file")
    tracks = find_tracks(tmp_path)
    assert recognise(tmp_path) == "musdb18" and [(track.song, track.split, track.frames) for track in tracks] == [
        ("aone", "train", time.size), ("btwo", "train", time.size), ("cthree", "test", time.size)]
    whole = read_audio(tracks[0].path).samples
    assert np.square(whole[:, 3000:time.size - 3000] - mixture[:, 3000:-3000]).mean() < 0.01 * np.square(mixture).mean()  # the other streams are 20 dB lower and late
    for start in (0, 1, 5000, 44100, 100001):
        part = read_audio(tracks[0].path, start, 9999).samples
        assert part.shape == (2, 9999) and np.abs(part - whole[:, start:start + 9999]).max() < 0.02, start
    assert {name: {track.song for track in found} for name, found in load_splits(tmp_path).items()}["test"] == {"cthree"}
    assert len(find_tracks(tmp_path / "train")) == 2
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    monkeypatch.setenv("TIMBRE_PALETTE_CACHE", str(tmp_path / "another"))
    with pytest.raises(PaletteError, match="no songs that can be read.*needs PyAV.*pip install av"):
        find_tracks(tmp_path)


def test_headers_that_were_read_are_kept_when_it_is_stopped(tmp_path, monkeypatch):
    from timbre_palette import songs as module
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for path in paths:
        write_audio(path, demo_clip(8000), 8000)
    read, real = [], module.read_header

    def stopping(path):
        if len(read) == 2:
            raise KeyboardInterrupt
        return read.append(path) or real(path)

    monkeypatch.setattr(module, "read_header", stopping)
    with pytest.raises(KeyboardInterrupt):
        read_headers(tmp_path, paths)
    monkeypatch.setattr(module, "read_header", lambda path: read.append(path) or real(path))
    assert len(read_headers(tmp_path, paths)) == 3 == len(read)
