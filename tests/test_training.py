"""Runs that are stopped, killed, resumed, shared and refused."""
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from safetensors.torch import load_file

from conftest import ROOT, small_songs
from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.checkpoint import WEIGHTS, Pretrained, shipped
from timbre_palette.cli import main
from timbre_palette.synth import demo_clip
from timbre_palette.data import Batch
from timbre_palette.losses import LOSSES
from timbre_palette.polish import polish
from timbre_palette.recipe import RECIPES, find_recipe
from timbre_palette.training import PaletteObjective, fit, train_palette

SMALL = ["batch=2", "seconds=0.25", "sample_rates=[8000]", "validate_every=10", "validation_batches=1", "polish=0"]
RECIPE = {"graybox": ["graybox", "--set", *SMALL],
          "waveunet": ["waveunet-v2", "--set", *SMALL, "sample_rates=[44100]", "seconds=0.05", 'arguments={"width": 4, "depth": 2}', "precision=float32"]}

STEPS = {"graybox": 300, "waveunet": 600}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Six small songs."
    return small_songs(tmp_path_factory.mktemp("songs"), 6, 30000)


def weights(folder):
    return Pretrained.from_pretrained(folder / "best").state_dict()


@pytest.mark.parametrize("name", RECIPE)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(folder, tmp_path, command, name):
    "Ctrl-C, a polite kill and a hard one; each time the same command again, and at the end the same weights, bit for bit."
    def start(out):
        return subprocess.Popen([*command, "train", *RECIPE[name], f"steps={STEPS[name]}", "--data", folder, "--out", tmp_path / out],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole = start("whole")
    assert whole.wait(300) == 0, whole.stderr.read()
    out = tmp_path / "stopped"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        begun = len(list(out.glob("events*")))
        run = start("stopped")
        while run.poll() is None and len(list(out.glob("events*"))) == begun:  # TensorBoard's file is made as training begins
            time.sleep(0.02)
        time.sleep(1.0)
        assert run.poll() is None, "it was over too soon to be stopped"
        run.send_signal(number)
        error = run.communicate(timeout=120)[1].splitlines()
        if number != signal.SIGKILL:
            assert run.returncode == 130 and len(error) == 1 and "the same command goes on" in error[0], error
            assert (out / "state.safetensors").exists()
    last = start("stopped")
    assert last.wait(300) == 0, last.stderr.read()
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(one[key], other[key]) for key in one)
    cards = [json.loads((tmp_path / out / "best" / "card.json").read_text()) for out in ("whole", "stopped")]
    assert cards[0]["curve"] == cards[1]["curve"] and [row["step"] for row in cards[0]["curve"]] == list(range(10, STEPS[name] + 1, 10))
    assert not list((tmp_path / "stopped").glob(".*.part"))


def test_a_run_resumes_in_the_middle(folder, tmp_path, monkeypatch):
    "In this process, stopped at step 7: the second half sees steps 8 and on, and no step twice."
    from timbre_palette import training
    seen = []

    def stop_at(number):
        def progress(step, figures):
            seen.append(step)
            if step == number:
                signal.raise_signal(signal.SIGINT)
        return progress

    recipe = find_recipe("graybox", ["steps=12", *SMALL])
    with pytest.raises(KeyboardInterrupt):
        training.train_palette(recipe, folder, tmp_path / "run", progress=stop_at(7))
    training.train_palette(recipe, folder, tmp_path / "run", progress=stop_at(99))
    assert seen == list(range(1, 13))
    training.train_palette(recipe, folder, tmp_path / "run", progress=stop_at(99))  # done already
    assert len(seen) == 12


KILLED = ["batch=4", "accumulate=2", "ema=0.9", "precision=bfloat16", "clip=1.0", "steps=300", "validate_every=10", "validation_batches=1",
          "seconds=0.05", 'arguments={"width": 4, "depth": 2}']


def train_and_tell(songs, out, pipe):
    "A whole run that saves at every step and tells each, in a process of its own."
    from timbre_palette import training
    training.SAVE_EVERY_S = 0
    torch.set_num_threads(1)  # steps of a millisecond
    training.train_palette(find_recipe("paper-v2", KILLED), songs, out, "cpu", progress=lambda step, figures: pipe.send(step))


def test_twenty_kills_at_random_steps_change_no_bit(folder, tmp_path):
    "SIGKILL within 20 ms of a random step, twenty times: each time whole files, and at the end the weights of an undisturbed run."
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["timbre_palette.training", "accelerate", "torch.utils.tensorboard"])

    def run(out, stop_at=None):
        "Start or go on with a run; kill it soon after a step."
        ours, theirs = processes.Pipe(duplex=False)
        child = processes.Process(target=train_and_tell, args=(folder, tmp_path / out, theirs))
        child.start()
        theirs.close()
        try:
            while True:
                if ours.recv() == stop_at:
                    time.sleep(random.uniform(0, 0.02))
                    os.kill(child.pid, signal.SIGKILL)
                    break
        except EOFError:
            pass
        child.join(120)
        return child.exitcode

    assert run("whole") == 0
    steps = sorted(random.sample(range(3, 290), 20))
    print("killed at", steps)
    for step in steps:
        assert run("killed", step) == -signal.SIGKILL, step
        if step > 11:
            Pretrained.from_pretrained(tmp_path / "killed" / "best")
    assert run("killed") == 0
    assert not list((tmp_path / "killed").rglob("*.part"))  # what a kill left was removed
    for file in ("state.safetensors", "best/model.safetensors"):
        one, other = (load_file(tmp_path / out / file) for out in ("whole", "killed"))
        assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)
    curves = [json.loads((tmp_path / out / "best" / "card.json").read_text())["curve"] for out in ("whole", "killed")]
    assert curves[0] == curves[1] and len(curves[0]) == 30


FULL = """
import resource, signal, sys
from pathlib import Path
from timbre_palette import training
from timbre_palette.cli import main
training.SAVE_EVERY_S = 0
run = Path(sys.argv[-1])
if (run / "state.safetensors").exists():  # files may grow no more: the state does not fit
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((run / "state.safetensors").stat().st_size // 2,) * 2)
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(folder, tmp_path):
    (tmp_path / "full.py").write_text(FULL)
    out = tmp_path / "run"
    arguments = ["train", "graybox", "--set", *SMALL, "steps=4000", "--data", folder, "--device", "cpu", "--out", out]
    first = subprocess.Popen([sys.executable, tmp_path / "full.py", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (out / "best" / "card.json").exists() and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 130, first.stderr.read()
    before = {path.name: path.read_bytes() for path in (out / "state.safetensors", *(out / "best").iterdir())}
    full = subprocess.run([sys.executable, tmp_path / "full.py", *arguments], capture_output=True, text=True, timeout=120)
    assert full.returncode == 2 and len(full.stderr.splitlines()) == 1 and "cannot be written" in full.stderr, full.stderr
    assert before == {path.name: path.read_bytes() for path in (out / "state.safetensors", *(out / "best").iterdir())}
    assert not list(out.rglob("*.part"))


class Settled:
    "A model of one weight, with what `fit` needs of one."
    def __new__(cls):
        from timbre_palette import checkpoint

        @checkpoint.register
        class OneGain(Pretrained):
            "y = gain · x."
            def __init__(self):
                super().__init__()
                self.gain = torch.nn.Parameter(torch.ones(()))

            def render(self, x, sample_rate, weights, amount=1.0):
                return x * self.gain

        return OneGain()


def one_gain_run(batches, folder, steps=30, **settings):
    "`fit` on `OneGain`; the model, what was reached, what was reported."
    model, reports = Settled(), []
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    folder.mkdir(exist_ok=True)
    reached = fit(model, PaletteObjective(LOSSES["stable"]()), batches, [batches[99]], optimiser, scheduler, steps, folder, report=reports.append, **settings)
    return model, reached, reports


class Noise:
    "Batches of noise, those of the steps in `bad` with one sample that is not a number."
    def __init__(self, bad=()):
        self.bad = bad

    def __getitem__(self, step):
        x = 0.1 * torch.randn(4, 1, 4000, generator=torch.Generator().manual_seed(step))
        if step in self.bad:
            x[3, 0, 17] = torch.nan
        return Batch(x, 8000, np.eye(3)[[0, 1, 2, 0]], np.ones(4))


def test_a_step_that_is_not_finite_is_left_out_and_its_batch_kept(tmp_path):
    model, reached, reports = one_gain_run(Noise({0, 7, 8}), tmp_path / "run", validate_every=10)
    assert torch.isfinite(model.gain) and model.gain != 1 and reached["skipped"] == 3 and reached["step"] == 30
    assert len(reports) == 3 and "step 8 was left out" in reports[1] and "loss is not finite" in reports[1]
    kept = sorted((tmp_path / "run" / "bad").iterdir())
    assert [path.name for path in kept] == [f"step-{step:07d}-process-0.safetensors" for step in (1, 8, 9)]
    assert torch.equal(load_file(kept[1])["x"].isnan(), Noise({7})[7].x.isnan())
    undisturbed, _, _ = one_gain_run(Noise(), tmp_path / "other", validate_every=10)
    assert torch.allclose(model.gain, undisturbed.gain, atol=0.05)


def test_a_gradient_that_is_not_finite_is_left_out_too(tmp_path):
    class Cliff(PaletteObjective):
        "A finite loss whose gradient is infinite at step 3."
        def forward(self, model, batch):
            loss, figures = super().forward(model, batch)
            return (loss + (model.gain - model.gain.detach()).abs().sqrt(), figures) if batch.amount[0] == 0.5 else (loss, figures)

    class Once(Noise):
        def __getitem__(self, step):
            batch = super().__getitem__(step)
            return batch._replace(amount=np.full(4, 0.5)) if step == 3 else batch

    model, reports = Settled(), []
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=6)
    reached = fit(model, Cliff(LOSSES["stable"]()), Once(), [Noise()[99]], optimiser, scheduler, 6, tmp_path, report=reports.append)
    assert torch.isfinite(model.gain) and reached["skipped"] == 1 and "gradient is not finite" in reports[0]


def test_bad_steps_in_a_row_end_the_run_with_the_last_good_state(tmp_path, monkeypatch):
    from timbre_palette import training
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0)
    with pytest.raises(PaletteError, match="4 steps in a row.*start=") as stop:
        one_gain_run(Noise(set(range(12, 99))), tmp_path / "run", validate_every=5, patience=4)
    assert "\n" not in str(stop.value) and len(list((tmp_path / "run" / "bad").iterdir())) == 4
    assert torch.isfinite(Pretrained.from_pretrained(tmp_path / "run" / "best").gain)
    model, reached, _ = one_gain_run(Noise(), tmp_path / "run", validate_every=5)  # mended, it goes on
    assert reached["step"] == 30 and torch.isfinite(model.gain)


def test_a_step_in_parts_is_the_same_step(tmp_path):
    "float32, where only the order of a sum differs."
    gains = [one_gain_run(Noise(), tmp_path / str(parts), accumulate=parts)[0].gain for parts in (1, 2, 4)]
    torch.testing.assert_close(gains[1], gains[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gains[2], gains[0], rtol=1e-5, atol=0)


def test_the_average_is_what_is_kept(tmp_path):
    model, _, _ = one_gain_run(Noise(), tmp_path / "run", ema=0.9, validate_every=30)
    kept = Pretrained.from_pretrained(tmp_path / "run" / "best").gain
    assert kept != model.gain and abs(kept - model.gain) < 0.1


def test_half_precision_skips_what_it_must_and_stops_when_it_should(tmp_path):
    "With a gradient scaler, as on a GPU: a NaN is left out, a large gradient lowers the scale, and an endless one ends the run."
    from timbre_palette.training import find_accelerator

    def scaled():
        accelerator = find_accelerator("cpu", "float16")
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
        return accelerator

    for parts in (1, 2):
        model, reached, reports = one_gain_run(Noise({0, 7}), tmp_path / f"{parts}", accelerator=scaled(), accumulate=parts, validate_every=30)
        assert torch.isfinite(model.gain) and model.gain != 1 and reached["skipped"] == 2 and len(reports) == 2
        assert all(math.isfinite(value) for row in reached["curve"] for value in row.values())

    class Steep(PaletteObjective):
        "Gradients that no scale makes finite."
        def forward(self, model, batch):
            loss, figures = super().forward(model, batch)
            return loss + (model.gain - model.gain.detach()).abs().sqrt(), figures

    model = Settled()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=60)
    with pytest.raises(PaletteError, match="3 steps in a row"):
        fit(model, Steep(LOSSES["stable"]()), Noise(), [Noise()[99]], optimiser, scheduler, 60, tmp_path, accelerator=scaled(), patience=3, validate_every=60)
    assert model.gain == 1


@pytest.mark.parametrize("precision", ("float32", "bfloat16", "float16"))
@pytest.mark.parametrize("name", ("graybox", "paper-v1", "paper-v2"))
def test_every_model_trains_in_every_precision(name, precision, folder, tmp_path):
    recipe = find_recipe(name, [*SMALL, "steps=3", "validate_every=3", f"precision={precision}", *(["sample_rates=[44100]", "seconds=0.05", 'arguments={"width": 4}'] if name != "graybox" else [])])
    card = train_palette(recipe, folder, tmp_path / "run", "cpu").card
    assert math.isfinite(card["curve"][-1]["loss"]) and card["skipped_steps"] == 0


def test_a_run_can_start_from_weights_and_forgets_their_card(folder, tmp_path):
    first = train_palette(find_recipe("graybox", [*SMALL, "steps=10"]), folder, tmp_path / "first", "cpu", licence="theirs", metrics=[1])
    second = train_palette(find_recipe("graybox", [*SMALL, "steps=2", "learning_rate=0", "validate_every=2", f"start={tmp_path / 'first' / 'best'}"]), folder, tmp_path / "second", "cpu")
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    assert "licence" not in second.card and "metrics" not in second.card and second.card["recipe"]["start"].endswith("best")


class Curved(torch.nn.Module):
    "A gain before a fixed curve and one behind it: nearly the same thing."
    def __init__(self, before, behind):
        super().__init__()
        self.gains = torch.nn.Parameter(torch.tensor([before, behind]))

    def render(self, x, sample_rate, weights, amount):
        return self.gains[1] * torch.tanh(self.gains[0] * x)


def curved_batches(count=2):
    draw = torch.Generator().manual_seed(0)
    return [Batch(0.1 * torch.randn(3, 1, 500, generator=draw), 8000, np.eye(3), np.ones(3)) for _ in range(count)]


def test_a_polish_finds_the_bottom_of_a_valley():
    "Six times the gain before and a sixth behind, less a little: descent along a curved valley, to rounding; a silent item does no harm."
    model, told = Curved(2.0, 0.3), []
    batches = curved_batches()
    batches[1].x[0] = 0
    losses = polish(model, batches, 40, Curved(6.0, 1 / 6).double().render, floor_db=-200.0, progress=lambda iteration, loss: told.append((iteration, loss)))
    assert torch.allclose(model.gains, torch.tensor([6.0, 1 / 6]), rtol=1e-5) and model.gains.dtype == torch.float32
    assert losses[-1] < -100 and all(later < before for before, later in zip(losses, losses[1:])) and told == list(enumerate(losses))[1:]


def test_a_polish_that_is_stopped_keeps_what_it_reached():
    def stop(iteration, loss):
        if iteration == 2:
            raise KeyboardInterrupt

    model, whole = Curved(2.0, 0.3), Curved(2.0, 0.3)
    with pytest.raises(KeyboardInterrupt):
        polish(model, curved_batches(), 40, Curved(6.0, 1 / 6).double().render, progress=stop)
    polish(whole, curved_batches(), 2, Curved(6.0, 1 / 6).double().render)
    assert torch.equal(model.gains, whole.gains) and model.gains.dtype == torch.float32


def test_only_small_models_are_polished(folder, tmp_path):
    with pytest.raises(PaletteError, match="at most 1000 parameters"):
        train_palette(find_recipe("paper-v2", [*SMALL, "steps=2", "sample_rates=[44100]", "seconds=0.05", "polish=1"]), folder, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_run_ends_with_its_polish(folder, tmp_path):
    "The same weights before, better ones after; said in the card, and not done again."
    plain, recipe = ([find_recipe("graybox", [*SMALL, "steps=30", "batch=4", f"polish={count}"]) for count in (0, 3)])
    before = train_palette(plain, folder, tmp_path / "plain", "cpu")
    after = train_palette(recipe, folder, tmp_path / "run", "cpu")
    told = after.card["polished"]
    assert "polished" not in before.card and told["losses"][-1] < told["losses"][0] and len(told["losses"]) <= 4
    assert told["kept"] == (told["validation"][1] < told["validation"][0]) and told["validation"][0] == pytest.approx(before.card["curve"][-1]["loss"], abs=0.01)
    assert told["kept"] != all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())
    again = train_palette(recipe, folder, tmp_path / "run", "cpu")
    assert again.card["polished"] == told and all(torch.equal(value, again.state_dict()[key]) for key, value in after.state_dict().items())


def test_a_run_that_never_began_can_be_corrected(folder, tmp_path):
    with pytest.raises(PaletteError, match="44100 Hz only"):
        train_palette(find_recipe("paper-v2", [*SMALL, "steps=2"]), folder, tmp_path / "run", "cpu")
    train_palette(find_recipe("paper-v2", [*SMALL, "steps=2", "sample_rates=[44100]", "seconds=0.05"]), folder, tmp_path / "run", "cpu")


def test_a_stop_during_the_last_step_is_heard(folder, tmp_path):
    "The run is over and saved; what comes after it is not begun."
    recipe = find_recipe("graybox", [*SMALL, "steps=3"])
    with pytest.raises(KeyboardInterrupt):
        train_palette(recipe, folder, tmp_path / "run", "cpu", progress=lambda step, figures: signal.raise_signal(signal.SIGINT) if step == 3 else None)
    assert train_palette(recipe, folder, tmp_path / "run", "cpu").card["curve"][-1]["step"] == 3


def test_a_signal_that_is_ignored_stays_ignored(folder, tmp_path):
    "As nohup asks."
    recipe = find_recipe("graybox", [*SMALL, "steps=3"])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train_palette(recipe, folder, tmp_path / "run", "cpu", progress=lambda step, figures: signal.raise_signal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_beside_its_songs_can_be_resumed(folder, tmp_path):
    "What it renders to listen to is not taken for songs."
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for _ in range(2):
        train_palette(find_recipe("graybox", [*SMALL, "steps=3"]), tmp_path, tmp_path / "run", "cpu")
    assert len(list((tmp_path / "run" / "examples").iterdir())) == 6


def test_too_little_memory_is_one_line(folder, tmp_path):
    code = """if 1:
        import resource, sys
        from timbre_palette.cli import main
        import timbre_palette.training, torch.utils.tensorboard, accelerate
        held = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (held + 2 ** 30,) * 2)
        sys.exit(main(sys.argv[1:]))"""
    arguments = ["train", "paper-v2", "--data", folder, "--out", tmp_path / "run", "--device", "cpu", "--set", "batch=128", "seconds=4", "precision=float32", "steps=2", "validation_batches=1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and "not enough memory" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


SHARED = {"graybox": ["graybox", "--set", "batch=12", "seconds=0.25", "sample_rates=[8000]", "learning_rate=5e-4", "polish=1"],
          "waveunet": ["paper-v2", "--set", "batch=4", "seconds=0.1", 'arguments={"width": 8, "depth": 2}', "precision=float32", "accumulate=2"]}


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_train_as_one(name, folder, tmp_path, command, launched):
    "Each sees half of every batch; over 50 steps the losses agree to 1e-4."
    curves = {}
    for out, launch in (("one", []), ("two", launched)):
        arguments = [*launch, *command, "train", *SHARED[name], "steps=50", "validate_every=1", "validation_batches=1", "--data", folder, "--out", tmp_path / out, "--device", "cpu"]
        done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        card = json.loads((tmp_path / out / "best" / "card.json").read_text())
        curves[out] = np.array([[row["train_loss"], row["loss"]] for row in card["curve"]])
    assert card["hardware"].startswith("2 processes") and ("polished" in card) == (name == "graybox")  # by the main process, while the other waits
    assert curves["one"].shape == (50, 2) and np.ptp(curves["one"][:, 0]) > 0
    difference = np.abs(curves["two"] / curves["one"] - 1).max()
    print(f"{name}: two processes differ from one by {difference:.1e} at most")
    assert difference < 1e-4


REFUSED = {"no such folder": "no such folder", "one song": "one song", "no songs": "no songs", "unknown recipe": "unknown recipe", "unknown setting": "no setting",
           "bad value": "whole number", "a rate without gradient": "44100 Hz only", "other recipe": "another recipe", "damaged state": "cannot be resumed", "a card without a recipe": "not a recipe or a card",
           "not json": "not a recipe", "unknown device": "not available", "a song on both sides": "more than one",
           "other songs": "began with other songs", "a damaged list of songs": "is damaged", "weights of another run": "not a whole run's",
           "a recipe of the user's": "not a whole run's", "a folder of songs": "is a folder of songs", "weights that are gone": "are gone", "a run that is a file": "is not a folder", "an impossible model": "cannot be built",
           "other weights to start from": "another model", "too large a seed": "whole number", "a list as a word": "is one of"}


def files(folder):
    "All files of a folder but TensorBoard's."
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith("events")}


def begun(out, arguments, data):
    "A run of two steps."
    assert main([str(argument) for argument in ["train", *arguments, "--data", data, "--out", out]]) == 0


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line(case, folder, tmp_path, capsys):
    arguments, data, out = ["graybox", "--set", *SMALL, "steps=2"], folder, tmp_path / "run"
    if case == "no such folder": data = tmp_path / "nowhere"
    elif case == "one song": data = tmp_path / "one"; data.mkdir(); write_audio(data / "a.wav", demo_clip(8000), 8000)
    elif case == "no songs": data = tmp_path / "none"; data.mkdir(); (data / "a.txt").write_text("words")
    elif case == "unknown recipe": arguments[0] = "grybox"
    elif case == "unknown setting": arguments += ["stepz=3"]
    elif case == "bad value": arguments += ["batch=many"]
    elif case == "a rate without gradient": arguments[0] = "waveunet-v2"
    elif case == "other recipe": begun(out, arguments, data); arguments += ["seed=1"]
    elif case == "other songs": begun(out, arguments, data); (out / "songs.json").write_text('[["train", 1, "gone.wav"]]')
    elif case == "a damaged list of songs": begun(out, arguments, data); (out / "songs.json").write_bytes(b"\xff")
    elif case == "weights of another run": (out / "best").mkdir(parents=True)
    elif case == "a recipe of the user's": out.mkdir(); (out / "recipe.yaml").write_text("# mine\nmodel: GrayBox\n")
    elif case == "a folder of songs": out = data
    elif case == "weights that are gone":
        begun(out, arguments, data)
        for path in (out / "best").iterdir(): path.unlink()
    elif case == "a run that is a file": out.write_text("words")
    elif case == "an impossible model": arguments += ['arguments={"hidden": -4}']
    elif case == "other weights to start from": arguments += ["start=waveunet-v2"]
    elif case == "too large a seed": arguments += ["seed=99999999999999999999"]
    elif case == "a list as a word": arguments += ["loss=[stable]"]
    elif case == "damaged state": begun(out, arguments, data); (out / "state.safetensors").write_bytes(b"words")
    elif case == "a card without a recipe": arguments[0] = tmp_path / "card.json"; arguments[0].write_text('{"class": "GrayBox"}')
    elif case == "not json": arguments[0] = tmp_path / "card.json"; arguments[0].write_text("words")
    elif case == "unknown device": arguments += ["--device", "warp"]
    elif case == "a song on both sides":
        data = tmp_path / "leak"
        for split in ("train", "val"):
            (data / split).mkdir(parents=True)
            write_audio(data / split / "same.wav", demo_clip(8000), 8000)
    before = files(out) if out.is_dir() else None
    capsys.readouterr()
    code = main([str(argument) for argument in ["train", *arguments, "--data", data, "--out", out]])
    if before is not None:
        assert before == files(out)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1, lines
    assert re.search(REFUSED[case], lines[0]), lines


YARDSTICKS = {"StyleTransfer": ("method", {"identity", "rules"}), "EffectProxy": ("method", {"identity"}), "HarmonicAutoencoder": ("method", {"silence", "pitch-tracked"})}  # of the metrics in a card: their column, and who stands beside the model


@pytest.mark.parametrize("name", [name for name in shipped() if name in RECIPES])
def test_shipped_weights_can_be_made_again_from_their_card(name):
    card = json.loads((WEIGHTS / name / "card.json").read_text(encoding="utf-8"))
    assert find_recipe(WEIGHTS / name / "card.json") == RECIPES[name]
    assert card["made_again_by"].startswith("timbre-palette train card.json")
    for key in ("data", "hardware", "minutes", "curve", "metrics", "chosen_at_step", "torch", "licence"):
        assert card[key], key
    label, beside = YARDSTICKS.get(card["class"], ("model", {"identity", "oracle"}))
    assert {row[label] for row in card["metrics"]} == beside | {name}
    assert card["curve"][-1]["step"] == RECIPES[name].steps
    assert set(card["data"]["train"]["licences"]) and "not stated" not in card["data"]["train"]["licences"]


@pytest.mark.parametrize("name", [name for name in shipped() if name not in RECIPES])
def test_other_weights_name_the_script_that_makes_them_again(name):
    card = json.loads((WEIGHTS / name / "card.json").read_text(encoding="utf-8"))
    script, = re.match(r"python (scripts/\w+\.py) ", card["made_again_by"]).groups()
    assert (Path(__file__).parent.parent / script).is_file()
    for key in ("data", "hardware", "metrics", "licence", "seed", "steps"):
        assert card[key] is not None, key


def test_the_models_are_shipped():
    assert set(shipped()) >= {"graybox", "blackbox", "waveunet-v2"}


def test_the_readme_gives_the_figures_of_the_cards():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("graybox", "blackbox", "waveunet-v2"):
        for row in json.loads((WEIGHTS / name / "card.json").read_text(encoding="utf-8"))["metrics"]:
            shown = f"{row['mean']:.4f}" if row["measure"] == "stft_distance" else f"{row['mean']:.1f} dB"
            if row["model"] != "oracle" or name == "graybox":  # what rounding leaves differs in the last digit from run to run
                assert f"| {shown} |" in readme, (row["model"], shown)


def hold(folder, pipe):
    "Be at work in a folder until told to end."
    from timbre_palette.audio import alone_in
    with alone_in(folder):
        pipe.send("here")
        pipe.recv()


@pytest.mark.parametrize("ends", ("by itself", "killed"))
def test_two_runs_in_one_folder(folder, tmp_path, ends):
    "The second is refused with one line and changes nothing; where the first was killed, it goes on."
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    recipe = find_recipe("graybox", ["steps=2", *SMALL])
    child = processes.Process(target=hold, args=(tmp_path / "run", theirs))
    child.start()
    assert ours.recv() == "here"
    with pytest.raises(PaletteError, match="another run is at work in this folder"):
        train_palette(recipe, folder, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "recipe.yaml", "songs.json"]
    if ends == "killed":
        child.kill()
    else:
        ours.send("end")
    child.join()
    assert train_palette(recipe, folder, tmp_path / "run").card["chosen_at_step"] in (1, 2)
    assert not (tmp_path / "run" / ".lock").exists()
