"""Tensors for machines without a GPU: host memory that claims to be a GPU's, over DLPack, for the stand-in driver
(tests/jit/stub_libcuda.c). What the drop-ins ask of a torch tensor is here, with torch's meaning."""

import ctypes

import numpy

# DLPack's code and bits, and elements of as many bytes.
_CODES = {"fp32": (2, 32, "f4"), "fp64": (2, 64, "f8"), "fp16": (2, 16, "f2"), "bf16": (4, 16, "u2"),
          "int8": (0, 8, "i1"), "int16": (0, 16, "i2"), "int32": (0, 32, "i4"), "int64": (0, 64, "i8"),
          "fp8": (10, 8, "u1")}
CPU, CUDA = 1, 2


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [("dl_tensor", _DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", _Deleter)]


_alive = {}


@_Deleter
def _delete(address):
    _alive.pop(address, None)


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Tensor:
    """A strided view of a numpy array of elements of `dtype`, on a device by DLPack's numbers."""

    def __init__(self, array, dtype, device=(CUDA, 0), requires_grad=False):
        self.array, self.dtype, self.device = array, dtype, device
        self.requires_grad = requires_grad
        self.is_cuda = device[0] == CUDA

    shape = property(lambda self: self.array.shape)

    def dim(self):
        return self.array.ndim

    def numel(self):
        return self.array.size

    def stride(self, dim=None):
        strides = tuple(each // self.array.itemsize for each in self.array.strides)
        return strides if dim is None else strides[dim]

    def _like(self, array):
        return Tensor(array, self.dtype, self.device)

    def data_ptr(self):
        return self.array.__array_interface__["data"][0]

    def new_empty(self, shape):
        return empty(tuple(shape), self.dtype, self.device)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), _=None):
        """Where torch is installed its functions come here with these tensors."""
        assert function.__name__ == "empty_like", function
        return arguments[0].new_empty(arguments[0].shape)

    def unsqueeze(self, dim):
        return self._like(numpy.expand_dims(self.array, dim))

    def squeeze(self, dim):
        return self._like(numpy.squeeze(self.array, dim))

    def transpose(self, first, second):
        return self._like(numpy.swapaxes(self.array, first, second))

    def reshape(self, *shape):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        return self._like(self.array.reshape(shape))

    def contiguous(self):
        return self._like(numpy.ascontiguousarray(self.array))

    def expand(self, *shape):
        return self._like(numpy.broadcast_to(self.array, shape))

    def __getitem__(self, index):
        return self._like(self.array[index])

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **_):
        ndim = self.array.ndim
        managed = _DLManagedTensor()
        code, bits, _ = _CODES[self.dtype]
        shape = (ctypes.c_int64 * max(ndim, 1))(*self.shape)
        strides = (ctypes.c_int64 * max(ndim, 1))(*self.stride())
        managed.dl_tensor = _DLTensor(self.data_ptr() if self.array.size else None, *self.device, ndim, code, bits, 1,
                                      shape, strides, 0)
        managed.deleter = _delete
        address = ctypes.addressof(managed)
        _alive[address] = (managed, shape, strides, self.array)
        return _new_capsule(address, b"dltensor", None)


def empty(shape, dtype="bf16", device=(CUDA, 0)):
    """On a 256-byte boundary, as a GPU's allocations are."""
    item = numpy.dtype(_CODES[dtype][2])
    size = int(numpy.prod(shape, dtype=numpy.int64)) * item.itemsize
    block = numpy.zeros(size + 256, dtype=numpy.uint8)
    start = -block.__array_interface__["data"][0] % 256
    return Tensor(block[start:start + size].view(item).reshape(shape), dtype, device)


def of(values, dtype, device=(CUDA, 0)):
    values = numpy.asarray(values)
    made = empty(values.shape, dtype, device)
    made.array[...] = values
    return made


class StubLaunch(ctypes.Structure):
    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("smem_bytes", ctypes.c_uint),
                ("stream", ctypes.c_void_p), ("attributes", ctypes.c_int), ("pdl", ctypes.c_int),
                ("function", ctypes.c_void_p), ("arguments", ctypes.c_ubyte * 1024)]


class StubState(ctypes.Structure):
    """As tests/jit/stub_libcuda.h has it."""

    _fields_ = [("driver_version", ctypes.c_int), ("devices", ctypes.c_int), ("major", ctypes.c_int),
                ("minor", ctypes.c_int), ("name", ctypes.c_char_p), ("capturing", ctypes.c_int),
                ("fail_call", ctypes.c_char_p), ("fail_code", ctypes.c_int), ("argument_bytes", ctypes.c_int),
                ("record", ctypes.c_int), ("context_is_current", ctypes.c_int), ("launches", ctypes.c_int),
                ("synchronised", ctypes.c_int), ("modules_loaded", ctypes.c_int), ("modules_unloaded", ctypes.c_int),
                ("dynamic_smem_asked", ctypes.c_int), ("capture_mode", ctypes.c_int),
                ("capture_mode_at_load", ctypes.c_int), ("last", StubLaunch)]
