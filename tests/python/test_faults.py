"""Rows 1 to 25 of the list of faults through Python: the sentences are the library's, before any launch. What a kernel
does with such data is tested where kernels run.

row  what                              here                             of kernels, in tests/
1    slot x stride of 2^31 elements    test_row_1                       gpu/gpu_test.cpp and others there
2    padded pages, misaligned          test_row_2
3    index -1                          test_row_3, *_described_*        gpu/gpu_test.cpp; bench/python_on_gpu.py, values
4    index past the pool               test_row_4
5    a slot twice                      test_row_5
6    accepted counts                   test_row_6                       jit/cpu, gpu/replay_test.cpp
7    too many tokens                   test_row_7
8    cu_seqlens                        test_row_8                       jit/cpu/update_tokens_test.cpp
9    rings too small, cursors          test_row_9 (two)
10   a ring that was not reset         test_row_10                      jit/cpu/ring_slots_test.cpp
11   NaN in what no row uses                                            jit/cpu, gpu; bench/python_on_gpu.py, values
12   a fresh request on a used slot    as row 10
13   strong decay                                                       jit/cpu, gpu
14   fp16 output past 65504                                             jit/cpu, gpu
15   mixed dtypes, scales              test_row_15 (two)
16   slices, odd sizes                 test_row_16
17   scratch                           test_row_17 (two)
18   overlapping moves                 test_row_18
19   no rows, many, sizes of none      test_row_19 (two)
20   work under capture                test_row_20
21   files of the cache                test_row_21                      cli/fleet_cache_test.cpp
22   no folder for the cache           test_row_22
23   no NVRTC                          test_row_23
24   plans that do not fit             test_row_24
25   no driver                         test_row_25
"""

import os
import pathlib
import subprocess
import sys
import threading

import device_memory as memory
import numpy
import pytest
from conftest import addresses
from test_flashinfer import ring
from test_mamba_ssm import update
from test_session import BATCH, DIM, DSTATE, GROUPS, HEADS, SLOTS, STEP, tensors

import ssmjit
from ssmjit import flashinfer, mamba_ssm

TOKENS, WINDOW = 4, 10  # of the steps of several tokens; a window that is no power of two


def refused(step, driver, sentence, **given):
    with pytest.raises(ssmjit.InvalidError, match=sentence):
        step.launch(**given)
    assert driver.launches == 0


def says(step, driver, sentence, **given):
    """As refused(), of a checked launch and with a line of exactly this sentence."""
    with pytest.raises(ssmjit.InvalidError) as caught:
        step.launch(checked=True, **given)
    assert sentence in str(caught.value).split("\n")
    assert driver.launches == 0


def prepared(session, step, max_batch=64):
    """With one kernel, that of one row."""
    return ssmjit.Session.prepare(session, step, max_batch, force=session.choose(step, 1).plan)


def of_tokens(*rows, **changed):
    """A step of several tokens."""
    return tensors(**dict(dict(x=memory.empty((*rows, HEADS, DIM)), dt=memory.empty((*rows, HEADS), "fp32"),
                               B=memory.empty((*rows, GROUPS, DSTATE)), C=memory.empty((*rows, GROUPS, DSTATE)),
                               z=memory.empty((*rows, HEADS, DIM)), out=memory.empty((*rows, HEADS, DIM))), **changed))


def of_ring(start=0, count=0, length=WINDOW + TOKENS, **changed):
    return of_tokens(BATCH, TOKENS, **dict(dict(
        x_ring=memory.empty((SLOTS, HEADS, length, DIM)), B_ring=memory.empty((SLOTS, GROUPS, length, DSTATE)),
        dt_ring=memory.empty((SLOTS, HEADS, length), "fp32"), ring_start=memory.of([start] * SLOTS, "int32"),
        ring_count=memory.of([count] * SLOTS, "int32")), **changed))


RING = STEP.set(store=f"ring:{WINDOW}", tokens=TOKENS)


def test_row_1_strides_past_2_to_the_31_reach_the_kernel(session, driver):
    stride, slots = 32 * 128 * 128, 4097  # the last slot is 2^31 elements behind the first
    block = memory.empty((HEADS, DIM, DSTATE))
    pool = numpy.lib.stride_tricks.as_strided(block.array, (slots, HEADS, DIM, DSTATE),
                                              (stride * 2, *block.array.strides))
    prepared(session, STEP).launch(**tensors(state=memory.Tensor(pool, "bf16")))
    assert driver.launches == 1 and (slots - 1) * stride == 2**31
    assert {stride, 2 * stride, stride // 8} & addresses(driver)  # in elements, bytes or vectors, as the op has it


def test_row_2_pools_may_be_padded_pages_but_not_misaligned(session, driver):
    step = session.prepare(STEP, 64)
    pages = memory.empty((SLOTS, HEADS * DIM * DSTATE + 64))
    state = memory.Tensor(pages.array[:, :HEADS * DIM * DSTATE].reshape(SLOTS, HEADS, DIM, DSTATE), "bf16")
    step.launch(**tensors(state=state))
    assert driver.launches == 1
    driver.launches = 0
    odd = memory.empty((SLOTS * HEADS * DIM * DSTATE + 1,))
    state = memory.Tensor(odd.array[1:].reshape(SLOTS, HEADS, DIM, DSTATE), "bf16")
    refused(step, driver, "state: base address .* is not a multiple of 16", **tensors(state=state))


def test_row_3_a_step_of_pads_is_one(session, driver):
    step = session.prepare(STEP, 64)
    step.launch(checked=True, **tensors(state_batch_indices=memory.of([-1, -7, -1], "int64")))
    step.launch(checked=True, pad_slot_id=99, **tensors(state_batch_indices=memory.of([99, 99, -1], "int64")))
    assert driver.launches == 2


def test_row_4_a_slot_past_the_pool_is_found_in_checked_mode(session, driver):
    says(session.prepare(STEP, 64), driver, "state_batch_indices[1] is 99; the state has 8 slots",
         **tensors(state_batch_indices=memory.of([1, 99, -1], "int32")))


def test_row_5_a_live_slot_twice_is_found_in_checked_mode(session, driver):
    says(session.prepare(STEP, 64), driver,
         "state_batch_indices[0] and [1] are both slot 2; rows of one launch must write different slots",
         **tensors(state_batch_indices=memory.of([2, 2, -1], "int64")))


def test_row_6_accepted_counts_out_of_range_are_named(session, driver):
    targets = [[0, 1, 2, 3], [4, 5, 6, 7], [-1] * TOKENS]
    step = prepared(session, STEP.set(tokens=TOKENS, store="slots", accepted=True))
    for wrong in (5, -1):
        says(step, driver, f"num_accepted_tokens[1] is {wrong}; wants 0 to 4",
             **of_tokens(BATCH, TOKENS, state_batch_indices=memory.of(targets, "int32"),
                         dst_state_batch_indices=memory.of(targets, "int32"),
                         num_accepted_tokens=memory.of([1, wrong, 1], "int32")))
    replay = prepared(session, ssmjit.mamba2(HEADS, DIM, DSTATE, GROUPS, store="replay", tokens=TOKENS, state="bf16"))
    given = of_tokens(BATCH, TOKENS, z=None, old_x=memory.empty((SLOTS, TOKENS, HEADS, DIM)),
                      old_B=memory.empty((SLOTS, 2, TOKENS, GROUPS, DSTATE)),
                      old_dt=memory.empty((SLOTS, 2, HEADS, TOKENS), "fp32"),
                      old_cumAdt=memory.empty((SLOTS, 2, HEADS, TOKENS), "fp32"),
                      cache_buf_idx=memory.empty((SLOTS,), "int32"),
                      prev_num_accepted_tokens=memory.empty((SLOTS,), "int32"))
    says(replay, driver, "prev_num_accepted_tokens[2] is 5, of row 0; wants 0 to 4",
         **dict(given, prev_num_accepted_tokens=memory.of([5] * SLOTS, "int32")))
    says(replay, driver, "cache_buf_idx[2] is 3, of row 0; wants 0 to 1",
         **dict(given, cache_buf_idx=memory.of([3] * SLOTS, "int32")))


def test_row_7_more_tokens_than_the_kernel_was_made_for(session, driver):
    step = session.prepare(STEP.set(tokens=4), 8)
    rows = (BATCH, 5)
    refused(step, driver, r"x: got shape \[3, 5, 4, 64\]; wants \[3, 4, 4, 64\]|x: got shape",
            **tensors(x=memory.empty((*rows, HEADS, DIM)), dt=memory.empty((*rows, HEADS), "fp32"),
                      B=memory.empty((*rows, GROUPS, DSTATE)), C=memory.empty((*rows, GROUPS, DSTATE)),
                      z=memory.empty((*rows, HEADS, DIM)), out=memory.empty((*rows, HEADS, DIM))))


LENGTHS = {"not from 0": [1, 4, 4, 9], "decreasing": [0, 4, 2, 9], "too long": [0, 5, 6, 9],
           "past the tokens": [0, 4, 8, 12]}


@pytest.mark.parametrize("case", LENGTHS)
def test_row_8_lengths_that_are_none_are_named(session, driver, case):
    step = prepared(session, STEP.set(tokens=TOKENS, varlen=True, store="snapshots"))

    def given(lengths, total=9):
        return of_tokens(total, cu_seqlens=memory.of(lengths, "int32"),
                         state_batch_indices=memory.of([2, 5, -1], "int32"),
                         intermediate_states=memory.empty((BATCH, TOKENS, HEADS, DIM, DSTATE)),
                         intermediate_state_indices=memory.of([0, 1, 2], "int32"))

    with pytest.raises(ssmjit.InvalidError, match="cu_seqlens"):
        step.launch(checked=True, **given(LENGTHS[case]))
    assert driver.launches == 0
    step.launch(checked=True, **given([0, 4, 4, 8], 8))  # an empty sequence is one
    assert driver.launches == 1


def test_row_9_a_ring_too_small_for_its_tokens(session, driver, fresh_calls):
    with pytest.raises(AssertionError, match="npredicted"):
        flashinfer.checkpointing_ssu(**ring(rows=(BATCH, 9), tokens=0, window=16))
    assert driver.launches == 0


def test_row_9_cursors_out_of_range_are_named_and_windows_of_any_size_allowed(session, driver):
    step = prepared(session, RING)
    says(step, driver, "ring_start[2] is 14, of row 0; wants 0 to 13", **of_ring(start=14))
    says(step, driver, "ring_count[5] is 11, of row 1; wants 0 to 10", **of_ring(count=11))
    refused(step, driver, r"x_ring: got shape \[8, 4, 13, 64\]; wants \[8, 4, 14, 64\]",
            **of_ring(x_ring=memory.empty((SLOTS, HEADS, 13, DIM))))
    step.launch(checked=True, **of_ring(start=13, count=10))
    assert driver.launches == 1


def test_row_10_rows_that_no_step_wrote_since_a_reset_are_named(session, driver):
    deltas = memory.empty((SLOTS, HEADS, WINDOW + TOKENS), "fp32")
    deltas.array.view(numpy.uint32)[...] = 0xffffffff  # what reset leaves
    step = prepared(session, RING)
    refused(step, driver, r"ring_count\[2\] is 2, of row 0, but row 0 in use was not written since the slot was reset",
            checked=True, **of_ring(count=2, dt_ring=deltas))
    step.launch(checked=True, **of_ring(count=0, dt_ring=deltas))
    assert driver.launches == 1


def test_row_15_fp16_operands_on_a_bf16_kernel(session, driver):
    step = session.prepare(STEP, 64)
    refused(step, driver, "x: got dtype fp16; wants bf16", **tensors(x=memory.empty((BATCH, HEADS, DIM), "fp16")))


def test_row_15_scales_missing_and_superfluous(session, driver):
    refused(prepared(session, STEP.set(state="int8")), driver, "state_scale: not given; a state of int8",
            **tensors(state=memory.empty((SLOTS, HEADS, DIM, DSTATE), "int8")))
    refused(session.prepare(STEP, 64), driver, "state_scale: given, but the description's maths does not read it",
            **tensors(state_scale=memory.empty((SLOTS, HEADS, DIM), "fp32")))


@pytest.mark.parametrize("heads, groups, dim, dstate", [(14, 1, 64, 128), (12, 4, 64, 128), (4, 1, 80, 96)])
def test_row_16_slices_of_one_projection_and_odd_sizes(session, driver, heads, groups, dim, dstate):
    inner, of_groups = heads * dim, groups * dstate
    packed = memory.empty((BATCH, 2 * inner + 2 * of_groups + heads))

    def piece(first, count, size):
        strides = (packed.array.strides[0], size * 2, 2)
        return memory.Tensor(numpy.lib.stride_tricks.as_strided(packed.array[:, first:], (BATCH, count, size), strides),
                             "bf16")

    made = ssmjit.mamba2(heads, dim, dstate, groups, gate="silu(z)", aligned_rows=False)
    prepared(session, made).launch(
        state=memory.empty((SLOTS, heads, dim, dstate), "fp32"), z=piece(0, heads, dim), x=piece(inner, heads, dim),
        B=piece(2 * inner, groups, dstate), C=piece(2 * inner + of_groups, groups, dstate),
        dt=memory.empty((BATCH, heads), "fp32"), A=memory.empty((heads,), "fp32"), D=memory.empty((heads,), "fp32"),
        dt_bias=memory.empty((heads,), "fp32"), out=memory.empty((BATCH, heads, dim)),
        state_batch_indices=memory.of([2, 5, -1], "int64"))
    assert driver.launches == 1


def test_row_17_scratch_on_another_gpu_is_refused(session, driver):
    layer = ssmjit.load_model("nemotron3-super-tp8").kernel("layer")
    chain = session.prepare(layer, 4, force="form=chain")
    bytes_wanted = chain.scratch_bytes()
    assert bytes_wanted > chain.scratch_bytes(1) > 0
    refused(chain, driver, "scratch: got a tensor on cuda:1",
            scratch=memory.empty((bytes_wanted,), "int8", (memory.CUDA, 1)))


def test_row_17_scratch_too_small_is_refused_with_both_sizes(session, driver):
    layer = ssmjit.load_model("nemotron3-super-tp8").kernel("layer")
    chain = session.prepare(layer, 4, force="form=chain")
    wanted = chain.scratch_bytes()
    heads, dim, dstate, channels = 16, 64, 128, 1280
    given = dict(state=memory.empty((SLOTS, heads, dim, dstate), layer.fields()["state"]),
                 conv_state=memory.empty((SLOTS, channels, 3)), x=memory.empty((4, channels)),
                 dt=memory.empty((4, heads), "fp32"), z=memory.empty((4, heads, dim)),
                 conv_weight=memory.empty((channels, 4)), conv_bias=memory.empty((channels,)),
                 A=memory.empty((heads,), "fp32"), D=memory.empty((heads,), "fp32"),
                 dt_bias=memory.empty((heads,), "fp32"), norm_weight=memory.empty((heads * dim,)),
                 out=memory.empty((4, heads, dim)), state_batch_indices=memory.of([0, 1, 2, 3], "int32"))
    refused(chain, driver, rf"scratch: got int8 of shape \[{wanted - 1}\]; a chain of 4 rows wants int8 of shape "
                           rf"\[{wanted}\] or more", **given, scratch=memory.empty((wanted - 1,), "int8"))


def test_row_18_copies_between_slots_must_not_meet(session, driver):
    states = memory.empty((SLOTS, HEADS, DIM, DSTATE))
    pieces = memory.of(ssmjit.slot_copy_table([states]), "int64")
    with pytest.raises(ssmjit.InvalidError, match="pair 1 reads slot 2, which pair 0 of the same launch writes"):
        session.slot_copies().launch(checked=True, pieces=pieces, src_slots=memory.of([1, 2], "int32"),
                                     dst_slots=memory.of([2, 3], "int32"))
    assert driver.launches == 0


@pytest.mark.parametrize("batch", [0, 1, 1024])
def test_row_19_batches_of_no_row_one_and_many(session, driver, batch):
    step = prepared(session, STEP, 1024)
    step.launch(**tensors(state=memory.empty((max(batch, 1), HEADS, DIM, DSTATE)), x=memory.empty((batch, HEADS, DIM)),
                          dt=memory.empty((batch, HEADS), "fp32"), B=memory.empty((batch, GROUPS, DSTATE)),
                          C=memory.empty((batch, GROUPS, DSTATE)), z=memory.empty((batch, HEADS, DIM)),
                          out=memory.empty((batch, HEADS, DIM)),
                          state_batch_indices=memory.of(list(range(batch)), "int32")))
    assert driver.launches == (1 if batch else 0)


def test_row_19_no_heads_and_negative_sizes():
    for field in ({"nheads": 0}, {"nheads": -4}, {"dstate": 0}, {"head_dim": -64}):
        assert ssmjit.mamba2(16, 64, 128).set(**field).problems()


def test_row_20_nothing_is_loaded_while_a_stream_is_captured(session, driver):
    driver.capturing = 1
    fresh = ssmjit.Session()
    for load in (fresh.prepare_A, fresh.slot_copies, lambda stream: fresh.ring_slots(RING, stream=stream)):
        with pytest.raises(ssmjit.InvalidError, match="is being captured; load every kernel before the capture begins"):
            load(stream=0x1234)
    with pytest.raises(ssmjit.InvalidError, match="is being captured; call Session::prepare"):
        fresh.prepare(STEP, stream=0x1234)
    assert driver.launches == 0


# A process of its own: prepares, and says what it was warned of.
PREPARES = """
import sys
sys.modules["torch"] = None  # which takes seconds to load
import ssmjit
said = []
ssmjit.set_log(lambda level, text: said.append(f"{level}: {text}"))
try:
    made = ssmjit.mamba2(4, 64, 128)
    session = ssmjit.Session()
    step = session.prepare(made, 1, chain=False, force=session.choose(made, 1, device="h200").plan)
    print("prepared", [each["from_cache"] for each in step.kernels()])
except ssmjit.Error as error:
    print(type(error).__name__, error)
print("\\n".join(said))
"""


def prepares(**environment):
    run = subprocess.run([sys.executable, "-c", PREPARES], check=True, capture_output=True, text=True,
                         env={name: value for name, value in dict(os.environ, **environment).items() if value})
    return run.stdout.splitlines()


def test_row_21_a_truncated_file_is_a_miss_with_one_warning(session, tmp_path):
    cache = dict(SSMJIT_CACHE_DIR=str(tmp_path))
    assert prepares(**cache) == ["prepared [False]", ""]
    assert prepares(**cache) == ["prepared [True]", ""]
    files = [each for each in tmp_path.rglob("*") if each.is_file() and each.stat().st_size > 1000]
    assert files
    for each in files:
        each.write_bytes(each.read_bytes()[:500])
    answer = prepares(**cache)
    assert answer[0] == "prepared [False]"
    assert len(answer) == 2 and answer[1].startswith("warning: ") and "is passed over" in answer[1]
    assert prepares(**cache) == ["prepared [True]", ""]


def test_row_22_without_a_folder_kernels_stay_in_memory_with_one_warning(session):
    answer = prepares(SSMJIT_CACHE_DIR="/dev/null/cache")
    assert answer[0] == "prepared [False]"
    assert len(answer) == 2 and answer[1].startswith("warning: ") and "/dev/null/cache" in answer[1]


def test_row_23_without_nvrtc_what_is_lacking_is_listed(session, tmp_path):
    answer = prepares(SSMJIT_NVRTC="/nowhere/libnvrtc.so", SSMJIT_CACHE_DIR=str(tmp_path))
    assert answer[0].startswith("MissingError prepare: 1 of 1 kernels of mamba2 update, 4 heads x 64 x 128")
    assert "/nowhere/libnvrtc.so" in answer[0] and any("block_m=" in line for line in answer[1:])


def test_row_24_a_plan_that_does_not_fit_is_refused_with_the_numbers(session, driver):
    wide = ssmjit.mamba2(HEADS, 128, 256, 1)
    force = "state_path=bulk,stages=8,heads_per_block=1,block_m=64"
    with pytest.raises(ssmjit.InvalidError, match=r"smem_bytes=524416, max_smem_bytes=232448: a block's ring"):
        session.prepare(wide, 4, force=force)
    driver.major, driver.minor = 12, 0
    with pytest.raises(ssmjit.InvalidError, match=r"max_smem_bytes=101376"):
        session.prepare(wide, 4, force=force)


def test_row_25_no_driver():
    code = ("import ssmjit\ntry:\n    ssmjit.Session().prepare(ssmjit.mamba2(16, 64, 128))\n"
            "except ssmjit.MissingError as error:\n    print(error)\nassert ssmjit.devices() == []")
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                         env=dict(os.environ, SSMJIT_LIBCUDA="/nowhere/libcuda.so"))
    assert "/nowhere/libcuda.so" in run.stdout


def test_many_threads_call_a_drop_in_at_once(session, driver, fresh_calls):
    wrong = []

    def work(groups):
        given = update(B=memory.empty((BATCH, groups, DSTATE)), C=memory.empty((BATCH, groups, DSTATE)))
        try:
            for _ in range(50):
                mamba_ssm.selective_state_update(**given)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(groups,)) for groups in (1, 2, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and driver.launches == 200
