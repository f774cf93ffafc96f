"""The paper's tables: every number of the paper is there, ours are what the units measured, and a run can be stopped."""
import json
import subprocess

import numpy as np
import pytest

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
    from dataclasses import replace
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
