"""The table as a user asks for it, and the yardsticks in it."""
import csv
import io
import json
import os
import re

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import sosfilt

from timbre_palette import cli, enhance
from timbre_palette.anchors import STYLES, palette
from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.blend import crossfade
from timbre_palette.cli import main
from timbre_palette.enhance import find_model
from timbre_palette.evaluation import (BESIDE_EXACT, FORM_VARIANTS, KNOBS, MEASURES, evaluate, evaluate_blends, evaluate_simplex, follow_weights, identity, in_form, movements,
                                       octave_levels, rank_correlation, simplex_means, simplex_points, summarise, summarise_simplex, write_table, yardsticks)
from timbre_palette.filters import peaking_sos, tilt_reference
from timbre_palette.loudness import loudness_reference
from timbre_palette.metrics import si_snr
from timbre_palette.songs import find_tracks
from timbre_palette.synth import demo_clip

LONG = bool(os.environ.get("TIMBRE_PALETTE_LONG"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test").mkdir()
    for number in range(2):
        write_audio(tmp_path / "test" / f"song {number}.wav", np.roll(demo_clip(22050), 9999 * number, axis=1)[:, :40000], 22050)
    return tmp_path


def test_the_table_has_its_rows(folder, capsys):
    assert main(["evaluate", str(folder), "--layout", "json", "--seconds", "1", "--models", "dsp", "graybox"]) == 0
    rows = {(row["model"], row["measure"]): row for row in json.loads(capsys.readouterr().out)}
    assert {model for model, _ in rows} == {"identity", "oracle", "dsp", "graybox"}
    assert rows["oracle", "si_snr"]["mean"] > rows["graybox", "si_snr"]["mean"] > 100 > rows["identity", "si_snr"]["mean"]
    assert rows["identity", "si_snr"]["over_identity"] == 0
    assert rows["dsp", "stft_distance"] == {**rows["oracle", "stft_distance"], "model": "dsp"}
    for row in rows.values():
        assert np.isclose(row["mean"], np.mean([row[style] for style in ("fullness", "warmth", "layeredness")]))


def test_the_papers_model_carries_its_name(folder, capsys):
    assert main(["evaluate", str(folder), "--seconds", "0.5", "--models", "waveunet-v2"]) == 0
    out = capsys.readouterr().out
    assert out.count("TimbrePalette (paper)") == 3 and "waveunet-v2" not in out and "SI-SNR (dB)" in out


@pytest.mark.parametrize("layout", ("text", "markdown", "csv"))
def test_layouts(folder, capsys, layout):
    assert main(["evaluate", str(folder), "--seconds", "0.5", "--models", "dsp", "--layout", layout, "--blends", "3"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == {"text": 10, "markdown": 11, "csv": 10}[layout]
    if layout == "csv":
        assert float(next(csv.DictReader(io.StringIO(out)))["mean"])


def test_an_inverted_model_is_not_passed_off(folder):
    rows = summarise(evaluate({"flipped": lambda *settings: -palette(*settings)}, find_tracks(folder)))
    assert rows[0]["mean"] > 100 and rows[0]["inverted"] == 6
    assert "inverted" in cli._table(rows, "text")


@pytest.mark.parametrize("arguments, message", [(["--layout", "verse"], "unknown table layout"), (["--models", "grybox"], "unknown model"), (["--seconds", "0"], "above 0"),
                                                (["--blends", "-1"], "0 or more"), (["--models", "no/such"], "not found|needs another package")])
def test_refusals(folder, capsys, arguments, message):
    assert main(["evaluate", str(folder), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(message, lines[0])


def test_weights_of_ones_own(folder, tmp_path, capsys):
    "A folder with weights takes a model's place; one that is not a palette does not."
    from timbre_palette.graybox import GrayBox
    GrayBox().save_pretrained(tmp_path / "own")
    source, out = folder / "test" / "song 0.wav", tmp_path / "out.wav"
    assert main(["enhance", str(source), "-o", str(out), "--model", str(tmp_path / "own")]) == 0
    assert out.exists() and str(tmp_path / "own") in capsys.readouterr().out
    (tmp_path / "broken").mkdir()
    assert main(["enhance", str(source), "-o", str(out), "--model", str(tmp_path / "broken")]) == 2


def test_every_model_is_offered_by_name():
    assert list(enhance.MODELS) == ["graybox", "blackbox", "waveunet-v2", "dsp"] and enhance.model_label("graybox") == "gray-box"


def test_songs_that_cannot_be_scored_are_left_out(folder, capsys):
    "One of NaN, one of a single sample, one of a constant: named or passed over, and the figures of the others stay numbers."
    soundfile.write(folder / "test" / "nan.wav", np.full(9000, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(folder / "test" / "one.wav", np.array([0.5]), 8000)
    soundfile.write(folder / "test" / "constant.wav", np.full(9000, 0.3), 8000)
    assert main(["evaluate", str(folder), "--models", "dsp", "--layout", "json"]) == 0
    out, error = capsys.readouterr()
    assert error.count("nan.wav") == 1 and "left out" in error
    assert json.loads(out) and "NaN" not in out


# The forms of a model


def test_a_live_form_is_scored_against_causal_anchors(folder):
    "And beside the exact palette, in what does not hear phase; an exact palette in its place is told apart."
    records = evaluate({**yardsticks("causal"), "live": in_form("dsp"), "exact": palette}, find_tracks(folder), variant="causal")
    rows = {(row["model"], row["measure"]): row for row in summarise(records)}
    assert {measure for _, measure in rows} == {*MEASURES, *BESIDE_EXACT}
    assert rows["live", "si_snr"]["worst"] > 80 and rows["exact", "si_snr"]["layeredness"] < 40
    assert rows["exact", "exact_loudness"]["worst"] < 1e-3 and rows["exact", "exact_stft_distance"]["worst"] < 1e-4
    for measure in BESIDE_EXACT:
        assert np.isclose(rows["live", measure]["mean"], rows["oracle", measure]["mean"], rtol=0.05, atol=1e-4)
        assert rows["live", measure]["mean"] < 0.2 * rows["identity", measure]["mean"]
        assert rows["live", measure]["worst"] == max(record[measure] for record in records if record["model"] == "live")


def test_loudness_off_the_exact_palette_is_in_lu(folder):
    louder = lambda *settings: 2 * palette(*settings)
    records = evaluate({"louder": louder}, find_tracks(folder), variant="causal") + evaluate_blends({"louder": louder}, find_tracks(folder), 2, variant="causal")
    assert all(abs(record["exact_loudness"] - 20 * np.log10(2)) < 1e-3 for record in records)
    assert not BESIDE_EXACT.keys() & evaluate({"louder": louder}, find_tracks(folder))[0].keys()


@pytest.mark.parametrize("form, variant", FORM_VARIANTS.items())
def test_a_form_takes_batches_and_channels(form, variant):
    x = torch.tensor(np.stack([demo_clip(22050), 0.1 * demo_clip(22050)[::-1]]).astype(np.float32))
    render = in_form("dsp", form)
    assert si_snr(render(x, 22050, [1, 2, 3], 0.8), palette(x, 22050, [1, 2, 3], 0.8, variant)).min() > 60
    assert si_snr(in_form("dsp", form, 1 << 14)(x, 22050, [1, 2, 3]), render(x, 22050, [1, 2, 3])).min() > 100
    assert render(x, 22050, [1, 2, 3], 0.0).equal(x)


def test_refused_forms(folder):
    with pytest.raises(PaletteError, match="unknown form"):
        in_form("dsp", "stage")
    with pytest.raises(PaletteError, match="unknown model"):
        in_form("grybox")
    with pytest.raises(PaletteError, match="unknown variant"):
        evaluate({"dsp": palette}, find_tracks(folder), variant="lively")


# Between the corners


def forgets(knob):
    "The exact palette, which does not know one of its knobs."
    def render(x, sample_rate, weights, amount=1.0):
        others = np.where(np.arange(3) == STYLES.index(knob), 0.0, np.divide(weights, np.sum(weights)))
        return palette(x, sample_rate, others, amount * min(1.0, others.sum())) if others.any() else x
    return render


@pytest.fixture(scope="module")
def simplex(tmp_path_factory):
    "Records of the exact palette, of the cross-fade, and of some that forget a knob."
    place = tmp_path_factory.mktemp("songs")
    for number in range(2):
        write_audio(place / f"song {number}.wav", 0.5 * np.roll(demo_clip(22050), 9999 * number, axis=1)[:, :40000], 22050)
    models = {"exact": palette, "crossfade": crossfade, "identity": identity, "backwards": lambda x, rate, weights, amount=1.0: palette(x, rate, np.roll(weights, 1), amount),
              **{f"no {knob}": forgets(knob) for knob in ("fullness", "layeredness")}}
    return evaluate_simplex(models, find_tracks(place), steps=4)


def test_points_of_the_simplex():
    for steps in (2, 3, 10):
        points = simplex_points(steps)
        assert len({tuple(point) for point in points.round(6)}) == len(points) and np.allclose(points.sum(1), 1)
        for corner in range(3):
            others = np.delete(points, corner, 1)
            line = points[np.isclose(*others.T), corner]
            assert np.allclose(np.sort(line), np.arange(steps + 1) / steps)


def test_the_exact_palette_is_perfect_between_the_corners(simplex):
    row = {row["model"]: row for row in summarise_simplex(simplex)}["exact"]
    assert row["worst"] > 100 and row["points"] == 15 and row["beats"] == row["inside"] == 3
    weights, distances = simplex_means(simplex, "exact", "stft_distance")
    assert len(weights) == 15 and distances.max() < 1e-4
    for row in follow_weights(simplex):
        if row["model"] == "exact":
            assert row["songs"] == 2 and row["line_worst"] > 1 - 1e-9
            assert row["whole_worst"] > rank_correlation(np.arange(15), np.sort(weights[:, 0])) - 1e-9


def test_the_crossfade_does_not_beat_itself(simplex):
    row = {row["model"]: row for row in summarise_simplex(simplex)}["crossfade"]
    assert row["beats"] == 0 and row["least"] == 0 and row["below"] > 50
    means = dict(zip(*(values.tolist() if values.ndim == 1 else map(tuple, values) for values in simplex_means(simplex, "crossfade"))))
    assert row["worst"] == min(means.values()) and np.isclose(row["corners"], np.mean([means[tuple(corner)] for corner in np.eye(3)]))
    assert all("beats" not in row for row in summarise_simplex([record for record in simplex if record["model"] != "crossfade"]))


def test_a_model_that_ignores_a_weight_does_not_follow_it(simplex):
    rows = {(row["model"], row["measured"]): row for row in follow_weights(simplex)}
    for name, (_, knob) in KNOBS.items():
        assert rows[f"no {knob}", name]["whole"] < 0.5 and rows[f"no {knob}", name]["line"] < 0.5
        other = "layeredness" if knob == "fullness" else "fullness"
        assert rows[f"no {other}", name]["line_worst"] > 0.99  # what it does know it follows
        assert abs(rows["backwards", name]["reach"]) < 0.3 * rows["exact", name]["reach"]  # a wrong knob may be steady, but not strong
        assert rows["identity", name]["whole"] == rows["identity", name]["line"] == rows["identity", name]["reach"] == 0
    assert abs(rows["exact", "tilt"]["reach"] - 1.5) < 0.1 and abs(rows["exact", "loudness"]["reach"] - 1) < 0.03


def test_what_a_knob_did_from_known_filters():
    "A tilt, a gain and a bell, of noise; each shows in its own figure."
    samples, rate = np.random.default_rng(0).standard_normal(1 << 18) / 10, 44100
    x = octave_levels(samples, rate)
    tilted = movements(octave_levels(2 * tilt_reference(samples, rate, -1.5), rate), x, x)
    assert abs(tilted["tilt_db"] - 1.5) < 0.03 and abs(tilted["level_db"] - 6.02) < 0.3 and abs(tilted["bass_db"]) < 0.2
    belled = movements(octave_levels(sosfilt(peaking_sos(rate, 150.0, 7.0, 1.0), samples), rate), x, x)
    assert 4 < belled["bass_db"] < 7 and abs(belled["tilt_db"]) < 0.25
    assert np.isnan(octave_levels(samples, 4000)[-3:]).all() and np.isfinite(octave_levels(samples, 4000)[:-3]).all()


def test_a_song_that_is_as_loud_as_it_should_be_cannot_show_it(tmp_path):
    "And one that does not sound is left out; none at all is an error."
    (tmp_path / "songs").mkdir()
    write_audio(tmp_path / "songs" / "silence.wav", np.zeros((1, 30000)), 22050)
    with pytest.raises(PaletteError, match="silence only"):
        evaluate_simplex({"exact": palette}, find_tracks(tmp_path / "songs"), steps=2)
    samples = demo_clip(22050)[:1]
    for name, lufs in (("near", -14.3), ("far", -24.0)):
        write_audio(tmp_path / "songs" / f"{name}.wav", samples * 10 ** ((lufs - loudness_reference(samples, 22050)) / 20), 22050, "FLOAT")
    said = []
    (tmp_path / "songs" / "broken.wav").write_bytes(b"RIFF")
    records = evaluate_simplex({"exact": palette}, find_tracks(tmp_path / "songs", said.append), steps=2, report=said.append)
    assert {record["song"] for record in records} == {"near.wav", "far.wav"} and any("broken" in str(message) for message in said)
    assert {row["measured"]: row["songs"] for row in follow_weights(records)} == {"bass": 2, "tilt": 2, "loudness": 1}
    assert json.loads(write_table(follow_weights(records), "json")) and "nan" not in write_table(records, "csv")


# On real songs; with TIMBRE_PALETTE_LONG all of them, in full


@pytest.mark.parametrize("form, variant", FORM_VARIANTS.items())
def test_the_gray_box_in_both_forms(songs, form, variant):
    tracks = find_tracks(songs[0].parent)
    records = evaluate({**yardsticks(variant), "graybox": in_form("graybox", form)}, tracks[::1 if LONG else 7], variant=variant)
    rows = summarise(records)
    print(f"\n{form}, beside the {variant} palette\n{write_table(rows)}")
    rows = {(row["model"], row["measure"]): row for row in rows}
    assert rows["graybox", "si_snr"]["mean"] >= 45
    for measure in BESIDE_EXACT if variant != "exact" else ():
        assert rows["graybox", measure]["mean"] < 0.2 * rows["identity", measure]["mean"]


def test_the_gray_box_between_the_corners(songs):
    tracks, models, steps = find_tracks(songs[0].parent), {"graybox": find_model("graybox"), "crossfade": crossfade}, 10 if LONG else 5
    records = evaluate_simplex(models, tracks[::1 if LONG else len(tracks)], steps)
    rows, followed = summarise_simplex(records), follow_weights(records)
    print(f"\n{write_table(rows)}\n{write_table(followed)}")
    assert rows[0]["model"] == "graybox" and rows[0]["beats"] == rows[0]["inside"] == (steps - 1) * (steps - 2) // 2
    shared = np.sort(simplex_means(records, "graybox")[0][:, 0])
    asked = rank_correlation(np.arange(len(shared)), shared) - 0.0025  # 0.99 on 66 points
    for row in followed:
        assert row["model"] != "graybox" or not row["songs"] or (row["whole"] >= asked and row["line"] >= 0.99)


def test_the_command_scores_forms(folder, capsys):
    assert main(["evaluate", str(folder), "--form", "live", "--models", "graybox", "dsp", "--seconds", "1", "--layout", "json"]) == 0
    rows = {(row["model"], row["measure"]): row["mean"] for row in json.loads(capsys.readouterr().out)}
    assert rows["dsp", "si_snr"] > 70 and rows["graybox", "si_snr"] > 45 > rows["identity", "si_snr"]
    assert rows["graybox", "exact_stft_distance"] < rows["identity", "exact_stft_distance"]
    assert main(["evaluate", str(folder), "--form", "live", "--models", "waveunet-v2"]) == 2 and "live" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--form", "dead"]) == 2 and main(["evaluate", str(folder), "--simplex", "--blends", "3"]) == 2
