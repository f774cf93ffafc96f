"""The tutorials: each opens on Colab, installs there and nowhere else, and holds sound that plays. That they run top to bottom at toy size is tested with all notebooks."""
import base64
import configparser
import io
import json
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement

from timbre_palette.audio import peak_db, rms_db
from timbre_palette.demo import MP3, encode_mp3, players
from timbre_palette.loudness import measure
from timbre_palette.metrics import band_levels
from timbre_palette.synth import demo_clip

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ("palette", "train", "colour", "whistle", "reproduce")
PLAYER = re.compile(r'<strong>(?P<name>.*?)</strong>.*?<audio (?P<about>[^>]*?data-rate="(?P<rate>\d+)"[^>]*?)src="data:audio/mpeg;base64,(?P<data>[^"]+)"', re.DOTALL)

config = configparser.ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = config["DEFAULT"]


def read(name):
    return json.loads((ROOT / "nbs" / "tutorials" / f"{name}.ipynb").read_text(encoding="utf-8"))


def source(notebook, ident):
    return "".join(next(cell["source"] for cell in notebook["cells"] if cell["id"] == ident))


def sounds(html):
    "Name, stated rate and decoded samples `(channels, time)` of every player in a page."
    found = []
    for match in PLAYER.finditer(html):
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(match["data"], validate=True)), dtype="float32", always_2d=True)
        assert rate == int(match["rate"]), match["name"]
        found.append((match["name"], rate, samples.T))
    assert len(found) == html.count("<audio")
    return found


def saved_sounds(notebook):
    return [sounds("".join(output["data"]["text/html"])) for cell in notebook["cells"] if cell["cell_type"] == "code"
            for output in cell["outputs"] if "<audio" in "".join(output.get("data", {}).get("text/html", ""))]


@pytest.mark.parametrize("name", TUTORIALS)
def test_opens_on_colab(name):
    notebook = read(name)
    owner = f"{SETTINGS['user']}/{SETTINGS['repo']}"
    assert [cell["id"] for cell in notebook["cells"]][:5] == ["title", "badge", "install", "toy-why", "toy"]
    assert source(notebook, "badge").startswith("[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
                                                f"(https://colab.research.google.com/github/{owner}/blob/{SETTINGS['branch']}/nbs/tutorials/{name}.ipynb)\n")


def test_one_switch_for_all():
    "Toy size is asked for in the same words everywhere, and is what the saved notebooks run at."
    notebooks = [read(name) for name in TUTORIALS]
    assert len({source(notebook, "toy-why") for notebook in notebooks}) == len({source(notebook, "toy") for notebook in notebooks}) == 1
    named = {}
    exec(source(notebooks[0], "toy"), named)
    assert named["SONGS"] is None and named["toy"] is True
    exec(source(notebooks[0], "toy").replace("None  #", "'songs'  #", 1), named)
    assert named["toy"] is False
    for notebook in notebooks:
        later = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["id"] != "toy")
        assert re.search(r"\btoy\b", later) and "SONGS" in later and "environ.get" not in later


def run_install(name, monkeypatch, on_colab):
    "The lines that `%pip` was given by a tutorial's first code cell."
    from IPython.core.interactiveshell import InteractiveShell
    notebook, lines = read(name), []
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert first["id"] == "install"
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    shell = InteractiveShell()
    shell.register_magic_function(lambda line: lines.append(line), magic_name="pip")
    assert shell.run_cell("".join(first["source"])).success
    return lines


@pytest.mark.parametrize("name, extras", [("palette", set()), ("train", {"train"}), ("colour", {"train", "plugins"}), ("whistle", {"notebooks"}), ("reproduce", {"tables"})])
def test_installs_on_colab_and_nowhere_else(name, extras, monkeypatch):
    assert run_install(name, monkeypatch, on_colab=False) == []
    [line] = run_install(name, monkeypatch, on_colab=True)
    command, quiet, wanted = shlex.split(line)
    wanted = Requirement(wanted)
    assert (command, quiet) == ("install", "-q") and wanted.name == SETTINGS["lib_name"]
    assert wanted.url == f"git+{SETTINGS['git_url']}" and wanted.extras == extras
    assert all(f"{extra}_requirements" in SETTINGS for extra in extras)


@pytest.mark.parametrize("name", TUTORIALS)
def test_saved_sound_plays(name):
    "Everything in the page decodes, is heard, and does not clip; one of a group is not another's copy."
    path = ROOT / "nbs" / "tutorials" / f"{name}.ipynb"
    assert path.stat().st_size < 1_000_000
    groups = saved_sounds(read(name))
    assert groups
    for group in groups:
        for title, rate, samples in group:
            assert rate == 44100 and 2.9 < samples.shape[1] / rate < 12, title
            assert peak_db(samples) < 0 and np.abs(samples[:, :50]).max() < 0.3 * np.abs(samples).max(), title  # it begins without a click
            heard = samples - samples.mean(1, keepdims=True)  # an offset is no sound
            assert -60 < rms_db(heard) < -10 and (np.abs(heard) > 0.01 * np.abs(heard).max()).mean() > 0.1, title


def test_saved_sounds_are_what_they_are_called():
    "The styles can be told by their spectra, and at equal loudness."
    styles = next(dict((title, (rate, samples)) for title, rate, samples in group) for group in saved_sounds(read("palette")) if len(group) == 4)
    loudness = {title: measure(samples, rate)[0] for title, (rate, samples) in styles.items()}
    assert max(loudness.values()) - min(loudness.values()) < 0.5, loudness
    bands = {title: np.array(list(band_levels(samples, rate).values())) - loudness[title] for title, (rate, samples) in styles.items()}
    assert bands["fullness"][0] > bands["dry"][0] + 1  # body
    assert bands["layeredness"][0] > bands["dry"][0] + 1 and bands["layeredness"][-1] < bands["dry"][-1] - 4  # a tilt
    assert np.abs(bands["warmth"] - bands["dry"])[:2].max() < 1  # is heard, and hardly seen


def test_players_keep_the_sound():
    clip = demo_clip()[:, :2 * 44100]
    [(_, rate, heard)] = sounds(players({"clip": clip}, 44100))
    frames = min(heard.shape[1], clip.shape[1])
    error = heard[:, :frames] - clip[:, :frames]
    assert rate == 44100 and rms_db(clip) - rms_db(error[:, 1000:-1000]) > 12  # in place, at its level
    assert len(encode_mp3(clip, 44100)) < 2 * 16_000 and MP3["format"] == "MP3"


def test_players_are_equally_loud_and_lowered_together():
    clip = demo_clip()[:, :2 * 44100]
    versions = {"soft": 0.3 * clip, "loud": 4 * clip, "silent": 0 * clip}
    equal = {title: measure(samples, rate)[0] for title, rate, samples in sounds(players(versions, 44100))}
    assert abs(equal["soft"] - equal["loud"]) < 0.2 and equal["silent"] == -np.inf and abs(equal["soft"] - measure(0.3 * clip, 44100)[0]) < 0.3
    apart = {title: samples for title, rate, samples in sounds(players(versions, 44100, equal=False))}
    assert abs(rms_db(apart["loud"]) - rms_db(apart["soft"]) - 20 * np.log10(4 / 0.3)) < 0.3
    assert -4 < peak_db(apart["loud"]) < 0  # four times as loud would go past full scale


@pytest.mark.parametrize("rate, channels", [(44100, 1), (48000, 2), (96000, 2), (22050, 1), (44100, 6)])
def test_players_take_any_recording(rate, channels):
    clip = np.tile(demo_clip(rate)[:1, :rate], (channels, 1))
    html = players({"<a> & b": clip}, rate, seconds=0.5)
    assert "&lt;a&gt; &amp; b" in html
    [(_, stated, samples)] = sounds(html)
    assert stated == (rate if rate <= 48000 else 44100) and len(samples) == (channels if channels <= 2 else 1)
    assert abs(samples.shape[1] - 0.5 * stated) <= 2 and abs(rms_db(samples) - rms_db(clip[:, :rate // 2])) < 0.5


def test_the_tutorials_stand_together_in_the_sidebar():
    sidebar = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    [section] = re.findall(r"- section: Tutorials\n\s+contents: \[(.*)\]", sidebar)
    assert section.split(", ") == [f"tutorials/{name}.ipynb" for name in TUTORIALS]
    assert sorted(path.stem for path in (ROOT / "nbs" / "tutorials").glob("*.ipynb")) == sorted(TUTORIALS)
