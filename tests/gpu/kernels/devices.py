"""Where kernels run in tests: memory, launches, and the library that has them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tests.gpu.kernels.numerics import bfloat16_bits, from_bfloat16_bits

Array = npt.NDArray[Any]
_libc = ctypes.CDLL(None, use_errno=True)
STATUS = {0: "ok", 1: "unsupported", 2: "no_memory", 3: "failed"}
# How each dtype lies in a numpy array, and its name for one.
_STORED = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
_STORED |= {"int8": np.int8, "uint8": np.uint8, "int32": np.int32, "int64": np.int64, "uint32": np.uint32}
_NAMES = {np.dtype(stored): name for name, stored in _STORED.items()}


class KernelError(AssertionError):
    """A launch that did not succeed, or wrote where it should not."""


class Buffer(Protocol):
    @property
    def pointer(self) -> int: ...

    def numpy(self) -> Array:
        """A copy; bfloat16 and float16 as float32."""
        ...


class Device:
    """Common to both: `library` is the ctypes library, `real` says whether shapes may be large."""

    real: bool

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.qvl_cuda_error.restype = ctypes.c_char_p
        self.library.qvl_cuda_architectures.restype = ctypes.c_char_p

    @property
    def stream(self) -> int:
        return 0

    def put(self, array: Array) -> Any:
        """Copied to the device as it is; uint16 is taken for the bits of bfloat16."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...] | int, dtype: str) -> Any:
        """Memory full of what nobody should read."""
        raise NotImplementedError

    def floats(self, array: npt.ArrayLike, dtype: str) -> Any:
        """Rounded to `dtype` and copied."""
        array = np.asarray(array, dtype=np.float32)
        if dtype == "bfloat16":
            return self.put(bfloat16_bits(array))
        with np.errstate(over="ignore"):
            return self.put(array.astype(_STORED[dtype]))

    def status(self, op: str, params: ctypes.Structure) -> str:
        """Launch, wait, and say what the launch said."""
        function = self.library[f"qvl_cuda_{op}"]
        function.restype, function.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]
        code = function(ctypes.addressof(params), self.stream)
        self.wait()
        return STATUS.get(code, str(code))

    def call(self, op: str, params: ctypes.Structure) -> None:
        """Launch and wait. Raises KernelError on any status but ok."""
        status = self.status(op, params)
        if status != "ok":
            said = self.library.qvl_cuda_error().decode(errors="replace") if status == "failed" else ""
            raise KernelError(f"{op}: {status} {said}".rstrip())

    def workspace(self, op: str, params: ctypes.Structure) -> Any:
        """The scratch memory that an op asks for, or None; `op` as in qvl_cuda_<op>_workspace."""
        function = self.library[f"qvl_cuda_{op}_workspace"]
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        size = function(ctypes.addressof(params))
        if size < 0:
            raise KernelError(f"{op}: a workspace of {size} bytes")
        return self.empty((size,), "uint8") if size else None

    def wait(self) -> None:
        """Until everything launched has run."""

    @contextlib.contextmanager
    def other_order(self) -> Iterator[None]:
        """Within the block the emulator lets threads, warps and blocks take turns the other way round."""
        before = os.environ.get("QVL_EMULATED_ORDER")
        os.environ["QVL_EMULATED_ORDER"] = "reverse" if before != "reverse" else "forward"
        try:
            yield
        finally:
            if before is None:
                del os.environ["QVL_EMULATED_ORDER"]
            else:
                os.environ["QVL_EMULATED_ORDER"] = before


_PAGE, _GUARD_BYTE = mmap.PAGESIZE, 0xFF


class HostBuffer:
    """Ends where the memory of the process ends: beyond lie pages that nobody may touch, as before it.

    What is left between it and them, for its end to be a multiple of 16 bytes, may be read (as NaN) but not written to.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        stored = np.dtype(_STORED[dtype])
        size = int(np.prod(shape, dtype=np.int64)) * stored.itemsize
        pages = -(-max(size, 1) // _PAGE) * _PAGE
        self._memory = mmap.mmap(-1, pages + 2 * _PAGE)
        whole = np.frombuffer(self._memory, dtype=np.uint8)
        for edge in (0, pages + _PAGE):
            if _libc.mprotect(ctypes.c_void_p(whole.ctypes.data + edge), ctypes.c_size_t(_PAGE), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        self._inside = whole[_PAGE : pages + _PAGE]
        self._inside[:] = _GUARD_BYTE
        self._begin = pages - (size + 15) // 16 * 16
        self._end = self._begin + size
        data = self._inside[self._begin : self._end]
        if dtype.startswith("int"):
            data[:] = 0xA5
        self.array = data.view(stored).reshape(shape)
        self.dtype = dtype

    @property
    def pointer(self) -> int:
        return self._inside.ctypes.data + self._begin

    def numpy(self) -> Array:
        if self.dtype == "bfloat16":
            return from_bfloat16_bits(self.array)
        return self.array.astype(np.float32) if self.dtype == "float16" else self.array.copy()

    def intact(self) -> bool:
        beside = self._inside[: self._begin], self._inside[self._end :]
        return all(bool((part == _GUARD_BYTE).all()) for part in beside)


class EmulatedDevice(Device):
    """The kernels run by this CPU."""

    real = False

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self._buffers: weakref.WeakSet[HostBuffer] = weakref.WeakSet()

    def empty(self, shape: tuple[int, ...] | int, dtype: str) -> HostBuffer:
        buffer = HostBuffer((shape,) if isinstance(shape, int) else tuple(shape), dtype)
        self._buffers.add(buffer)
        return buffer

    def put(self, array: Array) -> HostBuffer:
        array = np.asarray(array)
        buffer = self.empty(array.shape, "bfloat16" if array.dtype == np.uint16 else _NAMES[array.dtype])
        buffer.array[...] = array
        return buffer

    def status(self, op: str, params: ctypes.Structure) -> str:
        said = super().status(op, params)
        for buffer in list(self._buffers):
            if not buffer.intact():
                raise KernelError(f"{op}: written beside a buffer of {buffer.array.shape} {buffer.dtype}")
        return said


class TorchBuffer:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def pointer(self) -> int:
        return int(self.tensor.data_ptr())

    def numpy(self) -> Array:
        import torch

        half = self.tensor.dtype in (torch.bfloat16, torch.float16)
        return (self.tensor.float() if half else self.tensor).cpu().numpy()


class TorchDevice(Device):
    """A GPU, with the memory and the stream of torch. Under QVL_GPU_TESTS_SMALL shapes are those of the emulator."""

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self.real = not os.environ.get("QVL_GPU_TESTS_SMALL")

    @property
    def stream(self) -> int:
        import torch

        return int(torch.cuda.current_stream().cuda_stream)

    def empty(self, shape: tuple[int, ...] | int, dtype: str) -> TorchBuffer:
        import torch

        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")
        if tensor.numel():
            tensor.view(torch.uint8).fill_(0xA5 if dtype.startswith("int") else 0xFF)
        return TorchBuffer(tensor)

    def put(self, array: Array) -> TorchBuffer:
        import torch

        array = np.ascontiguousarray(array)
        if array.dtype == np.uint16:
            return TorchBuffer(torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16))
        return TorchBuffer(torch.from_numpy(array).cuda())

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()
