"""What goes wrong, and whose doing it is. A message says what was wrong, what it got, what it wants and the way out."""

from tvm_ffi.error import register_error


class Error(RuntimeError):
    """Every failure of the library. `kind`: "invalid", "missing", "machine" or "internal"."""

    kind = "internal"


class InvalidError(Error, ValueError):
    """The caller's: a wrong description, plan, tensor, file or argument."""

    kind = "invalid"


class MissingError(Error):
    """The machine lacks something: NVRTC, a driver, a GPU."""

    kind = "missing"


class MachineError(Error):
    """The machine failed: a compile, a driver call, a disk."""

    kind = "machine"


class InternalError(Error):
    """Ours: please report it."""


# As python/src/tensors.h names them across the boundary.
for _error in (InvalidError, MissingError, MachineError, InternalError):
    register_error(f"ssmjit.{_error.kind}", cls=_error)
