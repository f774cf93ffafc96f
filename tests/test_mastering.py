"""The limiter by an independent meter, dither by its statistics, levels by their definitions."""
import json
import os
import subprocess

import numpy as np
import pytest
import torch
from scipy.signal import butter, resample_poly, sosfilt, welch

from conftest import data_folder
from timbre_palette.anchors import layeredness
from timbre_palette.audio import PaletteError, read_audio, write_audio
from timbre_palette.enhance import find_model
from timbre_palette.loudness import integrated_loudness, measure, peak_envelope, running_loudness, true_peak_db
from timbre_palette.mastering import LevelMeter, dither, level_report, limit, limiter_gain_db
from timbre_palette.metrics import Spectrum, describe_spectrum
from timbre_palette.songs import find_tracks
from timbre_palette.synth import demo_clip


def meter(x):
    "True peak in dBTP of NumPy samples: SciPy's polyphase interpolation, four times, as the standard's annex asks at least."
    return 20 * np.log10(max(np.abs(resample_poly(x, 4, 1, axis=-1, window=("kaiser", 9.0))).max(), np.abs(x).max(), 1e-12))


def bursts(*shape, seed=0, loudest=10):
    "Noise whose level jumps, up to far above full scale, without the top of the band, where meters are free to differ."
    rng = np.random.default_rng(seed)
    level = np.repeat(10 ** rng.uniform(-2, np.log10(loudest), (*shape[:-1], -(-shape[-1] // 300))), 300, -1)[..., :shape[-1]]
    return torch.tensor(sosfilt(butter(8, 0.8, output="sos"), rng.standard_normal(shape) * level), dtype=torch.float32)


@pytest.mark.parametrize("rate", (8000, 44100, 96000))
@pytest.mark.parametrize("ceiling", (-0.1, -1.0, -12.0))
def test_peaks_stay_under_the_ceiling(rate, ceiling):
    x = bursts(3, 2, 30000)
    y = limit(x, rate, ceiling)
    assert all(meter(item) <= ceiling for item in y.numpy())
    assert y.shape == x.shape and y.dtype == x.dtype and (y.abs() <= x.abs() + 1e-7).all()
    assert (y * x >= 0).all() and torch.equal(torch.sign(y), torch.sign(x))


def test_real_music_pushed_into_the_ceiling(songs):
    """Excerpts of ten seconds, layered and 6 dB louder, stay under the ceiling; and before that, the gray-box's layered ones are as loud as the
    exact ones. TIMBRE_PALETTE_EXCERPTS=500 takes more, from all splits."""
    count = int(os.environ.get("TIMBRE_PALETTE_EXCERPTS", 30))
    tracks, worst, rng = find_tracks(data_folder() / "music"), -99.0, np.random.default_rng(0)
    learned, apart = find_model("graybox"), []
    for number in range(count):
        track = tracks[number % len(tracks)]
        start = int(rng.integers(max(1, track.frames - 10 * track.sample_rate)))
        recording = read_audio(track.path, start, 10 * track.sample_rate)
        dry, rate = torch.from_numpy(recording.samples)[None], recording.sample_rate
        exact = layeredness(dry, rate)
        with torch.no_grad():
            loudness = [integrated_loudness(y, rate).item() for y in (exact, learned(dry, rate, [0, 0, 1]))]
        apart += [abs(loudness[1] - loudness[0])] if np.isfinite(loudness).all() else []
        worst = max(worst, meter(limit(2 * exact, rate)[0].numpy()))
        assert worst <= -1, track.name
    print(f"{count} excerpts of {len(tracks)} songs: at most {worst:.2f} dBTP; the gray-box's loudness off by {np.percentile(apart, 95):.4f} LU (95th percentile), {max(apart):.4f} at most")
    assert np.percentile(apart, 95) <= 0.1


def test_what_is_under_the_ceiling_is_left_alone():
    x = 0.1 * bursts(2, 2, 5000, loudest=1)
    x[1] *= 100
    y = limit(x, 44100)
    assert torch.equal(y[0], x[0]) and not torch.equal(y[1], x[1])
    assert torch.equal(limit(torch.zeros(1, 1, 100), 44100), torch.zeros(1, 1, 100)) and limit(torch.zeros(1, 2, 0), 44100).shape == (1, 2, 0)


@pytest.mark.parametrize("frames", (1, 2, 50, 1000))
def test_short_sounds(frames):
    y = limit(5 * torch.ones(1, 1, frames), 44100)
    assert meter(y[0].numpy()) <= -1 and torch.isfinite(y).all()


def test_items_and_channels():
    x = bursts(2, 2, 8000, seed=3)
    assert torch.allclose(limit(x, 44100)[:1], limit(x[:1], 44100), atol=1e-6)
    gain = limit(x, 44100) / x
    assert torch.allclose(gain[:, 0], gain[:, 1], rtol=1e-4)  # one gain for all channels


def test_a_click_costs_its_neighbourhood_only():
    "Two milliseconds before it, and a release after it; the slope of the gain is bounded, so nothing clicks."
    x = 0.05 * torch.ones(1, 1, 44100)
    x[..., 20000] = 4
    gain = limiter_gain_db(x, 44100, -1.0)[0, 0]
    assert gain[:20000 - 2 * 88 - 40].abs().max() < 1e-6 and gain[20000] <= -13 and gain[-1].abs() < 0.1
    assert gain.diff().abs().max() < 2 * 13.1 / 88


def test_what_the_limiter_refuses():
    for settings, message in (({"ceiling_dbtp": 1.0}, "0 or less"), ({"ceiling_dbtp": float("nan")}, "0 or less"), ({"release_ms": 0.0}, "more than 0 ms")):
        with pytest.raises(PaletteError, match=message):
            limit(torch.ones(1, 1, 10), 44100, **settings)


def test_the_envelope_holds_the_true_peak():
    x = bursts(2, 2, 5000)
    assert torch.allclose(20 * torch.log10(peak_envelope(x).amax((1, 2))), true_peak_db(x), atol=1e-5)
    assert (peak_envelope(x) >= x.abs()).all()


def test_dither_makes_the_error_noise():
    "Its variance is a quarter of a step squared, whatever the signal: the sum of the triangle's sixth and the rounding's twelfth. Without dither it is not."
    step = 2.0 ** -15
    for level in (0.1, 0.25, 0.5):
        x = np.full((1, 200000), level * step)
        error = np.rint(dither(x, 16) / step) * step - x
        assert abs(error.var() / step ** 2 - 0.25) < 0.005 and abs(error.mean()) < 0.005 * step
        assert abs((np.rint(x / step) * step - x).mean()) > 0.05 * step or level == 0.5
    assert np.array_equal(dither(x, 16), dither(x, 16)) and not np.array_equal(dither(x, 16), dither(x, 16, seed=1))
    with pytest.raises(PaletteError, match="2 to 24 bits"):
        dither(x, 32)


def test_levels():
    rate = 48000
    sine = (0.5 * np.sin(2 * np.pi * 997 * np.arange(10 * rate) / rate))[None]
    report = level_report(sine, rate)
    assert abs(report["lufs"] - (-9.03)) < 0.1 and abs(report["dbtp"] + 6.02) < 0.05 and abs(report["dbfs"] + 6.02) < 0.01  # -3.01 for full scale (BS.1770), 6.02 below
    assert abs(report["momentary_max_lufs"] - report["lufs"]) < 0.05 and abs(report["short_term_max_lufs"] - report["lufs"]) < 0.05
    assert report["plr_db"] == pytest.approx(report["dbtp"] - report["lufs"], abs=2e-3) and report["clipped"] == 0 and abs(report["dc"]) < 1e-4
    assert level_report(np.clip(3 * sine, -1, 1), rate)["clipped"] > 100000 and level_report(sine + 0.1, rate)["dc"] == pytest.approx(0.1, abs=1e-3)
    assert level_report(np.zeros((2, 1000)), rate) == {"lufs": None, "momentary_max_lufs": None, "short_term_max_lufs": None, "dbtp": None, "dbfs": None, "plr_db": None, "clipped": 0, "dc": 0.0}


@pytest.mark.parametrize("rate, sizes", ((44100, (1, 2, 3, 4410, 70000)), (22050, (44100,)), (8000, (7, 16384, 8191, 8193))))
def test_levels_and_spectrum_of_blocks_are_those_of_the_whole(rate, sizes):
    x = np.clip(bursts(2, 150000, loudest=3.0).numpy(), -1, 1)
    x[:, 70000:70010] = 1.0
    running = {name: running_loudness(torch.tensor(x[None]), rate, window).max().item() for name, window in (("momentary_max_lufs", 0.4), ("short_term_max_lufs", 3.0))}
    levels, spectrum, start = LevelMeter(rate), Spectrum(rate), 0
    while start < x.shape[1]:
        for size in sizes:
            levels.push(x[:, start:start + size])
            spectrum.push(x[:, start:start + size])
            start += size
    report, whole = levels.report(), level_report(x, rate)
    lufs, dbtp = measure(x, rate)
    assert report == pytest.approx(whole, abs=2e-3) and report["clipped"] == whole["clipped"] > 20
    assert report == pytest.approx({**report, **running, "lufs": lufs, "dbtp": dbtp}, abs=5e-3)
    hz, density = spectrum.density()
    assert np.allclose(density, welch(x, rate, nperseg=16384, detrend=False)[1], rtol=1e-5) and describe_spectrum(spectrum, rate) == describe_spectrum(x, rate)


@pytest.mark.parametrize("frames, at", ((1, 0), (100, 99), (300, 0), (20000, 0), (60000, 59999)))
def test_a_single_sample_is_not_called_silence(frames, at):
    click = np.zeros((1, frames), np.float32)
    assert describe_spectrum(click, 44100) == "silence"
    click[0, at] = 1.0
    assert describe_spectrum(click, 44100) != "silence"


def test_limiting_from_the_command_line(command, tmp_path):
    write_audio(tmp_path / "in.wav", demo_clip()[:, :200000], 44100, "FLOAT")
    done = subprocess.run([*command, "enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--model", "dsp", "--style", "layeredness", "--clip", "limit",
                           "--ceiling", "-20", "--bits", "16", "--dither", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    report = report[0] if isinstance(report, list) else report
    assert meter(read_audio(tmp_path / "out.wav").samples) <= -20 and report["limited_db"] > 0 and report["gain_db"] == 0
    for arguments, message in ((["--clip", "hard"], "unknown way to clip 'hard'; use scale, limit or none"), (["--ceiling", "3"], "between -60 and 0 dBTP, not at 3"),
                               (["--ceiling", "nan"], "between -60 and 0 dBTP")):
        done = subprocess.run([*command, "enhance", tmp_path / "in.wav", "-o", tmp_path / "no.wav", *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1 and not (tmp_path / "no.wav").exists()
