"""What to compute: descriptions, and models that hold several."""

import json as _json
from typing import NamedTuple

from ._ffi import function

_describe = function("describe")
_problems = function("problems")
_summary = function("summary")
_kernel_digest = function("kernel_digest")
_cost_digest = function("cost_digest")
_op = function("op")
_bytes_moved = function("bytes_moved")
_load_model = function("load_model")
_from_hf = function("from_hf")
_ring_flushes = function("ring_flushes")
_advance_ring = function("advance_ring")
_advance_replay = function("advance_replay")
_ring_slot_bytes = function("ring_slot_bytes")


def _assignments(fields):
    def text(value):
        if value is None:
            return "none"
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value)

    return ",".join(f"{name.replace('__', '.')}={text(value)}" for name, value in fields.items())


class Description:
    """What a kernel computes: sizes, dtypes, maths, where the state goes. Never changes; `set` makes another one.

    Holds the JSON form of the C++ `Description` (include/ssmjit/description.h), normalised.
    """

    __slots__ = ("_json", "_fields")

    def __init__(self, json):
        """`json`: the text, or a dict of its fields. InvalidError names what is wrong with it."""
        text = json if isinstance(json, str) else _json.dumps(json)
        self._json = str(_describe(text, ""))
        self._fields = None

    def set(self, assignments="", **fields):
        """With other values: `set("state=bf16,store=ring:16")` or `set(state="bf16", store="ring:16")`; a field of a
        part has its name before two underscores, `set(conv__width=3)`."""
        both = ",".join(part for part in (assignments, _assignments(fields)) if part)
        return Description(str(_describe(self._json, both)))

    def json(self):
        return self._json

    def fields(self):
        """The JSON form as a dict."""
        if self._fields is None:
            self._fields = _json.loads(self._json)
        return dict(self._fields)

    @property
    def op(self):
        """The kind of kernel: "update", "ring", "replay", "conv1d", "norm" or "layer"."""
        return str(_op(self._json))

    def problems(self):
        """One sentence a wrong field; empty when all is well."""
        return [str(problem) for problem in _problems(self._json)]

    def summary(self):
        """One line."""
        return str(_summary(self._json))

    def kernel_digest(self):
        return str(_kernel_digest(self._json))

    def cost_digest(self):
        return str(_cost_digest(self._json))

    def bytes_moved(self, batch, phase="no_flush", ring_count=-1):
        """Bytes that one call moves at least: a dict of read, written_back, written_new and warm."""
        return {str(name): int(value) for name, value in _bytes_moved(self._json, batch, phase, ring_count).items()}

    def ring_flushes(self, cursor, tokens):
        """Whether a step of `tokens` with this (start, count) writes the state."""
        return bool(_ring_flushes(self._json, *cursor, tokens))

    def advance_ring(self, cursor, tokens, accepted):
        """(start, count) after a step of which the first `accepted` tokens are kept: once a model step, not a layer."""
        return tuple(_advance_ring(self._json, *cursor, tokens, accepted))

    def advance_replay(self, cursor, accepted):
        """(buffer, accepted) of a replay's slot after a step of which `accepted` tokens are kept, likewise."""
        return tuple(_advance_replay(self._json, *cursor, accepted))

    def ring_slot_bytes(self):
        """Device memory of one slot of one layer: state, scales and rings."""
        return int(_ring_slot_bytes(self._json))

    def __eq__(self, other):
        return isinstance(other, Description) and self._json == other._json

    def __hash__(self):
        return hash(self._json)

    def __repr__(self):
        return f"<ssmjit.Description {self.summary()}>"


def mamba2(nheads, head_dim, dstate, ngroups=1, **fields):
    """The usual Mamba-2 update; `fields` as in Description.set: `mamba2(16, 64, 128, state="bf16", gate="silu(z)")`."""
    made = Description(str(function("mamba2")(nheads, head_dim, dstate, ngroups)))
    return made.set(**fields) if fields else made


def conv1d(channels, **fields):
    """A causal convolution's step (causal_conv1d_update), width 4, bias, silu; `fields` of its part or of the whole:
    `conv1d(1280, conv__state_len=4, input="fp16")`."""
    made = Description(str(function("conv1d")(channels)))
    return made.set(**fields) if fields else made


def gated_norm(channels, **fields):
    """An RMS norm with silu(z) on its input; `fields` likewise: `gated_norm(4096, norm__group_size=512)`."""
    made = Description(str(function("gated_norm")(channels)))
    return made.set(**fields) if fields else made


class Model(NamedTuple):
    """A model's kernels by name, and where its sizes come from."""

    name: str
    source: str
    kernels: dict

    def kernel(self, name):
        if name not in self.kernels:
            raise KeyError(f"model {self.name} has no kernel {name!r}; there are {', '.join(self.kernels)}")
        return self.kernels[name]


def _model(fields):
    kernels = {str(name): Description(str(json)) for name, json in fields["kernels"]}
    return Model(str(fields["model"]), str(fields["source"]), kernels)


def load_model(spec):
    """A SPEC: a JSON file, or a shipped model's name; with ":KERNEL" that kernel alone."""
    return _model(_load_model(str(spec)))


def from_hf(config, tp=1):
    """The kernels of a Hugging Face config (a dict, or the text of config.json), one rank of `tp`."""
    return _model(_from_hf(config if isinstance(config, str) else _json.dumps(config), tp))


def shipped_models():
    return [str(name) for name in function("shipped_models")()]
