"""On real songs: the batched palette against the reference, the meter against others, the identity row."""
import os
import shutil
import subprocess
import re

import numpy as np
import pyloudnorm
import pytest
import torch

from timbre_palette.anchors import STAGES, palette, palette_reference
from timbre_palette.audio import read_audio
from timbre_palette.loudness import integrated_loudness, true_peak_db
from timbre_palette.metrics import sd_sdr, si_snr, stft_distance

STYLES = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [80, 10, 10], [1, 1, 1]]


@pytest.mark.parametrize("variant", STAGES)
def test_palette_equals_the_reference(songs, variant):
    "With `TIMBRE_PALETTE_LONG` every song, stereo and mono; else every third."
    worst, songs = 0.0, songs if os.environ.get("TIMBRE_PALETTE_LONG") else songs[::3]
    for song in songs:
        recording = read_audio(song, frames=None if variant == "exact" else 200000)
        for samples in (recording.samples, recording.samples.mean(0, keepdims=True)):
            x = torch.tensor(samples[None])
            for style in STYLES:
                y = palette(x, recording.sample_rate, style, variant=variant)[0].numpy()
                worst = max(worst, np.abs(y - palette_reference(samples, recording.sample_rate, style, variant=variant)).max())
    print(f"{variant}: largest difference {worst:.1e} over {len(songs)} songs, stereo and mono")
    assert worst < 1e-4


def test_loudness_equals_pyloudnorm(songs):
    worst = 0.0
    for song in songs:
        recording = read_audio(song)
        theirs = pyloudnorm.Meter(recording.sample_rate).integrated_loudness(recording.samples.T.astype(float))
        worst = max(worst, abs(integrated_loudness(torch.tensor(recording.samples[None]), recording.sample_rate).item() - theirs))
    print(f"largest difference {worst:.1e} LU over {len(songs)} songs")
    assert worst < 0.01


def test_levels_against_an_independent_meter(songs):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed; its ebur128 filter is the independent meter")
    for song in songs[::3]:
        said = subprocess.run(["ffmpeg", "-nostats", "-i", song, "-af", "ebur128=peak=true", "-f", "null", "-"], capture_output=True, text=True).stderr
        summary = said[said.rindex("Summary:"):]
        loudness, peak = (float(re.search(pattern, summary)[1]) for pattern in (r"I:\s+(-?[\d.]+) LUFS", r"Peak:\s+(-?[\d.]+) dBFS"))
        recording = read_audio(song)
        x = torch.tensor(recording.samples[None])
        assert abs(integrated_loudness(x, recording.sample_rate, "itu").item() - loudness) <= 0.1
        assert -0.15 <= true_peak_db(x).item() - peak <= 0.4  # ours interpolates further, so it may find more


def test_the_untouched_input_scores_what_the_design_says(songs):
    "First ten seconds, mono mean: 7.9 / 26.4 / 12.3 dB SI-SNR and a mean STFT distance of 0.395."
    scores = []
    for song in songs:
        rate = read_audio(song, frames=1).sample_rate
        x = torch.tensor(read_audio(song, frames=10 * rate).samples.mean(0)[None, None])
        targets = [palette(x, rate, style) for style in STYLES[:3]]
        scores.append([[metric(x, y).item() for metric in (si_snr, sd_sdr, stft_distance)] for y in targets])
    mean = np.mean(scores, 0)
    print("identity: SI-SNR", mean[:, 0].round(1), "SD-SDR", mean[:, 1].round(1), "STFT distance", mean[:, 2].round(3), "mean", mean[:, 2].mean().round(3))
    assert np.allclose(mean[:, 0], [7.9, 26.4, 12.3], atol=0.1)
    assert abs(mean[:, 2].mean() - 0.395) < 0.005
