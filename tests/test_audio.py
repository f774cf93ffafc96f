"""Reading and writing: cut files, other containers, refusals, and a disk that fills up."""
import resource
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from timbre_palette import audio
from timbre_palette.audio import CONTAINERS, PaletteError, read_audio, resample, write_audio
from timbre_palette.synth import demo_clip

CLIP = demo_clip()[:, :120000]


@pytest.fixture
def cut(tmp_path):
    "Write the clip, keep a part of its bytes."
    def make(suffix, share=0.6):
        path = tmp_path / f"cut{suffix}"
        write_audio(path, CLIP, 44100)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        return path
    return make


@pytest.mark.parametrize("suffix", (".mp3", ".ogg", ".wav", ".aiff"))
def test_a_cut_file_is_read_as_far_as_it_goes(cut, suffix):
    recording = read_audio(cut(suffix))
    assert 0.3 * CLIP.shape[1] < recording.frames < 0.8 * CLIP.shape[1]
    assert len(recording.warnings) == 1 and "cut short" in recording.warnings[0]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_whole_file_has_no_warning_and_its_length(tmp_path, suffix):
    for frames in (1, 2, 441, 120000):
        write_audio(tmp_path / f"whole{suffix}", CLIP[:, :frames], 44100)
        recording = read_audio(tmp_path / f"whole{suffix}")
        assert recording.frames == frames and not recording.warnings
        assert not read_audio(tmp_path / f"whole{suffix}", start=frames // 2).warnings  # a part is not a cut


@pytest.mark.parametrize("kind", ("RF64", "W64", "AU"))
def test_other_cut_containers_are_noticed(tmp_path, kind):
    path = tmp_path / f"cut.{kind.lower()}"
    soundfile.write(path, CLIP.T, 44100, format=kind)
    assert not read_audio(path).warnings
    path.write_bytes(path.read_bytes()[:200000])
    recording = read_audio(path)
    assert 40000 < recording.frames < 60000 and "cut short" in recording.warnings[0]


@pytest.mark.parametrize("suffix, subtype, bits", ((".wav", "PCM_16", 16), (".aiff", "PCM_16", 16), (".flac", "PCM_16", 16), (".wav", "PCM_24", 24), (".flac", "PCM_24", 24), (".wav", "PCM_32", 32)))
def test_integers_are_rounded(tmp_path, suffix, subtype, bits):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, (1, 50000))
    write_audio(tmp_path / f"a{suffix}", samples, 44100, subtype)
    error = (soundfile.read(tmp_path / f"a{suffix}", always_2d=True)[0].T - samples) * 2 ** (bits - 1)
    assert np.abs(error).max() <= 0.5 + 1e-6 and abs(error.mean()) < 0.01
    write_audio(tmp_path / f"b{suffix}", read_audio(tmp_path / f"a{suffix}").samples, 44100, subtype)
    if bits < 32:  # float32 holds 24 bits
        assert np.array_equal(soundfile.read(tmp_path / f"a{suffix}")[0], soundfile.read(tmp_path / f"b{suffix}")[0])


def test_a_cut_flac_is_refused(cut):
    with pytest.raises(PaletteError, match="cannot|can be read|lost sync"):
        read_audio(cut(".flac"))


@pytest.mark.parametrize("rate", (8000, 22050, 44100, 48000))
def test_walking_an_mp3_counts_its_samples(tmp_path, rate):
    write_audio(tmp_path / "song.mp3", CLIP, rate)
    samples, stated = audio._walk_mp3(tmp_path / "song.mp3")
    assert stated and 0 <= samples - CLIP.shape[1] < 4 * 1152


def test_what_the_library_does_not_give_is_told(tmp_path):
    "Joined MP3s and Oggs: only the first is read, and the note says so."
    for suffix in (".mp3", ".ogg"):
        write_audio(tmp_path / f"one{suffix}", CLIP, 44100)
        one = (tmp_path / f"one{suffix}").read_bytes()
        (tmp_path / f"joined{suffix}").write_bytes(one + one + one)
        recording = read_audio(tmp_path / f"joined{suffix}")
        assert recording.frames == 3 * CLIP.shape[1] or "convert it to WAV" in recording.warnings[0]


@pytest.mark.parametrize("arguments", (["-b:a", "128k", "-write_xing", "0"], ["-q:a", "4", "-write_xing", "0"], ["-q:a", "4"]))
def test_an_mp3_without_a_count(tmp_path, arguments):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    write_audio(tmp_path / "song.wav", CLIP, 44100)
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "song.wav", "-c:a", "libmp3lame", *arguments, tmp_path / "song.mp3"], check=True)
    recording = read_audio(tmp_path / "song.mp3")
    whole = abs(recording.frames - CLIP.shape[1]) < 4 * 1152
    assert whole != any("in part" in note for note in recording.warnings)
    assert not any("cut short" in note for note in recording.warnings)


@pytest.mark.parametrize("layout, channels", (("3.0", 3), ("5.0", 5), ("5.1", 6), ("6.1", 7), ("7.1", 8)))
def test_vorbis_keeps_surround_channels_in_their_places(tmp_path, layout, channels):
    "One tone a channel, written by us and read by ffmpeg, and the other way round."
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    tones = np.stack([0.3 * np.sin(2 * np.pi * 40 * (k + 1) * np.arange(44100) / 44100) for k in range(channels)])
    pitches = [40 * (k + 1) for k in range(channels)]

    def heard(samples):
        return [int(round(np.abs(np.fft.rfft(channel[:44100])).argmax())) for channel in samples]

    write_audio(tmp_path / "ours.ogg", tones, 44100)
    assert heard(read_audio(tmp_path / "ours.ogg").samples) == pitches
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "ours.ogg", tmp_path / "theirs.wav"], check=True)
    assert heard(soundfile.read(tmp_path / "theirs.wav")[0].T) == pitches


def test_real_songs_are_whole(songs):
    for song in songs:
        assert not read_audio(song).warnings, song.name


def test_a_streamed_wav_says_nothing_about_its_length(tmp_path):
    path = tmp_path / "piped.wav"
    write_audio(path, CLIP, 44100)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    recording = read_audio(path)
    assert recording.frames == CLIP.shape[1] and not recording.warnings


@pytest.mark.parametrize("suffix, codec", ((".m4a", "aac"), (".aac", "aac")))
def test_m4a_through_pyav(tmp_path, suffix, codec):
    av = pytest.importorskip("av", reason="PyAV is not installed (extra m4a)")
    path = tmp_path / f"song{suffix}"
    with av.open(str(path), "w", format="adts" if suffix == ".aac" else None) as container:
        stream = container.add_stream(codec, rate=44100, layout="stereo")
        stream.bit_rate = 192000
        for start in range(0, CLIP.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(CLIP[:, start:start + 1024]), format="fltp", layout="stereo")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    recording = read_audio(path)
    assert recording.channels == 2 and recording.sample_rate == 44100 and abs(recording.frames - CLIP.shape[1]) <= 4096
    start = max(range(2049), key=lambda lag: (recording.samples[0, lag:lag + 50000] * CLIP[0, :50000]).sum())
    assert np.corrcoef(recording.samples[0, start:start + 50000], CLIP[0, :50000])[0, 1] > 0.99
    rate, frames = audio.read_header(path)
    assert rate == 44100 and (frames == recording.frames if suffix == ".aac" else 0 <= recording.frames - frames < 1024)  # of raw AAC they are counted
    for first in (1, 10000, 50000):
        part = read_audio(path, first, 20000).samples
        assert part.shape == (2, 20000) and np.corrcoef(part[0], recording.samples[0, first:first + 20000])[0, 1] > 0.999


def test_m4a_without_pyav_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "song.m4a").write_bytes(b"1234")
    with pytest.raises(PaletteError, match="pip install av"):
        read_audio(tmp_path / "song.m4a")


def test_a_wav_too_long_for_its_header_becomes_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "WAV_BYTES", 1000)
    write_audio(tmp_path / "long.wav", CLIP, 44100, "FLOAT")
    assert soundfile.info(tmp_path / "long.wav").format == "RF64"
    assert np.array_equal(read_audio(tmp_path / "long.wav").samples, CLIP)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "song.wav"
    write_audio(path, CLIP[:, :1000], 44100)
    before = path.read_bytes()
    import signal
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100000, old[1]))
    try:
        with pytest.raises(PaletteError, match="song.wav: cannot be written"):
            write_audio(path, CLIP, 44100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["song.wav"]


def test_what_cannot_be_held_is_refused(tmp_path):
    for name, channels, rate, subtype in (("a.mp3", 3, 44100, None), ("a.mp3", 2, 96000, None), ("a.flac", 9, 44100, None),
                                          ("a.ogg", 300, 44100, None), ("a.ogg", 2, 384000, None), ("a.flac", 2, 44100, "FLOAT"), ("a.mp3", 2, 44100, "PCM_16")):
        with pytest.raises(PaletteError):
            write_audio(tmp_path / name, np.zeros((channels, 100)), rate, subtype)
    with pytest.raises(PaletteError, match="not finite"):
        write_audio(tmp_path / "a.wav", np.full((1, 10), np.nan), 44100)
    assert not list(tmp_path.iterdir())


def test_a_claim_of_a_billion_frames_costs_nothing(tmp_path):
    path = tmp_path / "claims.wav"
    write_audio(path, CLIP[:, :100], 44100)
    data = bytearray(path.read_bytes())
    data[40:44] = (0x7FFFFFF0).to_bytes(4, "little")
    path.write_bytes(data)
    assert read_audio(path).frames == 100


@pytest.mark.parametrize("rates", ((44100, 48000), (48000, 44100), (44100, 22050), (8000, 44100)))
def test_resampling_keeps_sines_and_drops_what_cannot_be_held(rates):
    start, end = rates
    x = np.sin(2 * np.pi * 1000 * np.arange(start) / start)[None]
    y = resample(x, start, end)
    assert abs(y.shape[1] - end) <= 1
    assert np.abs(y[0] - np.sin(2 * np.pi * 1000 * np.arange(y.shape[1]) / end))[end // 10:-end // 10].max() < 1e-4
    if end < start:
        high = np.sin(2 * np.pi * 0.49 * start * np.arange(start) / start)[None]
        assert np.abs(resample(high, start, end)[0, end // 10:-end // 10]).max() < 1e-3
