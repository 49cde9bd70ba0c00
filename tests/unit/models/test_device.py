from __future__ import annotations

import importlib.machinery
from pathlib import Path

import pytest
import torch

from mmdata.models import device
from mmdata.models.device import accelerators, multiplies_bf16, whole_float32


@pytest.fixture
def torch_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A torch of these libraries, beside a driver that shows two devices."""

    def install(*libraries: str) -> None:
        (tmp_path / "lib").mkdir()
        for name in libraries:
            (tmp_path / "lib" / name).touch()
        spec = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: spec)
        monkeypatch.setattr(device, "_cuda_devices", lambda: 2)
        monkeypatch.setattr(device.sys, "platform", "linux")

    return install


def test_each_device_gets_a_process(torch_with):
    torch_with("libtorch_cpu.so", "libtorch_cuda.so")
    assert accelerators("auto") == ["cuda:0", "cuda:1"]


def test_a_driver_beside_a_torch_for_processors_is_no_accelerator(torch_with):
    torch_with("libtorch_cpu.so")
    assert set(accelerators("auto")) == {"cpu"}
    # Who asks for it is told what is missing where the model loads.
    assert accelerators("cuda") == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_old_devices_only_emulate_bf16(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    assert multiplies_bf16(torch.device("cuda:0")) is native


def test_float32_is_whole_while_it_is_wanted():
    before = torch.backends.cudnn.allow_tf32
    with whole_float32():
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is before
