"""The steps of a Mamba-2 layer in plain PyTorch, one operation after the other: what the kernels compute, and what a
model runs without them. In fp32, rounded where a kernel stores; each function has the signature of its drop-in. Those
of a decoding step compute in `compute`: in torch.float64 they are as good as exact before that rounding."""

import torch
import torch.nn.functional as F


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False,
                           state_batch_indices=None, compute=torch.float32):
    delta = dt[..., 0].to(compute) + (0 if dt_bias is None else dt_bias[:, 0].to(compute))
    if dt_softplus:
        delta = F.softplus(delta)
    heads_per_group = x.shape[1] // B.shape[1]
    B, C = (each.to(compute).repeat_interleave(heads_per_group, dim=1) for each in (B, C))
    decay = torch.exp(A[:, 0, 0].to(compute) * delta)
    rows = None if state_batch_indices is None else state_batch_indices.long()
    h = (state if rows is None else state[rows.clamp(min=0)]).to(compute) * decay[..., None, None]
    h = h + (delta[..., None] * x.to(compute))[..., None] * B[:, :, None, :]
    _store(state, rows, h)
    y = (h * C[:, :, None, :]).sum(-1)
    if D is not None:
        y = y + D.to(compute) * x.to(compute)
    if z is not None:
        y = y * F.silu(z.to(compute))
    return _without_pads(y, rows).to(x.dtype)


def _store(pool, rows, values):
    """Row b to slot rows[b], or b where there are none; pads, which are negative, nowhere."""
    if rows is None:
        pool.copy_(values)
    else:
        live = rows >= 0
        pool[rows[live]] = values[live].to(pool.dtype)


def _without_pads(y, rows):
    return y if rows is None else torch.where((rows >= 0)[:, None, None], y, 0.0)


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None, cache_seqlens=None,
                         conv_state_indices=None, compute=torch.float32):
    assert cache_seqlens is None
    rows = None if conv_state_indices is None else conv_state_indices.long()
    tokens = x[..., None] if x.dim() == 2 else x
    stream = torch.cat([conv_state if rows is None else conv_state[rows.clamp(min=0)], tokens], dim=-1)
    _store(conv_state, rows, stream[..., -conv_state.shape[-1]:])
    windows = stream[..., -(weight.shape[1] - 1 + tokens.shape[-1]):].to(compute).unfold(-1, weight.shape[1], 1)
    y = (windows * weight.to(compute)[:, None, :]).sum(-1)
    if bias is not None:
        y = y + bias.to(compute)[:, None]
    if activation is not None:
        y = F.silu(y)
    y = _without_pads(y, rows).to(x.dtype)
    return y[..., 0] if x.dim() == 2 else y


def rmsnorm_fn(x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True, compute=torch.float32):
    u = x.to(compute)
    if z is not None and not norm_before_gate:
        u = u * F.silu(z.to(compute))
    groups = u.unflatten(-1, (-1, group_size or x.shape[-1]))
    y = (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight.to(compute)
    if bias is not None:
        y = y + bias.to(compute)
    if z is not None and norm_before_gate:
        y = y * F.silu(z.to(compute))
    return y.to(x.dtype)


def conv_of_accepted(x, conv_state, weight, bias, accepted):
    """Of x (batch, tokens, channels): conv_state (batch, width + tokens - 2, channels) holds the stream of the step
    before, of which `accepted` (batch,) tokens were kept; row b uses slot b."""
    width, channels = weight.shape[1], x.shape[2]
    first = (accepted.long() - 1)[:, None] + torch.arange(width - 1, device=x.device)
    history = torch.gather(conv_state, 1, first[..., None].expand(-1, -1, channels))
    stream = torch.cat([history, x], dim=1)
    conv_state.copy_(stream[:, 1:])
    windows = stream.float().unfold(1, width, 1)
    return F.silu((windows * weight.float()).sum(-1) + bias.float()).to(x.dtype)


def checkpointing_ssu(state, x_cache, B_cache, dt_cache, ring_start, prev_num_accepted_tokens, x, dt, A, B, C, out,
                      D=None, z=None, dt_bias=None, dt_softplus=False):
    """The ring's step, row b on slot b, token by token: the recurrence from the state over the rows in use and on over
    the new tokens, of which the former are stored where they and the tokens no longer fit the window."""
    tokens, length = x.shape[1], x_cache.shape[2]
    for b in range(x.shape[0]):
        start, count = int(ring_start[b]), int(prev_num_accepted_tokens[b])
        h = state[b].float()
        for i in range(count):
            row = (start + i) % length
            delta, B_row = dt_cache[b, :, row], B_cache[b, :, row].float()
            h = _step(h, x_cache[b, :, row].float(), delta, A, B_row)
        if count + tokens > length - tokens:  # the window is full
            h = h.to(state.dtype).float()
            state[b] = h.to(state.dtype)
        for t in range(tokens):
            row = (start + count + t) % length
            delta = dt[b, t, :, 0].float() + (0 if dt_bias is None else dt_bias[:, 0].float())
            if dt_softplus:
                delta = F.softplus(delta)
            x_cache[b, :, row], B_cache[b, :, row], dt_cache[b, :, row] = x[b, t], B[b, t], delta
            h = _step(h, x[b, t].float(), delta, A, B[b, t].float())
            heads_per_group = h.shape[0] // C.shape[2]
            y = (h * C[b, t].float().repeat_interleave(heads_per_group, dim=0)[:, None, :]).sum(-1)
            if D is not None:
                y = y + D.float() * x[b, t].float()
            if z is not None:
                y = y * F.silu(z[b, t].float())
            out[b, t] = y.to(out.dtype)
    return out


def _step(h, x, delta, A, B):
    B = B.repeat_interleave(h.shape[0] // B.shape[0], dim=0)
    return h * torch.exp(A[:, 0, 0].float() * delta)[:, None, None] + (delta[:, None] * x)[..., None] * B[:, None, :]
