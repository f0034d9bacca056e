#!/usr/bin/env python3
"""Times FlashInfer's selective_state_update as `ssmjit bench` times its kernels, one JSON line a figure.

A CUDA graph of L layers, each with its own state and inputs and one output for all, the states together past 4 x the
L2 (cold); PDL off; microseconds a layer, the median of replays. x, B, C and out are bf16; dt, A, D and dt_bias are fp32, tied by
stride 0; indices int32 from 0 to batch - 1; softplus of dt + dt_bias, no gate. Needs a GPU, torch and flashinfer.
An algorithm that refuses a size gives a line with "refused" in place of "us". Exit 1: nothing was timed.
"""
import argparse
import importlib.util
import inspect
import json
import os
import statistics
import sys
import types

HEAD_DIM, DSTATE = 64, 128
ALGORITHMS = ("simple", "vertical", "horizontal", "auto")


def make_layers(torch, batch, heads, groups, dtype):
    """The arguments of each layer's step. The weights and the indices are shared, as in `ssmjit bench`."""
    def normal(*shape, like=torch.bfloat16):
        return torch.randn(*shape, device="cuda", dtype=like)

    A = (-1.5 + 0.2 * normal(heads, like=torch.float32))[:, None, None].expand(-1, HEAD_DIM, DSTATE)
    D = normal(heads, like=torch.float32)[:, None].expand(-1, HEAD_DIM)
    dt_bias = (-3.5 + 0.2 * normal(heads, like=torch.float32))[:, None].expand(-1, HEAD_DIM)
    out = normal(batch, heads, HEAD_DIM)
    indices = torch.arange(batch, device="cuda", dtype=torch.int32)
    state_bytes = batch * heads * HEAD_DIM * DSTATE * torch.empty((), dtype=dtype).element_size()
    count = max(8, 4 * torch.cuda.get_device_properties(0).L2_cache_size // state_bytes + 1)
    return [dict(state=normal(batch, heads, HEAD_DIM, DSTATE, like=dtype), x=normal(batch, heads, HEAD_DIM),
                 dt=normal(batch, heads, like=torch.float32)[..., None].expand(-1, -1, HEAD_DIM), A=A,
                 B=normal(batch, groups, DSTATE), C=normal(batch, groups, DSTATE), D=D, z=None, dt_bias=dt_bias,
                 dt_softplus=True, state_batch_indices=indices, out=out)
            for _ in range(count)]


def time_us(torch, layers, step, replays, other=None):
    """Microseconds a layer, of each replay. All on one stream: a second one that has run kernels makes every later launch
    of the process slower (0.18 us on an H200). `other`: memory of twice the L2 that is read before each replay, untimed,
    so that nothing of the one before is left there."""
    for layer in layers[:2]:  # what is built or allocated at first use must not be in the capture
        step(**layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="relaxed"):
        for layer in layers:
            step(**layer)
    if other is not None:
        laps = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(replays)]
        graph.replay()
        for begin, end in laps:
            other.sum()
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [1e3 * begin.elapsed_time(end) / len(layers) for begin, end in laps]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(1 + replays)]
    graph.replay()  # the stream never runs dry in between, so that no host time is in a figure
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return [1e3 * begin.elapsed_time(end) / len(layers) for begin, end in zip(marks, marks[1:])]


def triton_step(path):
    """selective_state_update of a Python file (Megatron's megatron/core/ssm/ops/mamba_ssm.py, say)."""
    package = types.ModuleType("triton_peer")  # so that the file may import its neighbours
    package.__path__ = [os.path.dirname(os.path.abspath(path))]
    sys.modules["triton_peer"] = package
    spec = importlib.util.spec_from_file_location("triton_peer.update", path)
    module = sys.modules["triton_peer.update"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = module.selective_state_update
    if "out" in inspect.signature(function).parameters:
        return function
    return lambda out, **arguments: function(**arguments)  # gives its output back


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--state", default="bf16,fp32", help="bf16, fp32, fp16, with commas between")
    parser.add_argument("--batches", default="1,4,16,64,256,1024")
    parser.add_argument("--replays", type=int, default=21)
    parser.add_argument("--triton", metavar="PATH", help="a Python file with a Triton selective_state_update")
    options = parser.parse_args()

    try:
        import torch
        from flashinfer.mamba import selective_state_update as update
    except ImportError as missing:
        print(f"needs torch and flashinfer-python: {missing}", file=sys.stderr)
        return 3

    peers = [("flashinfer", a, lambda algorithm=a, **layer: update(algorithm=algorithm, **layer)) for a in ALGORITHMS]
    if options.triton:
        peers.append(("triton", "default", triton_step(options.triton)))
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
    timed = 0
    for state in options.state.split(","):
        for batch in map(int, options.batches.split(",")):
            layers = make_layers(torch, batch, options.heads, options.groups, dtypes[state])
            for peer, algorithm, step in peers:
                line = dict(peer=peer, algorithm=algorithm, heads=options.heads, groups=options.groups, state=state,
                            batch=batch)
                try:
                    us = time_us(torch, layers, step, options.replays)
                    line.update(us=round(statistics.median(us), 3), us_min=round(min(us), 3), us_max=round(max(us), 3),
                                layers=len(layers), device=torch.cuda.get_device_name())
                    timed += 1
                except Exception as error:  # a refusal is the peer's answer for this size
                    line["refused"] = " ".join(str(error).split())[:200]
                print(json.dumps(line), flush=True)
            del layers
            torch.cuda.empty_cache()
    return 0 if timed else 1


if __name__ == "__main__":
    sys.exit(main())
