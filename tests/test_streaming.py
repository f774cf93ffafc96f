"""Streams: equal to their own offline run at every block size, without latency when live, without a click; files of any length in little memory."""
import json
import os
import subprocess
import sys

import numpy as np
import pyloudnorm
import pytest
import torch

from timbre_palette.anchors import palette_reference, palette_stages
from timbre_palette.audio import PaletteError, read_audio, write_audio
from timbre_palette.enhance import enhance, find_stages
from timbre_palette.loudness import LoudnessMeter, PeakMeter, integrated_loudness, measure
from timbre_palette.mastering import Limiter
from timbre_palette.metrics import si_snr
from timbre_palette.streaming import FORMS, Spool, Stream, in_step, open_stream, render_long
from timbre_palette.synth import demo_clip

RATE, HELD = 44100, -17.0
LONG = bool(os.environ.get("TIMBRE_PALETTE_LONG"))


def rendered(name, form, x, size, sample_rate=RATE, lufs=HELD):
    "A clip through a stream in blocks of one size."
    stream = open_stream(find_stages(name), sample_rate, [1, 1, 1], form=form)
    stream.hold(*[lufs] * len(stream.listening))
    return torch.cat(list(in_step(stream, x.split(size, -1))), -1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ("graybox", "dsp"))
def test_every_block_size_gives_the_same(name, form):
    "At most 1e-5 from the offline run; blocks of 1 and 64 samples on two seconds (a quarter where time is short), the others on ten (four)."
    clip = torch.tensor(np.tile(demo_clip(), (1, 2)))[:, :(10 if LONG else 4) * RATE]
    offline = rendered(name, form, clip, clip.shape[1])
    assert offline.shape == clip.shape and (offline - clip).abs().max() > 0.1
    for size in (480, 512, 4096, 16384):
        difference = (rendered(name, form, clip, size) - offline).abs().max().item()
        print(f"{name}, {form}, blocks of {size}: {difference:.1e}")
        assert difference <= 1e-5
    short = clip[:, :2 * RATE if LONG else RATE // 4]
    offline = rendered(name, form, short, short.shape[1])
    for size in (1, 64):
        difference = (rendered(name, form, short, size) - offline).abs().max().item()
        print(f"{name}, {form}, blocks of {size}: {difference:.1e}")
        assert difference <= 1e-5


@pytest.mark.parametrize("name", ("blackbox", "waveunet-v2"))
def test_models_that_hear_ahead_have_a_studio_form_only(name):
    clip = torch.tensor(demo_clip()[:, :RATE])
    offline = rendered_studio(name, clip, RATE)
    for size in (480, 16384):
        assert (rendered_studio(name, clip, size) - offline).abs().max() <= 1e-5 * max(1, offline.abs().max())
    with pytest.raises(PaletteError, match="live"):
        open_stream(find_stages(name), RATE, [1, 1, 1], form="live")


def rendered_studio(name, x, size):
    "As `rendered`, for models with any number of stages that listen."
    stream = open_stream(find_stages(name), RATE, [0, 1, 0], form="studio")
    stream.hold(*[HELD] * len(stream.listening))
    return torch.cat(list(in_step(stream, x.split(size, -1))), -1)


@pytest.mark.parametrize("name", ("graybox", "dsp"))
def test_live_has_no_latency_and_hears_no_future(name):
    "The output up to a moment is the same whatever comes after it, and a click comes out when it goes in."
    stream = open_stream(find_stages(name), RATE, [1, 1, 1], form="live")
    assert stream.latency == 0 <= 0.01 * RATE
    x = torch.tensor(demo_clip()[:, :RATE])
    other = torch.cat([x[:, :20000], -x[:, 20000:]], -1)
    a, b = (rendered(name, "live", signal, 480)[:, :20000] for signal in (x, other))
    assert (a - b).abs().max() < 1e-5
    click = torch.zeros(1, 4096)
    click[0, 1000] = 0.5
    y = rendered(name, "live", click, 64)[0].abs()
    assert y.argmax() == 1000 and y[:1000].max() < 1e-5


def test_wrong_wishes_are_refused():
    with pytest.raises(PaletteError, match="form"):
        open_stream(palette_stages, RATE, [1, 0, 0], form="alive")
    with pytest.raises(PaletteError, match="hold"):
        open_stream(palette_stages, RATE, [0, 0, 1]).hold()
    with pytest.raises(PaletteError, match="weight"):
        open_stream(find_stages("graybox"), RATE, [1, 0])


def test_no_click_at_any_seam():
    "A pure tone through blocks, with the level following: what is not the tone's spectrum is no stronger around seams than between them."
    x = torch.tensor(0.3 * np.sin(2 * np.pi * 220 * np.arange(6 * RATE) / RATE), dtype=torch.float32)[None]
    for form in FORMS:
        stream = open_stream(find_stages("graybox"), RATE, [1, 1, 1], form=form)
        y = torch.cat(list(in_step(stream, x.split(4096, -1))), -1)[0].double()
        bends = y.diff(n=4).abs()  # a tone of 220 Hz leaves next to nothing of itself here, a jump all of it
        late = (torch.arange(len(bends)) > RATE) & (torch.arange(len(bends)) < len(bends) - RATE)  # not the ends, where the tone itself jumps
        seams = torch.zeros(len(bends), dtype=torch.bool)
        for offset in range(-4, 4):
            seams[torch.arange(4096, len(bends) - 4, 4096) + offset] = True
        at, between = bends[seams & late].max().item(), bends[~seams & late].max().item()
        print(f"{form}: strongest fourth difference at seams {at:.1e}, between them {between:.1e}")
        assert at <= 1.5 * between
        broken = y.clone()
        broken[len(y) // 2 // 4096 * 4096:] *= 1.001  # a click of a thousandth would be seen
        assert broken.diff(n=4).abs()[seams & late].max() > 5 * between or abs(broken[len(y) // 2 // 4096 * 4096]) < 0.01


def test_running_loudness_of_real_music(songs):
    "What the meter says after ten seconds, beside pyloudnorm on those ten seconds; and the level that follows it, beside one that knew."
    errors, apart = [], []
    for path in songs if LONG else songs[::3]:
        recording = read_audio(path, frames=10 * 48000)
        rate, x = recording.sample_rate, torch.tensor(recording.samples[:, :10 * recording.sample_rate])
        meter = LoudnessMeter(rate)
        for block in x.split(480, -1):
            meter.push(block)
        known = pyloudnorm.Meter(rate).integrated_loudness(x.numpy().T.astype(float))
        errors.append(meter.read() - known)
        following, fixed = (open_stream(palette_stages, rate, [0, 0, 1]) for _ in range(2))
        y, z = (torch.cat(list(in_step(stream, x.split(4410, -1))), -1)[:, -rate:] for stream in (following, fixed.hold(known)))
        apart.append(10 * np.log10((y.square().sum() / z.square().sum()).item()))
    print(f"running loudness after 10 s: at most {np.abs(errors).max():.4f} LU from pyloudnorm; the level in the tenth second at most {np.abs(apart).max():.2f} dB from one that knew")
    assert np.abs(errors).max() < 0.1 and np.abs(apart).max() < 1


def test_live_graybox_against_the_causal_anchors(songs):
    "At least 45 dB, by the protocol: the first ten seconds, mono, loudness held."
    figures = []
    for path in songs if LONG else songs[::7]:
        recording = read_audio(path, frames=10 * 48000)
        rate = recording.sample_rate
        x = recording.samples[:, :10 * rate].mean(0, keepdims=True)
        for corner in np.eye(3):
            target = torch.tensor(palette_reference(x, rate, corner, variant="causal"))
            stream = open_stream(find_stages("graybox"), rate, corner, form="live")
            stream.hold(integrated_loudness(torch.tensor(x)[None], rate).item())
            figures.append(si_snr(torch.cat(list(in_step(stream, torch.tensor(x).split(480, -1))), -1).double(), target).item())
    means = np.reshape(figures, (-1, 3)).mean(0)
    print(f"live gray-box against the causal anchors: {means.round(1)} dB, mean {means.mean():.1f} dB")
    assert means.mean() >= 45


def test_meters_and_limiter_in_blocks_of_any_size():
    clip = torch.tensor(2 * demo_clip())
    whole = measure(clip.numpy(), RATE)
    rng = np.random.default_rng(0)
    for seed in range(3):
        meter, peak, limiter, out, start = LoudnessMeter(RATE), PeakMeter(), Limiter(RATE), [], 0
        while start < clip.shape[1]:
            size = int(rng.integers(1, 20000))
            block = clip[:, start:start + size]
            meter.push(block)
            peak.push(block)
            out.append(limiter(block))
            start += size
        peak.end()
        assert abs(meter.read() - whole[0]) < 1e-3 and abs(peak.read() - whole[1]) < 1e-3
        assert sum(block.shape[1] for block in out) == clip.shape[1]
        assert measure(torch.cat(out, -1).numpy(), RATE)[1] < -0.9


def test_a_spool_leaves_nothing_behind_and_tells_of_a_full_disk(tmp_path, monkeypatch):
    blocks = [torch.randn(2, 1000) for _ in range(20)]
    with Spool(2, tmp_path, in_memory=1000) as spool:
        for block in blocks:
            spool.append(block)
        assert torch.cat(list(spool.blocks(333)), -1).equal(torch.cat(blocks, -1))
    assert not list(tmp_path.iterdir())

    def full(data):
        raise OSError(28, "No space left on device")

    with Spool(1) as spool:
        monkeypatch.setattr(spool._file, "write", full)
        with pytest.raises(PaletteError, match="no room"):
            spool.append(torch.zeros(1, 10))


def test_long_and_short_ways_agree():
    "In a spool on disk and in memory, by passes and at once."
    clip = demo_clip()
    for name, style in (("graybox", "s33_a33_m33"), ("dsp", "layeredness")):
        at_once = enhance(clip, RATE, style, model=name)
        stages = find_stages(name)(RATE, {"s33_a33_m33": [1, 1, 1], "layeredness": [0, 0, 1]}[style])
        with render_long(stages, torch.tensor(clip).split(7777, -1), RATE, 2, in_memory=1000) as spool:
            assert np.abs(torch.cat(list(spool.blocks()), -1).numpy() - at_once).max() < 1e-5
    assert Stream([]).push(torch.tensor(clip)).equal(torch.tensor(clip))


def test_wav_becomes_rf64_where_it_ends_and_aiff_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("timbre_palette.audio.WAV_BYTES", 1000)
    x = np.zeros((2, 500), np.float32)
    write_audio(tmp_path / "a.wav", x, RATE)
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RF64" and read_audio(tmp_path / "a.wav").frames == 500
    with pytest.raises(PaletteError, match="AIFF ends at 4 GB"):
        write_audio(tmp_path / "a.aiff", x, RATE)
    assert not (tmp_path / "a.aiff").exists()


PROBE = "import resource, sys; sys.argv[1:] = {arguments!r}\nfrom timbre_palette.cli import main\ncode = main(sys.argv[1:])\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\nsys.exit(code)"


def peak_mb(arguments):
    "The most memory, in MB, of a process that runs the command, and what it printed."
    done = subprocess.run([sys.executable, "-c", PROBE.format(arguments=[str(part) for part in arguments])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) / (1e6 if sys.platform == "darwin" else 1e3), done.stdout


@pytest.mark.parametrize("style", ("s33_a33_m33",))
def test_a_long_file_takes_little_memory(tmp_path, style):
    "Eighteen minutes; `TIMBRE_PALETTE_HOURS=10` for ten hours. Right length, right loudness, at most 300 MB above one second."
    hours = float(os.environ.get("TIMBRE_PALETTE_HOURS", 0.3))
    piece = np.clip(np.rint(demo_clip().T * 32767), -32768, 32767).astype("<i2")
    frames = round(hours * 3600 * RATE)
    suffix = ".wav" if hours < 6 else ".flac"
    source, one = tmp_path / f"long{suffix}", tmp_path / "one.wav"
    import soundfile
    with soundfile.SoundFile(source, "w", RATE, 2, "PCM_16") as file:
        for start in range(0, frames, len(piece)):
            file.write(piece[:frames - start])
    write_audio(one, demo_clip()[:, :RATE], RATE)
    (little, _), (much, _) = (peak_mb(["enhance", path, "-o", tmp_path / f"{path.stem}-out{suffix}", "--style", style]) for path in (one, source))
    print(f"{hours:g} hours: {much:.0f} MB, one second {little:.0f} MB")
    assert much - little <= 300
    asked, told = peak_mb(["info", "--json", tmp_path / f"long-out{suffix}"])
    [told] = json.loads(told)
    print(f"info: {asked:.0f} MB")
    assert asked - little <= 300 and told["frames"] == frames
    again = np.tile(demo_clip(), (1, 6))  # the same music, a minute of it, through the exact palette
    expected = measure(palette_reference(again, RATE, [1, 1, 1]).astype(np.float32), RATE)
    gain_db = min(0.0, -1.05 - expected[1])
    assert abs(told["lufs"] - (expected[0] + gain_db)) < 0.1
