"""Drop-in for causal_conv1d: `causal_conv1d_update`. What it does not cover raises NotImplementedError, naming the
argument."""

from ._dropin import (Calls, elsewhere, empty_like, facts_of, is_grad_enabled, not_covered, on_its_device, refuse_grad,
                      same_dtype, wants_dtype, wants_grad)
from .errors import InvalidError

_conv = Calls("conv1d")
_call_conv = _conv.call
_KEYS = {None: 0, "silu": 1, "swish": 1}


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None, cache_seqlens=None,
                         conv_state_indices=None):
    """x (batch, dim) or (batch, dim, seqlen), channels side by side in memory; conv_state (slots, dim, state_len) in
    either order of channels and entries, updated in place; weight (dim, width), bias (dim,). With cache_seqlens the
    state is a circular buffer. A row whose index is negative is a pad: zeros, and no state is touched."""
    key = _KEYS.get(activation)
    if key is None:
        raise NotImplementedError("activation must be None, silu, or swish")
    if is_grad_enabled() and wants_grad(x, conv_state, weight, bias):
        refuse_grad(x=x, conv_state=conv_state, weight=weight, bias=bias)
    if elsewhere.several is not False and elsewhere(x):
        return on_its_device(causal_conv1d_update, x, x, conv_state, weight, bias, activation, cache_seqlens,
                             conv_state_indices)
    shape = x.shape
    if len(shape) == 2 or shape[2] == 1:
        out = empty_like(x)
    else:
        out = empty_like(x.transpose(1, 2)).transpose(1, 2)
    arguments = (key, -1, 0, 0, conv_state, x, weight, bias, out, conv_state_indices, None, None, None, cache_seqlens)
    try:
        launched = _call_conv(*arguments)
    except InvalidError as error:
        _describe(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices, True)
        raise NotImplementedError(str(error)) from error
    if not launched:
        described = _describe(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices,
                              _conv.aligned(arguments[4:]))
        _conv.first(described, shape[0], arguments)
    return out


def _describe(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices, aligned):
    """The description of a call as JSON fields. Fails as the peer does, and for what is not covered."""
    t = facts_of(x=x, conv_state=conv_state, weight=weight, bias=bias, cache_seqlens=cache_seqlens,
                 conv_state_indices=conv_state_indices)

    def wants(condition, sentence):
        # The peer's checks are of C++, whose exception is this one.
        if not condition:
            raise RuntimeError(sentence)

    wants(len(t["x"].shape) in (2, 3), f"x: got shape {list(t['x'].shape)}; wants (batch, dim) or (batch, dim, seqlen)")
    wants(len(t["weight"].shape) == 2, f"weight: got shape {list(t['weight'].shape)}; wants (dim, width)")
    batch, dim = t["x"].shape[:2]
    seqlen = t["x"].shape[2] if len(t["x"].shape) == 3 else 1
    width = t["weight"].shape[1]
    wants(t["weight"].shape[0] == dim, f"weight: got shape {list(t['weight'].shape)}; wants [{dim}, width]")
    wants(len(t["conv_state"].shape) == 3 and t["conv_state"].shape[1] == dim,
          f"conv_state: got shape {list(t['conv_state'].shape)}; wants (slots, {dim}, state_len)")
    state_len = t["conv_state"].shape[2]
    wants(state_len >= width - 1, f"conv_state: got {state_len} entries; wants {width - 1} or more")
    if bias is not None:
        wants(t["bias"].shape == (dim,), f"bias: got shape {list(t['bias'].shape)}; wants [{dim}]")
    for name in ("cache_seqlens", "conv_state_indices"):
        if t[name] is not None:
            wants(t[name].shape == (batch,), f"{name}: got shape {list(t[name].shape)}; wants [{batch}]")
            wants(t[name].dtype == "int32", f"{name}: got {t[name].dtype}; wants int32")
    if conv_state_indices is None:
        wants(t["conv_state"].shape[0] == batch,
              f"conv_state: got {t['conv_state'].shape[0]} slots for {batch} rows; without conv_state_indices wants as "
              "many")
    wants_dtype(t["x"], ("fp32", "bf16", "fp16"), "kernels take")
    same_dtype(t["conv_state"], t["x"])
    wants_dtype(t["weight"], ("fp32", "bf16", "fp16"), "kernels take")
    same_dtype(t["bias"], t["weight"])
    if t["x"].stride(1) not in (0, 1):
        not_covered("x", f"has channels apart (strides {list(t['x'].strides)}); kernels take channels side by side, "
                         "x.stride(1) == 1")
    if width not in (2, 3, 4):
        not_covered("weight", f"has {width} taps; kernels have 2 to 4")
    return {
        "schema": 1,
        "op": "conv1d",
        "tokens": seqlen,
        "input": t["x"].dtype,
        "weights": t["weight"].dtype,
        "state": t["conv_state"].dtype,
        "conv": {
            "channels": dim,
            "width": width,
            "state_len": state_len,
            "bias": bias is not None,
            "activation": None if activation is None else "silu(x)",
            # Of one entry both orders are the same.
            "channels_last": t["conv_state"].strides[1] == 1 and state_len > 1,
            "store": "shift" if cache_seqlens is None else "circular",
        },
        "pad_output": "zeros",
        "aligned_rows": aligned,
    }
