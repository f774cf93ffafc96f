"""The table as a user asks for it, and the yardsticks in it."""
import csv
import io
import json
import re

import numpy as np
import pytest
import soundfile

from timbre_palette import cli, enhance
from timbre_palette.anchors import palette
from timbre_palette.audio import write_audio
from timbre_palette.cli import main
from timbre_palette.songs import find_tracks
from timbre_palette.evaluation import evaluate, summarise
from timbre_palette.synth import demo_clip


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
    assert rows["oracle", "si_snr"]["mean"] > 100 > rows["graybox", "si_snr"]["mean"] > rows["identity", "si_snr"]["mean"]
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
