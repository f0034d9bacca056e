#!/usr/bin/env python3
"""The Python package on a GPU, as clients use it: a JSON line a finding, and last "N passed, N failed, N skipped".

values     each drop-in against plain PyTorch, pads, slots and strides included; in a captured graph the same bits
teacher    a Mamba-2 model of random weights in bf16, convolution, update and norm replaced, fed the same 256 tokens as
           its own plain PyTorch path: relative errors of what each layer adds, given that path's input, and of the
           logits, where every rounding that falls otherwise is a new difference (see "floor")
greedy     the same in fp32: the tokens it chooses are the same
graph      a whole step in torch.cuda.graph equals the step without
huggingface  teacher, greedy and graph with transformers' Mamba-2, Nemotron-H and Bamba of random weights, where
           transformers 5 is installed; with --triton that update beside ours
ring       tokens verified several at once with the ring, of which varying numbers are kept, against one at a time
speed      tokens a second of a whole step in a graph: ours, plain PyTorch, and with --triton ours with that update
call       host microseconds of a drop-in's call; of FlashInfer's where it is installed, of --triton's

Logits of bf16 are judged against a floor measured in the same run: how far a second path of plain PyTorch, which
computes in double and rounds at the same places and so is as right, is off the first. Ours passes with errors of up
to 1e-2, or 1.25 times the floor where that is more, that do not grow, if it is no farther off the same weights in fp32
than plain PyTorch is.

Needs a GPU, torch and ssmjit (dist/ssmjit-*.whl with apache-tvm-ffi; for a torch before 2.10 torch-c-dlpack-ext too,
and for NVRTC a toolkit or nvidia-cuda-nvrtc, unless torch brings it). Exit 1: something failed; 3: something missing.
"""
import argparse
import importlib
import json
import pathlib
import random
import statistics
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples" / "python"))
sys.path.insert(0, str(pathlib.Path(__file__).parent))


def no_grad(function):
    """Of a function whose first argument is torch."""
    def wrapped(torch, *arguments):
        with torch.no_grad():
            return function(torch, *arguments)

    return wrapped


class Findings:
    def __init__(self):
        self.passed, self.failed, self.skipped = 0, 0, 0

    def say(self, section, ok=None, **facts):
        if ok is not None:
            self.passed, self.failed = self.passed + bool(ok), self.failed + (not ok)
        print(json.dumps(dict(section=section, **({} if ok is None else {"ok": bool(ok)}), **facts)), flush=True)

    def skip(self, section, reason, **facts):
        self.skipped += 1
        print(json.dumps(dict(section=section, skipped=reason, **facts)), flush=True)


def relative(found, wanted):
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


class Case:
    """Random tensors of a step of heads, as callers pass them."""

    def __init__(self, torch, device, rows, slots=9, heads=8, dim=64, dstate=128, groups=2, dtype="bfloat16",
                 state="float32", gate=False, seed=0):
        self.torch, self.device = torch, device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.sizes = (heads, dim, dstate, groups)
        like, f32 = getattr(torch, dtype), torch.float32
        channels = heads * dim + 2 * groups * dstate
        packed = self.normal(*rows, channels, dtype=like)  # x, B and C are slices of one projection's rows
        x, B, C = packed.split([heads * dim, groups * dstate, groups * dstate], dim=-1)
        self.state = self.normal(slots, heads, dim, dstate, dtype=getattr(torch, state))
        self.step = dict(
            x=x.unflatten(-1, (heads, dim)),
            dt=self.normal(*rows, heads, dtype=f32)[..., None].expand(*rows, heads, dim),
            A=(-1.5 + 0.2 * self.normal(heads, dtype=f32))[:, None, None].expand(-1, dim, dstate),
            B=B.unflatten(-1, (groups, dstate)), C=C.unflatten(-1, (groups, dstate)),
            D=self.normal(heads, dtype=f32)[:, None].expand(-1, dim),
            dt_bias=(-3.5 + 0.2 * self.normal(heads, dtype=f32))[:, None].expand(-1, dim), dt_softplus=True,
            z=self.normal(*rows, heads, dim, dtype=like) if gate else None)

    def normal(self, *shape, dtype):
        return self.torch.randn(*shape, device=self.device, generator=self.generator).to(dtype)

    def indices(self, *values, dtype="int32"):
        return self.torch.tensor(values, device=self.device, dtype=getattr(self.torch, dtype))


def check(found, what, pairs, bound=5e-3, exact=(), **facts):
    """pairs: name -> (found, wanted), within a relative error; exact: name -> (found, wanted), bit for bit."""
    errors = {name: relative(*pair) for name, pair in dict(pairs).items()}
    same = {name: bool((one == other).all()) for name, (one, other) in dict(exact).items()}
    found.say("values", all(error <= bound for error in errors.values()) and all(same.values()), what=what, **facts,
              errors={name: float(f"{error:.3g}") for name, error in errors.items()}, exact=same)


def values(torch, device, modules, found):
    import plain_ops

    mamba, conv, flash = modules
    for dtype, state, gate in (("bfloat16", "float32", False), ("bfloat16", "bfloat16", True),
                               ("float16", "float16", False), ("float32", "float32", True)):
        case = Case(torch, device, (4,), dtype=dtype, state=state, gate=gate)
        slots = case.indices(5, 2, -1, 7, dtype="int64")
        mine, wanted = case.state.clone(), case.state.clone()
        y = mamba.selective_state_update(mine, **case.step, state_batch_indices=slots)
        y_wanted = plain_ops.selective_state_update(wanted, **case.step, state_batch_indices=slots)
        others = [0, 1, 3, 4, 6, 8]
        check(found, "mamba_ssm.selective_state_update", {"y": (y, y_wanted), "state": (mine, wanted)},
              5e-5 if dtype == "float32" else 5e-3,
              {"pad": (y[2], torch.zeros_like(y[2])), "others": (mine[others], case.state[others])},
              dtype=dtype, state=state)

    for tokens in (1, 4):
        for channels_last in (True, False):
            case = Case(torch, device, (3,))
            x = case.normal(3, tokens, 512, dtype=torch.bfloat16).transpose(1, 2)
            x = x[..., 0] if tokens == 1 else x
            windows = case.normal(6, 512, 4, dtype=torch.bfloat16)
            if channels_last:
                windows = windows.transpose(1, 2).contiguous().transpose(1, 2)
            weight, bias = case.normal(512, 4, dtype=torch.bfloat16), case.normal(512, dtype=torch.bfloat16)
            mine, wanted = windows.clone(), windows.clone()
            slots = case.indices(4, -1, 0)
            y = conv.causal_conv1d_update(x, mine, weight, bias, "silu", conv_state_indices=slots)
            y_wanted = plain_ops.causal_conv1d_update(x, wanted, weight, bias, "silu", conv_state_indices=slots)
            check(found, "causal_conv1d_update", {"y": (y, y_wanted)},
                  exact={"windows": (mine, wanted), "pad": (y[1], torch.zeros_like(y[1]))}, tokens=tokens,
                  channels_last=channels_last)

    for group_size, before, gated, shape in ((None, True, True, (5, 1024)), (256, False, True, (2, 3, 1024)),
                                             (512, False, False, (7, 1024))):
        case = Case(torch, device, (1,))
        x, z = case.normal(*shape, dtype=torch.bfloat16), case.normal(*shape, dtype=torch.bfloat16)
        weight, bias = case.normal(1024, dtype=torch.bfloat16), case.normal(1024, dtype=torch.bfloat16)
        given = dict(z=z if gated else None, eps=1e-5, group_size=group_size, norm_before_gate=before)
        check(found, "rmsnorm_fn", {"y": (mamba.rmsnorm_fn(x, weight, bias, **given),
                                          plain_ops.rmsnorm_fn(x, weight, bias, **given))}, shape=shape)
    if flash is not None:
        flash_values(torch, device, flash, plain_ops, found)


def flash_values(torch, device, flash, plain_ops, found):
    case = Case(torch, device, (4,))
    slots, targets = case.indices(5, 2, 0, 7), case.indices(1, 2, 0, 3)
    mine, wanted = case.state.clone(), case.state.clone()
    y = flash.selective_state_update(mine, **case.step, state_batch_indices=slots, pad_slot_id=0,
                                     dst_state_batch_indices=targets)
    y_wanted = plain_ops.selective_state_update(wanted, **case.step, state_batch_indices=slots)
    moved = case.state.clone()
    moved[[1, 2, 3]] = wanted[[5, 2, 7]]
    zero = torch.zeros_like(case.state)
    y_wanted[2] = plain_ops.selective_state_update(zero, **case.step, state_batch_indices=slots)[2]
    check(found, "flashinfer.selective_state_update to other slots", {"y": (y, y_wanted), "state": (mine, moved)})

    tokens = 4
    case = Case(torch, device, (3, tokens))
    slots = case.indices(5, 2, 7)
    carried, snapshots, y_wanted = case.state.clone(), [], []
    for t in range(tokens):
        step = {name: each[:, t] if name in ("x", "dt", "B", "C") else each for name, each in case.step.items()}
        y_wanted.append(plain_ops.selective_state_update(carried, **step, state_batch_indices=slots.long()))
        snapshots.append(carried[slots.long()].clone())
    y_wanted, snapshots = torch.stack(y_wanted, 1), torch.stack(snapshots, 1)
    for what, more in (("snapshots", lambda: dict(intermediate_states_buffer=torch.zeros_like(snapshots),
                                                  disable_state_update=True, cache_steps=tokens,
                                                  intermediate_state_indices=case.indices(0, 1, 2))),
                       ("slots", lambda: dict(dst_state_batch_indices=torch.arange(
                           9, 9 + 3 * tokens, device=device, dtype=torch.int32).reshape(3, tokens))),
                       ("in place", dict)):
        given = more()
        mine = torch.cat([case.state, torch.zeros_like(case.state), torch.zeros_like(case.state)])
        try:
            y = flash.selective_state_update(mine, **case.step, state_batch_indices=slots, **given)
        except NotImplementedError as not_covered:
            found.skip("values", str(not_covered), what=f"flashinfer.selective_state_update, many tokens, {what}")
            continue
        after = (given["intermediate_states_buffer"] if what == "snapshots" else
                 mine[given["dst_state_batch_indices"].long()] if what == "slots" else mine[slots.long()])
        wanted = carried[slots.long()] if what == "in place" else snapshots
        check(found, f"flashinfer.selective_state_update, many tokens, {what}",
              {"y": (y, y_wanted), "state": (after, wanted)},
              exact={} if what == "in place" else {"read slots": (mine[:9], case.state)})

    window, tokens, length = 10, 3, 13
    for state in ("float32", "bfloat16"):
        case = Case(torch, device, (2, tokens), slots=2, state=state, gate=True)
        heads, dim, dstate, groups = case.sizes

        def rings():
            return (torch.full((2, heads, length, dim), float("nan"), device=device, dtype=torch.bfloat16),
                    torch.full((2, groups, length, dstate), float("nan"), device=device, dtype=torch.bfloat16),
                    torch.full((2, heads, length), float("nan"), device=device))

        mine, wanted, my_rings, wanted_rings = case.state.clone(), case.state.clone(), rings(), rings()
        start, count, chance = [5, 0], [0, 0], random.Random(3)
        errors = []
        for seed in range(9):
            step = Case(torch, device, (2, tokens), slots=2, gate=True, seed=seed).step
            cursors = [case.indices(*start), case.indices(*count)]
            out = torch.empty_like(step["z"])
            y = flash.checkpointing_ssu(mine, *my_rings, *cursors, out=out, **step)
            y_wanted = plain_ops.checkpointing_ssu(wanted, *wanted_rings, *cursors, out=torch.empty_like(out), **step)
            errors.append(max(relative(y, y_wanted), relative(mine, wanted)))
            for b in range(2):
                kept = chance.randint(0, tokens)
                if count[b] + tokens > window:
                    start[b], count[b] = (start[b] + count[b]) % length, kept
                else:
                    count[b] += kept
        check(found, "flashinfer.checkpointing_ssu, 9 steps", {}, state=state,
              exact={"x and B appended": (torch.stack([torch.isnan(a.float()).eq(torch.isnan(b.float())).all()
                                                       for a, b in zip(my_rings, wanted_rings)]), torch.tensor(True)),
                     "x": (my_rings[0].nan_to_num(), wanted_rings[0].nan_to_num())})
        # Operands of products are bf16 there, the state among them.
        found.say("values", max(errors) <= 1e-2, what="flashinfer.checkpointing_ssu, 9 steps", state=state,
                  worst=float(f"{max(errors):.3g}"))


def captured(torch, run):
    """A graph of what `run` does, which has been called before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


def graph_values(torch, device, modules, found):
    case = Case(torch, device, (4,))
    mamba = modules[0]
    eager, replayed = case.state.clone(), case.state.clone()
    slots = case.indices(5, 2, -1, 7)
    y = mamba.selective_state_update(eager, **case.step, state_batch_indices=slots)
    warm = case.state.clone()
    mamba.selective_state_update(warm, **case.step, state_batch_indices=slots)
    graph, y_graph = captured(torch, lambda: mamba.selective_state_update(replayed, **case.step,
                                                                          state_batch_indices=slots))
    graph.replay()
    torch.cuda.synchronize()
    check(found, "an update in a graph", {}, exact={"y": (y_graph, y), "state": (replayed, eager)})
    other = Case(torch, device, (4,), heads=6, groups=3)
    refused = None
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            mamba.selective_state_update(other.state, **other.step, state_batch_indices=slots)
    except (ValueError, RuntimeError) as error:  # torch may put its own, of a capture that ended, in front
        refused = str(error if isinstance(error, ValueError) else error.__context__ or error)
    torch.cuda.synchronize()
    found.say("values", refused is not None and "before the capture" in refused, what="an unprepared call in a capture",
              refused=refused)
    y = mamba.selective_state_update(other.state, **other.step, state_batch_indices=slots)  # the process lives on
    torch.cuda.synchronize()
    found.say("values", bool(torch.isfinite(y.float()).all()), what="a call after a refused one")


GOAL = 1e-2  # relative error of a step in bf16


def grows(errors):
    """Of one state no errors grow: those of the last quarter are those of the first, once the states have filled."""
    quarter = max(1, len(errors) // 4)
    filled = max(statistics.mean(errors[:quarter]), statistics.mean(errors[quarter:2 * quarter] or errors))
    return statistics.mean(errors[-quarter:]) > 2 * filled


def rounded(number):
    return float(f"{number:.3g}")


def judge(found, section, off_plain, off_fp32, **facts):
    """Errors a step of the paths, by name, "ours" and "exact" among them: against plain PyTorch, and of these and
    "plain" against fp32."""
    worst, floor = max(off_plain["ours"]), max(off_plain["exact"])
    mean = {name: statistics.mean(errors) for name, errors in off_fp32.items()}
    found.say(section, worst <= max(GOAL, 1.25 * floor) and not grows(off_plain["ours"]) and
              mean["ours"] <= 1.05 * mean["plain"], what="logits", steps=len(off_plain["ours"]), **facts,
              worst=rounded(worst), mean=rounded(statistics.mean(off_plain["ours"])), floor=rounded(floor),
              goal=GOAL, goal_met=worst <= GOAL, worst_of={name: rounded(max(errors))
                                                           for name, errors in off_plain.items()},
              off_fp32={name: rounded(each) for name, each in mean.items()})


def teacher(torch, device, sizes, paths, plain, batch, steps, found):
    """paths: ops by name, "ours" and "exact" among them; all but ours for a quarter of the steps."""
    import mamba2_model

    model = mamba2_model.Mamba2(sizes, torch.bfloat16, device)
    in_fp32 = model.in_fp32()
    truth = torch.randint(sizes.vocabulary, (steps, batch), device=device,
                          generator=torch.Generator(device).manual_seed(1))
    of_fp32, theirs, forced = in_fp32.caches(batch), model.caches(batch), model.caches(batch)
    of_fp32 = of_fp32._replace(windows=[each.float() for each in of_fp32.windows])
    caches = {name: model.caches(batch) for name in paths}
    off_plain, off_fp32 = {name: [] for name in paths}, {name: [] for name in ("plain", *paths)}
    of_layers = []
    for t, tokens in enumerate(truth):
        hidden, added = model.embedding[tokens], []
        for i in range(sizes.layers):
            wanted = model.mix(i, hidden, theirs, plain)
            added.append((model.mix(i, hidden, forced, paths["ours"]) - wanted).norm() / wanted.norm())
            hidden = hidden + wanted
        of_layers.append(float(torch.stack(added).max()))
        wanted = model.logits(hidden)
        of_quarter = t < max(1, steps // 4)
        exact = in_fp32.step(tokens, of_fp32, plain) if of_quarter else None
        for name, ops in paths.items():
            if name == "ours" or of_quarter:
                logits = model.step(tokens, caches[name], ops)
                off_plain[name].append(relative(logits, wanted))
                if of_quarter:
                    off_fp32[name].append(relative(logits, exact))
        if of_quarter:
            off_fp32["plain"].append(relative(wanted, exact))
    facts = dict(batch=batch, layers=sizes.layers)
    found.say("teacher", max(of_layers) <= GOAL and not grows(of_layers), what="layers, given plain PyTorch's input",
              steps=steps, **facts, worst=rounded(max(of_layers)), mean=rounded(statistics.mean(of_layers)), goal=GOAL)
    judge(found, "teacher", off_plain, off_fp32, **facts)
    return model


def greedy(torch, device, sizes, ops, plain, batch, steps, found):
    import mamba2_model

    torch.backends.cuda.matmul.allow_tf32 = False
    model = mamba2_model.Mamba2(sizes, torch.float32, device)
    chosen = []
    for each in (ops, plain):
        caches, tokens, said = model.caches(batch), torch.arange(batch, device=device), []
        for _ in range(steps):
            tokens = model.step(tokens, caches, each).argmax(-1)
            said.append(tokens)
        chosen.append(torch.stack(said))
    different = int((chosen[0] != chosen[1]).sum())
    found.say("greedy", different == 0, steps=steps, batch=batch, layers=sizes.layers, different=different,
              distinct=int(chosen[1].unique().numel()))


def huggingface(torch, device, family, is_tiny, layers, paths, plain, batch, steps, found):
    """As teacher(), greedy(), graph() and speed(), of one of transformers' models; `paths` as teacher() has them."""
    try:
        import transformers
    except ImportError:
        return found.skip("huggingface", "transformers is not installed", family=family)
    import huggingface as clients

    module = importlib.import_module(clients.FAMILIES[family].module)
    if not all(hasattr(module, name) for name in ("causal_conv1d_update", "mamba2_selective_state_update")):
        return found.skip("huggingface", f"transformers {transformers.__version__} decodes with other functions",
                          family=family)
    torch.backends.cuda.matmul.allow_tf32 = False
    client = clients.Client(family, torch.bfloat16, device, layers, is_tiny)
    truth = torch.randint(client.config.vocab_size, (steps, batch), device=device,
                          generator=torch.Generator(device).manual_seed(1))
    facts = dict(family=family, batch=batch, layers=client.config.num_hidden_layers,
                 transformers=transformers.__version__)

    def replaced(ops):
        return clients.replaced(ops.conv, ops.update, client.family.module)

    def logits(of, ops, count):
        with replaced(ops):
            return list(of.decode(truth[:count]))

    quarter = min(steps, max(8, steps // 4))
    wanted = logits(client, plain, steps)
    found_logits = {name: logits(client, ops, steps if name == "ours" else quarter) for name, ops in paths.items()}
    own = [relative(*pair) for pair in zip(client.decode(truth[:quarter]), wanted)]  # rounds dt, dt * B and the state
    client_fp32 = client.in_fp32()
    exact = logits(client_fp32, plain, quarter)
    off_plain = {name: [relative(*pair) for pair in zip(each, wanted)] for name, each in found_logits.items()}
    off_fp32 = {name: [relative(*pair) for pair in zip(each, exact)]
                for name, each in dict(found_logits, plain=wanted).items()}
    judge(found, "huggingface", off_plain, off_fp32, **facts, worst_of_its_own=rounded(max(own)))
    del found_logits, wanted, exact

    theirs = client_fp32.greedy(batch, steps)
    with replaced(paths["ours"]):
        mine = client_fp32.greedy(batch, steps)
    different = int((mine != theirs).sum())
    found.say("huggingface", different == 0, what="greedy", steps=steps, **facts, different=different,
              distinct=int(theirs.unique().numel()))
    del client_fp32
    if device == "cpu":
        return None
    for name, ops in dict(paths, plain=plain).items():
        if name == "exact":
            continue
        try:
            with replaced(ops):
                client_graph(torch, client, truth, name, facts, found)
        except Exception as error:  # the other paths and families are worth having
            traceback.print_exc()
            found.say("huggingface", False, what="graph", ops=name, **facts, error=f"{type(error).__name__}: {error}")
    return None


@no_grad
def client_graph(torch, client, truth, name, facts, found):
    """A step of the client in a graph, of a cache that stays where it is, against steps without, and its time."""
    prompt, count = 4, 4
    eager, static = client.static_cache(64), client.static_cache(64)  # of which the replays below fill 49
    client.prompt(truth[:prompt].T, eager)
    client.prompt(truth[:prompt].T, static)
    tokens = truth[prompt].clone()
    client.step(tokens, static)  # what is prepared and allocated at first use
    client.step(truth[prompt], eager)
    wanted = [client.step(each, eager).clone() for each in truth[prompt + 1:prompt + 1 + count]]
    step, logits = captured(torch, lambda: client.step(tokens, static))
    errors = []
    for each, logits_wanted in zip(truth[prompt + 1:], wanted):
        tokens.copy_(each)
        step.replay()
        errors.append(relative(logits, logits_wanted))
    # Not of the same bits where torch's products take another algorithm in a capture.
    found.say("huggingface", max(errors) <= 1e-3, what="graph", ops=name, **facts, worst=rounded(max(errors)))
    ms = graph_ms(torch, step)
    found.say("speed", ops=name, **facts, ms=round(ms, 4), tokens_per_s=round(1000 * facts["batch"] / ms, 1))


def graph(torch, model, ops, batch, found):
    tokens = torch.arange(batch, device=model.device)
    eager, static = model.caches(batch), model.caches(batch)
    wanted = [model.step(tokens, eager, ops).clone() for _ in range(4)]
    step, logits = captured(torch, lambda: model.step(tokens, static, ops))
    errors = []
    for each in wanted:
        step.replay()
        errors.append(relative(logits, each))
    # Not of the same bits where torch's products take another algorithm in a capture.
    found.say("graph", max(errors) <= 1e-3, steps=len(wanted), batch=batch, worst=float(f"{max(errors):.3g}"))


def ring(torch, model, plain, exact, modules, batch, steps, found, tokens=4, window=12):
    import plain_ops

    sizes, device, chance = model.sizes, model.device, random.Random(1)
    truth = torch.randint(sizes.vocabulary, (batch, steps + tokens), device=device,
                          generator=torch.Generator(device).manual_seed(2))
    caches, caches_exact, one_by_one, floor = model.caches(batch), model.caches(batch), [], []
    for t in range(steps):
        one_by_one.append(model.step(truth[:, t], caches, plain))
        logits = model.step(truth[:, t], caches_exact, exact)
        floor += [relative(logits[b], one_by_one[t][b]) for b in range(batch)]
    rings = model.ring_caches(batch, tokens, window)
    conv, update, norm = plain_ops.conv_of_accepted, plain_ops.checkpointing_ssu, plain_ops.rmsnorm_fn
    if modules is not None:
        import ssmjit

        mamba, _, flash = modules
        described = ssmjit.conv1d(sizes.channels, tokens=tokens, conv__width=sizes.width, conv__channels_last=True,
                                  conv__state_len=sizes.width + tokens - 2, conv__accepted=True)
        prepared = ssmjit.Session().prepare(described, batch)

        def conv(x, stream, weight, bias, accepted):
            out = torch.empty_like(x)
            prepared.launch(conv_state=stream, x=x, w=weight, bias=bias, out=out, num_accepted_tokens=accepted)
            return out

        update, norm = flash.checkpointing_ssu, mamba.rmsnorm_fn
    at, errors, model_steps, other_choice = [0] * batch, [], 0, 0
    while min(at) < steps:
        drafts, accepted = truth.new_zeros(batch, tokens), []
        for b in range(batch):
            place = min(at[b], steps)
            drafts[b] = truth[b, place:place + tokens]
            kept = chance.randint(1, tokens)
            drafts[b, kept:] = (drafts[b, kept:] + 1) % sizes.vocabulary
            accepted.append(kept)
        logits = model.verify(drafts, rings, conv, update, norm)
        model_steps += 1
        for b in range(batch):
            for t in range(accepted[b]):
                if at[b] + t < steps:
                    wanted = one_by_one[at[b] + t][b]
                    errors.append(relative(logits[b, t], wanted))
                    other_choice += int(logits[b, t].argmax() != wanted.argmax())
            at[b] += accepted[b]
        model.keep(rings, tokens, window, accepted)
        if max(at) >= steps + tokens:  # the fastest request is past the end of what is known
            break
    found.say("ring", max(errors) <= max(GOAL, 1.25 * max(floor)), steps=model_steps, tokens=tokens, window=window,
              batch=batch, compared=len(errors), worst=rounded(max(errors)), mean=rounded(statistics.mean(errors)),
              floor=rounded(max(floor)), mean_of_floor=rounded(statistics.mean(floor)), goal=GOAL,
              goal_met=max(errors) <= GOAL, other_choice=other_choice)


def graph_ms(torch, graph, rounds=10, replays=4):
    """Milliseconds a replay, the median of the rounds."""
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / replays)
    return statistics.median(times)


def speed(torch, model, all_ops, batches, found):
    for batch in batches:
        tokens = torch.arange(batch, device=model.device)
        for name, ops in all_ops.items():
            caches = model.caches(batch)
            model.step(tokens, caches, ops)
            torch.cuda.synchronize()
            step, _ = captured(torch, lambda: model.step(tokens, caches, ops))
            ms = graph_ms(torch, step)
            found.say("speed", ops=name, batch=batch, layers=model.sizes.layers, ms=round(ms, 4),
                      tokens_per_s=round(1000 * batch / ms, 1))


def host_us(torch, call, count=2000):
    """Host time of a call, the GPU far behind or not: what the caller's thread waits, the least of five runs."""
    for _ in range(100):
        call()
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count // 5):
            call()
        best = min(best, (time.perf_counter() - begin) / (count // 5) * 1e6)
    torch.cuda.synchronize()
    return best


def call(torch, device, modules, triton_update, found):
    mamba, conv, flash = modules
    case = Case(torch, device, (1,), heads=16, groups=1, slots=2)
    slots = case.indices(1)
    out = torch.empty_like(case.step["x"])
    calls = {
        "ours, mamba_ssm.selective_state_update":
            lambda: mamba.selective_state_update(case.state, **case.step, state_batch_indices=slots),
        "ours, flashinfer.selective_state_update":
            lambda: flash.selective_state_update(case.state, **case.step, state_batch_indices=slots, out=out),
    }
    import ssmjit

    described = ssmjit.mamba2(16, 64, 128, 1)
    prepared = ssmjit.Session().prepare(described, 8)
    given = {name: each for name, each in case.step.items() if name not in ("dt_softplus", "z")}
    calls["ours, Prepared.launch"] = lambda: prepared.launch(state=case.state, **given, state_batch_indices=slots,
                                                             out=out)
    x = case.normal(1, 1280, dtype=torch.bfloat16)
    window = case.normal(2, 3, 1280, dtype=torch.bfloat16).transpose(1, 2)
    weight, bias = case.normal(1280, 4, dtype=torch.bfloat16), case.normal(1280, dtype=torch.bfloat16)
    calls["ours, causal_conv1d_update"] = lambda: conv.causal_conv1d_update(x, window, weight, bias, "silu",
                                                                            conv_state_indices=slots)
    rows, scale = case.normal(1, 1024, dtype=torch.bfloat16), case.normal(1024, dtype=torch.bfloat16)
    calls["ours, rmsnorm_fn"] = lambda: mamba.rmsnorm_fn(rows, scale, None, z=rows, group_size=1024,
                                                         norm_before_gate=False)
    try:
        from flashinfer.mamba import selective_state_update as peer

        calls["flashinfer's selective_state_update"] = lambda: peer(case.state, **case.step, state_batch_indices=slots,
                                                                     out=out)
    except ImportError:
        found.skip("call", "flashinfer is not installed")
    if triton_update is not None:
        calls["triton's selective_state_update"] = lambda: triton_update(case.state, **case.step,
                                                                         state_batch_indices=slots, out=out)
    calls["torch.empty_like alone"] = lambda: torch.empty_like(out)
    for name, run in calls.items():
        us = host_us(torch, run)
        with torch.no_grad():
            us_no_grad = host_us(torch, run)
        ours = name.startswith("ours")
        found.say("call", us < 10 if ours else None, what=name, host_us=round(us, 2), no_grad_us=round(us_no_grad, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="sections, with commas between")
    parser.add_argument("--sizes", choices=("2.7b", "tiny"), default="2.7b", help="of the model")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", default="1,8,64", help="of speed")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--families", default="mamba2,nemotron_h,bamba", help="of huggingface")
    parser.add_argument("--triton", metavar="PATH", help="a Python file with a Triton selective_state_update")
    parser.add_argument("--device", default="cuda", help="cpu: plain PyTorch for the kernels, to try this program")
    options = parser.parse_args()

    try:
        import torch
    except ImportError as missing:
        print(f"needs torch: {missing}", file=sys.stderr)
        return 3
    import mamba2_model
    import plain_ops

    on_gpu = options.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        print("needs a GPU: torch.cuda.is_available() is False", file=sys.stderr)
        return 3
    found = Findings()
    sizes = mamba2_model.MAMBA2_2_7B if options.sizes == "2.7b" else mamba2_model.TINY
    if options.layers:
        sizes = sizes._replace(layers=options.layers)
    plain = ours = mamba2_model.PLAIN
    modules, value_modules = None, (plain_ops, plain_ops, None)
    if on_gpu:
        try:
            import ssmjit
            import ssmjit.causal_conv1d
            import ssmjit.flashinfer
            import ssmjit.mamba_ssm
        except ImportError as missing:
            print(f"needs ssmjit (make wheel; pip install dist/ssmjit-*.whl): {missing}", file=sys.stderr)
            return 3
        modules = value_modules = (ssmjit.mamba_ssm, ssmjit.causal_conv1d, ssmjit.flashinfer)
        ours = mamba2_model.ours()
        found.say("machine", torch=torch.__version__, device=torch.cuda.get_device_name(),
                  python=sys.version.split()[0], ssmjit=ssmjit.__version__,
                  dlpack="c exchange" if hasattr(torch.Tensor, "__dlpack_c_exchange_api__") else "python")
    triton_update = None
    if options.triton:
        from flashinfer_update import triton_step

        step = triton_step(options.triton)

        def triton_update(state, x, *tensors, out=None, **named):
            names = ("dt", "A", "B", "C", "D")
            named.update(zip(names, tensors), state=state, x=x, out=torch.empty_like(x) if out is None else out)
            named.setdefault("state_batch_indices", None)
            named.setdefault("z", None)
            given = step(**named)
            return named["out"] if given is None else given

    held = {}

    def model():
        if "model" not in held:
            held["model"] = mamba2_model.Mamba2(sizes, torch.bfloat16, options.device)
        return held["model"]

    def all_ops():
        every = {"ours": ours, "plain PyTorch": plain}
        if triton_update is not None:
            every["ours with Triton's update"] = ours._replace(update=triton_update)
        return every

    paths = {"ours": ours, "exact": mamba2_model.EXACT}
    if triton_update is not None:
        paths["Triton's update"] = plain._replace(update=triton_update)
    batches = [int(each) for each in options.batches.split(",")]
    sections = {
        "values": lambda: (values(torch, options.device, value_modules, found),
                           on_gpu and graph_values(torch, options.device, modules, found)),
        "call": lambda: on_gpu and call(torch, options.device, modules, triton_update, found),
        "teacher": lambda: held.update(model=teacher(torch, options.device, sizes, paths, plain, options.batch,
                                                     options.steps, found)),
        "graph": lambda: on_gpu and graph(torch, model(), ours, options.batch, found),
        "ring": lambda: ring(torch, model(), plain, mamba2_model.EXACT, modules, options.batch,
                             max(16, options.steps // 4), found),
        "speed": lambda: on_gpu and speed(torch, model(), all_ops(), batches, found),
        **{f"huggingface:{family}": lambda family=family: (held.clear(), huggingface(
            torch, options.device, family, options.sizes == "tiny", options.layers, paths, plain, options.batch,
            options.steps, found)) for family in options.families.split(",")},
        "greedy": lambda: (held.clear(), greedy(torch, options.device, sizes, ours, plain, options.batch, options.steps,
                                                found)),
    }
    wanted = options.only.split(",") if options.only else list(sections)
    for name in (each for one in wanted for each in sections if each.split(":")[0] == one or each == one):
        begin = time.perf_counter()
        try:
            sections[name]()
        except Exception as error:  # the other sections are worth having
            traceback.print_exc()
            found.say(name, False, error=f"{type(error).__name__}: {error}")
        found.say("time", of=name, seconds=round(time.perf_counter() - begin, 1))
    print(f"{found.passed} passed, {found.failed} failed, {found.skipped} skipped")
    return 1 if found.failed or not found.passed else 0


if __name__ == "__main__":
    sys.exit(main())
