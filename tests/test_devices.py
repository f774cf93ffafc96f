"""Everything batched runs on any device. Without a GPU, fake tensors tell whether two devices would meet in one operation."""
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from timbre_palette import filters
from timbre_palette.anchors import STAGES, palette
from timbre_palette.baselines.table import BASELINES
from timbre_palette.blend import crossfade
from timbre_palette.effects.chains import EFFECTS
from timbre_palette.effects.compressor import gain_reduction_db
from timbre_palette.effects.equaliser import parametric_eq
from timbre_palette.effects.reverb import room_reverb
from timbre_palette.blackbox import BlackBox
from timbre_palette.graybox import GrayBox
from timbre_palette.losses import ErrorLoss, RelativeLoss, StableLoss
from timbre_palette.loudness import integrated_loudness, running_loudness, true_peak_db
from timbre_palette.metrics import sd_sdr, si_snr, stft_distance

STRENGTH = torch.tensor([0.3, 0.5])


def graybox_on(device):
    "A gray-box made on a device; fake parameters cannot be moved."
    with torch.device(device):
        return GrayBox()


def blackbox_on(device):
    "A small black-box made on a device."
    with torch.device(device):
        return BlackBox(taps=65, kernels=2, units=2)


def baseline_on(device, name):
    "A baseline made on a device."
    if "tasnet" in name:
        pytest.importorskip("torchaudio.models", reason="torchaudio is not installed (extra dev)", exc_type=Exception)
    with torch.device(device):
        return BASELINES[name].build().eval()


OPERATIONS = {
    **{name: lambda x, name=name: baseline_on(x.device, name).render(x, 44100, [1, 0, 0]) for name in BASELINES if name != "bilstm-attention"},  # whose recurrence would ask the driver
    **{stage.__name__: lambda x, stage=stage: stage(x, 44100, STRENGTH) for stage in STAGES["exact"]},
    "palette": lambda x: palette(x, 44100, [1, 1, 1], 0.5),
    "crossfade": lambda x: crossfade(x, 44100, [1, 1, 1], 0.5),
    "integrated_loudness": lambda x: integrated_loudness(x, 44100),
    "running_loudness": lambda x: running_loudness(x, 44100, 0.4),
    "true_peak_db": true_peak_db,
    "StableLoss": lambda x: StableLoss().to(x.device)(x, x),
    "si_snr": lambda x: si_snr(x, x), "sd_sdr": lambda x: sd_sdr(x, x), "stft_distance": lambda x: stft_distance(x, x),
    "peaking with learned gains": lambda x: filters.fft_filter(x, filters.peaking(44100, 150.0, torch.ones(2, device=x.device), 1.0)),
    "GrayBox": lambda x: graybox_on(x.device)(x, 44100, torch.ones(2, 3, device=x.device) / 3),
    "BlackBox": lambda x: blackbox_on(x.device)(x, 44100, torch.ones(2, 3, device=x.device) / 3),
    "ErrorLoss": lambda x: ErrorLoss().to(x.device)(x, x),
    "RelativeLoss": lambda x: RelativeLoss().to(x.device)(x, x),
    "parametric_eq": lambda x: parametric_eq(x, 44100, torch.ones(2, 6, device=x.device), [[100.0] * 6], [[1.0] * 6]),
    "parametric_eq set on the CPU": lambda x: parametric_eq(x, 44100, torch.ones(2, 6), [[100.0] * 6], [[1.0] * 6]),
    "gain_reduction_db": lambda x: gain_reduction_db(x, -20.0, torch.ones(2, 1, 1, device=x.device), 6.0),
    "distortion": lambda x: EFFECTS["distortion"].function(x, 44100, torch.ones(2), torch.ones(2, device=x.device), 1.0),
    "room_reverb": lambda x: room_reverb(x, 44100, torch.ones(2, device=x.device), torch.ones(2)),
    "sos_recursion": lambda x: filters.sos_recursion(x, filters.peaking_sos(44100, 150, 7, 1.0))[0],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_two_devices_meet(name, monkeypatch):
    monkeypatch.setattr(filters, "decay_frames", lambda sos, decay_db=200.0, cascade=False: 3000)  # fake tensors have no values to decide by
    monkeypatch.setattr(torch, "istft", lambda spectrum, n_fft, hop, window, length: (torch.fft.irfft(spectrum, n_fft, dim=1) * window[:, None]).flatten(1)[:, :length])  # nor has its check of the window
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 2, 20000, device="cuda")
        assert OPERATIONS[name](x).device.type == "cuda"


def test_the_check_can_fail():
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device="cuda") + torch.ones(3)
