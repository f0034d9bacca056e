"""A Mamba-2 language model of random weights in plain PyTorch, for decoding: one token a step, or several that are
verified at once with the ring. Its convolution, update and norm are given, so that drop-ins and peers take their place.

    model = Mamba2(MAMBA2_2_7B, torch.bfloat16, "cuda")
    caches = model.caches(batch)
    logits = model.step(tokens, caches, OURS)          # tokens (batch,), logits (batch, vocabulary)
"""

import copy
import functools
import math
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

import plain_ops


class Sizes(NamedTuple):
    layers: int
    model: int  # channels of the residual stream
    heads: int
    head_dim: int
    dstate: int
    groups: int
    vocabulary: int
    width: int = 4  # taps of the convolution

    @property
    def inner(self):
        return self.heads * self.head_dim

    @property
    def channels(self):
        """Of the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.dstate


MAMBA2_2_7B = Sizes(layers=64, model=2560, heads=80, head_dim=64, dstate=128, groups=1, vocabulary=50288)
TINY = Sizes(layers=3, model=64, heads=8, head_dim=16, dstate=32, groups=2, vocabulary=211)


class Ops(NamedTuple):
    """What a step calls: the signatures of the drop-ins."""

    conv: Callable
    update: Callable
    norm: Callable


PLAIN = Ops(plain_ops.causal_conv1d_update, plain_ops.selective_state_update, plain_ops.rmsnorm_fn)
# The same computed in double and rounded at the same places: another path that is as right, to the last bit of bf16.
EXACT = Ops(*(functools.partial(each, compute=torch.float64) for each in PLAIN))


def ours():
    from ssmjit.causal_conv1d import causal_conv1d_update
    from ssmjit.mamba_ssm import rmsnorm_fn, selective_state_update

    return Ops(causal_conv1d_update, selective_state_update, rmsnorm_fn)


class Caches(NamedTuple):
    """A state and a window a layer and request, row b of a batch on slot b."""

    states: list  # (batch, heads, head_dim, dstate), fp32
    windows: list  # (batch, channels, width - 1), channels side by side


class RingCaches(NamedTuple):
    """What verifying several tokens a step keeps: a layer's state, rings and stream; the cursors of all layers."""

    states: list
    x_rings: list
    B_rings: list
    dt_rings: list
    streams: list  # (batch, width + tokens - 2, channels)
    start: torch.Tensor
    count: torch.Tensor
    accepted: torch.Tensor


class Layer:
    def __init__(self, sizes, dtype, device, generator):
        def normal(*shape, std):
            return (torch.randn(*shape, device=device, generator=generator) * std).to(dtype)

        def uniform(*shape, low, high):
            return torch.rand(*shape, device=device, generator=generator) * (high - low) + low

        self.norm = torch.ones(sizes.model, device=device, dtype=dtype)
        rows = sizes.inner + sizes.channels + sizes.heads  # z; x, B, C; dt
        self.in_proj = normal(rows, sizes.model, std=sizes.model**-0.5)
        self.conv_weight = uniform(sizes.channels, sizes.width, low=-0.5, high=0.5).to(dtype)
        self.conv_bias = uniform(sizes.channels, low=-0.5, high=0.5).to(dtype)
        A = -uniform(sizes.heads, low=1, high=16)
        step = torch.exp(uniform(sizes.heads, low=math.log(1e-3), high=math.log(1e-1)))
        dt_bias = step + torch.log(-torch.expm1(-step))  # the inverse of softplus
        # One value a head, as the peers' callers expand it.
        self.A = A[:, None, None].expand(-1, sizes.head_dim, sizes.dstate)
        self.dt_bias = dt_bias[:, None].expand(-1, sizes.head_dim)
        self.D = torch.ones(sizes.heads, 1, device=device).expand(-1, sizes.head_dim)
        self.gated_norm = torch.ones(sizes.inner, device=device, dtype=dtype)
        self.out_proj = normal(sizes.model, sizes.inner, std=sizes.inner**-0.5 / math.sqrt(sizes.layers))


class Mamba2:
    def __init__(self, sizes, dtype, device, seed=0):
        generator = torch.Generator(device).manual_seed(seed)
        self.sizes, self.dtype, self.device = sizes, dtype, device
        self.embedding = (torch.randn(sizes.vocabulary, sizes.model, device=device, generator=generator)).to(dtype)
        self.layers = [Layer(sizes, dtype, device, generator) for _ in range(sizes.layers)]
        self.norm = torch.ones(sizes.model, device=device, dtype=dtype)
        self.head = (torch.randn(sizes.vocabulary, sizes.model, device=device, generator=generator) *
                     sizes.model**-0.5).to(dtype)

    def caches(self, batch):
        s = self.sizes

        def windows():
            return torch.zeros(batch, s.width - 1, s.channels, device=self.device, dtype=self.dtype).transpose(1, 2)

        return Caches([torch.zeros(batch, s.heads, s.head_dim, s.dstate, device=self.device) for _ in self.layers],
                      [windows() for _ in self.layers])

    def ring_caches(self, batch, tokens, window):
        s, length = self.sizes, window + tokens

        def zeros(*shape, dtype=self.dtype):
            return [torch.zeros(batch, *shape, device=self.device, dtype=dtype) for _ in self.layers]

        def cursor(value):
            return torch.full((batch,), value, device=self.device, dtype=torch.int32)

        return RingCaches(zeros(s.heads, s.head_dim, s.dstate, dtype=torch.float32), zeros(s.heads, length, s.head_dim),
                          zeros(s.groups, length, s.dstate), zeros(s.heads, length, dtype=torch.float32),
                          zeros(s.width + tokens - 2, s.channels), cursor(0), cursor(0), cursor(1))

    def _in(self, layer, hidden):
        """z, (x, B and C), dt of a layer, slices of one projection."""
        s = self.sizes
        projected = F.linear(plain_ops.rmsnorm_fn(hidden, layer.norm, None, eps=1e-5), layer.in_proj)
        return projected.split([s.inner, s.channels, s.heads], dim=-1)

    def _heads(self, xBC, dt):
        s = self.sizes
        x, B, C = xBC.split([s.inner, s.groups * s.dstate, s.groups * s.dstate], dim=-1)
        return (x.unflatten(-1, (s.heads, s.head_dim)), dt[..., None].expand(*dt.shape, s.head_dim),
                B.unflatten(-1, (s.groups, s.dstate)), C.unflatten(-1, (s.groups, s.dstate)))

    def _out(self, layer, y, z, norm):
        gated = norm(y.flatten(-2), layer.gated_norm, None, z=z, eps=1e-5,
                     group_size=self.sizes.inner // self.sizes.groups, norm_before_gate=False)
        return F.linear(gated, layer.out_proj)

    def in_fp32(self):
        """A model of the same weights that computes in fp32."""
        other = copy.copy(self)
        other.dtype = torch.float32
        other.embedding, other.norm, other.head = self.embedding.float(), self.norm.float(), self.head.float()
        other.layers = []
        for layer in self.layers:
            other.layers.append(copy.copy(layer))
            for name, tensor in vars(layer).items():
                setattr(other.layers[-1], name, tensor.float())
        return other

    @torch.no_grad()
    def logits(self, hidden):
        """Of the stream behind the last layer."""
        return F.linear(plain_ops.rmsnorm_fn(hidden, self.norm, None, eps=1e-5), self.head).float()

    @torch.no_grad()
    def step(self, tokens, caches, ops):
        """One token (batch,) of each request: logits (batch, vocabulary)."""
        hidden = self.embedding[tokens]
        for i in range(len(self.layers)):
            hidden = hidden + self.mix(i, hidden, caches, ops)
        return self.logits(hidden)

    @torch.no_grad()
    def mix(self, i, hidden, caches, ops):
        """What layer i adds to the stream `hidden` (batch, model)."""
        layer = self.layers[i]
        z, xBC, dt = self._in(layer, hidden)
        xBC = ops.conv(xBC, caches.windows[i], layer.conv_weight, layer.conv_bias, "silu")
        x, dt, B, C = self._heads(xBC, dt)
        y = ops.update(caches.states[i], x, dt, layer.A, B, C, layer.D, dt_bias=layer.dt_bias, dt_softplus=True)
        return self._out(layer, y, z, ops.norm)

    @torch.no_grad()
    def verify(self, tokens, caches, conv, ring, norm):
        """Several tokens (batch, tokens) of each request, of which the caller keeps some (keep()): logits (batch,
        tokens, vocabulary). conv(x, stream, weight, bias, accepted), ring(...) and norm(...) as in plain_ops."""
        hidden = self.embedding[tokens]
        for i, layer in enumerate(self.layers):
            z, xBC, dt = self._in(layer, hidden)
            xBC = conv(xBC, caches.streams[i], layer.conv_weight, layer.conv_bias, caches.accepted)
            x, dt, B, C = self._heads(xBC, dt)
            y = ring(caches.states[i], caches.x_rings[i], caches.B_rings[i], caches.dt_rings[i], caches.start,
                     caches.count, x, dt, layer.A, B, C, torch.empty_like(x), D=layer.D, dt_bias=layer.dt_bias,
                     dt_softplus=True)
            hidden = hidden + self._out(layer, y, z, norm)
        return self.logits(hidden)

    @staticmethod
    def keep(caches, tokens, window, accepted):
        """After a step of `tokens`, of which the first accepted[b] (a list) are kept: the cursors of all layers."""
        length = window + tokens
        start, count = caches.start.tolist(), caches.count.tolist()
        for b, kept in enumerate(accepted):
            if count[b] + tokens > window:  # the step wrote the state
                start[b], count[b] = (start[b] + count[b]) % length, kept
            else:
                count[b] += kept
        for tensor, values in ((caches.start, start), (caches.count, count), (caches.accepted, accepted)):
            tensor.copy_(torch.tensor(values, dtype=torch.int32))
