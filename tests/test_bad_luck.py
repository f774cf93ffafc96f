"""A disk that fills up under every command that writes, a song that changes while it is read; kills are in `scripts/kill.py`, and a small part of them here."""
import os
import signal

import numpy as np
import pytest

from conftest import script
from timbre_palette.audio import BLOCK, PaletteError, open_audio, read_audio, write_audio

resource = pytest.importorskip("resource", reason="files cannot be limited on this system")
kill = script("kill")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return kill.Range(tmp_path_factory.mktemp("range"), 0)


def on_a_full_disk(words, log, room):
    "A command, in a process whose files may have `room` bytes."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    kill.work(words, log)


FULL = {  # bytes, and how many lines of error
    "enhance": (300_000, 1), "enhance a folder": (300_000, 5), "match": (200_000, 1), "transfer": (50_000, 1), "export": (500, 1), "learn": (300, 1), "train": (300, 1), "tables": (2000, 1),
}


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="files cannot be limited here")
@pytest.mark.parametrize("name", FULL)
def test_a_full_disk(name, place, tmp_path):
    "One line, exit code 2, songs as they were, and neither half a result nor a temporary file."
    room, lines = FULL[name]
    log, out = tmp_path / "log.txt", tmp_path / "out"
    out.mkdir()
    words = [word.replace("SONGS", str(place.songs)).replace("OUT", str(out)) for word in kill.COMMANDS[name].words]
    child = place.processes.Process(target=on_a_full_disk, args=(words, log, room))
    child.start()
    child.join(120)
    said = log.read_text(errors="replace").strip().splitlines()
    errors = [line for line in said if line.startswith("timbre-palette: ")]
    assert child.exitcode == 2 and errors and "cannot be" in errors[0] and "Traceback" not in " ".join(said) and len(said) <= lines + 3, said
    assert kill.contents(place.songs) == place.original
    left = [path.name for path in out.rglob("*") if path.is_file()]
    assert not [file for file in left if file.endswith((".part", ".wav", ".flac", ".onnx", ".safetensors")) and "examples" not in file], left
    if not kill.COMMANDS[name].goes_on:
        assert not left


@pytest.mark.parametrize("what", ("grows", "is cut", "is written again", "is replaced", "is removed"))
def test_a_song_that_changes_while_it_is_read(what, tmp_path):
    path = tmp_path / "song.wav"
    write_audio(path, 0.1 * np.ones((1, 4 * BLOCK)), 44100)
    whole = path.read_bytes()
    os.utime(path, (1, 1))
    with open_audio(path) as reader, pytest.raises(PaletteError, match="was changed or removed while it was read|not audio") as caught:
        for number, _ in enumerate(reader.blocks()):
            if number == 1:
                if what == "is replaced":
                    (tmp_path / "new").write_bytes(whole)
                    os.replace(tmp_path / "new", path)
                elif what == "is removed":
                    path.unlink()
                else:
                    path.write_bytes({"grows": whole + bytes(1000), "is cut": whole[:-1000]}.get(what, whole))
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert read_audio(path).frames == 4 * BLOCK


@pytest.mark.parametrize("name", ("enhance", "match"))
def test_some_kills(name, place):
    "Three of `scripts/kill.py`, one by each signal."
    whole, seconds = place.undisturbed(name)
    for number, how in enumerate(kill.SIGNALS):
        out = place.folder / f"{name}-killed-{number}"
        code, said = place.run(kill.COMMANDS[name], out, seconds * (0.3 + 0.2 * number), how)
        assert not place.lost(name, code, said, out, how, whole)
