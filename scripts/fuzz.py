"""Give every command and reader what breaks programs: `python scripts/fuzz.py [--cases 6000] [--seconds S] [--seed 0] [--workers 2]`.

Sound files cut and altered, of absurd rates, lengths and contents, in strange places; settings, recipes, cards, weights, training states and kept results that say what they should not; pickles that would write a file.
Each case is a function of the seed and its number: `--only 17` makes number 17 again and shows what came of it. A case runs in a process forked from one that has imported everything, every 25th by the installed
command. It has to end well with a right result, or with exit code 2 and one line, within `--limit` seconds and a gigabyte, with what was given unchanged, and nothing written but what was asked for, whole.
Prints what happened, by kind of case, and ends with 1 if anything else did.
"""
import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process whose threads have begun cannot be forked

import numpy as np
import soundfile
from tqdm import tqdm

GIGABYTE = 2 ** 30
MARK = "executed"  # the file that hostile code would write
RATE = 44100


@dataclass(frozen=True)
class Case:
    "What is run: a command's words or `call`, a reader and its file, in a folder where the files lie."
    kind: str
    what: str
    words: tuple
    outputs: tuple = ()  # that may be there behind it; folders too
    code: int | None = None  # the exit code, where it is known
    frames: int | None = None  # of the output, where they are known
    lines: int = 1  # of an error


# What is done to files

def sound(draw, frames=None, channels=None):
    "A chord with some noise `(time, channels)`."
    frames, channels = frames or draw.choice([3000, 13230]), channels or draw.choice([1, 2])
    noise = np.random.default_rng(draw.getrandbits(32))
    t = np.arange(frames)[:, None] / RATE
    return sum(0.15 * np.sin(2 * np.pi * hz * t + np.arange(channels)) for hz in (110, 440, 3520)) + 0.02 * noise.standard_normal((frames, channels))


ENCODINGS = [("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "PCM_U8", "PCM_32", "DOUBLE", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")] + 3 * [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")] + [
    ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "FLOAT"), ("AIFF", "PCM_16"), ("AIFF", "PCM_S8"), ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("CAF", "PCM_24"), ("CAF", "ALAC_16"), ("FLAC", "PCM_24"), ("OGG", "OPUS"),
    ("VOC", "PCM_16"), ("NIST", "PCM_16"), ("IRCAM", "FLOAT"), ("AVR", "PCM_16"), ("MAT4", "PCM_16"), ("MAT5", "FLOAT"), ("PAF", "PCM_16"), ("PVF", "PCM_16"), ("SVX", "PCM_16"), ("SDS", "PCM_16"), ("XI", "DPCM_16"), ("HTK", "PCM_16")]
SUFFIXES = {"FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3", "AIFF": ".aiff", "M4A": ".m4a"}
MONO = {"SVX", "XI", "HTK", "SDS", "GSM610"}


def encoded(draw):
    "The bytes of a sound file, and its container."
    if draw.random() < 0.06:
        return m4a(draw), "M4A"
    container, subtype = draw.choice(ENCODINGS)
    file = io.BytesIO()
    soundfile.write(file, sound(draw, channels=1 if {container, subtype} & MONO else None), 48000 if subtype == "OPUS" else 44100, format=container, subtype=subtype)
    return file.getvalue(), container


def m4a(draw):
    "The bytes of an M4A file, or a WAV's where PyAV is missing."
    x = sound(draw, 13230, 1).astype(np.float32)
    try:
        import av
    except ImportError:
        file = io.BytesIO()
        soundfile.write(file, x, RATE, format="WAV")
        return file.getvalue()
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(x.T, "fltp", "mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


def spot(draw, data):
    "A place in some bytes, mostly near the beginning, where headers are."
    return min(len(data) - 1, draw.choice([draw.randrange(48), draw.randrange(48), draw.randrange(4096), draw.randrange(len(data))]))


def set_bytes(data, at, new):
    "`data` with the bytes `new` at a place."
    return data[:at] + new + data[at + len(new):]


NUMBERS = (0, 1, 2, 255, 32767, 32768, 65535, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 63 - 1, 2 ** 64 - 1)


def extreme(draw, data):
    "A number of the header becomes an extreme one."
    size, order = draw.choice([1, 2, 4, 4, 8]), draw.choice(["little", "big"])
    return set_bytes(data, spot(draw, data) & -draw.choice([1, 2, 4]), (draw.choice(NUMBERS) % 256 ** size).to_bytes(size, order))


def replaced(draw, data):
    "A range of bytes becomes another."
    at, size = spot(draw, data), draw.choice([4, 64, 1000])
    return set_bytes(data, at, draw.choice([bytes(size), b"\xff" * size, draw.randbytes(size)]))


def shifted(draw, data):
    "Bytes are put in, or taken out, or come twice."
    at, size = spot(draw, data), draw.choice([1, 2, 16, 700])
    return draw.choice([data[:at] + draw.randbytes(size) + data[at:], data[:at] + data[at + size:], data[:at + size] + data[at:]])


def flipped(draw, data):
    "Some bits are others."
    changed = bytearray(data)
    for _ in range(draw.choice([1, 3, 30])):
        changed[spot(draw, data)] ^= 1 << draw.randrange(8)
    return bytes(changed)


BYTES = {
    "cut": lambda draw, data: data[:draw.choice([draw.randrange(64), draw.randrange(len(data))])],
    "an extreme number": extreme, "two extreme numbers": lambda draw, data: extreme(draw, extreme(draw, data)), "replaced": replaced, "shifted": shifted, "flipped": flipped,
    "only noise behind the header": lambda draw, data: data[:draw.choice([44, 128])] + draw.randbytes(len(data)),
    "two in a row": lambda draw, data: data + data[draw.choice([0, 4, 44]):], "words": lambda draw, data: b"this is no such file\n" * draw.choice([1, 500]), "noise": lambda draw, data: draw.randbytes(draw.choice([1, 50, 5000])),
}


def damaged(draw, data):
    "Bytes that were altered, and how."
    how = draw.choice([*BYTES, "an extreme number", "flipped", "replaced", "cut"])
    return BYTES[how](draw, data), how


VALUES = (None, True, False, 0, 1, -1, 0.5, 7, 2 ** 31, 10 ** 12, -10 ** 12, 1e308, float("nan"), float("inf"), 10 ** 400, "", "x", "\x00", "../../../etc/passwd", "words " * 20000, [], {}, [0], [[[]]], {"a": 1}, {"": {}},
          ["x"] * 1000, "__import__('os').system('touch executed')", "10000000")


def places(value, at=()):
    "The places in nested lists and dictionaries."
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield (*at, key)
        yield from places(one, (*at, key))


def changed_value(draw, value):
    "A JSON value of which something is changed, and what."
    found = list(places(value))
    if not found or draw.random() < 0.04:
        return draw.choice(VALUES), "another value"
    value = copy.deepcopy(value)
    place = draw.choice(found)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    how, key = draw.choice(["value", "value", "value", "value", "removed", "renamed", "deep"]), place[-1]
    if how == "value":
        holder[key] = draw.choice(VALUES)
    elif how == "removed":
        del holder[key]
    elif how == "renamed" and isinstance(holder, dict):
        holder[draw.choice(["", "x", "class", "../x", "model", "self", "__class__", str(key) + " "])] = holder.pop(key)
    else:
        deep = []
        for _ in range(400):
            deep = [deep]
        holder[key] = deep
    return value, f"{'.'.join(map(str, place))[:60]} {how}"


PICKLE = b"cbuiltins\nopen\n(Vexecuted\nVw\ntR."  # opens a file to write, where it is unpickled


def altered_json(draw, value):
    "The bytes of a JSON or YAML file that says something else, and what."
    way = draw.random()
    if way < 0.7:
        value, how = changed_value(draw, value)
        return json.dumps(value).encode(), how
    if way < 0.9:
        return damaged(draw, json.dumps(value, indent=1).encode())
    how = draw.choice(["pickle", "brackets", "yaml code", "yaml aliases", "utf-16", "twice"])
    return {"pickle": PICKLE, "brackets": b"[" * 100000, "yaml code": b"model: !!python/object/apply:os.system ['touch executed']\n", "utf-16": json.dumps(value).encode("utf-16"),
            "yaml aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(9)) + b"model: *j\n",
            "twice": json.dumps(value).encode()[:-1] + b', "model": "GrayBox", "model": "BlackBox", "settings": {}}'}[how], how


# Kinds of cases. Each writes its files into the folder `here` and returns a `Case`; `base` is a folder of `make_run`.

def listener(draw, name, out="out.wav"):
    "A command that hears a file, `(words, outputs)`; cheap ones come more often."
    path = name if not name.startswith("-") else f"./{name}"
    enhance = lambda model, style="s50_a30_m20": (("enhance", path, "-o", out, "--style", style, "--model", model), (out,))
    match = lambda *more: (("match", path, "-o", out, *more), (out,))
    ways = [(9, enhance("dsp")), (5, enhance("graybox")), (2, enhance("blackbox")), (1, enhance("waveunet-v2")), (2, enhance("dsp", "layeredness")), (5, (("info", path), ())), (1, match()), (1, match("--preset", "warm")),
            (1, match("--reference", path)), (1, (("transfer", path, "-o", out), (out,))), (2, (("call", "read_audio", path), ())), (2, (("call", "read_header", path), ())), (1, (("call", "read part", path), ()))]
    return draw.choices([way for _, way in ways], [weight for weight, _ in ways])[0]


def damaged_sound(draw, here, base):
    data, container = encoded(draw)
    data, how = damaged(draw, data)
    name = "song" + (SUFFIXES.get(container, ".wav") if draw.random() < 0.9 else draw.choice([".wav", ".mp3", ".m4a", ".ogg", ".flac"]))
    (here / name).write_bytes(data)
    words, outputs = listener(draw, name)
    return Case("damaged sound", f"{container} {how}", words, outputs)


def square(frames):
    "Full scale, up and down."
    return np.sign(np.sin(np.arange(frames) * 0.07) + 1e-9)


CONTENTS = {  # samples of one channel, and the exit code that is right
    "NaN": (lambda draw, x: np.where(np.arange(len(x)) == draw.randrange(len(x)), np.nan, x), 2), "Inf": (lambda draw, x: np.where(np.arange(len(x)) == draw.randrange(len(x)), -np.inf, x), 2),
    "all NaN": (lambda draw, x: x * np.nan, 2), "beyond 1e9": (lambda draw, x: x * 1e30, 2), "denormal": (lambda draw, x: x * 1e-39, 0), "hardly there": (lambda draw, x: x * 1e-9, 0), "loud": (lambda draw, x: x * 1e6, 0),
    "silence": (lambda draw, x: x * 0, 0), "constant": (lambda draw, x: x * 0 + draw.choice([1, -1, 0.1]), 0), "square": (lambda draw, x: square(len(x)), 0), "one click": (lambda draw, x: (np.arange(len(x)) == 5) * 1.0, 0),
    "one frame": (lambda draw, x: x[:1], 0), "two frames": (lambda draw, x: x[:2], 0), "some frames": (lambda draw, x: x[:draw.randrange(3, 3000)], 0), "no frame": (lambda draw, x: x[:0], 2),
    "highest": (lambda draw, x: np.cos(np.pi * np.arange(len(x))), 0), "half silent": (lambda draw, x: x * (np.arange(len(x)) > len(x) / 2), 0),
}


def strange_sound(draw, here, base):
    how = draw.choice(list(CONTENTS))
    change, code = CONTENTS[how]
    x = change(draw, sound(draw, channels=1)[:, 0])
    channels = draw.choice([1, 1, 2, 2, 3, 6, 8, 9, 40])
    rate = draw.choice([44100, 44100, 44100, 48000, 8000, 22050, 96000, 192000, 11025, 1, 7, 100, 3999, 999999, 1000001, 2 ** 31 - 1])
    x = np.tile(x[:, None], (1, channels))
    if draw.random() < 0.2:
        x[:, 1:] = 0
    soundfile.write(here / "song.wav", x, rate, subtype="FLOAT")
    words, outputs = listener(draw, "song.wav")
    sure = words[0] in ("enhance", "info") and 8000 <= rate <= 192000
    header = words[:2] == ("call", "read_header")
    return Case("strange sound", f"{how}, {channels} channels, {rate} Hz", words, outputs, code if sure and not header else None, len(x) if sure and code == 0 and words[0] == "enhance" else None)


LONG = 255  # bytes that a name may have


def strange_place(draw, here, base):
    x, name, code = sound(draw, 3000, 1), "song.wav", 0
    how = draw.choice(["unicode", "half a character", "long", "dash", "line break", "escape", "link", "dangling", "circle", "pipe", "folder", "device", "no folder", "out is a folder", "out is the song", "out is too long", "out links to the song",
                       "out is a pipe", "out is there", "unknown suffix", "spaces", "a hundred folders deep", "no suffix", "a glob", "null"])
    song, out, outputs = here / name, "out.wav", None
    names = {"unicode": "пе́сня 歌曲 🎺.wav", "half a character": os.fsdecode(b"s\xff\xfeng.wav"), "long": "é" * ((LONG - 4) // 2) + ".wav", "dash": "-o --style.wav", "line break": "a\nb\rc.wav", "escape": "\x1b[2J\x07.wav", "spaces": "  .wav",
             "no suffix": "song", "a glob": "[a-z]*?.wav"}
    if how in names:
        name = names[how]
        soundfile.write(os.fsencode(here / name), x, RATE, format="WAV")
    elif how == "link":
        (here / "there").mkdir()
        soundfile.write(here / "there" / "real.wav", x, RATE)
        song.symlink_to("there/real.wav")
    elif how == "dangling":
        song.symlink_to("nowhere.wav")
        code = 2
    elif how == "circle":
        song.symlink_to("other.wav")
        (here / "other.wav").symlink_to("song.wav")
        code = 2
    elif how == "pipe":
        os.mkfifo(song)
        code = 2
    elif how == "folder":
        song.mkdir()
        code, outputs = 2, ()
    elif how in ("device", "null"):
        name, code = {"device": "/dev/zero", "null": "/dev/null"}[how], 2
    elif how == "a hundred folders deep":
        name = "/".join(["d" * 30] * 100) + "/song.wav"
        (here / name).parent.mkdir(parents=True)
        (here / name).write_bytes(encoded(draw)[0])  # its path is longer than libsndfile takes
        code = None
    else:
        soundfile.write(song, x, RATE)
    out_code = 2
    if how == "no folder":
        out = "nowhere/out.wav"
    elif how == "out is a folder":
        (here / "out.wav").mkdir()
        outputs = ()
    elif how == "out is the song":
        out, outputs = "song.wav", ()
    elif how == "out links to the song":
        (here / "out.wav").symlink_to("song.wav")
        outputs = ()
    elif how == "out is too long":
        out = "x" * 300 + ".wav"
    elif how == "out is a pipe":
        os.mkfifo(here / "out.wav")
        outputs, out_code = (), None
    elif how == "out is there":
        (here / "out.wav").write_bytes(b"precious")
        out_code = 0
    elif how == "unknown suffix":
        out = "out.xyz"
    else:
        out_code = 0
    words, made = listener(draw, name, out)
    if how == "device" and words[0] == "call":
        words, made = ("info", name), ()
    heard = words[0] in ("enhance", "info") and how not in ("a glob", "half a character")
    wanted = None if not heard or None in (code, out_code) or how == "folder" else max(code, out_code if made else 0)
    return Case("strange place", how, words, made if outputs is None else outputs, wanted, 3000 if wanted == 0 and words[0] == "enhance" else None, 3 if how == "folder" else 1)


def folder_of_songs(draw, here, base):
    (here / "songs").mkdir()
    for n in range(draw.choice([1, 3])):
        data, container = encoded(draw)
        data, _ = damaged(draw, data) if n or draw.random() < 0.5 else (data, "")
        (here / "songs" / f"{n}{SUFFIXES.get(container, '.wav')}").write_bytes(data)
    if draw.random() < 0.3:
        os.mkfifo(here / "songs" / "pipe.wav")
        (here / "songs" / "link.wav").symlink_to("..")
    small = ("--set", "steps=2", "batch=1", "validate_every=1", "validation_batches=1", "seconds=0.05", "polish=0", "--device", "cpu")
    words, outputs = draw.choice([(("enhance", "songs", "-o", "done", "--model", "dsp"), ("done",)), (("enhance", "songs", "-o", "done", "--model", "graybox", "--format", "flac"), ("done",)), (("info", *sorted(f"songs/{p.name}" for p in (here / "songs").iterdir())), ()),
                                  (("call", "find_tracks", "songs"), ()), (("train", "graybox", "--data", "songs", "--out", "run", *small), ("run",)), (("evaluate", "songs", "--models", "dsp", "--seconds", "0.2"), ()),
                                  (("learn", "mine", "-c", "tape=python:tape.py:tape", "-d", "songs", "-o", "mine", "--kind", "static", "--steps", "2", "--device", "cpu"), ("mine",)), (("bench", "-d", "songs", "--steps", "0"), ())])
    (here / "tape.py").write_text("import numpy as np\ndef tape(x, sample_rate):\n    return np.tanh(2 * x) / 2\n")
    return Case("folder of songs", words[0], words, outputs, lines=20)


SETTINGS = {"about": {"reference": "x"}, "settings": {"equaliser": {"low_shelf_gain_db": 2.0, "low_shelf_cutoff_hz": 90.0, "band0_gain_db": -1.5}, "compressor": {"threshold_db": -20.0, "ratio": 3.0, "attack_ms": 5.0, "makeup_gain_db": 1.0}}}


def settings(draw, here, base):
    data, how = altered_json(draw, SETTINGS)
    (here / "settings.json").write_bytes(data)
    soundfile.write(here / "song.wav", sound(draw, 3000, 2), RATE)
    words, outputs = draw.choice([(("call", "load_settings", "settings.json"), ()), (("match", "song.wav", "-o", "out.wav", "--settings", "settings.json"), ("out.wav",))])
    return Case("settings", how, words, outputs)


def recipe(draw, here, base):
    from timbre_palette.recipe import RECIPES, write_recipe
    import yaml
    data, how = altered_json(draw, yaml.safe_load(write_recipe(RECIPES[draw.choice(["graybox", "paper-v2", "style-music", "timbre-flute"])])))
    (here / "recipe.yaml").write_bytes(data)
    (here / "songs").mkdir()
    soundfile.write(here / "songs" / "song.wav", sound(draw, 13230, 1), RATE)
    return Case("recipe", how, draw.choice([("call", "find_recipe", "recipe.yaml"), ("train", "recipe.yaml", "--data", "songs", "--show")]))


USES = {  # of weights, by their shipped name: words that use the folder `model`
    "graybox": [("enhance", "song.wav", "-o", "out.wav", "--model", "model"), ("export", "out.onnx", "--style", "warmth", "--model", "model")],
    "blackbox": [("enhance", "song.wav", "-o", "out.wav", "--model", "model")], "waveunet-v2": [("enhance", "song.wav", "-o", "out.wav", "--model", "model")],
    "timbre-flute": [("transfer", "song.wav", "-o", "out.wav", "--to", "model")], "style-music": [("match", "song.wav", "-o", "out.wav", "--model", "model")],
    "instrument-classifier": [], "proxy-compressor-music": [],
}


def copied_weights(draw, here):
    "Shipped weights in the folder `model`, and the case's words."
    from timbre_palette.checkpoint import WEIGHTS
    name = draw.choice(["graybox", "graybox", "graybox", "blackbox", "timbre-flute", "timbre-flute", "instrument-classifier", "proxy-compressor-music", "waveunet-v2", "style-music"])
    shutil.copytree(WEIGHTS / name, here / "model")
    words = draw.choice([("call", "from_pretrained", "model"), *USES[name], *USES[name]])
    if words[0] != "call":
        t = np.arange(22050) / RATE
        soundfile.write(here / "song.wav", 0.3 * np.sin(2 * np.pi * 900 * t + 3 * np.sin(30 * t)), RATE)
    return name, words


def outputs_of(words):
    "What a command of weights writes."
    return () if words[0] == "call" else (words[1],) if words[0] == "export" else ("out.wav",)


def card(draw, here, base):
    name, words = copied_weights(draw, here)
    path = here / "model" / "card.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    way = draw.random()
    if way < 0.35:
        described["class"] = draw.choice([*VALUES, "os.system", "Pretrained", "Module", "timbre_palette.model.ConditionalWaveUNet", "BlackBox", "GrayBox", "TCN", "ConvTasNet", "SpectrogramUNet", "SpecTransformer", "WaveformAutoencoder", "BiLSTMAttention"])
        data, how = json.dumps(described).encode(), f"class {str(described['class'])[:30]}"
    elif way < 0.75:
        described["arguments"], how = changed_value(draw, described["arguments"] or {"width": 8, "depth": 3})
        if draw.random() < 0.3 and isinstance(described["arguments"], dict):
            described["arguments"][draw.choice(["width", "depth", "layers", "channels", "sizes", "rate", "dtype", "device", "taps", "heads"])] = draw.choice(VALUES)
        data = json.dumps(described).encode()
    else:
        data, how = altered_json(draw, described)
    path.write_bytes(data)
    return Case("card", f"{name}: {how}", words, outputs_of(words))


def split_tensors(data):
    "The header of a safetensors file, as JSON, and what follows it."
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), data[8 + size:]


def joined_tensors(header, rest, more=0):
    "A safetensors file."
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", max(0, len(text) + more) % 2 ** 64) + text + rest


SHAPES = ([], [0], [-1], [2 ** 62], [2 ** 31, 2 ** 31], [10 ** 11], [1] * 100, [3, -3], ["x"], None, [1.5])


def tensors(draw, here, base):
    name, words = copied_weights(draw, here)
    path = here / "model" / "model.safetensors"
    data = altered_tensors(draw, path.read_bytes())
    path.write_bytes(data[0])
    return Case("weights", f"{name}: {data[1]}", words, outputs_of(words))


def altered_tensors(draw, data):
    "An altered safetensors file, and how."
    if draw.random() < 0.3:
        return damaged(draw, data)
    header, rest = split_tensors(data)
    one = draw.choice([key for key in header if key != "__metadata__"])
    how = draw.choice(["shape", "dtype", "offsets", "json", "renamed", "removed", "added", "values", "values", "length", "pickle", "path"])
    if how == "shape":
        header[one]["shape"] = draw.choice(SHAPES)
    elif how == "dtype":
        header[one]["dtype"] = draw.choice(["F64", "BF16", "F16", "I64", "BOOL", "F8_E4M3", "X", "", None])
    elif how == "offsets":
        header[one]["data_offsets"] = draw.choice([[0, 0], [0, 2 ** 60], [-4, 4], [8, 4], [0, len(rest)], [2 ** 63, 2 ** 63 + 4], []])
    elif how == "json":
        header, _ = changed_value(draw, header)
    elif how == "renamed":
        header[draw.choice(["", "x", "../../x", one.upper(), "__class__"])] = header.pop(one)
    elif how == "removed":
        del header[one]
    elif how == "added":
        header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(rest), len(rest) + 4]}
        rest += bytes(4)
    elif how == "values":
        begin, end = header[one]["data_offsets"]
        fill = draw.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\0", b"\1\0\0\0", draw.randbytes(4), b"\0\0\xa0\xc9"])
        rest = set_bytes(rest, begin, fill * ((end - begin) // 4))
    elif how == "path":
        header["__metadata__"] = {"format": "pt", "file": "../../../etc/passwd", "state": "[" * 5000}
    more = draw.choice([1, -1, 2 ** 40, 2 ** 63, -len(header)]) if how == "length" else 0
    return (PICKLE, how) if how == "pickle" else (joined_tensors(header, rest, more), f"{one} {how}")


TRAIN = ("graybox", "--data", "songs", "--out", "run", "--set", "steps=2", "batch=1", "validate_every=1", "validation_batches=1", "seconds=0.05", "polish=0", "--device", "cpu")


def make_run(folder):
    "A training run of one step, to be altered: `songs` and `run`."
    (folder / "songs").mkdir(parents=True)
    draw = random.Random(0)
    for n in range(3):
        soundfile.write(folder / "songs" / f"{n}.wav", sound(draw, 44100, 1), RATE)
    child = fork(lambda: ran(("train", *TRAIN), folder, folder / "log"))
    os.waitpid(child, 0)
    if not (folder / "run" / "state.safetensors").is_file():
        sys.exit(f"no run could be made: {(folder / 'log.err').read_text()}")


def run_of(draw, here, base):
    shutil.copytree(base, here, dirs_exist_ok=True)
    for log in here.glob("log*"):
        log.unlink()
    name = draw.choice(["state.safetensors", "state.safetensors", "songs.json", "recipe.yaml", "best/card.json", "best/model.safetensors"])
    path = here / "run" / name
    if name.endswith(".safetensors"):
        data, how = altered_tensors(draw, path.read_bytes())
        if name.startswith("state") and draw.random() < 0.5:
            header, rest = split_tensors(path.read_bytes())
            state, how = changed_value(draw, json.loads(header["__metadata__"]["state"]))
            header["__metadata__"]["state"] = json.dumps(state)
            data = joined_tensors(header, rest)
    elif name.endswith(".json"):
        data, how = altered_json(draw, json.loads(path.read_text(encoding="utf-8")))
    else:
        data, how = damaged(draw, path.read_bytes())
    path.write_bytes(data)
    return Case("training state", f"{name}: {how}", ("train", *TRAIN), ("run",))


def kept_results(draw, here, base):
    kept = Path(__file__).parent.parent / "nbs" / "results" / "data"
    if draw.random() < 0.5:
        source = draw.choice(sorted((kept / "units").glob("*.json")))
        (here / "kept").mkdir()
        data, how = altered_json(draw, json.loads(source.read_text(encoding="utf-8")))
        (here / "kept" / source.name).write_bytes(data)
        words = ("tables", "--write", "--tables", draw.choice("3456"), "--budget", "cpu", "--kept", "kept", "-o", "out")
    else:
        (here / "out").mkdir()
        budget = {"budget": "tiny", "songs": ["x"], "speech": [], "solos": []}
        path = here / "out" / draw.choice(["budget.json", "costs.json", "gradients.json"])
        data, how = altered_json(draw, budget)
        path.write_bytes(data)
        words = ("tables", "--paper", draw.choice(["deepafx-st", "timbrepalette"]), "--write", "--tables", "2", "-o", "out")
    return Case("kept results", how, words, ("out",))


KINDS = {damaged_sound: 56, strange_sound: 12, strange_place: 8, folder_of_songs: 3, settings: 4, recipe: 3, card: 6, tensors: 6, run_of: 2, kept_results: 0.5}


def make_case(seed, number, here, base):
    "The case of that number; its files are written to the folder `here`."
    draw = random.Random(f"{seed}:{number}")
    kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
    return kind(draw, here, base)


# Running them

def readers():
    "What `call` may call, by name."
    from timbre_palette.audio import read_audio, read_header
    from timbre_palette.checkpoint import Pretrained
    from timbre_palette.effects.settings import load_settings
    from timbre_palette.recipe import find_recipe
    from timbre_palette.songs import find_tracks
    return {"read_audio": read_audio, "read_header": read_header, "read part": lambda path: read_audio(path, 100, 500), "from_pretrained": Pretrained.from_pretrained, "load_settings": load_settings,
            "find_recipe": find_recipe, "find_tracks": find_tracks}


def call(name, path):
    "A reader, as a command: 0, or 2 and a line."
    from timbre_palette.audio import PaletteError
    try:
        readers()[name](path)
    except PaletteError as error:
        text = str(error).replace(path, path.replace("\n", "\\n").replace("\r", "\\r"))  # as the command shows a name
        sys.stderr.write(f"timbre-palette: {text}\n")
        return 2
    return 0


def ran(words, here, log):
    "Run a case in this process; does not return."
    os.chdir(here)
    for stream, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace") for stream in (1, os.dup(2)))
    sys.argv = ["timbre-palette", *words]
    try:
        if words[0] == "call":
            os.dup2(0, 2)  # decoders have their own notes, which the command does not show either
            code = call(*words[1:])
        else:
            from timbre_palette.cli import run
            run()
            code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def fork(work):
    "The process id of a copy of this process that does `work`, in a session of its own."
    child = os.fork()
    if child:
        return child
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    work()


def highest_memory(pid):
    "The most memory, in bytes, that a process has had."
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def snapshot(folder):
    "What lies in a folder: bytes of files, targets of links, kinds of the rest."
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder))
        found[name] = "-> " + os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder" if path.is_dir() else "other"
    return found


def faults(case, code, printed, said, before, here, seconds, memory, limit):
    "What is wrong behind a case: words."
    wrong, lines = [], said.splitlines()
    if seconds > limit:
        return [f"hangs: killed after {seconds:.0f} s"]
    if code not in (0, 2):
        wrong.append(f"exit code {code}: {(lines or ['nothing said'])[-1][:300]}")
    if "Traceback" in said + printed or "Fatal Python" in said or "Warning" in said:
        wrong.append(f"a traceback or a warning: {(lines or [''])[-1][:300]}")
    if code == 2 and not (0 < len(lines) <= case.lines and all(line.startswith("timbre-palette") or case.lines > 1 for line in lines) and lines[-1].strip()):
        wrong.append(f"{len(lines)} lines of error: {said[:300]!r}")
    if max(map(len, lines), default=0) > 4000:
        wrong.append(f"a line of {max(map(len, lines))} characters")
    if memory > GIGABYTE:
        wrong.append(f"{memory / GIGABYTE:.2f} GiB above the idle process")
    if case.code is not None and code != case.code and code in (0, 2):
        wrong.append(f"exit code {code}, where {case.code} is right: {(lines or [''])[-1][:200]}")
    after, allowed = snapshot(here), [os.fsencode(name) for name in case.outputs]
    mine = lambda name: any(name == one or name.startswith(one + b"/") for one in allowed)
    wrong += [f"{name!r} was changed" for name in before if not mine(name) and after.get(name) != before[name]]
    wrong += [f"{name!r} was left" for name in after if name not in before and not mine(name)]
    wrong += [f"an unfinished file was left: {name!r}" for name in after if name not in before and name.endswith(b".part")]
    files = [name for name in after if mine(name) and after[name] != "folder" and after[name] != before.get(name)]
    if code != 0 and case.lines == 1 and case.kind not in ("training state", "kept results"):
        wrong += [f"{name!r} was written in spite of an error" for name in files]
    if code == 0 and case.words[0] in ("enhance", "match", "transfer") and case.lines == 1 and case.outputs and not files:
        wrong.append("ended well without an output")
    for name in files:
        if name.endswith((b".wav", b".flac")) and not name.startswith(b"run"):
            wrong += sound_faults(here, name, case)
    return wrong


def sound_faults(here, name, case):
    "What is wrong with sound that was written."
    try:
        samples, _ = soundfile.read(os.fsencode(here) + b"/" + name, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        return [f"{name!r} cannot be read: {error}"]
    if not np.isfinite(samples).all():
        return [f"{name!r} is not finite"]
    return [f"{name!r} has {len(samples)} frames, not {case.frames}"] if case.frames is not None and len(samples) != case.frames else []


class Range:
    "Where cases run: a folder for each, and some processes at a time."
    def __init__(self, folder, seed, limit, every=25):
        self.folder, self.seed, self.limit, self.every = Path(folder).resolve(), seed, limit, every
        os.environ |= {"TIMBRE_PALETTE_CACHE": str(self.folder / "cache"), "TIMBRE_PALETTE_HOME": str(self.folder / "home"), "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"}
        self.warm()
        make_run(self.folder / "base")
        self.command = Path(sys.executable).with_name("timbre-palette")
        self.running, self.idle = {}, highest_memory("self")
        self.idle_command = self.memory_of([str(self.command), "enhance", "songs/0.wav", "-o", "out.wav"]) if every else 0

    def warm(self):
        "Import what cases need, once for all of them."
        import torch
        torch.set_num_threads(1)
        import accelerate.utils
        import matplotlib.pyplot
        import yaml
        import timbre_palette.analysis
        import timbre_palette.bench
        import timbre_palette.cli
        import timbre_palette.colours
        import timbre_palette.style_transfer.match
        import timbre_palette.style_transfer.tables
        import timbre_palette.tables
        import timbre_palette.timbre_transfer.transfer
        import timbre_palette.training
        readers()
        good, out = self.folder / "good.wav", self.folder / "good-out.wav"
        t = np.arange(RATE) / RATE
        soundfile.write(good, 0.3 * np.sin(2 * np.pi * 900 * t + 3 * np.sin(30 * t)), RATE)
        commands = [("enhance", good, "-o", out, "--model", model) for model in ("dsp", "graybox", "blackbox", "waveunet-v2")] + [("match", good, "-o", out), ("match", good, "-o", out, "--preset", "warm"), ("transfer", good, "-o", out), ("info", good)]
        for words in commands:  # models and tables that are kept
            with contextlib.redirect_stdout(io.StringIO()):
                if timbre_palette.cli.main([str(word) for word in words]):
                    sys.exit(f"{words[0]} fails with a good file")

    def memory_of(self, words):
        "The most memory, in bytes, that the installed command has with a good file."
        process = subprocess.Popen(words, cwd=self.folder / "base", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        highest = 0
        while process.poll() is None:
            highest = max(highest, highest_memory(process.pid))
            time.sleep(0.02)
        return highest

    def begin(self, number):
        "Begin a case."
        here = self.folder / f"case-{number}"
        here.mkdir()
        case = make_case(self.seed, number, here, self.folder / "base")
        log, real = self.folder / f"log-{number}", self.every and number % self.every == 0 and case.words[0] != "call"
        before = snapshot(here)
        if real:
            with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
                pid = subprocess.Popen([self.command, *case.words], cwd=here, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True).pid
        else:
            pid = fork(lambda: ran(case.words, here, log))
        self.running[pid] = [number, case, here, log, before, time.monotonic(), 0, self.idle_command if real else self.idle, real]

    def ended(self):
        "Yields (number, case, whether it was the installed command, exit code, what it said, faults) of what has ended."
        for pid, entry in list(self.running.items()):
            number, case, here, log, before, begun, _, idle, real = entry
            entry[6] = memory = max(entry[6], highest_memory(pid) - idle)
            seconds, (done, status) = time.monotonic() - begun, os.waitpid(pid, os.WNOHANG)
            if not done and (seconds > self.limit or memory > 2 * GIGABYTE):
                os.killpg(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0)
            if done:
                del self.running[pid]
                printed, said = (Path(f"{log}.{end}").read_text(encoding="utf-8", errors="replace") for end in ("out", "err"))
                code = os.waitstatus_to_exitcode(status)
                yield number, case, real, code, said, faults(case, code, printed, said, before, here, seconds, memory, self.limit)
                shutil.rmtree(os.fsencode(here), ignore_errors=True)
                for end in ("out", "err"):
                    Path(f"{log}.{end}").unlink()

    def stop(self):
        "End what runs."
        for pid in self.running:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def attack(numbers, seed=0, workers=2, limit=120.0, seconds=None, every=25, progress=None):
    "Run cases, for so many seconds at most, one of `every` so many (0: none) by the installed command: counts by (kind, outcome), those of the installed command by outcome, and failures, a list of dictionaries."
    counts, commands, failures, begun = Counter(), Counter(), [], time.monotonic()
    left = iter(numbers)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place, more = Range(folder, seed, limit, every), True
        try:
            while more or place.running:
                while more and len(place.running) < workers:
                    number = next(left, None)
                    more = number is not None and (seconds is None or time.monotonic() - begun < seconds)
                    if more:
                        place.begin(number)
                ended = list(place.ended())
                for number, case, by_command, code, said, wrong in ended:
                    outcome = "failed" if wrong else {0: "a result", 2: "one line"}[code]
                    counts[case.kind, outcome] += 1
                    commands[outcome] += by_command
                    failures += [{"number": number, "kind": case.kind, "what": case.what, "words": list(case.words), "wrong": wrong}] if wrong else []
                    if progress:
                        progress(number, case, code, said, wrong)
                if not ended:
                    time.sleep(0.003)
        finally:
            place.stop()
    return counts, commands, failures


def add_to(path, seed, numbers, counts, commands, failures):
    "Add a part, the cases of `numbers` from one to another, to those of the same seed in a file: counts and failures of all of them. Cases that are there already begin the file anew."
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if there.get("seed") != seed or any(numbers[0] < last and first < numbers[1] for first, last in there["numbers"]):
        there = {"numbers": [], "counts": {}, "commands": {}, "failures": []}
    counts = counts + Counter({tuple(name.rsplit(": ", 1)): number for name, number in there["counts"].items()})
    commands, failures = commands + Counter(there["commands"]), there["failures"] + failures
    whole = {"seed": seed, "numbers": sorted([*there["numbers"], numbers]), "counts": {f"{kind}: {outcome}": number for (kind, outcome), number in sorted(counts.items())}, "commands": dict(commands), "failures": failures}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return counts, commands, failures


def table(counts, commands):
    "Counts as a table in Markdown."
    columns = ("a result", "one line", "failed")
    kinds = sorted({kind for kind, _ in counts})
    rows = [(kind, [counts[kind, column] for column in columns]) for kind in kinds]
    rows += [("all", [sum(counts[kind, column] for kind in kinds) for column in columns]), ("of these by the installed command", [commands[column] for column in columns])]
    return "\n".join([f"| kind of case | cases | {' | '.join(columns)} |", "|---|---|---|---|---|", *(f"| {name} | {sum(row)} | {' | '.join(map(str, row))} |" for name, row in rows)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=6000, help="in all (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="begin nothing after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS", help="for a case (default: %(default)g)")
    parser.add_argument("--every", type=int, default=25, metavar="N", help="one of so many cases by the installed command, 0: none (default: %(default)s)")
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="these cases, and what came of them")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.json", help="counts and failures; those of other numbers of the seed that are in it are added, so a run can be made in parts")
    options = parser.parse_args()
    numbers = options.only or range(options.first, options.first + options.cases)
    with tqdm(total=len(numbers), disable=None) as bar:
        def progress(number, case, code, said, wrong):
            "Move the bar; failures are told at once."
            bar.update()
            if wrong or options.only:
                bar.clear()
                print(f"{number}: {case.kind}, {case.what}: {' '.join(case.words)[:200]!a}\n   {wrong or [code, said]}", flush=True)
        counts, commands, failures = attack(numbers, options.seed, options.workers, options.limit, options.seconds, options.every, progress)
    if options.out:
        counts, commands, failures = add_to(options.out, options.seed, [options.first, options.first + sum(counts.values())], counts, commands, failures)
    print(table(counts, commands))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
