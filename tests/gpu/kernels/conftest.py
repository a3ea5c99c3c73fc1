"""`device`: where the kernels run. See libraries.py for what decides that."""

from __future__ import annotations

import pytest

from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.libraries import open_device


@pytest.fixture(scope="session")
def device() -> Device:
    return open_device()
