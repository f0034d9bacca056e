#!/usr/bin/env python3
"""Times what peers run for a layer's step as `ssmjit bench SPEC:layer` times its kernels, one JSON line a figure.

A layer is three launches: a causal_conv1d_update, a selective_state_update, a gated RMS norm of groups. Given are Python
files with Triton kernels: --conv with causal_conv1d_update (Megatron's megatron/core/ssm/ops/causal_conv1d_triton.py),
--norm with layer_norm_fwd (fla's fla/modules/norm/layernorm_gated.py), --update with selective_state_update (Megatron's
mamba_ssm.py beside it); FlashInfer's update is timed too where it is installed. Each part alone, then the chain of all
three with either update.

A CUDA graph of L layers, each with its own state, windows and inputs and one output for all, states and windows together
past 4 x the L2 (1024 layers at most), other memory of twice the L2 read before each replay; PDL off; microseconds a
layer, the median of replays. Inputs, windows, weights of convolution and norm and out are bf16; dt, A, D and dt_bias
fp32, tied by stride 0; indices int32 from 0 to batch - 1; width 4, silu; the norm is gated by silu(z) before it.
Needs a GPU, torch and triton. Exit 1: nothing was timed.
"""
import argparse
import importlib.util
import json
import os
import statistics
import sys
import types

from flashinfer_update import ALGORITHMS, time_us, triton_step

HEAD_DIM, DSTATE, WIDTH = 64, 128, 4


def load(path, name):
    """A Python file as a module, with stand-ins for what fla's files import beside torch and triton."""
    stand_ins = {"fla": types.ModuleType("fla"), "fla.utils": types.ModuleType("fla.utils"),
                 "einops": types.ModuleType("einops")}
    stand_ins["fla.utils"].get_multiprocessor_count = lambda *_: 0
    stand_ins["fla.utils"].input_guard = lambda function: function
    stand_ins["einops"].rearrange = None
    for stand_in, module in stand_ins.items():
        sys.modules.setdefault(stand_in, module)
    package = types.ModuleType(f"peer_{name}")  # so that the file may import its neighbours
    package.__path__ = [os.path.dirname(os.path.abspath(path))]
    sys.modules[package.__name__] = package
    spec = importlib.util.spec_from_file_location(f"peer_{name}.file", path)
    module = sys.modules[f"peer_{name}.file"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Layers:
    """The tensors of each layer's step. Weights and indices are shared, as in `ssmjit bench`."""

    def __init__(self, torch, batch, tokens, heads, groups, dtype, most, parts):
        def normal(*shape, like=torch.bfloat16):
            return torch.randn(*shape, device="cuda", dtype=like)

        rows, channels = heads * HEAD_DIM, heads * HEAD_DIM + 2 * groups * DSTATE
        size = torch.empty((), dtype=dtype).element_size()
        layer_bytes = (batch * rows * DSTATE * size * ("update" in parts) +
                       batch * channels * WIDTH * 2 * ("conv1d" in parts) +
                       2 * batch * tokens * rows * 2 * (parts == ["norm"]))
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self.count = min(most, max(8, 4 * l2 // layer_bytes + 1))
        shared = dict(A=(-1.5 + 0.2 * normal(heads, like=torch.float32))[:, None, None].expand(-1, HEAD_DIM, DSTATE),
                      D=normal(heads, like=torch.float32)[:, None].expand(-1, HEAD_DIM),
                      dt_bias=(-3.5 + 0.2 * normal(heads, like=torch.float32))[:, None].expand(-1, HEAD_DIM),
                      w=normal(channels, WIDTH), bias=normal(channels), norm=normal(rows),
                      indices=torch.arange(batch, device="cuda", dtype=torch.int32),
                      y=normal(batch, heads, HEAD_DIM), out=normal(batch * tokens, rows))
        self.layers = []
        for _ in range(self.count):
            layer = dict(shared)
            if "conv1d" in parts or "update" in parts:
                layer["packed"] = normal(batch, tokens, channels)
            if "conv1d" in parts:
                layer["windows"] = normal(batch, channels, WIDTH)
            if "update" in parts:
                layer["state"] = normal(batch, heads, HEAD_DIM, DSTATE, like=dtype)
                layer["dt"] = normal(batch, heads, like=torch.float32)[..., None].expand(-1, -1, HEAD_DIM)
            if "norm" in parts:
                layer["z"] = normal(batch * tokens, rows)
            if parts == ["norm"]:
                layer["x"] = normal(batch * tokens, rows)
            self.layers.append(layer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conv", required=True, metavar="PATH")
    parser.add_argument("--norm", required=True, metavar="PATH")
    parser.add_argument("--update", required=True, metavar="PATH")
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--state", default="bf16,fp32", help="bf16, fp32, with a comma between")
    parser.add_argument("--batches", default="1,4,16,64,256")
    parser.add_argument("--tokens", default="1", help="of the convolution and the norm alone: 1,6")
    parser.add_argument("--replays", type=int, default=15)
    options = parser.parse_args()

    try:
        import torch
        import triton  # noqa: F401  (the files need it)
    except ImportError as missing:
        print(f"needs torch and triton: {missing}", file=sys.stderr)
        return 3
    try:
        from flashinfer.mamba import selective_state_update as flashinfer_update
    except ImportError:
        flashinfer_update = None

    causal_conv1d_update = load(options.conv, "conv").causal_conv1d_update
    layer_norm_fwd = load(options.norm, "norm").layer_norm_fwd
    heads, groups, rows = options.heads, options.groups, options.heads * HEAD_DIM
    other = torch.ones(2 * torch.cuda.get_device_properties(0).L2_cache_size // 4, device="cuda")
    updates = [("megatron", "triton", triton_step(options.update))]
    if flashinfer_update:
        updates += [("flashinfer", algorithm, lambda algorithm=algorithm, **layer:
                     flashinfer_update(algorithm=algorithm, z=None, **layer)) for algorithm in ALGORITHMS]

    def conv(packed, windows, w, bias, indices, **_):
        return causal_conv1d_update(packed, windows, w, bias, "silu", indices)

    def update(step, packed, state, dt, A, D, dt_bias, indices, y, **_):
        x, B, C = packed[:, 0].split([rows, groups * DSTATE, groups * DSTATE], dim=1)
        batch = x.shape[0]
        given = step(state=state, x=x.view(batch, heads, HEAD_DIM), dt=dt, A=A, B=B.view(batch, groups, DSTATE),
                     C=C.view(batch, groups, DSTATE), D=D, dt_bias=dt_bias, dt_softplus=True,
                     state_batch_indices=indices, out=y)
        return y if given is None else given

    def norm(x, z, norm, out, **_):
        layer_norm_fwd(x, norm, None, 1e-5, z=z, out=out, group_size=rows // groups, norm_before_gate=False,
                       is_rms_norm=True)

    def chain(step, **layer):
        y = update(step, **dict(layer, packed=conv(**layer)))
        norm(x=y.reshape(-1, rows), **layer)

    timed = 0

    def measure(parts, batch, tokens, state, steps):
        nonlocal timed
        dtype = dict(bf16=torch.bfloat16, fp32=torch.float32)[state or "bf16"]
        case = Layers(torch, batch, tokens, heads, groups, dtype, 1024, parts)
        for peer, algorithm, step in steps:
            line = dict(part="+".join(parts), peer=peer, algorithm=algorithm, heads=heads, groups=groups, state=state,
                        tokens=tokens, batch=batch)
            try:
                us = time_us(torch, case.layers, step, options.replays, other)
                line.update(us=round(statistics.median(us), 3), layers=case.count, device=torch.cuda.get_device_name())
                timed += 1
            except Exception as error:  # a refusal is the peer's answer for this size
                line["refused"] = " ".join(str(error).split())[:200]
            print(json.dumps(line), flush=True)
        del case
        torch.cuda.empty_cache()

    for batch in map(int, options.batches.split(",")):
        for tokens in map(int, options.tokens.split(",")):
            measure(["conv1d"], batch, tokens, None, [("megatron", "triton", conv)])
            measure(["norm"], batch, tokens, None, [("fla", "triton", norm)])
        for state in options.state.split(","):
            measure(["update"], batch, 1, state,
                    [(p, a, lambda s=s, **layer: update(s, **layer)) for p, a, s in updates])
            measure(["conv1d", "update", "norm"], batch, 1, state,
                    [(p, a, lambda s=s, **layer: chain(s, **layer)) for p, a, s in updates])
    return 0 if timed else 1


if __name__ == "__main__":
    sys.exit(main())
