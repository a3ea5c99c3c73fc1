"""`device`: where the kernels run. See libraries.py for what decides that."""

from __future__ import annotations

import pytest

from ext.build_cuda import BuildFailed, CannotBuild
from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.libraries import open_device


@pytest.fixture(scope="session")
def device() -> Device:
    try:
        return open_device()
    except BuildFailed:
        raise
    except CannotBuild as missing:
        pytest.skip(f"{missing}: the ops of a GPU are not tried here")
