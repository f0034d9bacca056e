"""The functions of libssmjit_python.so, by name (python/src/exports.cpp)."""

import os
import pathlib
import sys

import tvm_ffi

from . import errors  # noqa: F401  what the functions raise is registered before any of them is called

# Where wheels of NVRTC are looked for, behind toolkits and VIRTUAL_ENV: in this Python's own environment.
os.environ.setdefault("SSMJIT_NVRTC_VENV", sys.prefix)

_LIBRARY = pathlib.Path(__file__).with_name("libssmjit_python.so")
_module = tvm_ffi.load_module(str(_LIBRARY))
_functions = dict(_module.functions().items())
_quick = dict(_module.functions().items())  # objects of their own, which keep the interpreter's lock
for _function in _quick.values():
    _function.release_gil = False


def function(name, keep_gil=False):
    """A function of the library. Other Python threads may run during a call; `keep_gil`: of one that takes less time
    than handing over the interpreter's lock, and waits for nothing."""
    return (_quick if keep_gil else _functions)[name]
