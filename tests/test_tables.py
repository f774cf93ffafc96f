"""The paper's tables: every number of the paper is there, ours are what the units measured, and a run can be stopped."""
import json
import subprocess
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from conftest import script
from timbre_palette import experiments as ex
from timbre_palette import tables as tb
from timbre_palette.anchors import STYLES
from timbre_palette.audio import PaletteError
from timbre_palette.baselines.table import BASELINES
from timbre_palette.cli import main
from timbre_palette.evaluation import evaluate, identity

# As printed in the paper: Tables 3, 4, 5, 6 and Figure 3.
PRINTED = {"table2": ["Training Collapse (NaN Loss)", "<5"], "table3": ["1.38", "1.39", "3.84", "15.75", "16.42", "196.14"],
           "table4_songs": ["0.4918", "11.5553", "0.7007", "3.4369", "0.5830", "2.0054", "0.4645", "14.2230"],
           "table5_songs": ["0.4645", "14.2230", "0.6094", "10.5507", "0.5830", "2.0054"],
           "table6": ["3.06 ± 0.85", "2.94 ± 0.93", "2.69 ± 1.14"],
           "figure3_neighbours": ["0.0135", "0.0133", "0.0127", "0.0120", "0.0112", "0.0128", "0.0142", "0.0153", "0.0160", "0.0164"],
           "table7_v2": ["1,454,241", "3.8 hours", "1454241"]}


@pytest.fixture(scope="module")
def tiny():
    return ex.find_budget("tiny")


def test_the_whole_run(tmp_path):
    """`timbre-palette tables` by the smallest budget: every table, every printed number, every network."""
    assert main(["tables", "--budget", "tiny", "-o", str(tmp_path / "run")]) == 0
    made = tmp_path / "run" / "tables"
    for name, numbers in PRINTED.items():
        text = (made / f"{name}.md").read_text()
        assert all(number in text for number in numbers), name
        assert (made / f"{name}.csv").is_file()
    report = json.loads((made / "tables.json").read_text())
    names = [table["name"] for table in report["tables"]]
    assert {"table1", "table2", "table3", "table6", "table7_v1", "table7_v2", *(f"table{n}_{m}" for n in (4, 5) for m in ("songs", "solos", "stems"))} <= set(names)
    about = report["about"]
    assert about["budget"]["steps"] == 2 and about["hardware"] and about["data"]["train"]["songs"] and about["minutes_of_training"] >= 0
    for table in report["tables"]:
        if table["name"][:6] in ("table3", "table4", "table5"):
            models = [row["model"] for row in table["shown"]]
            assert models[:4] == list(tb.LABELS.values())  # the rows that keep it honest
            assert not any(row["remark"] == "not run" for row in table["shown"])
    again = main(["tables", "--budget", "tiny", "-o", str(tmp_path / "run"), "--write", "-t", "3"])
    assert again == 0 and len(list((tmp_path / "run" / "units").iterdir())) == about["units"]


def test_every_row_of_the_paper_has_a_network():
    """Each printed row is answered, and each baseline that claims a row of Tables 3 to 5 is in that table."""
    for number, rows in tb.ROWS.items():
        there = {(unit.baseline, row.name) for row in rows for unit in row.units}
        for name, baseline in BASELINES.items():
            for table, printed in baseline.rows:
                if table == number:
                    assert (name, printed) in there or number == 4 and name == "waveunet-unconditioned", (number, name)


@pytest.mark.parametrize("arguments, said", [(["--budget", "huge"], "unknown budget"), (["-t", "9"], "no table 9"), (["--data", "nowhere"], "nowhere"), (["--solos", "nowhere"], "nowhere")])
def test_what_goes_wrong_is_one_line(arguments, said, tmp_path, capsys):
    assert main(["tables", "-o", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_songs_without_a_test_split_are_refused(tmp_path, capsys):
    songs = ex.synthesise_songs(tmp_path / "songs")
    for path in (songs / "test").iterdir():
        path.unlink()
    (songs / "test").rmdir()
    assert main(["tables", "-o", str(tmp_path / "run"), "--data", str(songs)]) == 2
    assert "no songs to test by" in capsys.readouterr().err


def test_another_budget_is_refused(tmp_path, tiny):
    tb.Experiments(tmp_path, tiny)
    with pytest.raises(PaletteError, match="another budget"):
        tb.Experiments(tmp_path, ex.find_budget("cpu"))


def test_stopped_and_gone_on_with(tmp_path, tiny, command):
    """A run that is killed goes on, with the same result as one that was not."""
    from time import sleep
    process = subprocess.Popen([*command, "tables", "-o", str(tmp_path / "killed"), "-t", "5"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        sleep(0.1)
        if list((tmp_path / "killed").glob("units/*/best/card.json")):
            break
    process.kill()
    process.wait()
    assert main(["tables", "-o", str(tmp_path / "killed"), "-t", "5"]) == 0
    whole = tb.Experiments(tmp_path / "whole", tiny)
    for _, work in whole.jobs((5,))[:2]:
        work(lambda done, total: None)
    unit = tb.plan_units((5,), tiny)[0][0]
    scores = [json.loads((ex.unit_folder(folder, unit, 0) / "scores.json").read_text())["songs"]["records"] for folder in (tmp_path / "killed", tmp_path / "whole")]
    assert [record["si_snr"] for record in scores[0]] == pytest.approx([record["si_snr"] for record in scores[1]], abs=1e-4)


def test_a_figure_is_the_mean_over_styles_and_seeds(tmp_path, tiny):
    """Rows are what `evaluate` said, averaged over songs, styles and seeds, with Student's interval."""
    budget = replace(tiny, seeds=(0, 1, 2))
    material = {"songs": ex.find_tracks(ex.synthesise_songs(tmp_path / "songs") / "test")}
    base = evaluate({"unit": identity}, material["songs"], STYLES, seconds=budget.excerpt_s)
    for row in tb.ROWS[5][:1]:
        for seed in budget.seeds:
            records = [{**record, "si_snr": record["si_snr"] + seed} for record in base]
            path = ex.unit_folder(tmp_path, row.units[0], seed) / "scores.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"songs": {"songs": [track.name for track in material["songs"]], "seconds": budget.excerpt_s, "records": records}}))
    rows = {row["model"]: row for row in tb.quality_rows(5, "songs", material, budget, tmp_path)}
    ours, others = rows["TimbrePalette (Ours, v2)"], rows["Ablation (Ours, v1_ConvT)"]
    styles = [np.mean([record["si_snr"] for record in base if record["style"] == style]) for style in STYLES]
    assert ours["si_snr"] == pytest.approx(np.mean(styles) + 1) and ours["si_snr_half"] == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)
    assert ours["seeds"] == 3 and ours["rank_si_snr"] == 1 and "si_snr" not in others and others["rank_si_snr"] is None


def test_less_training_never_ranks(tmp_path, tiny):
    reduced = [row for rows in tb.ROWS.values() for row in rows if row.reduced]
    assert len(reduced) == 1
    rows = tb._ranked([{"kind": "trained", "si_snr": 1.0}, {"kind": "reduced", "si_snr": 9.0}, {"kind": "yardstick", "si_snr": 99.0}], {"si_snr": False})
    assert [row["rank_si_snr"] for row in rows] == [1, None, None]


def test_units_hear_the_same_number_of_seconds():
    for name in ("cpu", "full"):
        budget = ex.find_budget(name)
        heard = {unit.name: unit.recipe(budget, seed) for unit, seed in tb.plan_units((3, 4, 5), budget) if unit.part == 1}
        assert len({(recipe.steps, recipe.batch, recipe.seconds, recipe.learning_rate, recipe.loss) for recipe in heard.values()}) == 1
        assert budget.minutes >= 20


def test_the_stand_in_for_stems_changes_them(tmp_path, tiny):
    """A separated stem is not the song: something is missing, nothing is added that is louder."""
    from timbre_palette.data import excerpt
    songs = ex.find_tracks(ex.synthesise_songs(tmp_path / "songs") / "test")
    stem = ex.separate_stems(songs[:1], tmp_path / "stems", 2.0)[0]
    dry, left = excerpt(songs[0], 2.0), excerpt(stem, 2.0)
    assert left.shape == dry.shape and 0.05 < (left.square().mean() / dry.square().mean()).sqrt() < 0.95
    assert ex.separate_stems(songs[:1], tmp_path / "stems", 2.0)[0].path == stem.path  # kept


def test_a_network_that_cannot_be_trained_is_left_out(tmp_path, tiny, monkeypatch):
    """Where torchaudio cannot be loaded, or training breaks down, the others go on and the row says so."""
    def broken(unit, seed, *arguments, **settings):
        raise PaletteError("torchaudio cannot be loaded")

    monkeypatch.setattr(tb, "train_unit", broken)
    said = []
    experiments = tb.Experiments(tmp_path, tiny, report=said.append)
    for what, work in experiments.jobs((3,)):
        work(lambda done, total: None)
    assert len(said) == 6 and "wide" in said[0] and "torchaudio cannot be loaded; left out" in said[0]
    rows = {row["model"]: row for row in tb.make_tables(experiments, (3,))[0].shown}
    assert rows["TCN"]["remark"] == "not run" and rows["TCN"]["paper loss"] == "1.39" and rows["identity: doing nothing"]["lowest loss"]


# --- what survives a working folder: units without weights, rows of an earlier run

@pytest.fixture(scope="module")
def keeper():
    "scripts/keep_tables.py as a module."
    return script("keep_tables")


def test_units_survive_without_their_weights(tmp_path, tiny, keeper, monkeypatch):
    """What was kept of units gives the same tables in another folder, where nothing is trained again; of another budget or other songs it is refused."""
    lost = tb.Experiments(tmp_path / "lost", tiny)
    units = [tb.ROWS[3][-1].units[0], tb.ROWS[5][0].units[0]]  # the smallest backbone, and v2
    for unit in units:
        ex.train_unit(unit, 0, tiny, lost.data, lost.folder, device="cpu")
    ex.score_unit(units[1], 0, tiny, lost.material, lost.folder)
    before = {table.name: table for table in tb.make_tables(lost, (3, 5))}
    keeper.keep_units(lost.folder, tmp_path)
    files = sorted((tmp_path / "data" / "units").iterdir())
    assert [path.name for path in files] == ["dlinear-0.json", "waveunet-v2-0.json"] and all(path.stat().st_size < 15_000 for path in files)

    found = tb.Experiments(tmp_path / "found", tiny, lost.data, kept=tmp_path / "data" / "units")
    monkeypatch.setattr(ex, "train_palette", lambda *arguments: pytest.fail("trained again"))
    for unit in units:
        assert ex.train_unit(unit, 0, tiny, found.data, found.folder)["minutes"] >= 0 and not ex.has_weights(found.folder, unit, 0)
    assert set(ex.score_unit(units[0], 0, tiny, found.material, found.folder)) == set()  # was not scored, and cannot be
    for table in tb.make_tables(found, (3, 5)):
        for row, was in zip(table.shown, before[table.name].shown):
            machine = ("times real time", "remark")
            assert {name: value for name, value in row.items() if name not in machine} == {name: value for name, value in was.items() if name not in machine}
            kept = row["model"] in ("TimbrePalette (Ours, v2)", "DLinear")
            assert (row["times real time"], row["remark"]) == (f"{was['times real time']} (kept)", "kept") if kept else "kept" not in row["times real time"] + row["remark"]
    assert set(tb.describe_experiments(found)["kept"]) == {"dlinear-0", "waveunet-v2-0"} and not tb.describe_experiments(lost)["kept"]

    with pytest.raises(PaletteError, match="another seconds"):
        tb.Experiments(tmp_path / "longer", replace(tiny, seconds=0.2), lost.data, kept=tmp_path / "data" / "units")
    with pytest.raises(PaletteError, match="has no unit"):
        tb.Experiments(tmp_path / "none", tiny, lost.data, kept=tmp_path)
    (lost.data / "train" / "synthesised-1.wav").unlink()
    with pytest.raises(PaletteError, match="other songs"):
        tb.Experiments(tmp_path / "fewer", tiny, lost.data, kept=tmp_path / "data" / "units")


def report(commit, figures, seeds="1", **about):
    "A report in little: Table 4 of the figures (SI-SNR) by model, None where one was not run, and a table without networks."
    rows = [{"model": tb.LABELS["identity"], "SI-SNR (dB)": "15.52", "rank by SI-SNR (paper)": "", "times real time": "", "seeds": "", "remark": ""}]
    for model, paper in (("A", 1), ("B", 2), ("C", 3), ("less", 3)):
        figure = figures.get(model)
        place = tb.rank([figures.get(name) for name in "ABC"], False)["ABC".index(model)] if model in "ABC" else None
        remark = ["reduced"] * (model == "less") + ["not run"] * (figure is None)
        rows.append({"model": model, "SI-SNR (dB)": f"{figure:.2f}" if figure else "", "rank by SI-SNR (paper)": f"{place or '-'} ({paper})", "times real time": "2.0" if figure else "",
                     "seeds": seeds if figure else "", "remark": ", ".join(remark)})
    about = {"version": "1", "commit": commit, "budget": {"steps": 2, "seeds": [0]}, "data": {"train": {"songs": 3}}, "scored_on": {"songs": ["a.wav"]}, "hardware": ["a CPU"], "torch": ["2"],
             "units": 3, "minutes_of_training": 1.0, **about}
    return {"about": about, "tables": [{"name": "table4_songs", "title": "Table 4", "notes": ["A note."], "shown": rows}]}


def test_rows_of_an_earlier_run_are_taken_over(keeper):
    """A row that was run now stays, one that only an earlier run has is taken over; ranks are over all, and each row says whose it is."""
    earlier, ours = report("old", {"A": 5.0, "B": 9.0, "less": 99.0}), report("new", {"B": 8.0, "C": 7.0})
    earlier["tables"].append({"name": "table1", "title": "Table 1", "notes": [], "shown": [{"dimension": "task"}]})
    given = deepcopy([ours, earlier])
    merged = keeper.merge_tables(ours, earlier)
    assert [ours, earlier] == given
    rows = {row["model"]: row for row in merged["tables"][0]["shown"]}
    assert [rows[name]["SI-SNR (dB)"] for name in ("A", "B", "C", "less")] == ["5.00", "8.00", "7.00", "99.00"]
    assert [rows[name]["rank by SI-SNR (paper)"] for name in ("A", "B", "C", "less")] == ["3 (1)", "1 (2)", "2 (3)", "- (3)"]
    assert [rows[name]["run"] for name in rows] == ["2", "1", "2", "2", "1"]
    assert [rows[name]["times real time"] for name in ("A", "B", "C")] == ["2.0 (run 1)", "2.0", "2.0"]
    assert merged["tables"][0]["notes"] == ["A note.", keeper.SEVERAL] and merged["tables"][1]["run"] == "1"
    assert [(run["run"], run["commit"]) for run in merged["about"]["runs"]] == [("1", "old"), ("2", "new")]

    again = keeper.merge_tables(report("newer", {"B": 8.0, "C": 7.0}), merged)  # the run before has no row left, and goes
    assert [(run["run"], run["commit"]) for run in again["about"]["runs"]] == [("1", "old"), ("2", "newer")]
    assert again["tables"] == merged["tables"]
    third = keeper.merge_tables(report("third", {"A": 6.0, "less": 98.0}), merged)
    assert [row["run"] for row in third["tables"][0]["shown"]] == ["3", "3", "2", "2", "3"] and third["tables"][0]["shown"][2]["times real time"] == "2.0 (run 2)"


def test_a_row_of_more_seeds_or_of_a_measured_speed_is_worth_more(keeper):
    several, single = report("several", {"A": 5.0}, seeds="3"), report("single", {"A": 6.0})
    assert keeper.merge_tables(single, several)["tables"][0]["shown"][1]["SI-SNR (dB)"] == "5.00"
    assert keeper.merge_tables(several, single)["tables"][0]["shown"][1]["SI-SNR (dB)"] == "5.00"
    kept = report("kept", {"A": 6.0})
    kept["tables"][0]["shown"][1] |= {"remark": "kept", "times real time": "2.0 (kept)"}
    assert keeper.merge_tables(kept, single)["tables"][0]["shown"][1]["times real time"] == "2.0 (run 1)"
    assert keeper.merge_tables(single, kept)["tables"][0]["shown"][1]["times real time"] == "2.0"


@pytest.mark.parametrize("about, said", [({"budget": {"steps": 3, "seeds": [0]}}, "another budget"), ({"budget": {"steps": 2, "seeds": [0, 1]}}, "other seeds"), ({"data": {"train": {"songs": 4}}}, "another choice of songs"),
                                         ({"scored_on": {"songs": ["b.wav"]}}, "another material")])
def test_rows_that_cannot_be_compared_are_refused(keeper, about, said):
    with pytest.raises(PaletteError, match=said):
        keeper.merge_tables(report("new", {"A": 1.0}, **about), report("old", {"B": 2.0}))


def test_runs_in_which_doing_nothing_differs_are_refused(keeper):
    ours, earlier = report("new", {"A": 1.0}), report("old", {"B": 2.0})
    earlier["tables"][0]["shown"][0]["SI-SNR (dB)"] = "15.01"
    with pytest.raises(PaletteError, match="doing nothing scores otherwise"):
        keeper.merge_tables(ours, earlier)


def test_tables_are_kept_beside_those_that_are_there(tmp_path, keeper):
    """As a command does it: a file, merged with the one that is there, or anew."""
    for name, figures in (("old", {"A": 5.0}), ("new", {"B": 8.0})):
        (tmp_path / name / "tables").mkdir(parents=True)
        (tmp_path / name / "tables" / "tables.json").write_text(json.dumps(report(name, figures)))
    (tmp_path / "data").mkdir()
    ran = lambda: [row["model"] for row in json.loads((tmp_path / "data" / "tables.json").read_text())["tables"][0]["shown"][1:] if "not run" not in row["remark"]]
    keeper.keep_tables(tmp_path / "old", tmp_path)
    keeper.keep_tables(tmp_path / "new", tmp_path)
    assert ran() == ["A", "B"]
    keeper.keep_tables(tmp_path / "new", tmp_path, anew=True)
    assert ran() == ["B"]
