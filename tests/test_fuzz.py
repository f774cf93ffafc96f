"""Bad files, by the script that makes them, and what it has found."""
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT, script
from timbre_palette.audio import PaletteError, read_header
from timbre_palette.checkpoint import WEIGHTS, Pretrained
from timbre_palette.cli import main

pytest.importorskip("resource", reason="processes cannot be limited on this system")
fuzz = script("fuzz")

SECONDS = float(os.environ.get("TIMBRE_PALETTE_FUZZ_SECONDS", 20))  # CI asks for more
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")


@needs_fork
def test_bad_files_give_a_result_or_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--cases", "1000000", "--seconds", str(SECONDS), "--workers", "1", "-o", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 900, env={**os.environ, "PYTHONDEVMODE": ""})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(found["counts"].values()) >= SECONDS / 5 and not found["failures"]
    assert {kind.rpartition(": ")[2] for kind in found["counts"]} == {"a result", "one line"}


@needs_fork
def test_a_case_is_a_function_of_seed_and_number(tmp_path):
    for number in (3, 8, 11, 40):  # no Ogg among them, which has a number of its own
        made = []
        for folder in (tmp_path / f"{number}-a", tmp_path / f"{number}-b"):
            folder.mkdir()
            made.append((fuzz.make_case(0, number, folder, None), fuzz.snapshot(folder)))
        assert made[0] == made[1] and made[0][1]


@needs_fork
@pytest.mark.parametrize("what", ("nothing", "a traceback", "a leftover", "a changed song", "two lines", "not finite", "another length", "a wrong code", "too much memory", "a hang", "written in spite of an error"))
def test_what_is_wrong_is_seen(what, tmp_path):
    case = fuzz.Case("strange sound", "", ("enhance", "song.wav", "-o", "out.wav"), ("out.wav",), 0, 100)
    fuzz.soundfile.write(tmp_path / "song.wav", np.zeros((100, 1)), 44100)
    before, code, said, seconds, memory = fuzz.snapshot(tmp_path), 0, "", 1.0, 0
    samples = np.zeros((99 if what == "another length" else 100, 1))
    samples[5] = np.nan if what == "not finite" else 0
    fuzz.soundfile.write(tmp_path / "out.wav", samples, 44100, subtype="FLOAT")
    if what == "a traceback":
        code, said = 1, "Traceback (most recent call last):\nKeyError: 'x'\n"
    elif what == "a leftover":
        (tmp_path / ".a.part").touch()
    elif what == "a changed song":
        (tmp_path / "song.wav").write_bytes(b"")
    elif what in ("two lines", "written in spite of an error"):
        code, case = 2, fuzz.Case(case.kind, "", case.words, case.outputs)
        said = "timbre-palette: song.wav: no\n" * (1 + (what == "two lines"))
        if what == "two lines":
            (tmp_path / "out.wav").unlink()
    elif what == "a wrong code":
        code, said = 2, "timbre-palette: song.wav: no\n"
        (tmp_path / "out.wav").unlink()
    elif what == "too much memory":
        memory = 2 * fuzz.GIGABYTE
    elif what == "a hang":
        seconds = 1000.0
    wrong = fuzz.faults(case, code, "", said, before, tmp_path, seconds, memory, 60.0)
    assert (not wrong) if what == "nothing" else len(wrong) >= 1, wrong


def test_every_way_to_alter_bytes_alters_them():
    data = bytes(range(256)) * 40
    for how, alter in fuzz.BYTES.items():
        assert any(alter(random.Random(seed), data) != data for seed in range(4)), how


# What it found

def one_line(capsys, *words):
    "The line of error of a command that ends with exit code 2."
    capsys.readouterr()
    assert main(list(words)) == 2
    line, = capsys.readouterr().err.splitlines()
    return line


def test_kept_results_that_are_not_text(tmp_path, capsys):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "tcn-0.json").write_bytes('{"a": 1}'.encode("utf-16"))
    assert "tcn-0.json: cannot be read" in one_line(capsys, "tables", "--write", "--tables", "5", "--budget", "cpu", "--kept", str(tmp_path / "kept"), "-o", str(tmp_path / "out"))


@pytest.mark.parametrize("arguments", ({"width": 10 ** 6, "depth": 4}, {"width": 4, "depth": 10 ** 9}, {"width": 10 ** 12}, {"width": [], "depth": {}}, {"version": {}}, {"styles": 0, "depth": 0, "width": 0}, []), ids=str)
def test_a_card_that_asks_for_more_than_its_weights_are(arguments, tmp_path):
    shutil.copytree(WEIGHTS / "waveunet-v2", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "card.json").read_text(encoding="utf-8"))
    (tmp_path / "model" / "card.json").write_text(json.dumps({**card, "arguments": arguments}))
    with pytest.raises(PaletteError, match="damaged or not one of this package") as caught:
        Pretrained.from_pretrained(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_numbers(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file
    shutil.copytree(WEIGHTS / "graybox", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = min(weights)
    save_file({**weights, name: torch.full_like(weights[name], torch.nan)}, path)
    with pytest.raises(PaletteError, match="not all finite"):
        Pretrained.from_pretrained(tmp_path / "model")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("words", (("enhance", "song.wav", "-o", "out.wav", "--model", "dsp"), ("match", "song.wav", "-o", "whole.wav", "--settings", "some.json", "--save", "out.json"), ("figures", "song.wav", "-o", "out.wav")), ids=lambda words: words[0])
def test_a_pipe_is_not_replaced_by_a_file(words, tmp_path, capsys, monkeypatch):
    "As `/dev/null` would be, where the user may."
    monkeypatch.chdir(tmp_path)
    fuzz.soundfile.write("song.wav", np.zeros((3000, 1)), 44100)
    (tmp_path / "some.json").write_text(json.dumps(fuzz.SETTINGS))
    out = next(word for word in words if word.startswith("out."))
    os.mkfifo(out)
    one_line(capsys, *words)
    assert (tmp_path / out).is_fifo() and not (tmp_path / "whole.wav").exists()


def test_rates_that_nothing_is_recorded_at(tmp_path, capsys):
    for rate in (1, 7, 999, 1_000_001):
        path = tmp_path / f"{rate}.wav"
        fuzz.soundfile.write(path, np.zeros((100, 1)), rate)
        assert "header is damaged" in one_line(capsys, "enhance", str(path), "-o", str(tmp_path / "out.wav"))
        with pytest.raises(PaletteError):
            read_header(path)


def test_parts_of_a_run_are_added(tmp_path):
    out, count = tmp_path / "found.json", lambda n: (fuzz.Counter({("card", "one line"): n}), fuzz.Counter({"one line": 1}), [])
    assert fuzz.add_to(out, 0, [0, 5], *count(5))[0] == {("card", "one line"): 5}
    assert fuzz.add_to(out, 0, [5, 9], *count(4))[:2] == ({("card", "one line"): 9}, {"one line": 2})
    assert json.loads(out.read_text())["numbers"] == [[0, 5], [5, 9]]
    assert fuzz.add_to(out, 0, [4, 6], *count(2))[0] == {("card", "one line"): 2}  # again, so anew
    assert fuzz.add_to(out, 1, [6, 8], *count(2))[0] == {("card", "one line"): 2}  # another seed


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frames", (1, 2, 3, 100))
@pytest.mark.parametrize("rate", (1000, 44100, 999999))
def test_a_few_samples_have_a_spectrum(frames, rate, tmp_path, capsys):
    fuzz.soundfile.write(tmp_path / "song.wav", np.full((frames, 6), 0.1), rate, subtype="FLOAT")
    assert main(["info", str(tmp_path / "song.wav")]) == 0 and f"{rate} Hz" in capsys.readouterr().out


@pytest.mark.parametrize("model", ("dsp", "graybox", "blackbox", "waveunet-v2"))
def test_one_frame_at_a_high_rate(model, tmp_path):
    "It is shorter than a frame of the rate that a network works at."
    fuzz.soundfile.write(tmp_path / "song.wav", np.full((1, 2), 0.1), 999999, subtype="FLOAT")
    assert main(["enhance", str(tmp_path / "song.wav"), "-o", str(tmp_path / "out.wav"), "--model", model]) == 0
    assert fuzz.soundfile.info(tmp_path / "out.wav").frames == 1


def test_a_wav_of_an_unknown_codec_named_m4a(tmp_path, capsys):
    pytest.importorskip("av", reason="PyAV is not installed (extra m4a)")
    fuzz.soundfile.write(tmp_path / "song.wav", np.zeros((3000, 1)), 44100, subtype="PCM_16")
    data = bytearray((tmp_path / "song.wav").read_bytes())
    data[20:22] = b"\x34\x12"  # the tag of the format
    (tmp_path / "song.m4a").write_bytes(data)
    assert "song.m4a: has no audio in it that can be decoded" in one_line(capsys, "info", str(tmp_path / "song.m4a"))
