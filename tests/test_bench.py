"The table of speed: toy sizes, every way in it, and what it says of ways that are not here."
import sys

import numpy as np
import pytest
import torch

from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.bench import WAYS, pedalboard_palette, tilt_only_reference, time_models, write_models
from timbre_palette.enhance import enhance
from timbre_palette.synth import demo_clip


def test_the_table_has_all_that_was_asked_for():
    rows = time_models(seconds=2, rounds=2, ways=["graybox", "reference (SciPy)", "waveunet-v2, mono"], threads=(1, 2))
    assert [row["model"] for row in rows] == ["identity", "graybox", "reference (SciPy)", "waveunet-v2, mono"]
    identity, graybox, reference, network = rows
    for row in rows[1:]:
        for column in ("memory_1", "memory_2", "file_1", "file_2"):
            assert row[column] > 0.1, (row["model"], column)
        assert 0 < row.get("mb", 1) < 4000
    assert reference["of_reference"] == 1 and reference["si_snr"] > 120 and graybox["si_snr"] > identity["si_snr"] + 20
    assert graybox["memory_1"] > network["memory_1"]
    assert len(write_models(rows).splitlines()) == 5 and "cuda" in write_models(rows) or not torch.cuda.is_available()


def test_songs_of_ones_own(tmp_path):
    for number, start in enumerate((0, 50000)):
        write_audio(tmp_path / f"{number}.wav", demo_clip(22050)[:1, start:], 22050)
    identity, graybox = time_models([tmp_path], seconds=1.5, rounds=1, ways=["graybox"], threads=(1,), memory=False)
    assert graybox["si_snr"] > identity["si_snr"] + 20 and graybox["file_1"] > 0


def test_threads_are_as_before():
    before = torch.get_num_threads()
    time_models(seconds=1, rounds=1, ways=["graybox"], threads=(before + 1,), memory=False)
    assert torch.get_num_threads() == before


def test_a_way_that_is_not_here_is_left_out_with_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.models", None)
    monkeypatch.setitem(sys.modules, "pedalboard", None)
    rows = time_models(seconds=1, rounds=1, ways=["conv-tasnet, mono", "pedalboard, nearest"], threads=(1,), memory=False)
    assert "torchaudio" in rows[1]["note"] and "pedalboard" in rows[2]["note"] and "memory_1" not in rows[1]
    with pytest.raises(PaletteError, match="conv-tasnet"):
        time_models(ways=["wavenet"])


def test_conv_tasnet_is_torchaudios():
    pytest.importorskip("torchaudio.models", reason="torchaudio is not installed (extra dev)", exc_type=Exception)
    x = demo_clip(44100)[:1, :44100]
    assert WAYS["conv-tasnet, mono"].render(x, 44100, (1, 1, 1)).shape == x.shape


@pytest.mark.parametrize("weights, at_least", [((1, 0, 0), 20), ((0, 1, 0), 15), ((0, 0, 1), 15)])
def test_the_chain_in_pedalboard_is_near_in_level_too(weights, at_least):
    pytest.importorskip("pedalboard", reason="pedalboard is not installed (extra plugins)")
    from timbre_palette.anchors import palette_reference
    x = demo_clip(44100)
    exact = palette_reference(x, 44100, weights, variant="causal")  # its shelves have the least delay, no zero phase
    error = pedalboard_palette(x, 44100, weights) - exact
    assert 10 * np.log10((exact ** 2).sum() / (error ** 2).sum()) > at_least


def test_the_reference_without_loudness_is_the_palette_but_for_a_gain():
    from timbre_palette.anchors import palette_reference
    x = demo_clip(44100)
    exact, tilted = palette_reference(x, 44100, (1, 1, 1)), tilt_only_reference(x, 44100, (1, 1, 1))
    assert np.allclose(tilted * (exact.std() / tilted.std()), exact, atol=1e-9)


@pytest.mark.parametrize("model", ["graybox", "dsp"])
def test_rendering_edits_nothing_and_does_not_depend_on_the_block(model, monkeypatch):
    x = demo_clip(44100)
    before = x.copy()
    y = enhance(x, 44100, "s33_a33_m33", model=model)
    assert np.array_equal(x, before)
    monkeypatch.setattr("timbre_palette.enhance.BLOCK", 7777)
    assert np.abs(enhance(x, 44100, "s33_a33_m33", model=model) - y).max() < 1e-5
