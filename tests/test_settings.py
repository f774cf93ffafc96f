"""Settings of a chain: kept in files, told, drawn, rendered in blocks and for whole files."""
import json
import math

import numpy as np
import pytest
import torch
from scipy.signal import freqz_sos

from timbre_palette.audio import PaletteError, read_audio, write_audio
from timbre_palette.effects.chains import EFFECTS, PRODUCTION, chain, production
from timbre_palette.effects.equaliser import band_settings, eq_sections
from timbre_palette.effects.settings import QUIET_DB, Preset, describe_settings, find_settings, load_settings, save_settings, settings_rows, settings_stages
from timbre_palette.enhance import render_file, render_settings_file
from timbre_palette.figures import plot_settings
from timbre_palette.streaming import Stream, render_long
from timbre_palette.synth import demo_clip

RATE = 44100


def some(seed, effects=PRODUCTION):
    "A preset at random settings, over the whole of the ranges."
    effect = chain(*effects)
    return Preset({name: value[0] for name, value in effect.physical(effect.random(1, seed)).items()}, effects, {"seed": seed})


@pytest.fixture(scope="module")
def clip():
    return torch.tensor(demo_clip())[:, :2 * RATE]


@pytest.fixture
def song(tmp_path, clip):
    write_audio(tmp_path / "song.wav", clip.numpy(), RATE, "FLOAT", tags={"title": "Four bars"})
    return tmp_path / "song.wav"


# Files

@pytest.mark.parametrize("effects", [PRODUCTION, ("compressor",), ("noise_reverb", "equaliser"), tuple(EFFECTS)])
def test_what_is_saved_comes_back(tmp_path, effects):
    for seed in range(3):
        preset = some(seed, effects)
        save_settings(tmp_path / "a.json", preset)
        back = load_settings(tmp_path / "a.json")
        assert (back.effects, back.about) == (preset.effects, {"seed": seed})
        for name, value in preset.settings.items():
            assert math.isclose(back.settings[name], value, rel_tol=5.001e-5, abs_tol=5.001e-5), name
        save_settings(tmp_path / "b.json", back)  # rounding twice is rounding once
        assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_of_every_range_come_back(tmp_path, end):
    for effects in (PRODUCTION, tuple(EFFECTS)):
        effect = chain(*effects)
        for normalised in (torch.full((len(effect.parameters),), end), torch.full((len(effect.parameters),), end, dtype=torch.float64)):  # float32 lies beside some of them
            save_settings(tmp_path / "end.json", Preset(effect.physical(normalised), effects))
            back = load_settings(tmp_path / "end.json")
            assert all(parameter.low <= back.settings[parameter.name] <= parameter.high for parameter in effect.parameters)


def test_a_file_is_for_people(tmp_path):
    save_settings(tmp_path / "a.json", Preset({"compressor_threshold_db": -31.23456789, "equaliser_peak_2_gain_db": -0.00001}, about={"input": "Bj\u00f6rk \udc80.wav", "n": [1, None, True]}))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert '"threshold_db": -31.235,' in text and '"peak_2_gain_db": 0,' in text and "Bj\u00f6rk" in text and max(map(len, text.splitlines())) < 120
    assert list(json.loads(text)["settings"]["equaliser"]) == [parameter.name for parameter in EFFECTS["equaliser"].parameters]
    assert load_settings(tmp_path / "a.json").about == {"input": "Bj\u00f6rk \udc80.wav", "n": [1, None, True]}


def test_what_is_missing_takes_its_default(tmp_path):
    (tmp_path / "a.json").write_text('{"settings": {"compressor": {}, "equaliser": {"peak_1_gain_db": 3}}}')
    preset = load_settings(tmp_path / "a.json")
    assert preset.effects == ("compressor", "equaliser") and preset.of("compressor") == EFFECTS["compressor"].defaults
    assert preset.of("equaliser") == {**EFFECTS["equaliser"].defaults, "peak_1_gain_db": 3.0}
    assert find_settings(tmp_path / "a.json") == find_settings(str(tmp_path / "a.json")) == find_settings(preset)


@pytest.mark.parametrize("text, message", [
    ("", "not JSON"), ("{", "not JSON"), ("[" * 100_000, "not JSON"), ("\xff\xfe", "not JSON"), ("[]", "holds no settings"), ("3", "holds no settings"), ("{}", "holds no settings"),
    ('{"settings": {}}', "holds no settings"), ('{"settings": {"compressor": 3}}', "holds no settings"), ('{"settings": {"compressor": {}}, "about": 3}', "holds no settings"),
    ('{"settings": {"chorus": {}}}', "unknown effect 'chorus'"), ('{"settings": {"compressor": {"treshold_db": 3}}}', "no setting 'treshold_db'"),
    ('{"settings": {"compressor": {"ratio": 21}}}', "ratio of compressor lies between 1 and 20"), ('{"settings": {"compressor": {"ratio": "2"}}}', "one number"),
    ('{"settings": {"compressor": {"ratio": null}}}', "one number"), ('{"settings": {"compressor": {"ratio": [2]}}}', "one number"), ('{"settings": {"compressor": {"ratio": true}}}', "one number"),
    ('{"settings": {"compressor": {"ratio": NaN}}}', "finite"), ('{"settings": {"compressor": {"makeup_db": -Infinity}}}', "finite"), ('{"settings": {"compressor": {"ratio": 1%s}}}' % ("0" * 400), "one number"),
    ('{"settings": {"compressor": {"ratio": 2, "ratio": 3}}}', "ratio comes twice"), ('{"settings": {"equaliser": {}}, "compressor": {}}', "compressor is neither")])
def test_a_mistake_is_one_line_with_the_file_in_it(tmp_path, text, message):
    (tmp_path / "wrong.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PaletteError, match=message) as caught:
        load_settings(tmp_path / "wrong.json")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path / "wrong.json"))


def test_what_cannot_be_a_preset(tmp_path):
    for settings in ({"compressor_ratio": 21}, {"compressor_ratio": math.inf}, {"compressor_ratio": torch.ones(2)}, {"compressor_ratio": "2"}, {"ratio": 2}):
        with pytest.raises(PaletteError) as caught:
            Preset(settings)
        assert "\n" not in str(caught.value)
    for about in ({"a": torch.ones(2)}, {"a": math.nan}, {"a": {1, 2}}):
        with pytest.raises(PaletteError, match="JSON cannot hold"):
            save_settings(tmp_path / "a.json", Preset(about=about))
    for path in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(PaletteError, match="cannot be read"):
            load_settings(path)
    with pytest.raises(PaletteError, match="cannot be written"):
        save_settings(tmp_path / "no" / "folder.json", Preset())
    assert not list(tmp_path.iterdir())


# Words and pictures

def test_rows_and_words():
    preset = Preset({"equaliser_low_shelf_gain_db": QUIET_DB, "equaliser_peak_1_gain_db": 0.99 * QUIET_DB, "equaliser_high_shelf_gain_db": -12.34, "compressor_attack_ms": 0.123})
    rows, text = settings_rows(preset), describe_settings(preset)
    assert [row["band"] for row in rows["equaliser"]] == ["low shelf", "high shelf"] and rows["equaliser"][1]["gain"] == "-12.3 dB" and rows["compressor"][0]["attack"] == "0.123 ms"
    assert "| high shelf | -12.3 dB |" in text and "left out: peak 1, peak 2, peak 3, peak 4." in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 2 and all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert settings_rows({})["equaliser"] == [] and "left out: low shelf, peak 1" in describe_settings({})
    assert list(settings_rows(Preset({}, ("noise_reverb",)))["noise_reverb"][0]) == [parameter.name.removesuffix("_db").removesuffix("_s").replace("_", " ") for parameter in EFFECTS["noise_reverb"].parameters]


def test_the_picture_shows_the_curves():
    preset = some(5)
    figure = plot_settings({"one": preset, "two": {}, "three": Preset({}, ("compressor",))}, 24000)
    gain, static = figure.axes
    hz, response = gain.lines[0].get_data()
    sections = eq_sections(24000, **band_settings(preset.of("equaliser"))).numpy()
    assert np.allclose(response, 20 * np.log10(np.abs(freqz_sos(sections, hz, fs=24000)[1])), atol=1e-6) and gain.get_xlim() == (20, 12000)
    assert np.allclose(gain.lines[1].get_ydata(), 0, atol=1e-9) and np.allclose(gain.lines[2].get_ydata(), 0, atol=1e-9)
    assert np.isclose(static.lines[1].get_ydata()[-1], -6) and np.isclose(static.lines[2].get_ydata()[-1], -6)  # -12 dB, 2 to 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two", "three"]
    assert len({line.get_linestyle() if number else "solid" for number, line in enumerate(gain.lines[:2])}) == 2


# In blocks

@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_any_size_are_the_chain(clip, seed):
    preset, rng = some(seed), np.random.default_rng(seed)
    whole = production()(clip[None].double(), RATE, **preset.settings)[0]
    for sizes in ((1 << 17,), (1, 2, 3, 5000), tuple(rng.integers(1, 20000, 50))):
        stream, parts, start = Stream(preset.stages(RATE)), [], 0
        while start < clip.shape[1]:
            part = clip[:, start:start + sizes[len(parts) % len(sizes)]]
            parts.append(stream.push(part))
            start += part.shape[1]
        heard = torch.cat(parts, 1)
        assert stream.latency == 0 and heard.dtype == torch.float32
        assert (heard - whole).abs().max() < 1e-5 * max(1, whole.abs().max())


def test_every_stage_by_itself_and_in_another_order(clip):
    for effects in (("equaliser",), ("compressor",), ("distortion",), ("compressor", "distortion", "equaliser")):
        preset = some(7, effects)
        with render_long(preset.stages(RATE), clip.split(9999, 1), RATE, 2, in_memory=0) as spool:
            assert (spool.whole() - preset(clip[None], RATE)[0]).abs().max() < 2e-5 * max(1, spool.whole().abs().max())
    with pytest.raises(PaletteError, match="room_reverb cannot be rendered in blocks"):
        settings_stages(("equaliser", "room_reverb"), {}, RATE)
    with pytest.raises(PaletteError, match="lies between"):
        settings_stages(PRODUCTION, {"compressor_ratio": 99}, RATE)


def test_stages_start_afresh_and_leave_their_input(clip):
    preset, before = some(2), clip.clone()
    first, second = (Stream(preset.stages(RATE)).push(clip) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(clip, before)
    mono = Stream(preset.stages(8000)).push(clip[:1])
    assert mono.shape == clip[:1].shape and mono.isfinite().all()


def test_channels_are_linked():
    stream = Stream(settings_stages(("compressor",), {"compressor_threshold_db": -40, "compressor_ratio": 8, "compressor_knee_db": 0}, RATE))
    y = stream.push(torch.tensor([[0.5], [0.001]]).expand(-1, RATE).contiguous())
    assert torch.allclose(y[0] / y[1], torch.tensor(500.0), rtol=1e-4) and np.isclose(20 * np.log10(y[0, -1].item()), -40 + (40 - 6.0206) / 8, atol=0.01)


def test_silence_ends_in_silence():
    "A recursion's state decays for ever; numbers too small for a processor's fast way would make long pauses slow."
    stage = settings_stages(("equaliser",), {"equaliser_low_shelf_gain_db": 12, "equaliser_low_shelf_frequency_hz": 20, "equaliser_low_shelf_q": 10}, RATE)[0]
    stage(torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)))
    for _ in range(100):
        y = stage(torch.zeros(2, 1 << 17))
        if not y.any():
            return
    raise AssertionError("still ringing")


# Files of sound

def test_a_file_with_settings(tmp_path, song, clip):
    preset = some(3)
    save_settings(tmp_path / "match.json", preset)
    told = []
    report = render_settings_file(song, tmp_path / "out.wav", tmp_path / "match.json", progress=lambda stage, fraction: told.append((stage, fraction)))
    expected, made = load_settings(tmp_path / "match.json")(clip[None].double(), RATE)[0].numpy(), read_audio(tmp_path / "out.wav")
    assert np.abs(made.samples - expected).max() < 1e-5 * max(1, np.abs(expected).max()) and made.tags["title"] == "Four bars" and made.subtype == "FLOAT"
    assert report["effects"] == list(PRODUCTION) and report["about"] == {"seed": 3} and math.isclose(report["settings"]["compressor_ratio"], preset.settings["compressor_ratio"], rel_tol=1e-4)
    assert json.loads(json.dumps(report)) == report and {stage for stage, _ in told} == {"reading", "writing"} and max(fraction for _, fraction in told) == 1


def test_peaks_are_kept_below_the_ceiling(tmp_path, song):
    loud = {"compressor_makeup_db": 20, "compressor_threshold_db": -30, "compressor_ratio": 4}
    scaled = render_settings_file(song, tmp_path / "a.flac", loud, bits="16", dithered=True)
    limited = render_settings_file(song, tmp_path / "b.flac", loud, clip="limit", ceiling_dbtp=-2.0)
    assert scaled["format"] == "PCM_16" and scaled["output_dbtp"] <= -1 and scaled["gain_db"] < -1 and limited["output_dbtp"] <= -2 and limited["output_lufs"] > scaled["output_lufs"]
    silence = tmp_path / "silence.wav"
    write_audio(silence, np.zeros((1, 5000)), RATE)
    assert render_settings_file(silence, tmp_path / "c.wav", loud)["input_lufs"] is None and not read_audio(tmp_path / "c.wav").samples.any()


def test_nothing_is_written_where_something_is_wrong(tmp_path, song):
    (tmp_path / "wrong.json").write_text("{}")
    before, there = song.read_bytes(), sorted(tmp_path.iterdir())
    for settings, options in (({"compressor_ratio": 99}, {}), (tmp_path / "wrong.json", {}), (Preset({}, ("room_reverb",)), {}), ({}, {"bits": "12"}), ({}, {"clip": "fold"}), ({}, {"ceiling_dbtp": 3})):
        with pytest.raises(PaletteError) as caught:
            render_settings_file(song, tmp_path / "out.wav", settings, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(PaletteError, match="is the input itself"):
        render_settings_file(song, song, {})
    assert song.read_bytes() == before and sorted(tmp_path.iterdir()) == there
    render_settings_file(song, song, {"compressor_makeup_db": 1}, overwrite=True)
    assert song.read_bytes() != before


def test_any_stages_render_a_file(tmp_path, song):
    rates = []
    report = render_file(song, tmp_path / "out.wav", lambda rate: rates.append(rate) or [torch.neg], {"made": "here"})
    assert rates == [RATE] and report["made"] == "here" and np.array_equal(read_audio(tmp_path / "out.wav").samples, -read_audio(song).samples)
