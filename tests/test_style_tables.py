"""DeepAFx-ST's tables: every row of the paper, what was not run is said, and nothing is lost between runs."""
import json
from copy import copy
from dataclasses import replace
from math import log

import pytest
import torch

from timbre_palette import checkpoint
from timbre_palette.audio import PaletteError
from timbre_palette.cli import main
from timbre_palette.style_transfer import tables as style_tables
from timbre_palette.style_transfer.experiments import STYLE_BUDGETS, Method, StyleUnit, find_style_budget, find_style_material, gradient_rows, score_method, style_cost_rows
from timbre_palette.style_transfer.proxies import EffectProxy
from timbre_palette.style_transfer.tables import (BESIDE, PAPER_COSTS, PAPER_SCORES_1, PAPER_SCORES_2, PAPER_SCORES_3, StyleExperiments, keep_style, make_style_tables, score_rows, show_style_scores,
                                                  style_methods)
from timbre_palette.songs import load_splits

TINY = replace(STYLE_BUDGETS["tiny"], steps=1, pair_s=1.0)


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    return StyleExperiments(tmp_path_factory.mktemp("style"), TINY)


@pytest.fixture
def proxies(tmp_path, monkeypatch):
    "Proxies that have learned nothing, in place of shipped ones."
    torch.manual_seed(0)
    for effect in ("equaliser", "compressor"):
        for kind in ("music", "speech"):
            EffectProxy(effect).save_pretrained(tmp_path / "weights" / f"proxy-{effect}-{kind}")
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path / "weights")


def test_every_row_and_column_of_the_paper_is_there():
    assert {kind: len(style_methods(kind)) - len(BESIDE) for kind in ("speech", "music")} == {"speech": 9, "music": 12}
    for printed, corpora in ((PAPER_SCORES_1, 3), (PAPER_SCORES_2, 3), (PAPER_SCORES_3, 2)):
        assert all(len(row) == corpora and all(len(figures) in (4, 6) for figures in row.values()) for row in printed.values())
    assert len(PAPER_COSTS) == 8 and sum(row[3] == 336 for row in PAPER_COSTS.values()) == 2


@pytest.mark.parametrize("name, corpus, column, value", (("NP-HH (S)", "DAPS", "RMS", 5.104), ("SPSA", "VCTK", "PESQ", 4.023), ("cTCN 2", "LibriTTS", "SCE", 117.5)))
def test_printed_figures_of_speech(name, corpus, column, value):
    assert PAPER_SCORES_1[name][corpus][column] == value


def test_gains_are_read_across_tables():
    row = lambda value: [{"method": "m", "pair": "p", "STFT": value, "RMS": 2.0}]
    rows = score_rows([("Input", row(1.5)), ("NP-FH (S)", row(1.2)), ("AD", None)], PAPER_SCORES_2, "MTG-Jamendo, 24 kHz", ("STFT", "RMS"))
    assert rows[1]["gain"] == pytest.approx(20) and rows[1]["paper gain"] == pytest.approx(100 * (1 - 1.016 / 1.198))
    assert rows[0]["paper RMS"] == pytest.approx(6.695 / log(10)) and rows[2]["gain"] is None
    shown = show_style_scores(rows, ("STFT", "RMS"))
    assert shown[1]["gain (%)"] == "20.0 (15.2)" and shown[2]["STFT"] == "- (0.488)"


def test_a_proxy_and_its_half_hybrid_are_one_unit(experiments):
    names = [unit.name for unit in experiments.units()]
    assert len(names) == len(set(names)) == 14 and "music-np-speech" in names and not any("np-hh" in name for name in names)
    assert Method("x", "np-hh", "music").unit("music") == Method("y", "np", "music").unit("music")
    recipes = [unit.recipe(TINY) for unit in experiments.units()]
    assert len({(recipe.steps, recipe.batch, recipe.seconds, recipe.loss, recipe.seed) for recipe in recipes}) == 1  # equal terms


def test_what_was_not_run_is_said_and_what_was_kept_is_taken_up(experiments, tmp_path):
    unit = StyleUnit("ad", "speech")
    for what, job in experiments.jobs((1,)):
        if what in (f"training {unit.name}", "speech-test: AD", "speech-test: Input"):
            job(lambda done, total: None)
    table = make_style_tables(experiments, (1,))[1]
    rows = {row["method"]: row for row in table.rows}
    assert rows["AD"]["STFT"] > 0 and rows["AD"]["remark"] == "" and rows["SPSA"]["remark"] == "not run" and rows["AD, shipped"]["remark"].startswith("trained for longer")
    assert [row["method"] for row in table.rows][:9] == list(PAPER_SCORES_1)
    keep_style(experiments.folder, tmp_path / "kept")
    assert not list((tmp_path / "kept").rglob("*.safetensors"))
    again = {row["method"]: row for row in make_style_tables(StyleExperiments(tmp_path / "again", TINY, kept=tmp_path / "kept"), (1,))[1].rows}
    assert again["AD"] == {**rows["AD"], "remark": "kept"} and again["Input"] == rows["Input"]
    with pytest.raises(PaletteError, match="another budget"):
        StyleExperiments(experiments.folder, STYLE_BUDGETS["cpu"])


def test_scores_of_other_questions_are_not_taken_for_answers(experiments):
    material = experiments.materials["speech-heldout"]
    method = style_methods("speech")[0]
    first = score_method(method, "speech-heldout", material, TINY, experiments.folder)
    assert score_method(method, "speech-heldout", material, TINY, experiments.folder) == first
    with pytest.raises(PaletteError, match="other recordings or by another budget"):
        score_method(method, "speech-heldout", material, replace(TINY, pair_s=0.8), experiments.folder)


def test_the_true_gradient_is_the_one_of_moving_one_knob_at_a_time(experiments, proxies):
    tracks = load_splits(experiments.places["music"])["val"]
    rows = {(row["strategy"], row["repeats"]): row for row in gradient_rows(tracks, replace(TINY, items=4, seconds=0.4), repeats=8)}
    assert rows["one knob at a time", 1]["cosine"] > 0.99 and 0.95 < rows["one knob at a time", 1]["length"] < 1.05
    assert rows["AD", 1]["cosine"] == pytest.approx(1, abs=1e-5)
    assert rows["SPSA, ε 0.005", 8]["cosine"] > rows["SPSA, ε 0.005", 1]["cosine"] > 0
    assert all(len(row["by_parameter"]) == len(row["settings"]) == 24 for row in rows.values())


def test_costs_count_what_is_in_place_of_the_effects(proxies):
    rows = {row["strategy"]: row for row in style_cost_rows(TINY, seconds=0.5)}
    assert [rows[name]["parameters"] for name in ("ctcn-1", "ctcn-2", "np", "np-hh", "np-fh", "spsa", "ad", "rules")] == [174209, 336130, 336130, 0, 0, 0, 0, 0]
    assert all(row["cpu"] > 0 for row in rows.values()) and rows["np"]["interpretable"] and not rows["ctcn-2"]["interpretable"]


def test_the_gpu_of_another_machine_fills_its_column(experiments, tmp_path):
    ours = {"hardware": "a laptop", "rows": [{"strategy": "ad", "cpu": 0.2, "gpu": None}, {"strategy": "spsa", "cpu": 0.1, "gpu": None}]}
    (tmp_path / "costs.json").write_text(json.dumps(ours))
    made = copy(experiments)
    made.folder = tmp_path
    assert made.costs() == ours
    (tmp_path / "costs-gpu.json").write_text(json.dumps({"hardware": "a server", "rows": [{"strategy": "ad", "cpu": 0.1, "gpu": 0.01}]}))
    assert made.costs() == {"hardware": "a laptop and a server", "rows": [{"strategy": "ad", "cpu": 0.2, "gpu": 0.01}, {"strategy": "spsa", "cpu": 0.1, "gpu": None}]}


def test_one_place_without_the_other_is_an_error(tmp_path):
    with pytest.raises(PaletteError, match="need music and speech"):
        StyleExperiments(tmp_path, TINY, music=tmp_path)
    with pytest.raises(PaletteError, match="unknown budget 'huge'; use one of tiny, cpu, full"):
        find_style_budget("huge")
    (tmp_path / "songs" / "train").mkdir(parents=True)
    with pytest.raises(PaletteError):
        find_style_material(TINY, {"music": tmp_path / "songs"})


@pytest.mark.parametrize("arguments, message", ((["-t", "6"], "there is no table 6; use some of 1, 2, 3, 4, 5"), (["--budget", "huge"], "unknown budget"), (["--data", "x"], "need music and speech")))
def test_the_command_says_what_is_wrong(arguments, message, tmp_path, capsys):
    assert main(["tables", "--paper", "deepafx-st", "-o", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said


def test_an_unknown_paper_is_named(tmp_path, capsys):
    assert main(["tables", "--paper", "resnet", "-o", str(tmp_path / "out")]) == 2
    assert "unknown paper 'resnet'; use timbrepalette or deepafx-st" in capsys.readouterr().err


def test_the_command_writes_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(style_tables.REPRESENTATIONS, "cdpam", style_tables.REPRESENTATIONS["openl3"])  # seconds a clip
    out = tmp_path / "out"
    assert main(["tables", "--paper", "deepafx-st", "-o", str(out), "-t", "4", "--write"]) == 0
    report = json.loads((out / "tables" / "tables.json").read_text())
    assert [table["name"] for table in report["tables"]] == ["style4_speech", "style4_music"] and report["about"]["budget"]["steps"] == 2
    rows = {row["features"]: row for row in report["tables"][0]["shown"]}
    assert rows["AD"]["Telephone"] == "- (1.00)" and "no package registry" in rows["OpenL3"]["remark"] and 0 <= float(rows[style_tables.UNTRAINED]["Avg"]) <= 1
