"""Every test runs on the driver without a GPU: device memory is host memory, a launch is noted down."""

import ctypes
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

STUB = os.environ.get("SSMJIT_STUB_LIBCUDA", "")
os.environ["SSMJIT_LIBCUDA"] = STUB or "no stand-in of libcuda"
# Kernels by content, from one run to the next.
os.environ["SSMJIT_CACHE_DIR"] = str(pathlib.Path(STUB).parent / "python-cache")
for name in ("SSMJIT_TABLES", "SSMJIT_SEEDS", "XDG_DATA_HOME"):
    os.environ.pop(name, None)
os.environ["HOME"] = "/nonexistent"

import device_memory  # noqa: E402
import ssmjit  # noqa: E402
from ssmjit import _dropin  # noqa: E402


@pytest.fixture
def driver():
    """The stand-in's state, as at its start but for what was loaded."""
    if not STUB:
        pytest.skip("the stub driver was not built (SSMJIT_STUB_LIBCUDA)")
    stub = ctypes.CDLL(STUB)
    stub.stub_state.restype = ctypes.POINTER(device_memory.StubState)
    stub.stub_reset()
    state = stub.stub_state().contents
    state.argument_bytes = 512
    return state


class RecordingSession(ssmjit.Session):
    """Keeps what it was asked to prepare."""

    def __init__(self, **options):
        super().__init__(**options)
        self.asked = []
        self.one_plan = False  # compiles one kernel, not all that the tables can choose

    def prepare(self, description, max_batch=256, **options):
        self.asked.append((description, max_batch))
        if self.one_plan:
            options["force"] = self.choose(description, 1).plan
        return super().prepare(description, max_batch, **options)

    @property
    def described(self):
        return self.asked[-1][0].fields()


@pytest.fixture(scope="session")
def compiled_session():
    return RecordingSession()


@pytest.fixture
def session(driver, compiled_session):
    """The session of the drop-ins. Skips where nothing can be compiled."""
    try:
        ssmjit.Session.prepare(compiled_session, ssmjit.mamba2(4, 64, 128), 1)
    except ssmjit.MissingError as missing:
        pytest.skip(str(missing))
    compiled_session.asked.clear()
    driver.launches = 0
    _dropin.use_session(compiled_session)
    compiled_session.one_plan = False
    return compiled_session


@pytest.fixture
def fresh_calls(session):
    """Drop-ins that have prepared nothing yet."""
    session.one_plan = True
    from ssmjit import causal_conv1d, flashinfer, mamba_ssm

    for module in (mamba_ssm, causal_conv1d, flashinfer):
        for name, value in list(vars(module).items()):
            if isinstance(value, _dropin.Calls):
                value.call, value._put, value._aligned = _dropin.function("calls")(value.op, value.first_dim)
        for name, of in (("_call_update", "_update"), ("_call_norm", "_norm"), ("_call_conv", "_conv")):
            if hasattr(module, name):
                setattr(module, name, getattr(module, of).call)


def addresses(driver):
    """The words of the last launch's argument: device pointers among them."""
    count = 64
    words = (ctypes.c_uint64 * count).from_buffer_copy(bytes(driver.last.arguments)[:8 * count])
    return set(words)
