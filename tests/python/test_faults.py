"""Rows of the list of faults through Python: the sentences are the library's, before any launch."""

import os
import subprocess
import sys
import threading

import device_memory as memory
import pytest
from test_flashinfer import ring
from test_mamba_ssm import update
from test_session import BATCH, DIM, DSTATE, GROUPS, HEADS, SLOTS, STEP, tensors

import ssmjit
from ssmjit import flashinfer, mamba_ssm


def refused(step, driver, sentence, **given):
    with pytest.raises(ssmjit.InvalidError, match=sentence):
        step.launch(**given)
    assert driver.launches == 0


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


def test_row_5_a_live_slot_twice_is_found_in_checked_mode(session, driver):
    step = session.prepare(STEP, 64)
    refused(step, driver, "slot 2", **tensors(state_batch_indices=memory.of([2, 2, -1], "int64")), checked=True)


def test_row_7_more_tokens_than_the_kernel_was_made_for(session, driver):
    step = session.prepare(STEP.set(tokens=4), 8)
    rows = (BATCH, 5)
    refused(step, driver, r"x: got shape \[3, 5, 4, 64\]; wants \[3, 4, 4, 64\]|x: got shape",
            **tensors(x=memory.empty((*rows, HEADS, DIM)), dt=memory.empty((*rows, HEADS), "fp32"),
                      B=memory.empty((*rows, GROUPS, DSTATE)), C=memory.empty((*rows, GROUPS, DSTATE)),
                      z=memory.empty((*rows, HEADS, DIM)), out=memory.empty((*rows, HEADS, DIM))))


def test_row_9_a_ring_too_small_for_its_tokens(session, driver, fresh_calls):
    with pytest.raises(AssertionError, match="npredicted"):
        flashinfer.checkpointing_ssu(**ring(rows=(BATCH, 9), tokens=0, window=16))
    assert driver.launches == 0


def test_row_15_fp16_operands_on_a_bf16_kernel(session, driver):
    step = session.prepare(STEP, 64)
    refused(step, driver, "x: got dtype fp16; wants bf16", **tensors(x=memory.empty((BATCH, HEADS, DIM), "fp16")))


def test_row_17_scratch_too_small_or_elsewhere(session, driver):
    layer = ssmjit.load_model("nemotron3-super-tp8").kernel("layer")
    chain = session.prepare(layer, 4, force="form=chain")
    bytes_wanted = chain.scratch_bytes()
    assert bytes_wanted > chain.scratch_bytes(1) > 0
    refused(chain, driver, "scratch: got a tensor on cuda:1",
            scratch=memory.empty((bytes_wanted,), "int8", (memory.CUDA, 1)))


def test_row_19_no_heads_and_negative_sizes():
    for field in ({"nheads": 0}, {"nheads": -4}, {"dstate": 0}, {"head_dim": -64}):
        assert ssmjit.mamba2(16, 64, 128).set(**field).problems()


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
