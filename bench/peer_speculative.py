#!/usr/bin/env python3
"""Times what peers run to verify draft tokens as `ssmjit bench` times its kernels, one JSON line a figure.

Kinds (--kinds), each a step of T tokens:
  snapshots  FlashInfer's selective_state_update with intermediate_states_buffer; disable_state_update True (as engines
             run it) and False.
  slots      The same with dst_state_batch_indices [batch, T]: the state after each token to a slot of its own.
  inplace    The same with neither: the state after the last token.
  copy       What an engine does after snapshots: state[slot] = buffer[request, accepted - 1], by torch.
  replay     TensorRT-LLM's Triton kernels, precompute and main. --replay PATH: a replay_selective_state_update.py whose
             function takes old_x and double-buffered old_B (its pull request 13453; FlashInfer's tests had a copy).
             Algorithm `table`: what its own table picks; with --sweep also `swept`: the fastest of a few dozen
             configurations here. off: no PDL in front of it; chain: behind a producer of x, B, C and dt that signals at
             its start, with PDL, the producers' chain alone subtracted. Between the two kernels PDL is on in both.
  wrapped    --wrapped PATH: the file of that name in FlashInfer's later tests, whose function takes rings (x_cache,
             ring_start) and turns them by torch into what its kernels want, and back: see `launches`. Window: --window,
             rows in use: --rows.

A CUDA graph of L layers, each with its own state, buffers and inputs and one output for all; what is read of states and
buffers past 4 x the L2 (cold); for replay and wrapped other memory of twice the L2 read before each run of the graph.
Microseconds a layer, the median of replays. x, B, C, old_x, old_B and out are bf16; dt, A, D and dt_bias fp32, tied by
stride 0; indices int32; slots 0 to batch - 1 are read; all T old tokens accepted, either buffer by turns; no gate.
`launches`: the kernels in a graph of one layer's step.

--profile times nothing: it runs each cell of replay and wrapped three times for ncu to look at and prints, per kernel,
the grid, warps, stages, registers, spills (32-bit words a thread) and shared memory of what ran:
  ncu --clock-control none -k regex:replay --csv --page raw python3 bench/peer_speculative.py --replay PATH --profile

Needs a GPU and torch; flashinfer for the first three kinds, triton for replay, cupy for its chain. The first call of a
kind may build its module, for minutes. Exit 1: nothing was timed; 3: a Python module is missing.
"""
import argparse
import inspect
import itertools
import json
import statistics
import sys

from flashinfer_ring import DSTATE, HEAD_DIM, PRODUCER
from flashinfer_update import time_us
from peer_layer import load

COLD_L2S = 4  # what the layers' states take, in L2s


def tied(values, *sizes):
    return values.reshape(values.shape + (1,) * len(sizes)).expand(*values.shape, *sizes)


class Layers:
    """The tensors of each layer's step. x, B, C and dt are in one block of memory, which a producer can write."""

    def __init__(self, torch, kind, batch, tokens, heads, groups, window, rows, dtype):
        def normal(*shape, like=torch.bfloat16):
            return torch.randn(*shape, device="cuda", dtype=like)

        def size_of(*tensors):
            return sum(torch.Size(shape).numel() * torch.empty((), dtype=t).element_size() for shape, t in tensors)

        bf16, fp32, device = torch.bfloat16, torch.float32, "cuda"
        buffers = {}
        if kind == "replay":
            buffers = dict(old_x=((batch, tokens, heads, HEAD_DIM), bf16),
                           old_B=((batch, 2, tokens, groups, DSTATE), bf16),
                           old_dt=((batch, 2, heads, tokens), fp32), old_sum=((batch, 2, heads, tokens), fp32))
        elif kind == "wrapped":
            length = window + tokens
            buffers = dict(x_cache=((batch, heads, length, HEAD_DIM), bf16),
                           B_cache=((batch, groups, length, DSTATE), bf16), dt_cache=((batch, heads, length), fp32))
        state_read = ((batch, heads, HEAD_DIM, DSTATE), dtype)
        cold = size_of(state_read, *buffers.values())
        self.count = max(8, COLD_L2S * torch.cuda.get_device_properties(0).L2_cache_size // cold + 1)

        parts = [((batch, tokens, heads, HEAD_DIM), bf16), ((batch, tokens, groups, DSTATE), bf16),
                 ((batch, tokens, groups, DSTATE), bf16), ((batch, tokens, heads), fp32)]

        def views(block):
            found, at = [], 0
            for shape, like in parts:
                size = size_of((shape, like))
                found.append(block[at:at + size].view(like).view(shape))
                at += size
            return found

        self.source = torch.empty((size_of(*parts) + 15) // 16 * 16, device=device, dtype=torch.uint8)
        for view in views(self.source):
            view.normal_()
        A = -1.5 + 0.2 * normal(heads, like=fp32)
        reads = torch.arange(batch, device=device, dtype=torch.int32)
        every = torch.arange(batch * tokens, device=device, dtype=torch.int32)
        shared = dict(A=tied(A, HEAD_DIM, DSTATE), D=tied(normal(heads, like=fp32), HEAD_DIM),
                      dt_bias=tied(-3.5 + 0.2 * normal(heads, like=fp32), HEAD_DIM),
                      out=normal(batch, tokens, heads, HEAD_DIM), indices=reads,
                      targets=batch + every.view(batch, tokens),
                      last_accepted=torch.full((batch,), (tokens + 1) // 2 - 1, device=device, dtype=torch.int64),
                      rows=torch.arange(batch, device=device, dtype=torch.int64),
                      which=reads % 2, accepted=torch.full((batch,), tokens, device=device, dtype=torch.int32),
                      start=torch.zeros(batch, device=device, dtype=torch.int32),
                      pnat=torch.full((batch,), rows, device=device, dtype=torch.int32))
        write = rows + tokens > window
        shared["n_writes"] = torch.tensor([batch if write else 0], device=device, dtype=torch.int32)
        shared["work_items"] = torch.stack([reads, reads, shared["pnat"], torch.zeros_like(reads)], dim=1).contiguous()

        slots = batch * (1 + tokens) if kind == "slots" else batch
        self.layers = []
        for _ in range(self.count):
            block = self.source.clone()
            x, B, C, dt = views(block)
            layer = dict(shared, block=block, x=x, B=B, C=C, dt=tied(dt, HEAD_DIM),
                         state=normal(slots, heads, HEAD_DIM, DSTATE, like=dtype) * 0.5)
            for name, (shape, like) in buffers.items():
                layer[name] = normal(*shape, like=like)
            if kind == "replay":
                layer["old_dt"].uniform_(0.03, 0.07)
                layer["old_sum"].copy_((A[:, None] * layer["old_dt"]).cumsum(-1))
            if kind == "wrapped":
                layer["dt_cache"].uniform_(0.03, 0.07)
            if kind in ("snapshots", "copy"):
                layer["snapshots"] = torch.zeros(batch, tokens, heads, HEAD_DIM, DSTATE, device=device, dtype=dtype)
            self.layers.append(layer)


class Launches:
    """Stands in for a Triton kernel of a module and keeps what was launched, kernel by kernel."""

    def __init__(self, module):
        self.found = {}
        for name, kernel in vars(module).copy().items():
            if name.endswith("_kernel") and hasattr(kernel, "run"):
                setattr(module, name, self.spy(name, kernel))

    def spy(self, name, kernel):
        found = self.found

        class Spy:
            def __getitem__(self, grid):
                def launch(*arguments, **options):
                    blocks = []

                    def keep(meta):
                        blocks[:] = grid(meta) if callable(grid) else grid
                        return tuple(blocks)

                    made = kernel[keep](*arguments, **options)
                    found[name] = dict(grid=list(blocks), warps=options.get("num_warps"),
                                       heads_per_block=options.get("HEADS_PER_BLOCK"), compiled=made)
                    return made

                return launch

        return Spy()

    def lines(self):
        for name, launch in self.found.items():
            made = launch.pop("compiled")
            meta = getattr(made, "metadata", None)
            yield dict(launch, kernel=name, registers=getattr(made, "n_regs", None),
                       spills=getattr(made, "n_spills", None), shared_bytes=getattr(meta, "shared", None),
                       stages=getattr(meta, "num_stages", None))


def launches_of(torch, step, layer):
    """Kernels in a graph of one step; None where torch cannot tell."""
    import ctypes
    try:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
    except TypeError:
        return None
    with torch.cuda.graph(graph, capture_error_mode="relaxed"):
        step(**layer)
    count = ctypes.c_size_t()
    nodes = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes
    if nodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count)) != 0:
        return None
    return count.value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="snapshots,slots,inplace,copy",
                        help="with commas between, or empty; replay and wrapped are added by their paths")
    parser.add_argument("--replay", metavar="PATH")
    parser.add_argument("--wrapped", metavar="PATH")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--window", type=int, default=16, help="of wrapped")
    parser.add_argument("--rows", default="4,12", help="of wrapped: rows in use")
    parser.add_argument("--state", default="bf16,fp32", help="bf16, fp32, with a comma between")
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--replays", type=int, default=15)
    parser.add_argument("--modes", default="off,chain", help="of replay")
    parser.add_argument("--sweep", action="store_true", help="of replay: the fastest configuration too")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()

    try:
        import torch
    except ImportError as missing:
        print(f"needs torch: {missing}", file=sys.stderr)
        return 3
    kinds = [kind for kind in options.kinds.split(",") if kind]
    if options.profile:
        kinds = []
        if not (options.replay or options.wrapped):
            parser.error("--profile: wants --replay PATH or --wrapped PATH")
    kinds += ["replay"] * (options.replay is not None) + ["wrapped"] * (options.wrapped is not None)
    modes = options.modes.split(",")
    try:
        if {"snapshots", "slots", "inplace"} & set(kinds):
            from flashinfer.mamba import selective_state_update
        if "replay" in kinds and "chain" in modes and not options.profile:
            import cupy
            producer = cupy.RawKernel(PRODUCER, "produce")
    except ImportError as missing:
        print(f"needs flashinfer-python for --kinds, cupy for --modes chain: {missing}", file=sys.stderr)
        return 3
    paths = dict(replay=options.replay, wrapped=options.wrapped)
    modules = {kind: load(path, kind) for kind, path in paths.items() if path}
    for kind, wanted in (("replay", "old_x"), ("wrapped", "x_cache")):
        if kind not in modules:
            continue
        takes = inspect.signature(modules[kind].replay_selective_state_update).parameters
        if wanted not in takes:
            parser.error(f"--{kind} {paths[kind]}: got replay_selective_state_update({', '.join(takes)}), wants one "
                         f"that takes {wanted}; there are two files of that name, for --replay and for --wrapped")
    spies = {kind: Launches(module) for kind, module in modules.items()}
    heads, groups, tokens = options.heads, options.groups, options.tokens
    other = torch.ones(2 * torch.cuda.get_device_properties(0).L2_cache_size // 4, device="cuda")
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}

    def update(state, x, dt, A, B, C, D, dt_bias, indices, out, **more):
        selective_state_update(state, x, dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=True, state_batch_indices=indices,
                               out=out, cache_steps=tokens, algorithm="simple", **more)

    def own(layer):
        return {name: layer[name] for name in ("state", "x", "dt", "A", "B", "C", "D", "dt_bias", "indices", "out")}

    def replay(pdl, **knobs):
        def step(state, x, dt, A, B, C, D, dt_bias, indices, out, old_x, old_B, old_dt, old_sum, which, accepted, **_):
            modules["replay"].replay_selective_state_update(
                state, old_x, old_B, old_dt, old_sum, which, accepted, x, dt, A, B, C, out, D=D, dt_bias=dt_bias,
                dt_softplus=True, state_batch_indices=indices, launch_with_pdl=pdl, **knobs)
        return step

    def wrapped(mode):
        def step(state, x_cache, B_cache, dt_cache, start, pnat, n_writes, work_items, **layer):
            modules["wrapped"].replay_selective_state_update(
                state, x_cache, B_cache, dt_cache, start, pnat, n_writes=n_writes, replay_work_items=work_items,
                dt_softplus=True, mode=mode,
                **{name: layer[name] for name in ("x", "dt", "A", "B", "C", "out", "D", "dt_bias")})
        return step

    # name -> step, of a kind; each step takes a layer's tensors
    def steps_of(kind):
        if kind == "snapshots":
            return {f"simple, disable_state_update={off}": lambda off=off, **layer: update(
                **own(layer), intermediate_states_buffer=layer["snapshots"], disable_state_update=off)
                for off in (True, False)}
        if kind == "slots":
            return {"simple": lambda **layer: update(**own(layer), dst_state_batch_indices=layer["targets"])}
        if kind == "inplace":
            return {"simple": lambda **layer: update(**own(layer))}
        if kind == "copy":
            def copy(state, snapshots, rows, last_accepted, **_):
                state[rows] = snapshots[rows, last_accepted]
            return {"torch": copy}
        if kind == "wrapped":
            return {mode: wrapped(mode) for mode in ("persistent_dynamic", "persistent_main")}
        return {"table": replay(False)}

    timed = 0

    def median(case, step, displace):
        return statistics.median(time_us(torch, case.layers, step, options.replays, other if displace else None))

    def producers_of(case):
        def produce(block, **_):
            words = block.numel() // 16
            with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
                producer((min(264, (words + 127) // 128),), (128,), (case.source.data_ptr(), block.data_ptr(), words))
        return produce, median(case, produce, True)

    def replay_figures(case, line, knobs, produce, alone):
        if "off" in modes:
            line["off_us"] = round(median(case, replay(False, **knobs), True), 3)
        if "chain" in modes:
            step = replay(True, **knobs)

            def both(**layer):
                produce(**layer)
                step(**layer)
            line["chain_us"] = round(median(case, both, True) - alone, 3)

    def fastest(case):
        """The knobs with the least time, no PDL in front: first the main kernel's, then with them the precompute's."""
        best = (float("inf"), {})
        mains = [dict(_block_size_m=m, _num_warps=w) for m, w in ((8, 1), *itertools.product((16, 32, 64), (1, 2, 4)))]
        pres = [dict(_precompute_num_warps=w, _heads_per_block=h)
                for w, h in ((1, 1), (2, 1), (4, 1), (2, 2), (4, 4)) if h <= heads // groups]
        for candidates in (mains, pres):
            start = best[1]
            for knobs in candidates:
                tried = {**start, **knobs}
                try:
                    best = min(best, (median(case, replay(False, **tried), True), tried), key=lambda pair: pair[0])
                except Exception as error:  # one that does not fit this GPU loses
                    print(f"{tried}: {error}", file=sys.stderr)
        return best[1]

    def measure(kind, state, batch, rows):
        nonlocal timed
        case = Layers(torch, kind, batch, tokens, heads, groups, options.window, rows, dtypes[state])
        base = dict(kind=kind, heads=heads, groups=groups, tokens=tokens, state=state, batch=batch)
        if kind == "wrapped":
            base.update(window=options.window, rows=rows)
        producers = None
        names = list(steps_of(kind).items())
        if kind == "replay" and options.sweep and not options.profile:
            names.append(("swept", None))
        for name, step in names:
            peer = dict(replay="tensorrt-llm", wrapped="flashinfer tests", copy="torch").get(kind, "flashinfer")
            line = dict(peer=peer, algorithm=name, **base)
            try:
                if options.profile:
                    for layer in case.layers[:3]:
                        step(**layer)
                    torch.cuda.synchronize()
                    line["launches"] = launches_of(torch, step, case.layers[0])
                    line["kernels"] = list(spies[kind].lines())
                elif kind == "replay":
                    if "chain" in modes and producers is None:
                        producers = producers_of(case)
                    knobs = fastest(case) if step is None else {}
                    if knobs:
                        line["knobs"] = knobs
                    replay_figures(case, line, knobs, *(producers or (None, None)))
                    line["launches"] = launches_of(torch, replay(False, **knobs), case.layers[0])
                else:
                    line["us"] = round(median(case, step, kind == "wrapped"), 3)
                    line["launches"] = launches_of(torch, step, case.layers[0])
                line.update(layers=case.count, device=torch.cuda.get_device_name())
                timed += 1
            except Exception as error:  # a refusal is the peer's answer for this size
                line["refused"] = " ".join(str(error).split())[:200]
            print(json.dumps(line), flush=True)
        del case
        torch.cuda.empty_cache()

    for kind in kinds:
        for state in options.state.split(","):
            for batch in map(int, options.batches.split(",")):
                for rows in map(int, options.rows.split(",") if kind == "wrapped" else "4"):
                    measure(kind, state, batch, rows)
    return 0 if timed else 1


if __name__ == "__main__":
    sys.exit(main())
