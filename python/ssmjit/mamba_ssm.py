"""Drop-ins for mamba_ssm: `selective_state_update` (mamba_ssm.ops.triton.selective_state_update) and `rmsnorm_fn`
(mamba_ssm.ops.triton.layernorm_gated). What they do not cover raises NotImplementedError, naming the argument."""

import itertools

from ._dropin import (Calls, elsewhere, empty_like, facts_of, is_grad_enabled, on_its_device, one_value_a_head,
                      peer_asserts, refuse_grad, same_dtype, wants_dtype, wants_grad)
from .errors import InvalidError

_update = Calls("update")
_norm = Calls("norm")
_call_update = _update.call
_call_norm = _norm.call


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False,
                           state_batch_indices=None):
    """One token: state (slots, nheads, dim, dstate), updated in place; x, dt, z, out (batch, nheads, dim);
    A (nheads, dim, dstate), D, dt_bias (nheads, dim), each one value a head as an expanded view; B, C (batch, ngroups,
    dstate). Without the dimension of heads everywhere likewise. A row whose index is negative is a pad: zeros, and no
    state is touched."""
    if state.dim() == 3:
        return _without_heads(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices)
    if is_grad_enabled() and wants_grad(state, x, dt, A, B, C, D, z, dt_bias):
        refuse_grad(state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    if elsewhere.several is not False and elsewhere(x):
        return on_its_device(selective_state_update, x, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus,
                             state_batch_indices)
    out = empty_like(x)
    arguments = (1 if dt_softplus else 0, -1, 0, 0, state, None, x, dt, A, B, C, D, dt_bias, z, out,
                 state_batch_indices)
    try:
        if _call_update(*arguments):
            return out
    except InvalidError as error:
        _describe_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, True)
        raise NotImplementedError(str(error)) from error
    described = _describe_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices,
                                 _update.aligned(arguments[4:]))
    _update.first(described, x.shape[0], arguments)
    return out


def _without_heads(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices):
    """As if there were one head; B and C may have groups of their own, of which there is then one too."""

    def with_head(tensor, dims, at):
        return tensor.unsqueeze(at) if tensor is not None and tensor.dim() == dims else tensor

    out = selective_state_update(with_head(state, 3, 1), with_head(x, 2, 1), with_head(dt, 2, 1), with_head(A, 2, 0),
                                 with_head(B, 2, 1), with_head(C, 2, 1), with_head(D, 1, 0), with_head(z, 2, 1),
                                 with_head(dt_bias, 1, 0), dt_softplus, state_batch_indices)
    return out.squeeze(1)


def _describe_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, aligned):
    """The description of a call as JSON fields. Fails as the peer does, and for what is not covered."""
    t = facts_of(state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias,
                 state_batch_indices=state_batch_indices)
    peer_asserts(len(t["state"].shape) == 4, f"state: got {len(t['state'].shape)} dimensions; wants 4")
    _, nheads, dim, dstate = t["state"].shape
    batch = t["x"].shape[0] if t["x"].shape else 0

    def wants_shape(name, shape):
        if t[name] is not None:
            peer_asserts(t[name].shape == shape, f"{name}: got shape {list(t[name].shape)}; wants {list(shape)}")

    wants_shape("x", (batch, nheads, dim))
    wants_shape("dt", (batch, nheads, dim))
    wants_shape("A", (nheads, dim, dstate))
    peer_asserts(len(t["B"].shape) == 3, f"B: got {len(t['B'].shape)} dimensions; wants 3")
    ngroups = t["B"].shape[1]
    peer_asserts(ngroups > 0 and nheads % ngroups == 0, "nheads must be divisible by ngroups; got "
                                                        f"{nheads} and {ngroups}")
    wants_shape("B", (batch, ngroups, dstate))
    wants_shape("C", (batch, ngroups, dstate))
    wants_shape("D", (nheads, dim))
    wants_shape("z", (batch, nheads, dim))
    wants_shape("dt_bias", (nheads, dim))
    wants_shape("state_batch_indices", (batch,))
    return describe_heads(t, nheads, dim, dstate, ngroups, dt_softplus, aligned)


def describe_heads(t, nheads, dim, dstate, ngroups, dt_softplus, aligned):
    """What all updates of heads have in common, here and in ssmjit.flashinfer. `t`: facts by the peer's names."""
    wants_dtype(t["x"], ("fp32", "bf16", "fp16"), "kernels take")
    for name in ("B", "C", "z"):
        same_dtype(t[name], t["x"])
    wants_dtype(t["dt"], ("fp32", "bf16"), "kernels take")
    wants_dtype(t["A"], ("fp32",), "kernels take")
    weights = t["D"] or t["dt_bias"]
    wants_dtype(weights, ("fp32", "bf16"), "kernels take")
    if t["D"] is not None:
        same_dtype(t["dt_bias"], t["D"])
    wants_dtype(t["state_batch_indices"], ("int32", "int64"), "indices are")
    one_value_a_head(t["A"], 2)
    for name in ("dt", "D", "dt_bias"):
        one_value_a_head(t[name], 1)
    delta = "dt" if t["dt_bias"] is None else "dt + dt_bias"
    return {
        "schema": 1,
        "nheads": nheads,
        "head_dim": dim,
        "dstate": dstate,
        "ngroups": ngroups,
        "input": t["x"].dtype,
        "dt": t["dt"].dtype,
        "weights": weights.dtype if weights is not None else "fp32",
        "state": t["state"].dtype,
        "delta": f"softplus({delta})" if dt_softplus else delta,
        "decay": "exp(A * delta)",
        "skip": None if t["D"] is None else "D * x",
        "gate": None if t["z"] is None else "silu(z)",
        "aligned_rows": aligned,
        "pad_output": "zeros",
    }


_norm_keys = {}  # what a norm's tensors do not tell, by a number
_next_norm_key = itertools.count()  # one for each, whichever threads call at once


def rmsnorm_fn(x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True):
    """RMS norm of each group of the last dimension of x, z silu-gating its result, or its input where
    norm_before_gate is False; weight, bias (N,). No backward: grad has to be off or wanted of nothing here."""
    if is_grad_enabled() and wants_grad(x, weight, bias, z):
        refuse_grad(x=x, weight=weight, bias=bias, z=z)
    if elsewhere.several is not False and elsewhere(x):
        return on_its_device(rmsnorm_fn, x, x, weight, bias, z, eps, group_size, norm_before_gate)
    shape = x.shape
    if z is not None and z.shape != shape:
        raise AssertionError(f"z: got shape {list(z.shape)}; wants {list(shape)}, as x")
    rows, gates = x, z
    if len(shape) != 2:
        rows = x.reshape(-1, shape[-1])
        gates = None if z is None else z.reshape(-1, shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    if gates is not None and gates.stride(-1) != 1:
        gates = gates.contiguous()
    out = empty_like(rows)
    options = (eps, group_size, norm_before_gate)
    key = _norm_keys.get(options)
    if key is None:
        key = _norm_keys.setdefault(options, next(_next_norm_key))
    arguments = (key, -1, 0, 0, rows, gates, weight, bias, out)
    try:
        launched = _call_norm(*arguments)
    except InvalidError as error:
        _describe_norm(rows, gates, weight, bias, options, True)
        raise NotImplementedError(str(error)) from error
    if not launched:
        described = _describe_norm(rows, gates, weight, bias, options, _norm.aligned(arguments[4:]))
        _norm.first(described, rows.shape[0], arguments)
    return out if len(shape) == 2 else out.reshape(shape)


def _describe_norm(x, z, weight, bias, options, aligned):
    eps, group_size, norm_before_gate = options
    t = facts_of(x=x, z=z, weight=weight, bias=bias)
    channels = t["x"].shape[-1]
    group_size = channels if group_size is None else group_size
    peer_asserts(group_size > 0 and channels % group_size == 0,
                 f"group_size: got {group_size}, which does not divide {channels} channels")
    for name in ("weight", "bias"):
        if t[name] is not None:
            peer_asserts(t[name].shape == (channels,), f"{name}: got shape {list(t[name].shape)}; wants [{channels}]")
            peer_asserts(t[name].stride(-1) in (0, 1), f"{name}: got strides {list(t[name].strides)}; wants [1]")
    wants_dtype(t["x"], ("fp32", "bf16", "fp16"), "kernels take")
    if group_size * (4 if t["x"].dtype == "fp32" else 2) > 65536:
        raise RuntimeError("This layer norm doesn't support feature dim >= 64KB.")
    same_dtype(t["z"], t["x"])
    wants_dtype(t["weight"], ("fp32", "bf16", "fp16"), "kernels take")
    same_dtype(t["bias"], t["weight"])
    return {
        "schema": 1,
        "op": "norm",
        "input": t["x"].dtype,
        "weights": t["weight"].dtype,
        "norm": {
            "channels": channels,
            "group_size": group_size,
            "eps": eps,
            "gate": None if z is None else "silu(z)",
            "before_gate": z is not None and norm_before_gate,
            "bias": bias is not None,
        },
        "aligned_rows": aligned,
    }
