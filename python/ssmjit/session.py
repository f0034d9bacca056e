"""Sessions and the kernels that they prepare: the C++ names (include/ssmjit/session.h), any framework's tensors."""

import atexit
import functools
import sys
from typing import NamedTuple

from ._ffi import function
from .description import Description
from .errors import InvalidError

_PDL = {"off": 0, "wait_first": 1, "early_state": 2}

_session = function("session")
_prepare = function("prepare")
_launch = function("launch", keep_gil=True)
_launch_checked = function("launch")  # waits for the stream, on which work of another Python thread may be wanted
_choose_prepared = function("choose_prepared")
_scratch_bytes = function("scratch_bytes")
_prepared_facts = function("prepared_facts")
_choose = function("choose")


class Choice(NamedTuple):
    """A plan, how good an answer of the tables it is, and the time to expect (0: nothing is known)."""

    plan: str
    why: str
    reason: str
    expected_us: float
    floor_us: float


def _choice(fields):
    return Choice(str(fields["plan"]), str(fields["why"]), str(fields["reason"]), float(fields["expected_us"]),
                  float(fields["floor_us"]))


def _plain(value):
    """What tvm-ffi's containers hold, as Python's own."""
    if hasattr(value, "items"):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "__iter__"):
        return [_plain(each) for each in value]
    return value


@functools.lru_cache(maxsize=None)
def _places(op):
    """A tensor's place among the arguments of a launch, by name."""
    return {str(name): place for place, name in enumerate(function("tensor_fields")(op))}


def _in_order(op, tensors):
    places = _places(op)
    ordered = [None] * len(places)
    try:
        for name, tensor in tensors.items():
            ordered[places[name]] = tensor
    except KeyError:
        raise InvalidError(f"{name}: a launch of op {op} has no such tensor; it has {', '.join(places)}") from None
    return ordered


def _pdl(pdl):
    try:
        return _PDL[pdl]
    except (KeyError, TypeError):
        raise InvalidError(f"pdl: got {pdl!r}; wants {', '.join(_PDL)}") from None


class Prepared:
    """All kernels of one description that the tables can choose for up to `max_batch` rows, loaded on one GPU."""

    def __init__(self, held, description):
        self._held = held
        self.description = description
        self._op = description.op
        facts = _plain(_prepared_facts(held))
        self.device = facts["device"]
        self.max_batch = facts["max_batch"]

    def launch(self, *, stream=None, pad_slot_id=-1, pdl="off", checked=False, disable_state_update=False,
               internal_pdl=True, **tensors):
        """One step. `tensors` by the names of the C++ struct of this op (UpdateArgs, RingArgs, ..., kernel.h), from any
        framework with DLPack; of torch's none may require grad while torch records. `stream`: a CUstream as a number;
        without one the stream that torch works on, the default one for other frameworks. Asynchronous, safe under
        capture and from many threads. InvalidError names each tensor that does not fit, before any GPU work."""
        flags = (1 if checked else 0) | (2 if disable_state_update else 0) | (0 if internal_pdl else 4)
        if is_grad_enabled() and wants_grad(*tensors.values()):
            _refuse_grad(tensors)
        launch = _launch_checked if checked else _launch
        launch(self._held, stream, pad_slot_id, _pdl(pdl), flags, *_in_order(self._op, tensors))

    def choose(self, batch, mode="off"):
        """What launch() takes for this batch; `mode`: "off" or "chain"."""
        return _choice(_choose_prepared(self._held, batch, mode))

    def scratch_bytes(self, batch=0):
        """Device memory to give as `scratch`, enough for up to `batch` rows (0: max_batch); 0: none is wanted."""
        return int(_scratch_bytes(self._held, batch))

    def kernels(self):
        """Each kernel once: a dict of plan, arch, registers, spill_bytes, compile_ms, from_cache, batches."""
        return _plain(_prepared_facts(self._held)["kernels"])

    def __repr__(self):
        return f"<ssmjit.Prepared {self.description.summary()}, batch up to {self.max_batch}, {self.device['name']}>"


def is_grad_enabled():
    """Whether torch, if anybody uses it, records what is computed."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.is_grad_enabled()


def wants_grad(*tensors):
    """Whether one of them would have its gradient recorded; asked where torch records."""
    for tensor in tensors:
        if tensor is not None and getattr(tensor, "requires_grad", False):
            return True
    return False


def _refuse_grad(tensors):
    for name, tensor in tensors.items():
        if getattr(tensor, "requires_grad", False):
            raise InvalidError(f"{name}: requires grad, and launches have no backward; launch under torch.no_grad(), "
                               f"or give {name}.detach()")


class PrepareA:
    """A = -exp(A_log), in place of the caller's memory: once a model load, and again whenever A_log has changed."""

    def __init__(self, held):
        self._held = held

    def launch(self, A_log, A, stream=None):
        """A_log, A: [nheads]; A in fp32, written, where it stays."""
        if is_grad_enabled():
            _refuse_grad({"A_log": A_log, "A": A})
        function("launch_A")(self._held, stream, A_log, A)


class RingSlots:
    """Slots of a ring's pools beside the step, all layers in one launch (include/ssmjit/ring.h)."""

    def __init__(self, held, description):
        self._held = held
        self.description = description

    def layer_table(self, layers):
        """Addresses and strides of all layers, for the device: a list of rows of numbers. `layers`: a dict a layer of
        state, state_scale, x_ring, B_ring, dt_ring, A and, where a convolution is in front, its conv_state."""
        flat = [tensor for layer in layers for tensor in _in_order("ring_layer", layer)]
        words = list(function("ring_layer_table")(self.description.json(), *flat))
        count = len(words) // max(len(layers), 1)
        return [words[i:i + count] for i in range(0, len(words), count)] if words else []

    def _launch(self, name, stream, pad_slot_id, checked, tensors):
        function(name)(self._held, stream, pad_slot_id, checked, *_in_order(name, tensors))

    def materialise(self, *, stream=None, pad_slot_id=-1, checked=False, **tensors):
        self._launch("materialise", stream, pad_slot_id, checked, tensors)

    def reset(self, *, stream=None, pad_slot_id=-1, checked=False, **tensors):
        self._launch("reset_slots", stream, pad_slot_id, checked, tensors)

    def copy(self, *, stream=None, pad_slot_id=-1, checked=False, **tensors):
        self._launch("copy_slots", stream, pad_slot_id, checked, tensors)


class SlotCopies:
    """Copies of whole slots, of all layers' states and windows in one launch (include/ssmjit/slots.h)."""

    def __init__(self, held):
        self._held = held

    def launch(self, *, stream=None, pad_slot_id=-1, checked=False, **tensors):
        """`pieces` [any, 4] of int64: slot_copy_table() on the device; `src_slots`, `dst_slots`: one each a pair; a
        pair with a pad is passed over. Asynchronous, safe under capture unless `checked`."""
        function("launch_slot_copies")(self._held, stream, pad_slot_id, checked,
                                       *_in_order("launch_slot_copies", tensors))


class Session:
    """What an engine holds: it prepares its kernels once, at model load, and launches the best one at any batch.

    tables: table files or folders that win over SSMJIT_TABLES, the user's folder and the shipped tables. seeds: bundles
    and caches that are read and never written. cache_dir: the cache; empty: the default one. no_jit: never compile;
    prepare() then fails with the list of what is missing. threads: compiles at once; 0: as many as there are cores.
    """

    def __init__(self, *, tables=(), seeds=(), cache_dir="", no_jit=False, threads=0):
        self._held = _session([str(table) for table in tables], [str(seed) for seed in seeds], str(cache_dir), no_jit,
                              threads)

    def prepare(self, description, max_batch=256, *, off=True, chain=True, force="", stream=None):
        """Compiles, or takes from seeds and cache, all kernels for up to `max_batch` rows, and loads them on the GPU
        whose context is current (torch.cuda.device). The same again gives the same kernels, at once. Slow, so it
        belongs before a capture. `force`: a plan for every batch ("block_m=16,warps=2", plan_of()), for debugging."""
        return self._prepare([description], max_batch, off, chain, force, stream)[0]

    def prepare_all(self, descriptions, max_batch=256, *, off=True, chain=True, stream=None):
        """The same for all kernels of a model, a list in their order: what has to be compiled shares the cores from the
        first kernel to the last, where one prepare() after the other waits for the longest compile of each."""
        return self._prepare(descriptions, max_batch, off, chain, "", stream)

    def _prepare(self, descriptions, max_batch, off, chain, force, stream):
        described = [each if isinstance(each, Description) else Description(each) for each in descriptions]
        held = _prepare(self._held, max_batch, off, chain, force, _capturable(stream),
                        *(each.json() for each in described))
        return [Prepared(each, description) for each, description in zip(held, described)]

    def plan_of(self, text, description, max_batch=256):
        """The whole plan that prepare(force=text) takes, on the current GPU; what the text leaves out is the default
        plan's for that many rows, not the tables'."""
        description = description if isinstance(description, Description) else Description(description)
        return str(function("plan_of")(self._held, text, description.json(), max_batch))

    # What a model needs beside its steps, on the GPU whose context is current, as prepare() does.

    def prepare_A(self, stream=None):
        return PrepareA(function("prepare_A")(self._held, _capturable(stream)))

    def ring_slots(self, description, stream=None):
        description = description if isinstance(description, Description) else Description(description)
        return RingSlots(function("ring_slots")(self._held, description.json(), _capturable(stream)), description)

    def slot_copies(self, stream=None):
        return SlotCopies(function("slot_copies")(self._held, _capturable(stream)))

    def choose(self, description, batch, mode="off", device=""):
        """The plan of a batch, on the current GPU or on one of that key ("h200"), which need not be here."""
        return _choice(_choose(self._held, description.json(), batch, mode, device))

    @property
    def cache_dir(self):
        """The cache on disk; empty: memory only."""
        return str(function("cache_dir")(self._held))

    def table(self):
        """All tables, merged, as JSON."""
        return str(function("table")(self._held))


def _capturable(stream):
    """The stream that a capture would be on: the given one, else torch's current one where torch has a GPU at work."""
    if stream is not None:
        return stream
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.current_stream().cuda_stream
    return None


def write_bundle(folder, kernels, archs, devices=(), max_batch=256, table=""):
    """A folder from which a Session(seeds=[folder], no_jit=True) loads these kernels without NVRTC. `kernels`: a dict
    of descriptions by name; `archs`: "sm_90a", ...; `table`: JSON, empty: the tables in force. The files' names."""
    items = [[name, description.json()] for name, description in kernels.items()]
    return _plain(function("write_bundle")(str(folder), items, table, list(archs), list(devices), max_batch))


def is_bundle(folder):
    return bool(function("is_bundle")(str(folder)))


def bundle_problems(folder):
    """Files of a bundle that a load would not take, with the reason; empty when it is sound."""
    return {name: problem for name, problem in _plain(function("bundle_problems")(str(folder)))}


def devices():
    """The GPUs at hand, a dict each; none without a driver."""
    return _plain(function("devices")()[0])


def set_log(callback):
    """`callback(level, text)` is told what the library warns of, level "info" or "warning"; None silences it."""
    function("set_log")(callback)


atexit.register(set_log, None)
