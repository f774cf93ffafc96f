"""Stop commands at random moments and see that nothing is lost: `python scripts/kill.py [--kills 300] [--seed 0] [--work FOLDER]`.

SIGINT, SIGTERM and SIGKILL in turn, each at a moment drawn from the time that the command takes undisturbed, at: a song and a folder enhanced, a song matched, a whistle played by a trumpet, a style exported,
a model trained, a colour learned, a paper's table made. Songs have to stay as they were, byte for byte. What was written has to be what an undisturbed run writes, or not be there; behind a polite stop nothing else may
lie there, behind a hard one only files that say by their names that they are not finished. What goes on where it was stopped is killed again and again in one folder, and has to end as if nothing had happened.
Prints a table of what happened, and ends with 1 if anything was lost.
"""
import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
PART = re.compile(r"\..*\.part")
CHANGING = ("minutes", "seconds", "seconds_per_step", "waiting_percent", "waited", "ms_per_second", "milliseconds", "rtf", "commit", "hardware")  # what a card says of time is no result


@dataclass(frozen=True)
class Command:
    "A command to be killed: its words, in which SONGS and OUT are folders, and whether the same words go on where it was stopped."
    words: tuple
    goes_on: bool = False
    files: tuple = ()  # results that are compared, by pattern
    tidies: bool = True  # whether what goes on removes what a hard kill left; in a folder of songs it cannot know whose it is


TRAIN = ("--set", "steps=240", "batch=2", "validate_every=20", "validation_batches=1", "seconds=0.1", "arguments={width: 4, depth: 2}", "precision=float32")
COMMANDS = {
    "enhance": Command(("enhance", "SONGS/long.wav", "-o", "OUT/out.wav", "--style", "s33_a33_m33"), files=("out.wav",)),
    "enhance a folder": Command(("enhance", "SONGS/album", "-o", "OUT/album", "--style", "warmth", "--resume"), True, ("album/*.wav",), tidies=False),
    "match": Command(("match", "SONGS/long.wav", "-o", "OUT/out.flac", "--preset", "warm", "--save", "OUT/found.json"), files=("out.flac", "found.json")),
    "transfer": Command(("transfer", "SONGS/whistle.wav", "-o", "OUT/trumpet.wav"), files=("trumpet.wav",)),
    "export": Command(("export", "OUT/style.onnx", "--style", "warmth"), files=("style.onnx",)),
    "train": Command(("train", "paper-v2", "--data", "SONGS/album", "-o", "OUT/run", "--device", "cpu", *TRAIN), True, ("run/best/model.safetensors", "run/best/card.json", "run/state.safetensors")),
    "learn": Command(("learn", "tapes", "--colour", "tape=python:SONGS/tape.py:tape", "--data", "SONGS/album", "--kind", "static", "--steps", "60", "--device", "cpu", "-o", "OUT/tapes"), True,
                     ("tapes/*.safetensors", "tapes/card.json")),
    "tables": Command(("tables", "--paper", "deepafx-st", "-t", "2", "-o", "OUT/tables"), True, ("tables/scores/*/input.json", "tables/scores/*/rb-dsp.json")),
}


def make_songs(folder):
    "A long song, an album, a whistle and a colour in `folder`."
    from timbre_palette.audio import write_audio
    from timbre_palette.synth import demo_clip
    from timbre_palette.timbre_transfer.whistles import whistle
    (folder / "album").mkdir(parents=True)
    write_audio(folder / "long.wav", np.tile(demo_clip(), 4), 44100)
    for n in range(4):
        write_audio(folder / "album" / f"song {n}.wav", demo_clip(seed=n), 44100)
    tune = whistle(1, 8.0)
    write_audio(folder / "whistle.wav", tune.samples, tune.sample_rate)
    (folder / "tape.py").write_text("import numpy as np\ndef tape(x, sample_rate):\n    return np.tanh(2 * x) / 2\n")


def work(words, log):
    "A command, in a process of its own."
    import torch
    from timbre_palette.cli import run
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    file = open(log, "w")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.argv = ["timbre-palette", *words]
    try:
        run()
    except SystemExit as ended:
        os._exit(ended.code or 0)


def contents(folder):
    "The hash of every file in a folder, by its name."
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def without_times(value):
    "JSON without what it says of time and place."
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in CHANGING}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def result(path):
    "What a file says, so that two runs can be compared: tensors, JSON, or bytes."
    if path.suffix == ".safetensors":
        from safetensors import safe_open
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name).tobytes() for name in file.keys()}
    return without_times(json.loads(path.read_text(encoding="utf-8"))) if path.suffix == ".json" else path.read_bytes()


def results(command, out):
    "Everything that a command is to leave in `out`, by name."
    return {str(path.relative_to(out)): result(path) for pattern in command.files for path in sorted(out.glob(pattern))}


class Range:
    "Where commands are killed."
    def __init__(self, folder, seed):
        self.folder, self.random, self.songs = Path(folder), random.Random(seed), Path(folder) / "songs"
        make_songs(self.songs)
        self.original = contents(self.songs)
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["torch", "scipy.signal", "timbre_palette.cli", "timbre_palette.training", "timbre_palette.style_transfer.tables", "timbre_palette.timbre_transfer.transfer", "accelerate"])

    def run(self, command, out, after=None, how=None):
        "Run a command into the folder `out`, or kill it after so many seconds: its exit code, and what it said."
        out.mkdir(parents=True, exist_ok=True)
        log = self.folder / "log.txt"
        words = [word.replace("SONGS", str(self.songs)).replace("OUT", str(out)) for word in command.words]
        child = self.processes.Process(target=work, args=(words, log))
        child.start()
        child.join(after)
        if child.is_alive() and how is not None:
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(child.pid, how)
        child.join(600)
        if child.is_alive():
            child.kill()
            sys.exit(f"{' '.join(words)}: hangs")
        return child.exitcode, log.read_text(errors="replace") if log.exists() else ""

    def undisturbed(self, name):
        "Results of a command that nobody stops, and the seconds it takes, the second time."
        for attempt in range(2):
            out, begun = self.folder / f"{name}-whole-{attempt}", time.perf_counter()
            code, said = self.run(COMMANDS[name], out)
            if code:
                sys.exit(f"{name}: ends with {code} undisturbed: {said[-500:]}")
        return results(COMMANDS[name], out), time.perf_counter() - begun

    def lost(self, name, code, said, out, how, whole, before=()):
        "What is wrong behind a kill: words. What an earlier hard kill left `before` is not counted again."
        command, wrong = COMMANDS[name], []
        if contents(self.songs) != self.original:
            wrong.append("an original was changed")
        if "Traceback" in said:
            wrong.append("a traceback: " + said.strip().splitlines()[-1][:200])
        if code not in (0, 130, -how):
            wrong.append(f"exit code {code}: {said.strip()[-200:]}")
        parts = [path for path in out.rglob("*") if path.is_file() and PART.fullmatch(path.name) and path not in before]
        if how != signal.SIGKILL and parts:
            wrong.append(f"a stopped run left {parts[0].name}")
        try:
            there = results(command, out)
        except Exception as error:  # a file that is there and cannot be read is a loss, however it shows
            return [*wrong, f"a file is broken: {type(error).__name__}: {error}"]
        if not command.goes_on:
            wrong += [f"{file} is not what an undisturbed run writes" for file in there if there[file] != whole[file]]
            known = {str(path.relative_to(out)) for path in parts} | set(whole)
            wrong += [f"{file} was left" for file in contents(out) if file not in known]
        if code == 0 and set(there) != set(whole):
            wrong.append(f"ended well without {sorted(set(whole) - set(there))}")
        return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="COMMAND", help=f"some of: {', '.join(COMMANDS)}")
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the process that counts what killed ones left in memory
    parser.add_argument("--work", type=Path, help="an empty folder (default: one that is removed)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.json", help="counts and losses")
    options = parser.parse_args()
    counts, losses = Counter(), []
    with tempfile.TemporaryDirectory() as temporary, tqdm(total=options.kills, disable=None) as bar:
        place = Range(options.work or temporary, options.seed)
        for number, name in enumerate(options.only):
            whole, seconds = place.undisturbed(name)
            command, out = COMMANDS[name], place.folder / f"{name}-killed"
            share, killed, tries = options.kills // len(options.only) + (number < options.kills % len(options.only)), 0, 0
            while killed < share and tries < 4 * share:
                kill, how, tries = tries, SIGNALS[tries % len(SIGNALS)], tries + 1
                if not command.goes_on:
                    out = place.folder / f"{name}-killed-{kill}"
                before = set(out.rglob(".*.part"))
                code, said = place.run(command, out, place.random.uniform(0, 0.9 * seconds if not command.goes_on else max(1.0, seconds / 4)), how)
                wrong = place.lost(name, code, said, out, how, whole, before)
                counts[name, "ended before" if code == 0 else how.name] += 1
                losses += [{"command": name, "kill": kill, "signal": how.name, "wrong": one} for one in wrong]
                if command.goes_on and code == 0:  # there is nothing left to stop: begin anew
                    losses += [{"command": name, "kill": kill, "signal": "none", "wrong": f"{file} is another than undisturbed"} for file, one in results(command, out).items() if one != whole[file]]
                    out = place.folder / f"{name}-killed-{kill}"
                killed += code != 0
                bar.update(code != 0)
            if command.goes_on:
                code, said = place.run(command, out)
                there = results(command, out)
                losses += [{"command": name, "kill": "end", "signal": "none", "wrong": f"{file} is another than undisturbed"} for file in whole if there.get(file) != whole[file]]
                losses += [{"command": name, "kill": "end", "signal": "none", "wrong": f"ends with {code}: {said[-300:]}"}] if code else []
                leftovers = [path for path in out.rglob("*") if command.tidies and PART.fullmatch(path.name)]
                losses += [{"command": name, "kill": "end", "signal": "none", "wrong": f"{leftovers[0].name} is left at the end"}] if leftovers else []
    columns = [*(one.name for one in SIGNALS), "ended before"]
    print(f"| command | {' | '.join(columns)} | lost |\n|---|{'---|' * (len(columns) + 1)}")
    for name in options.only:
        print(f"| {name} | {' | '.join(str(counts[name, column]) for column in columns)} | {sum(loss['command'] == name for loss in losses)} |")
    for loss in losses:
        print(json.dumps(loss))
    kills = sum(count for (_, how), count in counts.items() if how != "ended before")
    print(f"{kills} kills, {len(losses)} losses")
    if options.out:
        rows = {name: {column: counts[name, column] for column in columns} for name in options.only}
        options.out.write_text(json.dumps({"seed": options.seed, "kills": kills, "commands": rows, "losses": losses}, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(losses))


if __name__ == "__main__":
    main()
