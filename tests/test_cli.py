"""The installed command, as a user runs it: real songs, hard cases, and every refusal."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from timbre_palette.anchors import STYLES, palette_reference
from timbre_palette.audio import read_audio, write_audio
from timbre_palette.cli import main
from timbre_palette.synth import demo_clip

CLIP = demo_clip()[:, :60000]


def call(capsys, *arguments):
    "Exit code, output and error lines of a command, run in this process."
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


@pytest.fixture
def song(tmp_path):
    write_audio(tmp_path / "song.wav", CLIP, 44100)
    return tmp_path / "song.wav"


def fastest(command, times=5):
    "Best wall time of a command in seconds."
    best = np.inf
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


def test_help_and_import_are_instant_and_without_torch(command):
    seconds = fastest([*command, "--help"]), fastest([sys.executable, "-c", "import timbre_palette"])
    print("help {:.3f} s, import {:.3f} s".format(*seconds))
    assert max(seconds) < 0.5
    check = "import sys, timbre_palette, timbre_palette.cli as cli; cli.main(['--help']); assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_every_song_in_every_style_equals_the_reference(songs, tmp_path, command):
    "Stereo, and every third mono, from the command line, float output."
    mono = tmp_path / "mono"
    mono.mkdir()
    for path in songs[::3]:
        recording = read_audio(path)
        write_audio(mono / f"{path.stem}.wav", recording.samples.mean(0, keepdims=True), recording.sample_rate, "FLOAT")
    worst = 0.0
    for source in (songs[0].parent, mono):
        for style, corner in zip(STYLES, np.eye(3)):
            done = subprocess.run([*command, "enhance", source, "-o", tmp_path / "out", "--style", style, "--format", "wav", "--bits", "float", "--model", "dsp", "--json"],
                                  capture_output=True, text=True, check=True)
            reports = json.loads(done.stdout)
            assert len(reports) == len(list(source.iterdir()))
            for report in reports:
                before, after = read_audio(report["input"]), read_audio(report["output"])
                assert (after.sample_rate, after.samples.shape) == (before.sample_rate, before.samples.shape)
                worst = max(worst, np.abs(after.samples - palette_reference(before.samples, before.sample_rate, corner)).max())
    print(f"largest difference to the reference {worst:.1e}")
    assert worst < 1e-4


def test_five_minutes_of_stereo(songs, tmp_path, command):
    parts = [recording for recording in map(read_audio, songs) if recording.sample_rate == 44100]
    music = np.concatenate([recording.samples for recording in parts], axis=1)[:, :300 * 44100]
    assert music.shape == (2, 300 * 44100)
    write_audio(tmp_path / "long.flac", music, 44100)
    done = subprocess.run([*command, "enhance", tmp_path / "long.flac", "-o", tmp_path / "out.flac", "--style", "s33_a33_m33", "--json"],
                          capture_output=True, text=True, check=True)
    report, info = json.loads(done.stdout)[0], soundfile.info(tmp_path / "out.flac")
    print(f"five minutes of stereo: {report['elapsed_s']} s, {report['peak_memory_mb']} MB")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (44100, 2, 300 * 44100, "PCM_16")
    assert report["output_dbtp"] <= -1 and report["peak_memory_mb"] < 4000


REFUSED = ("missing", "folder as input", "text", "empty", "no channels", "no frames", "cut flac", "nan", "one infinite sample", "absurd samples", "absurd rate", "unknown style", "negative weight", "zero weights",
           "amount above", "amount below", "amount nan", "amount word", "out is a folder", "out folder missing", "out below a file", "out unknown suffix",
           "same file", "same file by link", "unknown model", "unknown bits", "bits beyond format", "unknown clip", "unknown device", "unknown format",
           "empty folder", "no match", "mp3 rate")


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_leave_nothing(case, song, tmp_path, capsys):
    out, extra, source = tmp_path / "out.wav", [], song
    bad = tmp_path / "bad.wav"
    wav = bytearray(song.read_bytes())
    if case == "missing": source = tmp_path / "nowhere.wav"
    elif case == "folder as input": (tmp_path / "sub.wav").mkdir(); source = tmp_path / "sub.wav"
    elif case == "text": bad.write_text("these are words\n" * 50); source = bad
    elif case == "empty": bad.write_bytes(b""); source = bad
    elif case == "no channels": wav[22:24] = b"\0\0"; bad.write_bytes(wav); source = bad
    elif case == "no frames": soundfile.write(bad, np.zeros((0, 2)), 44100); source = bad
    elif case == "cut flac":
        source = tmp_path / "cut.flac"
        write_audio(source, CLIP, 44100)
        source.write_bytes(source.read_bytes()[:-20000])
    elif case == "nan": soundfile.write(bad, np.full((1000, 2), np.nan), 44100, "FLOAT"); source = bad
    elif case == "one infinite sample": write = CLIP.T.copy(); write[5] = np.inf; soundfile.write(bad, write, 44100, "FLOAT"); source = bad
    elif case == "absurd samples": soundfile.write(bad, 1e30 * CLIP.T, 44100, "FLOAT"); source = bad
    elif case == "absurd rate": wav[24:28] = (2 ** 31 - 1).to_bytes(4, "little"); bad.write_bytes(wav); source = bad
    elif case == "unknown style": extra = ["--style", "loud"]
    elif case == "negative weight": extra = ["--style", "s-20_a120"]
    elif case == "zero weights": extra = ["--style", "s0_a0_m0"]
    elif case == "amount above": extra = ["--amount", "1.01"]
    elif case == "amount below": extra = ["--amount=-0.1"]
    elif case == "amount nan": extra = ["--amount", "nan"]
    elif case == "amount word": extra = ["--amount", "much"]
    elif case == "out is a folder": out = tmp_path
    elif case == "out folder missing": out = tmp_path / "no" / "out.wav"
    elif case == "out below a file": out = song / "out.wav"
    elif case == "out unknown suffix": out = tmp_path / "out.xyz"
    elif case == "same file": out = song
    elif case == "same file by link": out = tmp_path / "link.wav"; out.symlink_to(song)
    elif case == "unknown model": extra = ["--model", "magic"]
    elif case == "unknown bits": extra = ["--bits", "12"]
    elif case == "bits beyond format": out = tmp_path / "out.flac"; extra = ["--bits", "float"]
    elif case == "unknown clip": extra = ["--clip", "hard"]
    elif case == "unknown device": extra = ["--device", "abacus"]
    elif case == "unknown format": extra = ["--format", "wax"]
    elif case == "empty folder": (tmp_path / "sub").mkdir(); source, out = tmp_path / "sub", tmp_path / "outs"
    elif case == "no match": source, out = tmp_path / "*.aiff", tmp_path / "outs"
    elif case == "mp3 rate":
        write_audio(bad, CLIP, 96000)
        source, out = bad, tmp_path / "out.mp3"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, printed, errors = call(capsys, "enhance", source, "-o", out, *extra)
    assert code == 2 and printed == "" and len(errors) == 1, (printed, errors)
    assert errors[0].startswith("timbre-palette") and "Traceback" not in errors[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    if case == "mp3 rate":
        assert "flac" in errors[0]


def test_the_c_libraries_are_quiet(tmp_path, command):
    "The MP3 decoder writes to file descriptor 2 by itself; a user sees our one line only."
    write_audio(tmp_path / "song.mp3", CLIP, 44100)
    (tmp_path / "head.mp3").write_bytes((tmp_path / "song.mp3").read_bytes()[:30])
    done = subprocess.run([*command, "enhance", tmp_path / "head.mp3", "-o", tmp_path / "out.wav"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("timbre-palette: ")


def test_a_place_that_may_not_be_written(song, capsys):
    if os.geteuid() == 0:
        folder = "/proc"  # root may write everywhere else
    else:
        folder = song.parent / "locked"
        folder.mkdir(mode=0o500)
    code, printed, errors = call(capsys, "enhance", song, "-o", f"{folder}/out.wav")
    assert code == 2 and not printed and len(errors) == 1


@pytest.mark.parametrize("name, samples, rate, suffix", (
    ("silence", np.zeros((2, 50000)), 44100, ".wav"), ("a tenth of a second", CLIP[:, 9000:13410], 44100, ".wav"), ("one sample", CLIP[:, 9000:9001], 44100, ".wav"),
    ("8 kHz mono", CLIP[:1], 8000, ".wav"), ("96 kHz six channels", np.tile(CLIP, (3, 1)), 96000, ".flac"), ("192 kHz", CLIP, 192000, ".wav"),
    ("Ünïcode näme — with spaces ♫", CLIP, 48000, ".ogg"), ("-begins with a dash", CLIP, 48000, ".mp3"), ("hot", 8 * CLIP, 44100, ".aiff")))
@pytest.mark.parametrize("model, style", [("dsp", style) for style in ("fullness", "warmth", "layeredness", "s33_a33_m33")]
                         + [("graybox", style) for style in ("layeredness", "s33_a33_m33")] + [("waveunet-v2", "warmth")])
def test_hard_cases_work(name, samples, rate, suffix, model, style, tmp_path, capsys):
    source, out = tmp_path / f"{name}{suffix}", tmp_path / f"out {name}{suffix}"
    write_audio(source, samples, rate, "FLOAT" if name == "hot" else None)
    code, printed, errors = call(capsys, "enhance", source, "-o", out, "--style", style, "--model", model)
    before, after = read_audio(source), read_audio(out)
    assert code == 0 and not errors and after.samples.shape == before.samples.shape and after.sample_rate == rate
    if name == "silence":
        assert not after.samples.any() and "is silence" in printed
    elif suffix in (".wav", ".flac") and model != "waveunet-v2":
        reference = palette_reference(before.samples, rate, {"s33_a33_m33": [1, 1, 1]}.get(style) or np.eye(3)[STYLES.index(style)])
        gain = np.abs(after.samples).max() / np.abs(reference).max()
        assert gain <= 1 + {"dsp": 1e-3, "graybox": 0.01}[model] and np.abs(after.samples - gain * reference).max() < {"dsp": 2e-3, "graybox": 0.03}[model]


def test_a_cut_song_is_enhanced_with_a_warning(tmp_path, capsys):
    for suffix in (".mp3", ".ogg"):
        source = tmp_path / f"song{suffix}"
        write_audio(source, np.tile(CLIP, 4), 44100)
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        code, printed, errors = call(capsys, "enhance", source, "-o", tmp_path / "out.wav")
        assert code == 0 and not errors and "cut short" in printed


def test_integer_output_is_lowered_under_the_ceiling(tmp_path, capsys):
    write_audio(tmp_path / "hot.wav", CLIP / np.abs(CLIP).max(), 44100)
    for bits, clip, ceiling in (("16", "scale", -1), ("24", "scale", -1), ("float", "scale", 12), ("16", "none", 3)):
        code, printed, _ = call(capsys, "enhance", tmp_path / "hot.wav", "-o", tmp_path / "out.wav", "-s", "layeredness", "--bits", bits, "--clip", clip, "--json")
        report = json.loads(printed)[0]
        assert code == 0 and (report["gain_db"] < 0) == (clip == "scale" and bits != "float")
        code, printed, _ = call(capsys, "info", tmp_path / "out.wav", "--json")
        measured = json.loads(printed)[0]
        assert measured["dbtp"] <= ceiling
        if clip == "scale":
            assert abs(measured["dbtp"] - report["output_dbtp"]) < 0.02 and abs(measured["lufs"] - report["output_lufs"]) < 0.02


def test_amount_zero_changes_no_bit(song, capsys):
    code, _, _ = call(capsys, "enhance", song, "-o", song.parent / "same.wav", "--amount", "0", "--clip", "none")
    assert code == 0 and np.array_equal(read_audio(song).samples, read_audio(song.parent / "same.wav").samples)


def test_a_folder_goes_on_after_a_bad_file(tmp_path, capsys):
    album = tmp_path / "album"
    (album / "disc 2").mkdir(parents=True)
    for name in ("a.wav", "disc 2/b.flac", "c.mp3"):
        write_audio(album / name, CLIP, 44100, tags={"title": name})
    (album / "broken.ogg").write_text("no")
    (album / "notes.txt").write_text("not audio, not touched")
    code, printed, errors = call(capsys, "enhance", album, "-o", album / "enhanced", "--style", "warmth")
    assert code == 2 and len(errors) == 2 and "broken.ogg" in errors[0] and "1 of 4" in errors[1]
    made = sorted(path.relative_to(album / "enhanced").as_posix() for path in (album / "enhanced").rglob("*.*"))
    assert made == ["a.wav", "c.mp3", "disc 2/b.flac"]
    assert read_audio(album / "enhanced" / "disc 2" / "b.flac").tags["title"] == "disc 2/b.flac"
    code, printed, errors = call(capsys, "enhance", album, "-o", album / "enhanced", "--style", "warmth")  # again: results are not songs
    assert "1 of 4" in errors[1]


def test_two_processes_share_a_folder(tmp_path, command, launched):
    "Every song once, as one process would have made it; one bad file stops nobody."
    (tmp_path / "in").mkdir()
    for number in range(5):
        write_audio(tmp_path / "in" / f"{number}.wav", np.roll(CLIP, 5000 * number, 1), 44100)
    (tmp_path / "in" / "0 broken.wav").write_text("words")
    outputs = {}
    for out, launch in (("one", []), ("two", launched)):
        done = subprocess.run([*launch, *command, "enhance", tmp_path / "in", "-o", tmp_path / out, "--json"], capture_output=True, text=True, timeout=180)
        assert done.returncode != 0 and done.stderr.count("0 broken.wav: is not audio") == 1 and "1 of 6 files failed" in done.stderr, done.stderr
        outputs[out] = {path.name: read_audio(path).samples for path in (tmp_path / out).iterdir()}
        reports = json.loads(done.stdout)
        assert sorted(report["input"][-5:] for report in reports) == [f"{number}.wav" for number in range(5)]
    assert outputs["one"].keys() == outputs["two"].keys() and len(outputs["one"]) == 5
    for name, samples in outputs["one"].items():  # other numbers of threads round otherwise, now and then by a step of 16 bits
        assert samples.shape == outputs["two"][name].shape and np.abs(samples - outputs["two"][name]).max() <= 1.01 * 2 ** -15
    (tmp_path / "few").mkdir()
    write_audio(tmp_path / "few" / "only.wav", CLIP, 44100)
    done = subprocess.run([*launched, *command, "enhance", tmp_path / "few", "-o", tmp_path / "three", "--json"], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 1  # the other process had nothing to do


def test_two_results_of_one_name_are_refused(tmp_path, capsys):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_audio(tmp_path / folder / "song.wav", CLIP, 44100)
    code, _, errors = call(capsys, "enhance", tmp_path / "x/song.wav", tmp_path / "y/song.wav", "-o", tmp_path / "out")
    assert code == 2 and len(errors) == 1 and not (tmp_path / "out").exists()


def test_nothing_is_made_when_everything_fails(tmp_path, capsys, monkeypatch):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_text("no")
    code, _, errors = call(capsys, "enhance", tmp_path / "a.wav", tmp_path / "b.wav", "-o", tmp_path / "out")
    assert code == 2 and len(errors) == 3 and sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav"]
    write_audio(tmp_path / "song.wav", CLIP, 44100)
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(capsys, "enhance", "song.wav", "-o", "./no/out.wav")
    assert code == 2 and len(errors) == 1 and not (tmp_path / "no").exists()


def test_in_place_with_overwrite(song, capsys):
    before = read_audio(song)
    code, _, _ = call(capsys, "enhance", song, "-o", song, "--overwrite")
    after = read_audio(song)
    assert code == 0 and after.samples.shape == before.samples.shape and not np.array_equal(after.samples, before.samples)


def test_a_wrong_setting_on_a_folder_is_still_one_line(songs, tmp_path, capsys):
    for wrong in (["--model", "magic"], ["--bits", "12"], ["--clip", "hard"], ["--device", "abacus"], ["--style", "loud"], ["--amount", "2"]):
        code, printed, errors = call(capsys, "enhance", songs[0].parent, "-o", tmp_path / "out", *wrong)
        assert code == 2 and not printed and len(errors) == 1 and not (tmp_path / "out").exists()
    code, printed, errors = call(capsys, "enhance", songs[0].parent, "-o", "/proc/out")
    assert code == 2 and not printed and len(errors) == 1


def test_results_beside_or_above_the_input_folder(tmp_path, capsys):
    (tmp_path / "album").mkdir()
    write_audio(tmp_path / "album" / "song.wav", CLIP, 44100)
    code, _, errors = call(capsys, "enhance", tmp_path / "album", "-o", tmp_path / "album")
    assert code == 2 and len(errors) == 1 and "--overwrite" in errors[0]
    code, _, errors = call(capsys, "enhance", tmp_path / "album", "-o", tmp_path)
    assert code == 0 and (tmp_path / "song.wav").is_file()
    code, _, errors = call(capsys, "enhance", tmp_path / "album", "-o", tmp_path / "album", "--overwrite")
    assert code == 0 and not np.array_equal(read_audio(tmp_path / "album" / "song.wav").samples, read_audio(tmp_path / "song.wav").samples * 0 + 1)


@pytest.mark.parametrize("extra", ([], ["--overwrite"]))
def test_no_result_replaces_another_input(tmp_path, capsys, extra):
    "music/in/in/song.wav, enhanced from music/in into music, would land on music/in/song.wav."
    (tmp_path / "in" / "in").mkdir(parents=True)
    for place in ("in/song.wav", "in/in/song.wav"):
        write_audio(tmp_path / place, CLIP, 44100)
    before = (tmp_path / "in" / "song.wav").read_bytes()
    code, printed, errors = call(capsys, "enhance", tmp_path / "in", "-o", tmp_path, *extra)
    assert code == 2 and not printed and len(errors) == 1 and "another of the inputs" in errors[0]
    assert (tmp_path / "in" / "song.wav").read_bytes() == before and not (tmp_path / "song.wav").exists()


def test_impossible_names_are_one_line(song, tmp_path, capsys):
    long = "x" * 300 + ".wav"
    for source, out in ((song, tmp_path / long), (tmp_path / long, tmp_path / "out.wav"), (tmp_path / "two\nlines.wav", tmp_path / "out.wav")):
        code, printed, errors = call(capsys, "enhance", source, "-o", out)
        assert code == 2 and not printed and len(errors) == 1
    code, printed, errors = call(capsys, "enhance", song, "-o", tmp_path / "out.wav", "--two\nlines")
    assert code == 2 and not printed and len(errors) == 1
    code, printed, errors = call(capsys, "info", tmp_path / long)
    assert code == 2 and not printed and len(errors) == 1


def test_a_name_that_is_not_text(tmp_path, command):
    folder = os.fsencode(tmp_path)
    write_audio(tmp_path / "song.wav", CLIP, 44100)
    os.rename(folder + b"/song.wav", folder + b"/bad\xff\xfe.wav")
    done = subprocess.run([*command, "enhance", folder + b"/bad\xff\xfe.wav", "-o", folder + b"/out\xff.wav", "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)[0]["frames"] == CLIP.shape[1] and b"out\xff.wav" in os.listdir(folder)
    done = subprocess.run([*command, "info", folder + b"/gone\xff.wav"], capture_output=True)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("extra", (["--device", "meta"], ["--device", "mkldnn"], ["--device", "cuda:99"], ["--style", "s1e999"], ["--style", "fullness=nan"],
                                   ["--style", "fullness=inf"], ["--format", "mp3", "--bits", "24"]))
def test_odd_settings_are_one_line(extra, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_audio(tmp_path / "in" / f"{name}.wav", CLIP, 44100)
    code, printed, errors = call(capsys, "enhance", tmp_path / "in", "-o", tmp_path / "out", *extra)
    assert code == 2 and not printed and len(errors) == 1 and not (tmp_path / "out").exists()


def test_a_folder_scan_takes_songs_only(tmp_path, capsys):
    (tmp_path / "in" / "folder.wav").mkdir(parents=True)
    write_audio(tmp_path / "in" / "folder.wav" / "song.wav", CLIP, 44100)
    (tmp_path / "in" / "._song.wav").write_text("what another system keeps beside a file")
    code, printed, errors = call(capsys, "enhance", tmp_path / "in", "-o", tmp_path / "out", "--style", "fullness=1e308,warmth=1e308", "--json")
    assert code == 0 and not errors and [report["style"] for report in json.loads(printed)] == ["s50_a50"]


def test_closed_and_narrow_outputs(song, tmp_path, command):
    "No standard output, no standard error, an ASCII terminal, a reader that goes away: the work is done all the same."
    shell = f"{command[0]} enhance {song} -o {tmp_path}/"
    for tail in ("a.wav >&-", "b.wav 2>&-", "c.wav | true"):
        subprocess.run(["bash", "-c", shell + tail], check=True, capture_output=True)
    assert all((tmp_path / f"{name}.wav").is_file() for name in "abc")
    os.rename(song, tmp_path / "é日🎵.wav")
    done = subprocess.run([*command, "info", "--json", tmp_path / "é日🎵.wav"], capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert json.loads(done.stdout)[0]["file"].endswith("é日🎵.wav")


def test_an_empty_argument_is_not_the_current_folder(tmp_path, capsys, monkeypatch, song):
    monkeypatch.chdir(tmp_path)
    code, printed, errors = call(capsys, "enhance", "", "-o", "out")
    assert code == 2 and not printed and len(errors) == 1 and not (tmp_path / "out").exists()


def test_overwriting_keeps_the_permissions(song, capsys):
    song.chmod(0o600)
    assert call(capsys, "enhance", song, "-o", song, "--overwrite")[0] == 0 and song.stat().st_mode & 0o777 == 0o600


def test_a_long_song_goes_through_in_little_memory(tmp_path):
    "Under a limit that lets it through in blocks, but not in one piece."
    write_audio(tmp_path / "long.wav", np.tile(CLIP, 300), 44100)
    code = ("import resource, sys, torch; torch.set_num_threads(1); import timbre_palette.enhance; from timbre_palette.cli import main\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)\n"
            "sys.exit(main(sys.argv[1:]))")
    for arguments in (["info", tmp_path / "long.wav"], ["enhance", tmp_path / "long.wav", "-o", tmp_path / "out.wav"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert read_audio(tmp_path / "out.wav").frames == 300 * CLIP.shape[1]


@pytest.mark.parametrize("error", (MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")), ids=("numpy", "torch"))
def test_too_little_memory_is_one_line(error, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise error

    write_audio(tmp_path / "song.wav", CLIP, 44100)
    monkeypatch.setattr("timbre_palette.loudness.LoudnessMeter.push", full)
    for arguments in (["info", tmp_path / "song.wav"], ["enhance", tmp_path / "song.wav", "-o", tmp_path / "out.wav", "--style", "layeredness"]):
        assert main([str(argument) for argument in arguments]) == 2
        told = capsys.readouterr().err.strip()
        assert "not enough memory" in told and len(told.splitlines()) == 1 and not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
def test_a_polite_kill_leaves_no_partial_file(tmp_path, command, number):
    "Once while it works, and then at the moment the temporary file exists, which takes a few tries to hit."
    write_audio(tmp_path / "long.wav", np.tile(demo_clip(), 25), 44100)
    expected = 25 * demo_clip().shape[1]

    def run(ready):
        "Start, send the signal when `ready`, and look at what is left."
        process = subprocess.Popen([*command, "enhance", tmp_path / "long.wav", "-o", tmp_path / "out.wav"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while process.poll() is None and not ready(process):
            time.sleep(0.001)
        process.send_signal(number)
        errors = process.communicate()[1]
        assert process.returncode in (0, 130) and "Traceback" not in errors and not list(tmp_path.glob(".*")), errors
        assert (process.returncode == 0) == (tmp_path / "out.wav").exists()
        if process.returncode == 0:
            assert read_audio(tmp_path / "out.wav").frames == expected
            (tmp_path / "out.wav").unlink()
        return process.returncode == 130

    def has_torch(process):
        "The work has begun: torch is mapped into the process."
        return "libtorch" in open(f"/proc/{process.pid}/maps").read()

    assert run(has_torch)
    assert any(run(lambda process: list(tmp_path.glob(".*.part"))) for _ in range(8))


def test_demo_without_torchaudio(tmp_path):
    "Nothing on the main path may need torchaudio, which often cannot be imported."
    code = f"import sys; sys.modules['torchaudio'] = None; from timbre_palette.cli import main; sys.exit(main(['demo', '-o', {str(tmp_path / 'demo')!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.suffix for path in (tmp_path / "demo").iterdir()) == [".html", ".png", *[".wav"] * 16]


def test_info_in_words(song, capsys):
    code, printed, _ = call(capsys, "info", song)
    assert code == 0 and all(word in printed for word in ("stereo", "44100 Hz", "LUFS", "dBTP", "bass", "octave"))
    code, printed, errors = call(capsys, "info", song.parent / "nowhere.wav", song)
    assert code == 2 and "LUFS" in printed and len(errors) == 2


def album(folder, count=4, seconds=1.0):
    "A folder of songs, one of which is broken, in a folder of their own."
    folder.mkdir()
    for k in range(count):
        place = folder / f"disc {k % 2}"
        place.mkdir(exist_ok=True)
        write_audio(place / f"song {k}.wav", np.tile(CLIP, (1, 20))[:, :round(seconds * 44100)] * 0.9 ** k, 44100)
    (folder / "disc 0" / "broken.wav").write_bytes(b"RIFF nothing")
    return folder


def test_several_workers_do_what_one_does_and_a_folder_is_resumed(tmp_path, capsys, command):
    source = album(tmp_path / "album")
    code, out, errors = call(capsys, "enhance", source, "-o", tmp_path / "one", "--style", "s33_a33_m33")
    assert code == 2 and out.count("->") == 4 and any("broken.wav" in line for line in errors) and "1 of 5" in errors[-1]
    done = subprocess.run([*command, "enhance", str(source), "-o", str(tmp_path / "two"), "--style", "s33_a33_m33", "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.count("->") == 4 and "1 of 5" in done.stderr and "Traceback" not in done.stderr
    results = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.wav"))
    assert len(results) == 4 and results == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.wav"))
    for name in results:
        assert np.abs(read_audio(tmp_path / "one" / name).samples - read_audio(tmp_path / "two" / name).samples).max() < 1e-4

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.wav")}
    (tmp_path / "one" / results[0]).unlink()
    os.utime(source / results[1])  # a song that was changed since
    code, out, errors = call(capsys, "enhance", source, "-o", tmp_path / "one", "--style", "s33_a33_m33", "--resume")
    assert code == 2 and out.count("->") == 2 and "2 of 5 are there already" in errors[0]
    kept = [path for path, time_ns in before.items() if path.stat().st_mtime_ns == time_ns]
    assert sorted(path.relative_to(tmp_path / "one") for path in kept) == results[2:]


@pytest.mark.parametrize("how", (signal.SIGTERM, signal.SIGKILL))
def test_a_folder_that_was_stopped_goes_on(tmp_path, capsys, command, how):
    source, out = album(tmp_path / "album", count=6, seconds=20), tmp_path / "out"
    arguments = ["enhance", str(source), "-o", str(out), "--style", "layeredness"]
    running = subprocess.Popen([*command, *arguments, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(out.rglob("*.wav")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, how) if how == signal.SIGKILL else running.send_signal(how)
    errors = running.communicate()[1]
    assert running.returncode != 0 and "Traceback" not in errors
    finished = list(out.rglob("*.wav"))
    assert finished and all(read_audio(path).frames == 20 * 44100 for path in finished)
    if how == signal.SIGTERM:
        assert not list(out.rglob(".*"))  # nothing half-written, by the workers either
    code, printed, errors = call(capsys, *arguments, "--resume")
    assert code == 2 and len(list(out.rglob("[!.]*.wav"))) == 6 and printed.count("->") == 6 - len(finished)


def test_workers_are_a_number_of_one_or_more(song, tmp_path, capsys):
    code, _, errors = call(capsys, "enhance", song, "-o", tmp_path / "x.wav", "--workers", 0)
    assert code == 2 and "1 or more" in errors[0]
