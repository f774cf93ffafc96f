"""Runs that are stopped, killed, resumed and refused, with the installed command."""
import json
import re
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from conftest import ROOT
from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.checkpoint import WEIGHTS, Pretrained, shipped
from timbre_palette.cli import main
from timbre_palette.synth import demo_clip
from timbre_palette.recipe import RECIPES, find_recipe
from timbre_palette.training import fit

SMALL = ["batch=2", "seconds=0.25", "sample_rates=[8000]", "validate_every=10", "validation_batches=1"]
RECIPE = {"graybox": ["graybox", "--set", *SMALL],
          "waveunet": ["waveunet-v2", "--set", *SMALL, "sample_rates=[44100]", "seconds=0.05", 'arguments={"width": 4, "depth": 2}', "precision=float32"]}

STEPS = {"graybox": 300, "waveunet": 600}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Six small songs."
    folder = tmp_path_factory.mktemp("songs")
    clip = demo_clip(8000)
    for number in range(6):
        write_audio(folder / f"song {number}.flac", np.roll(clip, 7000 * number, axis=1)[:, :30000], 8000, "PCM_16")
    return folder


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


def test_losses_that_are_not_finite_end_the_run(tmp_path):
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=30)
    before = model.weight.clone()
    with pytest.raises(PaletteError, match="no finite loss"):
        fit(model, lambda model, batch: (model(torch.tensor([np.inf])).sum(), {}), range(30), [], optimiser, scheduler, 30, tmp_path, validate_every=99)
    assert torch.equal(model.weight, before)


REFUSED = {"no such folder": "no such folder", "one song": "one song", "no songs": "no songs", "unknown recipe": "unknown recipe", "unknown setting": "no setting",
           "bad value": "whole number", "a rate without gradient": "44100 Hz only", "other recipe": "another recipe", "damaged state": "cannot be resumed", "a card without a recipe": "not fit|class|recipe",
           "not json": "not a card", "unknown device": "not available", "a song on both sides": "more than one"}


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
    elif case == "other recipe": out.mkdir(); (out / "recipe.yaml").write_text("{}")
    elif case == "damaged state": out.mkdir(); (out / "state.safetensors").write_bytes(b"words")
    elif case == "a card without a recipe": arguments[0] = tmp_path / "card.json"; arguments[0].write_text('{"class": "GrayBox"}')
    elif case == "not json": arguments[0] = tmp_path / "card.json"; arguments[0].write_text("words")
    elif case == "unknown device": arguments += ["--device", "warp"]
    elif case == "a song on both sides":
        data = tmp_path / "leak"
        for split in ("train", "val"):
            (data / split).mkdir(parents=True)
            write_audio(data / split / "same.wav", demo_clip(8000), 8000)
    code = main([str(argument) for argument in ["train", *arguments, "--data", data, "--out", out]])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1, lines
    assert re.search(REFUSED[case], lines[0]), lines


@pytest.mark.parametrize("name", shipped())
def test_shipped_weights_can_be_made_again_from_their_card(name):
    card = json.loads((WEIGHTS / name / "card.json").read_text(encoding="utf-8"))
    assert find_recipe(WEIGHTS / name / "card.json") == RECIPES[name]
    assert card["made_again_by"].startswith("timbre-palette train card.json")
    for key in ("data", "hardware", "minutes", "curve", "metrics", "chosen_at_step", "torch", "licence"):
        assert card[key], key
    assert {row["model"] for row in card["metrics"]} == {"identity", "oracle", name}
    assert card["curve"][-1]["step"] == RECIPES[name].steps
    assert set(card["data"]["train"]["licences"]) and "not stated" not in card["data"]["train"]["licences"]


def test_the_two_models_are_shipped():
    assert set(shipped()) >= {"graybox", "waveunet-v2"}


def test_the_readme_gives_the_figures_of_the_cards():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("graybox", "waveunet-v2"):
        for row in json.loads((WEIGHTS / name / "card.json").read_text(encoding="utf-8"))["metrics"]:
            shown = f"{row['mean']:.4f}" if row["measure"] == "stft_distance" else f"{row['mean']:.1f} dB"
            assert f"| {shown} |" in readme, (row["model"], shown)
