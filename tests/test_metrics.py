"""Levels in bands: what they add up to, against filters of another kind, and where there is nothing."""
import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

from timbre_palette.audio import db_to_gain, rms_db
from timbre_palette.metrics import BANDS_HZ, band_energies, band_levels
from timbre_palette.synth import demo_clip

BASS, MIDS, HIGHS = BANDS_HZ


@pytest.mark.parametrize("frames", [1, 2, 3, 1000, 1001, 44100])
@pytest.mark.parametrize("rate", [4000, 8000, 22050, 44100, 96000])
def test_bands_add_up_to_the_whole(frames, rate):
    x = 0.3 + np.random.default_rng(frames).standard_normal((2, frames))
    assert np.isclose(10 * np.log10(sum(10 ** (level / 10) for level in band_levels(x, rate).values())), rms_db(x), atol=1e-9)


def test_a_sine_stands_in_its_band_alone():
    time = np.arange(44100) / 44100
    for hz, name in ((1, BASS), (249, BASS), (250, MIDS), (3999, MIDS), (4000, HIGHS), (22049, HIGHS)):
        levels = band_levels(0.1 * np.sin(2 * np.pi * hz * time)[None], 44100)
        assert abs(levels.pop(name) + 20 + 10 * np.log10(2)) < 1e-6 and max(levels.values()) < -190
    assert band_levels(np.full((1, 100), 0.5), 44100)[BASS] == pytest.approx(20 * np.log10(0.5))


def test_levels_are_those_behind_steep_filters():
    rate = 44100
    x = np.cumsum(np.random.default_rng(0).standard_normal((1, 4 * rate)), 1) * 1e-3 + 0.01 * np.random.default_rng(1).standard_normal((1, 4 * rate))
    levels = band_levels(x, rate)
    for name, band, kind in ((BASS, 250, "low"), (MIDS, (250, 4000), "band"), (HIGHS, 4000, "high")):
        filtered = sosfiltfilt(butter(12, band, kind, fs=rate, output="sos"), x)[:, 100:-100]
        assert abs(rms_db(filtered) - levels[name]) < 0.5, name


def test_shares_follow_from_levels():
    clip = demo_clip(22050)
    power = {name: 10 ** (level / 10) for name, level in band_levels(clip, 22050).items()}
    for name, share in band_energies(clip, 22050).items():
        assert abs(share - power[name] / sum(power.values())) < 0.01


def test_gain_channels_and_nothing():
    clip = demo_clip(22050)
    whole, quieter = band_levels(clip, 22050), band_levels(clip * np.float32(db_to_gain(-20)), 22050)
    assert all(abs(whole[name] - 20 - quieter[name]) < 1e-4 for name in BANDS_HZ)
    assert band_levels(clip[[0, 0]], 22050) == pytest.approx(band_levels(clip[:1], 22050))
    assert set(band_levels(np.zeros((1, 500)), 44100).values()) == set(band_levels(np.zeros((2, 0)), 44100).values()) == {-200.0}
    noise = np.random.default_rng(0).standard_normal((1, 999))
    assert [level > -200 for level in band_levels(noise, 8000).values()] == [True, True, False]
    assert [level > -200 for level in band_levels(noise, 500).values()] == [True, False, False]
