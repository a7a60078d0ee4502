"""Whether there is a CUDA device.

ONNX Runtime's GPU build lists CUDA as available wherever it is installed, and complains loudly
where a session then asks for it in vain. So the driver is asked first, through its C interface.
"""

import ctypes
from typing import Literal

Device = Literal["cpu", "cuda"]


def find_device() -> Device:
    """``cuda`` where NVIDIA's driver is installed and shows this process a device, else ``cpu``."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "cpu"
    count = ctypes.c_int(0)
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return "cuda" if found and count.value > 0 else "cpu"
