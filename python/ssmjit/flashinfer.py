"""Drop-ins for flashinfer.mamba: `selective_state_update` and `checkpointing_ssu` (0.7.2). What they do not cover
raises NotImplementedError, naming the argument. What only tunes FlashInfer's kernels (algorithm, backend, d_split,
scratch) is checked as it checks it, and has no effect: the tables choose."""

from ._dropin import (Calls, elsewhere, empty_like, facts_of, is_grad_enabled, not_covered, on_its_device,
                      peer_asserts, refuse_grad, wants_dtype, wants_grad)
from .errors import InvalidError
from .mamba_ssm import describe_heads

_update = Calls("update")
_ring = Calls("ring")
_packed_ring = Calls("ring", 2)
_call_update = _update.call

_ALGORITHMS = frozenset(("auto", "simple", "vertical", "horizontal", "async_horizontal"))
_BACKENDS = frozenset(("auto", "flashinfer", "cake"))
_RING_ALGORITHMS = frozenset(("auto", "monolith", "two-kernel"))
_DISABLE_STATE_UPDATE = 2  # LaunchFlag of python/src/op_args.h


def selective_state_update(state, x, dt, A, B, C, D, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None,
                           pad_slot_id=-1, state_scale=None, out=None, disable_state_update=False,
                           intermediate_states_buffer=None, intermediate_state_indices=None,
                           intermediate_state_scales=None, rand_seed=None, philox_rounds=10, cache_steps=0,
                           algorithm="auto", dst_state_batch_indices=None, cu_seqlens=None, num_accepted_tokens=None,
                           backend="auto"):
    """One token, x (batch, nheads, dim), or several, x (batch, T, nheads, dim) or packed (total, nheads, dim) with
    cu_seqlens and cache_steps the longest. A row whose index is pad_slot_id is a pad: no state is touched, and its
    output is that of a state of zeros. The state is written unless disable_state_update, with an
    intermediate_states_buffer too; with dst_state_batch_indices of two dimensions after every token, else the last."""
    if is_grad_enabled() and wants_grad(state, x, dt, A, B, C, D, z, dt_bias):
        refuse_grad(state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    if elsewhere.several is not False and elsewhere(x):
        return on_its_device(selective_state_update, x, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus,
                             state_batch_indices, pad_slot_id, state_scale, out, disable_state_update,
                             intermediate_states_buffer, intermediate_state_indices, intermediate_state_scales,
                             rand_seed, philox_rounds, cache_steps, algorithm, dst_state_batch_indices, cu_seqlens,
                             num_accepted_tokens, backend)
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"Unknown algorithm: {algorithm}")
    if backend not in _BACKENDS:
        raise ValueError(f"Unknown backend: {backend}")
    is_packed = cu_seqlens is not None and x.dim() == 3
    of_tokens = cache_steps >= 1 and not is_packed  # the output then has a dimension of tokens
    if state.dim() == 3 or x.dim() == 2:
        state, x, dt, A, B, C, D, z, dt_bias = _with_heads(state, x, dt, A, B, C, D, z, dt_bias)
    if x.dim() == 4 and x.shape[1] == 1:
        of_tokens = True
        x, dt, B, C, z = (each if each is None else each.squeeze(1) for each in (x, dt, B, C, z))
    key = 1 if dt_softplus else 0
    if rand_seed is not None:
        _check_seed(rand_seed, philox_rounds, state_scale)
        key |= philox_rounds << 8
        if rand_seed.dim() == 0:
            rand_seed = rand_seed.reshape(1)
    if is_packed:
        key |= cache_steps << 32
    if intermediate_states_buffer is not None and dst_state_batch_indices is not None:
        raise ValueError("intermediate_states_buffer and dst_state_batch_indices are mutually exclusive")
    if state_scale is not None and state_scale.dim() == 4 and state_scale.shape[-1] == 1:
        state_scale = state_scale.squeeze(-1)
    destinations = dst_state_batch_indices
    if destinations is not None and destinations.dim() == 2 and destinations.shape[1] == 1 and x.dim() == 3:
        destinations = destinations.squeeze(1)
    output = out
    if out is None:
        written = empty_like(x)
        output = written.unsqueeze(1) if of_tokens and x.dim() == 3 else written
    elif out.dim() == x.dim():
        written = out
    else:
        written = out.squeeze(1) if out.dim() > x.dim() else out.unsqueeze(1)
    flags = _DISABLE_STATE_UPDATE if disable_state_update else 0
    arguments = (key, pad_slot_id, 0, flags, state, state_scale, x, dt, A, B, C, D, dt_bias, z, written,
                 state_batch_indices, destinations, num_accepted_tokens,
                 intermediate_states_buffer, intermediate_state_scales, intermediate_state_indices, None, cu_seqlens,
                 rand_seed)

    def describe(aligned):
        return _describe_update(
            dict(state=state, state_scale=state_scale, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias,
                 out=written, state_batch_indices=state_batch_indices, dst_state_batch_indices=destinations,
                 num_accepted_tokens=num_accepted_tokens, intermediate_states_buffer=intermediate_states_buffer,
                 intermediate_state_indices=intermediate_state_indices,
                 intermediate_state_scales=intermediate_state_scales, cu_seqlens=cu_seqlens, rand_seed=rand_seed),
            dt_softplus, disable_state_update, philox_rounds, cache_steps, is_packed, aligned)

    # The kernel without snapshots writes the state, always.
    if disable_state_update and intermediate_states_buffer is None and dst_state_batch_indices is None:
        not_covered("disable_state_update", "kernels leave the state as it is only with an intermediate_states_buffer")
    try:
        launched = _call_update(*arguments)
    except InvalidError as error:
        describe(True)
        raise NotImplementedError(str(error)) from error
    if not launched:
        batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        _update.first(describe(_update.aligned(arguments[4:])), batch, arguments)
    return output


def _with_heads(state, x, dt, A, B, C, D, z, dt_bias):
    """As if there were one head, and one group."""

    def head(tensor, dims, at):
        return tensor.unsqueeze(at) if tensor is not None and tensor.dim() == dims else tensor

    return (head(state, 3, 1), head(x, 2, 1), head(dt, 2, 1), head(A, 2, 0), head(B, 2, 1), head(C, 2, 1),
            head(D, 1, 0), head(z, 2, 1), head(dt_bias, 1, 0))


def _check_seed(rand_seed, philox_rounds, state_scale=None):
    if not hasattr(rand_seed, "__dlpack__"):
        raise TypeError(f"rand_seed must be a CUDA int64 tensor, got {type(rand_seed).__name__}")
    if rand_seed.numel() != 1:
        raise ValueError(f"rand_seed must be a single-element tensor, got numel={rand_seed.numel()}")
    if state_scale is not None:
        raise ValueError("rand_seed and state_scale cannot both be provided")
    if philox_rounds <= 0:
        raise ValueError(f"philox_rounds must be > 0 when rand_seed is provided, got {philox_rounds}")


def _describe_update(tensors, dt_softplus, disable_state_update, philox_rounds, cache_steps, is_packed, aligned):
    """The description of a call as JSON fields. Fails as the peer does, and for what is not covered."""
    t = facts_of(**tensors)

    def wants(condition, sentence):
        # The peer's checks are of C++, whose exception is this one.
        if not condition:
            raise RuntimeError(sentence)

    def wants_shape(name, shape):
        if t[name] is not None:
            wants(t[name].shape == shape, f"{name}: got shape {list(t[name].shape)}; wants {list(shape)}")

    wants(len(t["state"].shape) == 4, f"state: got {len(t['state'].shape)} dimensions; wants 4")
    _, nheads, dim, dstate = t["state"].shape
    rows = t["x"].shape[:-2]
    wants(len(rows) in (1, 2), f"x: got {len(t['x'].shape)} dimensions; wants 2 to 4")
    if cu_seqlens_given := t["cu_seqlens"] is not None:
        wants(is_packed, f"x: got {len(t['x'].shape)} dimensions; with cu_seqlens wants (total, nheads, dim)")
        wants(cache_steps >= 1, f"cache_steps: got {cache_steps}; with cu_seqlens wants the longest sequence")
        wants_dtype(t["cu_seqlens"], ("int32",), "kernels take")
    tokens = cache_steps if is_packed else rows[1] if len(rows) == 2 else 1
    batch = t["cu_seqlens"].shape[0] - 1 if cu_seqlens_given else rows[0]
    for name in ("x", "dt", "z", "out"):
        wants_shape(name, (*rows, nheads, dim))
    wants(len(t["B"].shape) == len(rows) + 2, f"B: got {len(t['B'].shape)} dimensions; wants {len(rows) + 2}")
    ngroups = t["B"].shape[-2]
    wants(ngroups > 0 and nheads % ngroups == 0, f"nheads must be divisible by ngroups; got {nheads} and {ngroups}")
    wants_shape("B", (*rows, ngroups, dstate))
    wants_shape("C", (*rows, ngroups, dstate))
    wants_shape("A", (nheads, dim, dstate))
    wants_shape("D", (nheads, dim))
    wants_shape("dt_bias", (nheads, dim))
    if t["state_batch_indices"] is None:
        wants(t["state"].shape[0] >= batch, f"state: got {t['state'].shape[0]} slots for {batch} rows; without "
                                            "state_batch_indices wants as many")
    if t["num_accepted_tokens"] is not None:
        indices = t["state_batch_indices"]
        wants(indices is not None and len(indices.shape) == 2,
              "num_accepted_tokens: wants state_batch_indices of two dimensions")
    if t["rand_seed"] is not None:
        if t["rand_seed"].dtype != "int64":
            raise ValueError(f"rand_seed must have dtype int64, got {t['rand_seed'].dtype}")
    indices = [t[name] for name in ("state_batch_indices", "dst_state_batch_indices", "intermediate_state_indices",
                                    "num_accepted_tokens") if t[name] is not None]
    for each in indices:
        wants_dtype(each, ("int32", "int64"), "indices are")
        if each.dtype != indices[0].dtype:
            not_covered(each.name, f"got {each.dtype} where {indices[0].name} is {indices[0].dtype}; kernels take one "
                                   "dtype for all indices")
    described = describe_heads(t, nheads, dim, dstate, ngroups, dt_softplus, aligned)
    described["tokens"] = tokens
    described["pad_output"] = "as_if_zero_state"
    if t["rand_seed"] is not None:
        described["rounding"] = {"kind": "stochastic", "philox_rounds": philox_rounds}
    if t["intermediate_states_buffer"] is not None:
        described["store"] = "snapshots"
    elif t["dst_state_batch_indices"] is not None:
        if len(t["dst_state_batch_indices"].shape) == 2:
            described["store"] = "slots"
        else:
            described["destination_slots"] = True
    if t["num_accepted_tokens"] is not None:
        described["accepted"] = True
    if is_packed:
        described["varlen"] = True
    return described


def checkpointing_ssu(state, x_cache, B_cache, dt_cache, ring_start, prev_num_accepted_tokens, x, dt, A, B, C, out,
                      D=None, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None, pad_slot_id=-1,
                      state_scale=None, rand_seed=None, philox_rounds=10, d_split=None, cu_seqlens=None,
                      max_seqlen=None, enable_pdl=False, cb_scaled=None, cumAdt_vec=None, cb_old=None,
                      precompute_heads_per_cta=0, algorithm="auto"):
    """A step of 1 to 16 tokens that writes the state when the ring is full: x (batch, T, nheads, dim), or packed
    (1, total, nheads, dim) with cu_seqlens and max_seqlen. A row whose index is pad_slot_id is a pad: nothing of it is
    touched, its output neither. The host owns ring_start and prev_num_accepted_tokens (Description.advance_ring)."""
    if is_grad_enabled() and wants_grad(state, x, dt, A, B, C, D, z, dt_bias):
        refuse_grad(state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    if elsewhere.several is not False and elsewhere(x):
        return on_its_device(checkpointing_ssu, x, state, x_cache, B_cache, dt_cache, ring_start,
                             prev_num_accepted_tokens, x, dt, A, B, C, out, D, z, dt_bias, dt_softplus,
                             state_batch_indices, pad_slot_id, state_scale, rand_seed, philox_rounds, d_split,
                             cu_seqlens, max_seqlen, enable_pdl, cb_scaled, cumAdt_vec, cb_old,
                             precompute_heads_per_cta, algorithm)
    if (cb_scaled is None) != (cumAdt_vec is None) or (cb_scaled is None) != (cb_old is None):
        raise ValueError("cb_scaled, cumAdt_vec, and cb_old must be provided together (they make the two-kernel path "
                         f"available); got cb_scaled set={cb_scaled is not None}, cumAdt_vec "
                         f"set={cumAdt_vec is not None}, cb_old set={cb_old is not None}")
    peer_asserts(algorithm in _RING_ALGORITHMS,
                 f"algorithm must be one of 'auto', 'monolith', 'two-kernel'; got {algorithm!r}")
    if algorithm == "two-kernel" and cb_scaled is None:
        raise ValueError("algorithm='two-kernel' requires the cb_scaled/cumAdt_vec/cb_old scratch trio (got none); "
                         "allocate them or use 'auto'/'monolith'")
    key = 1 if dt_softplus else 0
    if rand_seed is not None:
        key |= philox_rounds << 8
        if rand_seed.dim() == 0:
            rand_seed = rand_seed.reshape(1)
    if cu_seqlens is not None:
        calls = _packed_ring
        key |= (max_seqlen or 0) << 32
    else:
        calls = _ring
        peer_asserts(max_seqlen is None, "max_seqlen is only valid with cu_seqlens (varlen mode)")
    arguments = (key, pad_slot_id, 1 if enable_pdl else 0, 0, state, state_scale, x_cache, B_cache, dt_cache,
                 ring_start, prev_num_accepted_tokens, x, dt, A, B, C, D, dt_bias, z, out, state_batch_indices,
                 cu_seqlens, rand_seed)

    def describe(aligned):
        return _describe_ring(
            dict(state=state, state_scale=state_scale, x_cache=x_cache, B_cache=B_cache, dt_cache=dt_cache,
                 ring_start=ring_start, prev_num_accepted_tokens=prev_num_accepted_tokens, x=x, dt=dt, A=A, B=B, C=C,
                 out=out, D=D, z=z, dt_bias=dt_bias, state_batch_indices=state_batch_indices, cu_seqlens=cu_seqlens,
                 rand_seed=rand_seed), dt_softplus, philox_rounds, d_split, max_seqlen)

    try:
        launched = calls.call(*arguments)
    except InvalidError as error:
        describe(True)
        raise NotImplementedError(str(error)) from error
    if not launched:
        batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        calls.first(describe(True), batch, arguments)
    return out


def _describe_ring(tensors, dt_softplus, philox_rounds, d_split, max_seqlen):
    """The description of a call as JSON fields. Fails as the peer does, and for what is not covered."""
    t = facts_of(**tensors)
    peer_asserts(len(t["state"].shape) == 4, f"state: got {len(t['state'].shape)} dimensions; wants 4")
    slots, nheads, dim, dstate = t["state"].shape
    quantized = t["state"].dtype in ("int8", "fp8")
    if quantized:
        peer_asserts(t["state_scale"] is not None,
                     f"state.dtype={t['state'].dtype} requires a state_scale tensor of shape (cache, nheads, dim) and "
                     "dtype float32")
        peer_asserts(t["state_scale"].shape == (slots, nheads, dim),
                     f"state_scale shape mismatch: expected {(slots, nheads, dim)}, got {t['state_scale'].shape}")
        peer_asserts(t["state_scale"].dtype == "fp32", f"state_scale must be float32 (got {t['state_scale'].dtype})")
        peer_asserts(d_split in (None, 1), f"8-bit state (int8/fp8) requires d_split=1 (got d_split={d_split})")
    else:
        peer_asserts(t["state_scale"] is None,
                     f"state_scale must be None for non-quantized state.dtype={t['state'].dtype}")
    seed = t["rand_seed"]
    if seed is not None:
        peer_asserts(seed.shape in ((), (1,)), f"rand_seed must be single-element, got shape {list(seed.shape)}")
        peer_asserts(seed.dtype == "int64", f"rand_seed must be int64, got {seed.dtype}")
        peer_asserts(philox_rounds > 0, f"philox_rounds must be > 0 with rand_seed, got {philox_rounds}")
    if d_split is not None and (d_split not in (1, 2) or dim // d_split < 32):
        raise ValueError(f"d_split: got {d_split}; wants 1 or 2, with 32 or more of the {dim} rows of a head each")
    x = t["x"]
    packed = t["cu_seqlens"] is not None
    if packed:
        peer_asserts(len(x.shape) == 4 and x.shape[0] == 1,
                     f"varlen mode: x must be (1, total_tokens, nheads, dim), got shape {x.shape}")
        peer_asserts(len(t["cu_seqlens"].shape) == 1 and t["cu_seqlens"].dtype == "int32",
                     f"cu_seqlens must be a 1D int32 CUDA tensor, got shape {t['cu_seqlens'].shape} dtype "
                     f"{t['cu_seqlens'].dtype}")
        peer_asserts(max_seqlen is not None, "varlen mode requires max_seqlen under the ring contract "
                                             "(RING_BUFFER_LEN = max_window + max_seqlen is otherwise ambiguous)")
    peer_asserts(len(x.shape) == 4, f"x: got {len(x.shape)} dimensions; wants (batch, T, nheads, dim)")
    rows = x.shape[:2]
    tokens = max_seqlen if packed else rows[1]

    def wants_shape(name, shape):
        if t[name] is not None:
            peer_asserts(t[name].shape == shape, f"{name}: got shape {list(t[name].shape)}; wants {list(shape)}")

    peer_asserts(len(t["x_cache"].shape) == 4, f"x_cache: got {len(t['x_cache'].shape)} dimensions; wants 4")
    length = t["x_cache"].shape[2]
    window = length - tokens
    peer_asserts(window <= 16, f"checkpointing_ssu supports at most 16 cache tokens (max_window), got {window}")
    peer_asserts(tokens <= window, f"npredicted ({tokens}) must be <= max_window ({window})")
    peer_asserts(len(t["B"].shape) == 4, f"B: got {len(t['B'].shape)} dimensions; wants 4")
    ngroups = t["B"].shape[-2]
    peer_asserts(ngroups > 0 and nheads % ngroups == 0,
                 f"nheads ({nheads}) must be divisible by ngroups ({ngroups})")
    for name in ("x", "dt", "z", "out"):
        wants_shape(name, (*rows, nheads, dim))
    wants_shape("B", (*rows, ngroups, dstate))
    wants_shape("C", (*rows, ngroups, dstate))
    wants_shape("A", (nheads, dim, dstate))
    wants_shape("D", (nheads, dim))
    wants_shape("dt_bias", (nheads, dim))
    wants_shape("x_cache", (slots, nheads, length, dim))
    wants_shape("B_cache", (slots, ngroups, length, dstate))
    wants_shape("dt_cache", (slots, nheads, length))
    if t["D"] is not None and t["dt_bias"] is not None:
        peer_asserts(t["D"].dtype == t["dt_bias"].dtype,
                     f"D.dtype ({t['D'].dtype}) and dt_bias.dtype ({t['dt_bias'].dtype}) must match")
    described = describe_heads(t, nheads, dim, dstate, ngroups, dt_softplus, True)
    described["tokens"] = tokens
    described["store"] = {"kind": "ring", "window": window}
    described["pad_output"] = "untouched"
    if seed is not None:
        described["rounding"] = {"kind": "stochastic", "philox_rounds": philox_rounds}
    if packed:
        described["varlen"] = True
    return described
