"""How far models hear, the best filters of a length, and that the report's stored figures are what is measured."""
import json

import numpy as np
import pytest
import torch
from scipy.signal import lfilter, sosfilt

from conftest import ROOT, script
from timbre_palette.anchors import STYLES, palette_reference
from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.baselines.table import find_baseline
from timbre_palette.checkpoint import Pretrained
from timbre_palette.data import excerpt
from timbre_palette.enhance import find_model
from timbre_palette.evaluation import MEASURES, evaluate
from timbre_palette.experiments import Unit, find_budget, find_renderer, train_unit, unit_folder
from timbre_palette.filters import peaking_sos
from timbre_palette.model import ConditionalWaveUNet
from timbre_palette.reach import KINDS, Split, ahead_of, apply_filter, best_filter, correlate, correlations, filter_output, receptive_field, restricted, score_samples, sweep_lengths
from timbre_palette.songs import find_tracks
from timbre_palette.synth import demo_clip

DATA = ROOT / "nbs" / "results" / "data"


def stored(name):
    "A JSON file of the report."
    return json.loads((DATA / f"reach_{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clip():
    return demo_clip(44100)[0].astype(np.float64)[:200000]


@pytest.mark.parametrize("taps, ahead", [(1, 0), (24, 0), (25, 12), (24, 23)])
def test_the_best_filter_is_the_least_squares_one(taps, ahead):
    rng = np.random.default_rng(1)
    dry = np.pad(lfilter([1], [1, -0.95], rng.normal(size=3000)), 200)  # coloured, as music is
    wet = np.tanh(sosfilt(peaking_sos(44100, 150, 7, 1), dry))
    shifted = np.stack([np.roll(dry, k - ahead) for k in range(taps)], 1)
    found = best_filter(correlations(dry, wet, 60), taps, ahead, small=0)
    assert np.allclose(found, np.linalg.lstsq(shifted, wet, rcond=None)[0], atol=1e-7)
    assert np.allclose(apply_filter(found, dry, ahead), shifted @ found)


def test_long_filters_are_exact_too(clip):
    "What is left over has nothing to do with any sample that the filter hears: that is what least squares means."
    split = Split(clip, 44100, "fullness")
    taps = best_filter(correlate(split, 8191)["centred"], 8191, 4095, small=0)
    left = split.wet - apply_filter(taps, split.dry, 4095)
    across = correlations(split.dry, left, 4095)[4096:]
    assert np.abs(across).max() < 1e-8 * np.linalg.norm(split.dry) * np.linalg.norm(split.wet)


def test_correlations_of_songs_add_up(clip):
    "One filter for two songs is the least-squares one of both, end to end."
    pairs = [(split.dry, split.wet) for split in (Split(clip[:60000], 44100, "warmth"), Split(clip[90000:150000], 44100, "warmth"))]
    together = best_filter(sum(correlations(*pair, 300) for pair in pairs), 301, 150)
    joined = best_filter(correlations(*map(np.concatenate, zip(*pairs)), 300), 301, 150)
    assert np.allclose(together, joined, atol=1e-9)


@pytest.mark.parametrize("style", STYLES)
def test_longer_is_better(clip, style):
    lengths = (1, 7, 31, 127, 511, 2047)
    records = sweep_lengths(Split(clip, 44100, style), lengths)
    for kind in KINDS:
        snr = [record["si_snr"] for record in records if record["kind"] == kind]
        assert len(snr) == len(lengths) and all(b > a - 0.05 for a, b in zip(snr, snr[1:])) and snr[-1] > snr[0] + 5
    identity = score_samples(clip, palette_reference(clip[None], 44100, np.eye(3)[STYLES.index(style)])[0])["si_snr"]
    assert abs(records[0]["si_snr"] - identity) < 1e-6  # one tap is a gain, which SI-SNR forgives


def test_refusals(clip):
    with pytest.raises(PaletteError, match="silence"):
        best_filter(correlations(np.zeros(100), np.zeros(100), 10), 5)
    with pytest.raises(PaletteError, match="cannot be had"):
        best_filter(correlations(clip, clip, 10), 12)
    with pytest.raises(PaletteError, match="unknown style"):
        Split(clip, 44100, "loudness")
    with pytest.raises(PaletteError, match="corners"):
        restricted()(torch.zeros(1, 1, 44100), 44100, [1, 0, 0], 0.5)


def test_receptive_fields_are_those_counted():
    torch.manual_seed(0)
    layers = [torch.nn.Conv1d(1, 1, kernel, dilation=dilation, padding="same").double() for kernel, dilation in ((15, 1), (5, 3), (3, 10))]
    assert receptive_field(torch.nn.Sequential(*layers), 400) == (7 + 6 + 10,) * 2
    down, up = torch.nn.Conv1d(1, 1, 4, stride=4).double(), torch.nn.Upsample(scale_factor=4)
    held = lambda x: up(down(x))  # in blocks of four: by position three behind, or three ahead
    assert receptive_field(held, 64, positions=4) == (3, 3) and sum(receptive_field(held, 64)) == 3
    late = lambda x: torch.nn.functional.pad(x, (40, 0))[..., :-40]
    assert receptive_field(late, 200) == (40, 0)  # the present counts whether it is heard or not
    faint = lambda x: x + 1e-4 * late(x)
    assert receptive_field(faint, 200) == (40, 0) and receptive_field(faint, 200, floor=1e-3) == (0, 0)
    with pytest.raises(PaletteError, match="further than"):
        receptive_field(late, 80)
    with pytest.raises(PaletteError, match="does not depend"):
        receptive_field(torch.ones_like, 60)


def test_stored_fields_are_the_networks():
    rows = {row["model"]: row for row in stored("fields")["rows"]}
    torch.manual_seed(3)
    for version in ("v1", "v2"):
        net = ConditionalWaveUNet(version).double()
        assert receptive_field(lambda x: net(x, [0, 1, 0]), 2048, positions=8) == (rows[f"waveunet-{version}"]["behind"], rows[f"waveunet-{version}"]["ahead"])
    assert rows["tcn"]["behind"] == find_baseline("tcn").build().reach.before and rows["tcn"]["ahead"] == 0
    assert rows["conv-tasnet"]["behind"] == rows["conv-tasnet"]["ahead"] == 8 * 3 * 255 + 15


def test_a_head_cuts_and_nothing_bounded_comes_nearer():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(1, 1, 44100)) * 0.1)
    target = palette_reference(x[0].numpy(), 44100, [0, 0, 1])[0]
    ceiling = 0.2
    output = restricted(head=ceiling)(x, 44100, [0, 0, 1])[0, 0].numpy()
    assert np.abs(target).max() > 0.3 and np.allclose(output, np.clip(target, -ceiling, ceiling), atol=1e-5)
    best = np.sum((output - target) ** 2)
    for scale in (1e-2, 1e-1):
        other = np.clip(output + scale * rng.normal(size=output.shape), -ceiling, ceiling)
        assert np.sum((other - target) ** 2) > best
    quiet = target * ceiling / np.abs(target).max()  # SI-SNR alone would not see a head
    assert score_samples(quiet, target)["si_snr"] > 200 > 40 > score_samples(output, target)["si_snr"]


def test_a_field_is_the_filter_inside(clip):
    x = torch.tensor(clip[None, None])
    for k, style in enumerate(STYLES):
        split = Split(clip, 44100, style)
        inside = filter_output(split, best_filter(correlate(split, 246)["inside"], 246, ahead_of("inside", 246)), "inside")
        assert np.allclose(restricted(field=246)(x, 44100, np.eye(3)[k])[0, 0].numpy(), inside)


def test_the_bell_is_as_long_as_it_is(songs):
    "15 dB within 240 samples, 39 within 22 ms, 69 within 44: the design's figures, on a song."
    split = Split(excerpt(find_tracks(songs[0].parent)[0])[0, 0].numpy(), 44100, "fullness")
    correlated = correlations(split.dry, split.part, 1940)
    snr = [score_samples(apply_filter(best_filter(correlated, taps, taps // 2), split.dry, taps // 2), split.part)["si_snr"] for taps in (240, 970, 1940)]
    assert np.allclose(snr, [15, 39.5, 69], atol=1)


def test_stored_figures_are_complete():
    filters, limits = stored("filters"), stored("limits")
    assert filters["songs"] == limits["songs"] and len(filters["songs"]) == 21
    assert {(row["style"], row["kind"], row["taps"]) for row in filters["rows"]} == {(style, f"{who}{kind}", taps) for style in STYLES for who in ("", "learned ") for kind in KINDS
                                                                                   for taps in filters["lengths"]}
    assert {(row["model"], row["style"]) for row in limits["rows"]} >= {(model, style) for model in ("identity", "field", "head", "deaf", "waveunet-v2") for style in STYLES}
    for row in filters["rows"] + limits["rows"]:
        assert all(len(row[measure]) == 21 for measure in MEASURES)
    card = {(row["model"], row["measure"]): row for row in Pretrained.from_pretrained("waveunet-v2").card["metrics"]}
    for row in limits["rows"]:
        if row["model"] in ("identity", "waveunet-v2"):
            assert all(abs(np.mean(row[measure]) - card[row["model"], measure][row["style"]]) < 0.02 for measure in ("si_snr", "sd_sdr"))


def test_stored_figures_are_measured_again(songs):
    "One song: filters of a few lengths, and what limits cost."
    filters, limits = stored("filters"), stored("limits")
    number = 3
    track = next(track for track in find_tracks(songs[0].parent) if track.name == filters["songs"][number])
    rows = {(row["style"], row["kind"], row["taps"]): row for row in filters["rows"]}
    for style in STYLES:
        for record in sweep_lengths(Split(excerpt(track)[0, 0].numpy(), track.sample_rate, style), (1, 246, 1023)):
            kept = rows[style, record["kind"], record["taps"]]
            assert abs(record["si_snr"] - kept["si_snr"][number]) < 0.02 and abs(record["sd_sdr"] - kept["sd_sdr"][number]) < 0.02
    rows = {(row["model"], row["style"]): row for row in limits["rows"]}
    models = {"field": restricted(limits["field"]), "head": restricted(head=1.0), "deaf": restricted(gain_db=limits["gain_db"]), "waveunet-v2": find_model("waveunet-v2")}
    for record in evaluate(models, [track], ["layeredness"]):
        for measure in MEASURES:
            assert abs(min(record[measure], 300) - rows[record["model"], record["style"]][measure][number]) < 0.05, (record["model"], measure)


def with_units(command, splits, folder):
    "A trained TCN, a Conv-TasNet that was scored and kept without weights, and a v1 that only an earlier run knew: all get their rows, and nothing is written where they lie."
    path, units = folder / "data" / "reach_models.json", folder / "tables"
    known = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**known, "rows": known["rows"] + [{**row, "model": "waveunet-v1"} for row in known["rows"][:1]]}), encoding="utf-8")
    train_unit(Unit("tcn"), 0, find_budget("tiny"), folder / "songs", units, device="cpu")
    kept = unit_folder(units, Unit("conv-tasnet"), 0)
    (kept / "best").mkdir(parents=True)
    (kept / "best" / "card.json").write_text('{"curve": []}')
    records = [{"style": style, "si_snr": 1.0, "sd_sdr": 2.0, "stft_distance": 0.3} for style in STYLES]
    (kept / "scores.json").write_text(json.dumps({"songs": {"songs": ["2.wav"], "seconds": 10.0, "records": records}}))
    command.measure_models(splits, None, units)
    rows = {(row["model"], row["style"]): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    assert len(rows) == 3 * 4 + 1 and rows["conv-tasnet", "warmth"]["si_snr"] == [1.0] and rows["waveunet-v1", "fullness"]["si_snr"] == rows["graybox", "fullness"]["si_snr"]
    assert not (unit_folder(units, Unit("tcn"), 0) / "scores.json").exists()
    ours = evaluate({"tcn": find_renderer(units, Unit("tcn"), 0)}, splits["test"])
    assert [rows["tcn", record["style"]]["si_snr"] for record in ours] == [[round(record["si_snr"], 2)] for record in ours]


def test_the_command_measures(tmp_path, monkeypatch, clip):
    "In little: three songs of a clip, few lengths."
    command = script("measure_reach")
    monkeypatch.setattr(command, "FOLDER", tmp_path / "data")
    monkeypatch.setattr(command, "LENGTHS", (1, 15))
    (tmp_path / "songs").mkdir()
    for number in range(3):
        write_audio(tmp_path / "songs" / f"{number}.wav", 0.5 * clip[None, 30000 * number:30000 * number + 60000], 44100)
    tracks = find_tracks(tmp_path / "songs")
    splits = {"train": tracks[:2], "val": tracks[2:], "test": tracks[2:]}
    command.measure_models(splits, None, None)
    assert {row["model"] for row in json.loads((tmp_path / "data" / "reach_models.json").read_text(encoding="utf-8"))["rows"]} == {"graybox", "blackbox"}  # no folder of trained ones was given
    with_units(command, splits, tmp_path)
    command.measure_filters(splits, None, None)
    command.measure_limits(splits, None, None)
    command.measure_further(splits, None, None, steps=2, size=1, segments=1)
    found = {name: json.loads((tmp_path / "data" / f"reach_{name}.json").read_text(encoding="utf-8")) for name in ("models", "filters", "limits", "further")}
    assert {row["model"] for row in found["models"]["rows"]} == {"graybox", "blackbox", "waveunet-v1", "tcn", "conv-tasnet"}
    assert len(found["filters"]["rows"]) == 3 * 2 * 2 * 3 and found["filters"]["songs"] == ["2.wav"]
    assert {row["model"] for row in found["limits"]["rows"]} == {row["model"] for row in stored("limits")["rows"]}
    assert {row["loss"] for row in found["further"]["rows"]} == {"untouched input", "as shipped", "stable", "error"}
