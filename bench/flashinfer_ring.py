#!/usr/bin/env python3
"""Times FlashInfer's checkpointing_ssu as `ssmjit bench SPEC:ring` times its kernels, one JSON line a figure.

A CUDA graph of L layers, each with its own state, rings and inputs and one output for all, states and rings together
past 4 x the L2 (cold), other memory of twice the L2 read before each replay; microseconds a layer, the median of
replays. Two modes: `off`, the step alone without PDL; `chain`, behind a producer of this layer's x, B, C and dt that signals at its start, with PDL, the producers' chain
alone subtracted. Two phases: no_flush and flush, by the rows in use that `ssmjit bench` takes. x, B, C, rings and out
are bf16; dt, A, D and dt_bias fp32, tied by stride 0; indices int32 from 0 to batch - 1; ring_start 0; no gate.
Algorithms: monolith, two-kernel, and with --tuned its autotuner's choice for the shape. Needs a GPU, torch, cupy and
flashinfer; the first call of a shape builds its module, which takes minutes. Exit 1: nothing was timed.
"""
import argparse
import json
import statistics
import sys

from flashinfer_update import time_us

HEAD_DIM, DSTATE = 64, 128
PRODUCER = r"""
extern "C" __global__ void produce(const uint4* from, uint4* to, int count) {
  asm volatile("griddepcontrol.launch_dependents;");
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) to[i] = from[i];
}"""


def rows_in_use(window, tokens, flush):
    """As `ssmjit bench` chooses them (autotune/layers.cpp)."""
    if flush:
        return min(window, window - tokens + 2)
    return min(4, window - tokens) if tokens > 1 else window // 2 - 1


class Layers:
    """The arguments of each layer's step: x, B, C and dt in one block of memory a layer, which a producer can write."""

    def __init__(self, torch, batch, tokens, heads, groups, window, dtype):
        def normal(*shape, like=torch.bfloat16):
            return torch.randn(*shape, device="cuda", dtype=like)

        def tied(values, *sizes):
            return values.reshape(values.shape + (1,) * len(sizes)).expand(*values.shape, *sizes)

        length = window + tokens
        layer_bytes = (batch * heads * HEAD_DIM * DSTATE * torch.empty((), dtype=dtype).element_size() +
                       batch * length * (heads * (HEAD_DIM * 2 + 4) + groups * DSTATE * 2))
        self.count = max(8, 4 * torch.cuda.get_device_properties(0).L2_cache_size // layer_bytes + 1)
        parts = [((batch, tokens, heads, HEAD_DIM), torch.bfloat16), ((batch, tokens, groups, DSTATE), torch.bfloat16),
                 ((batch, tokens, groups, DSTATE), torch.bfloat16), ((batch, tokens, heads), torch.float32)]

        def views(block):
            found, at = [], 0
            for shape, like in parts:
                size = torch.Size(shape).numel() * torch.empty((), dtype=like).element_size()
                found.append(block[at:at + size].view(like).view(shape))
                at += size
            return found

        size = sum(torch.Size(s).numel() * torch.empty((), dtype=d).element_size() for s, d in parts)
        self.source = torch.empty((size + 15) // 16 * 16, device="cuda", dtype=torch.uint8)
        for view in views(self.source):
            view.normal_()
        self.inputs = [self.source.clone() for _ in range(self.count)]
        shared = dict(A=tied(-1.5 + 0.2 * normal(heads, like=torch.float32), HEAD_DIM, DSTATE),
                      D=tied(normal(heads, like=torch.float32), HEAD_DIM),
                      dt_bias=tied(-3.5 + 0.2 * normal(heads, like=torch.float32), HEAD_DIM),
                      out=normal(batch, tokens, heads, HEAD_DIM),
                      start=torch.zeros(batch, device="cuda", dtype=torch.int32),
                      indices=torch.arange(batch, device="cuda", dtype=torch.int32))
        self.layers = []
        for block in self.inputs:
            x, B, C, dt = views(block)
            self.layers.append(dict(shared, x=x, B=B, C=C, dt=tied(dt, HEAD_DIM), block=block,
                                    state=normal(batch, heads, HEAD_DIM, DSTATE, like=dtype) * 0.5,
                                    x_ring=normal(batch, heads, length, HEAD_DIM),
                                    B_ring=normal(batch, groups, length, DSTATE),
                                    dt_ring=0.1 * torch.rand(batch, heads, length, device="cuda")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--state", default="bf16", help="bf16, fp32, fp16, with commas between")
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--replays", type=int, default=15)
    parser.add_argument("--tuned", action="store_true", help="its autotuner too (more than one token)")
    parser.add_argument("--modes", default="off,chain", help="off, chain, or both with a comma between")
    parser.add_argument("--build", action="store_true", help="build and load the modules, one a mode; time nothing")
    options = parser.parse_args()

    try:
        import cupy
        import torch
        from flashinfer.autotuner import autotune
        from flashinfer.mamba import allocate_checkpointing_ssu_scratch, checkpointing_ssu
    except ImportError as missing:
        print(f"needs torch, cupy and flashinfer-python: {missing}", file=sys.stderr)
        return 3

    other = torch.ones(2 * torch.cuda.get_device_properties(0).L2_cache_size // 4, device="cuda")
    kernel = cupy.RawKernel(PRODUCER, "produce")
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
    modes = options.modes.split(",")
    algorithms = ["monolith", "two-kernel"] + (["auto"] if options.tuned and options.tokens > 1 else [])
    timed = 0
    for state in options.state.split(","):
        for batch in map(int, options.batches.split(",")):
            case = Layers(torch, batch, options.tokens, options.heads, options.groups, options.window, dtypes[state])
            parts = allocate_checkpointing_ssu_scratch(batch, options.heads, options.tokens, options.window,
                                                       torch.bfloat16, torch.device("cuda"))
            scratch = dict(zip(("cb_scaled", "cumAdt_vec", "cb_old"), parts))

            def produce(block, **_):
                words = block.numel() // 16
                with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
                    kernel((min(264, (words + 127) // 128),), (128,), (case.source.data_ptr(), block.data_ptr(), words))

            def step(layer, count, algorithm, pdl):
                checkpointing_ssu(layer["state"], layer["x_ring"], layer["B_ring"], layer["dt_ring"], layer["start"],
                                  count, layer["x"], layer["dt"], layer["A"], layer["B"], layer["C"], layer["out"],
                                  D=layer["D"], dt_bias=layer["dt_bias"], dt_softplus=True,
                                  state_batch_indices=layer["indices"], algorithm=algorithm, enable_pdl=pdl,
                                  **({} if algorithm == "monolith" else scratch))

            producers = None
            for phase in ("no_flush", "flush"):
                in_use = rows_in_use(options.window, options.tokens, phase == "flush")
                count = torch.full((batch,), in_use, device="cuda", dtype=torch.int32)
                for algorithm in algorithms:
                    line = dict(peer="flashinfer", algorithm=algorithm, heads=options.heads, groups=options.groups,
                                tokens=options.tokens, window=options.window, state=state, batch=batch, phase=phase,
                                ring_count=in_use)
                    try:
                        for mode in modes:
                            with autotune(algorithm == "auto"):
                                step(case.layers[0], count, algorithm, mode == "chain")
                        torch.cuda.synchronize()
                        if options.build:
                            return 0
                        if "off" in modes:
                            off = time_us(torch, case.layers,
                                          lambda **layer: step(layer, count, algorithm, False), options.replays, other)
                            line.update(off_us=round(statistics.median(off), 3))
                        if "chain" in modes:
                            if producers is None:
                                producers = statistics.median(
                                    time_us(torch, case.layers, produce, options.replays, other))

                            def both(**layer):
                                produce(**layer)
                                step(layer, count, algorithm, True)

                            chain = statistics.median(time_us(torch, case.layers, both, options.replays, other))
                            line.update(chain_us=round(chain - producers, 3))
                        line.update(layers=case.count, device=torch.cuda.get_device_name())
                        timed += 1
                    except Exception as error:  # a refusal is the peer's answer for this size
                        line["refused"] = " ".join(str(error).split())[:200]
                    print(json.dumps(line), flush=True)
            del case
            torch.cuda.empty_cache()
    return 0 if timed else 1


if __name__ == "__main__":
    sys.exit(main())
