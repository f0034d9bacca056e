import inspect

import device_memory as memory
import numpy
import pytest
from conftest import addresses
from test_mamba_ssm import tied

import ssmjit
from ssmjit import flashinfer

BATCH, SLOTS, HEADS, DIM, DSTATE, GROUPS, TOKENS, WINDOW = 3, 8, 4, 64, 128, 1, 6, 16


def heads(*rows, state="fp32"):
    return dict(state=memory.empty((SLOTS, HEADS, DIM, DSTATE), state), x=memory.empty((*rows, HEADS, DIM)),
                dt=tied(memory.empty((*rows, HEADS), "fp32"), DIM), A=tied(memory.empty((HEADS,), "fp32"), DIM, DSTATE),
                B=memory.empty((*rows, GROUPS, DSTATE)), C=memory.empty((*rows, GROUPS, DSTATE)),
                D=tied(memory.empty((HEADS,), "fp32"), DIM), dt_bias=tied(memory.empty((HEADS,), "fp32"), DIM),
                dt_softplus=True)


def update(**changed):
    given = dict(heads(BATCH), state_batch_indices=memory.of([2, 5, 0], "int32"), pad_slot_id=0)
    given.update(changed)
    return given


def test_a_token_is_described_as_the_peer_computes_it(session, driver, fresh_calls):
    given = update(out=memory.empty((BATCH, HEADS, DIM)))
    assert flashinfer.selective_state_update(**given) is given["out"]
    assert session.described["op"] == "update" and session.described["pad_output"] == "as_if_zero_state"
    for tensor in (each for each in given.values() if isinstance(each, memory.Tensor)):
        assert tensor.data_ptr() in addresses(driver)
    assert flashinfer.selective_state_update(**update()).shape == (BATCH, HEADS, DIM)
    assert len(session.asked) == 1


def test_a_row_may_be_sent_to_another_slot(session, driver, fresh_calls):
    for targets in (memory.of([1, 3, 4], "int32"), memory.of([[1], [3], [4]], "int32")):
        flashinfer.selective_state_update(**update(dst_state_batch_indices=targets))
        assert session.described["destination_slots"] is True
        assert targets.data_ptr() in addresses(driver)


def test_unknown_names_and_pairs_are_refused_as_the_peer_does(session, driver, fresh_calls):
    with pytest.raises(ValueError, match="Unknown algorithm: best"):
        flashinfer.selective_state_update(**update(algorithm="best"))
    with pytest.raises(ValueError, match="Unknown backend: cuda"):
        flashinfer.selective_state_update(**update(backend="cuda"))
    with pytest.raises(ValueError, match="mutually exclusive"):
        flashinfer.selective_state_update(**update(
            intermediate_states_buffer=memory.empty((BATCH, 1, HEADS, DIM, DSTATE), "fp32"),
            dst_state_batch_indices=memory.of([1, 2, 3], "int32")))
    seed = memory.of([7], "int64")
    with pytest.raises(TypeError, match="rand_seed"):
        flashinfer.selective_state_update(**update(rand_seed=7))
    with pytest.raises(ValueError, match="single-element"):
        flashinfer.selective_state_update(**update(rand_seed=memory.of([7, 8], "int64")))
    with pytest.raises(ValueError, match="dtype int64"):
        flashinfer.selective_state_update(**update(rand_seed=memory.of([7], "int32")))
    with pytest.raises(ValueError, match="philox_rounds"):
        flashinfer.selective_state_update(**update(rand_seed=seed, philox_rounds=0))
    with pytest.raises(ValueError, match="cannot both"):
        flashinfer.selective_state_update(**update(rand_seed=seed,
                                                   state_scale=memory.empty((SLOTS, HEADS, DIM), "fp32")))
    with pytest.raises(NotImplementedError, match="disable_state_update"):
        flashinfer.selective_state_update(**update(disable_state_update=True))
    with pytest.raises(NotImplementedError, match="dst_state_batch_indices: got int64 where"):
        flashinfer.selective_state_update(**update(dst_state_batch_indices=memory.of([1, 2, 3], "int64")))
    assert driver.launches == 0


def assert_passed_on(driver, given):
    for name, tensor in given.items():
        if isinstance(tensor, memory.Tensor):
            assert tensor.data_ptr() in addresses(driver), name


def test_many_tokens_with_snapshots(session, driver, fresh_calls):
    given = update(**heads(BATCH, TOKENS), disable_state_update=True, cache_steps=TOKENS,
                   intermediate_states_buffer=memory.empty((BATCH, TOKENS, HEADS, DIM, DSTATE), "fp32"),
                   intermediate_state_indices=memory.of([0, 1, 2], "int32"))
    assert flashinfer.selective_state_update(**given).shape == (BATCH, TOKENS, HEADS, DIM)
    assert session.described["tokens"] == TOKENS and session.described["store"] == {"kind": "snapshots"}
    assert session.described["pad_output"] == "as_if_zero_state"
    assert_passed_on(driver, given)
    flashinfer.selective_state_update(**dict(given, disable_state_update=False))
    assert len(session.asked) == 1 and driver.launches == 2


def test_rows_of_z_alone_may_be_unaligned(session, driver, fresh_calls):
    wide = memory.empty((BATCH, TOKENS, HEADS * DIM + 4))
    z = memory.Tensor(numpy.lib.stride_tricks.as_strided(wide.array[:, :, 4:], (BATCH, TOKENS, HEADS, DIM),
                                                         (*wide.array.strides[:2], DIM * 2, 2)), "bf16")
    given = update(**heads(BATCH, TOKENS), disable_state_update=True, cache_steps=TOKENS,
                   intermediate_states_buffer=memory.empty((BATCH, TOKENS, HEADS, DIM, DSTATE), "fp32"),
                   intermediate_state_indices=memory.of([0, 1, 2], "int32"))
    for each, aligned in ((memory.empty((BATCH, TOKENS, HEADS, DIM)), True), (z, False)):
        flashinfer.selective_state_update(**dict(given, z=each))
        assert session.described["aligned_rows"] is aligned
    assert driver.launches == 2


def test_many_tokens_to_slots_from_the_last_accepted_one(session, driver, fresh_calls):
    targets, sources = memory.of([[1, 2, 3, 4, 5, 6]] * BATCH, "int32"), memory.of([[0] * TOKENS] * BATCH, "int32")
    given = update(**heads(BATCH, TOKENS), dst_state_batch_indices=targets, state_batch_indices=sources,
                   num_accepted_tokens=memory.of([1, 2, 1], "int32"))
    flashinfer.selective_state_update(**given)
    assert session.described["store"] == {"kind": "slots"} and session.described["accepted"] is True
    assert_passed_on(driver, given)
    with pytest.raises(RuntimeError, match="num_accepted_tokens: wants state_batch_indices of two dimensions"):
        flashinfer.selective_state_update(**dict(given, state_batch_indices=memory.of([0, 1, 2], "int32")))


def test_packed_sequences(session, driver, fresh_calls):
    for total in (11, 13):
        given = update(**heads(total), cu_seqlens=memory.of([0, 6, 6, total], "int32"), cache_steps=TOKENS)
        flashinfer.selective_state_update(**given)
        assert_passed_on(driver, given)
    assert session.described["varlen"] is True and session.described["tokens"] == TOKENS
    assert len(session.asked) == 1 and driver.launches == 2
    with pytest.raises(RuntimeError, match="cache_steps"):
        flashinfer.selective_state_update(**dict(given, cache_steps=0))
    with pytest.raises(NotImplementedError, match="cu_seqlens: got int64"):
        flashinfer.selective_state_update(**dict(given, cu_seqlens=memory.of([0, 6, 6, 13], "int64")))


def test_one_token_may_have_its_dimension_or_not(session, driver, fresh_calls):
    buffer = memory.empty((BATCH, 1, HEADS, DIM, DSTATE), "fp32")
    more = dict(cache_steps=1, intermediate_states_buffer=buffer,
                intermediate_state_indices=memory.of([0, 1, 2], "int32"))
    for rows in ((BATCH,), (BATCH, 1)):
        out = flashinfer.selective_state_update(**update(**heads(*rows), **more))
        assert out.shape == (BATCH, 1, HEADS, DIM)
    out = memory.empty((BATCH, 1, HEADS, DIM))
    assert flashinfer.selective_state_update(**update(**heads(BATCH, 1), **more, out=out)) is out
    assert session.described["tokens"] == 1 and len(session.asked) == 1 and driver.launches == 3


def test_rounding_by_chance_has_its_rounds(session, driver, fresh_calls):
    given = update(**heads(BATCH, state="fp16"), rand_seed=memory.of([7], "int64"), philox_rounds=5)
    flashinfer.selective_state_update(**given)
    assert session.described["rounding"] == {"kind": "stochastic", "philox_rounds": 5}
    assert_passed_on(driver, given)


def test_a_state_of_int16_has_scales(session, driver, fresh_calls):
    for scale in (memory.empty((SLOTS, HEADS, DIM), "fp32"), memory.empty((SLOTS, HEADS, DIM, 1), "fp32")):
        flashinfer.selective_state_update(**update(**heads(BATCH, state="int16"), state_scale=scale))
        assert scale.data_ptr() in addresses(driver)
    assert session.described["state"] == "int16" and len(session.asked) == 1


def ring(rows=(BATCH, TOKENS), window=WINDOW, tokens=TOKENS, state="bf16", **changed):
    length = window + tokens
    given = dict(heads(*rows, state=state), out=memory.empty((*rows, HEADS, DIM)),
                 x_cache=memory.empty((SLOTS, HEADS, length, DIM)),
                 B_cache=memory.empty((SLOTS, GROUPS, length, DSTATE)),
                 dt_cache=memory.empty((SLOTS, HEADS, length), "fp32"), ring_start=memory.empty((SLOTS,), "int32"),
                 prev_num_accepted_tokens=memory.empty((SLOTS,), "int32"),
                 state_batch_indices=memory.of([2, 5, -1], "int32"))
    given.update(changed)
    return given


def test_a_ring_is_described_as_the_peer_computes_it(session, driver, fresh_calls):
    given = ring()
    assert flashinfer.checkpointing_ssu(**given) is given["out"]
    described = session.described
    assert described["op"] == "ring" and described["tokens"] == TOKENS
    assert described["store"] == {"kind": "ring", "window": WINDOW} and described["pad_output"] == "untouched"
    for name, tensor in given.items():
        if isinstance(tensor, memory.Tensor):
            assert tensor.data_ptr() in addresses(driver), name
    driver.capturing = 1
    flashinfer.checkpointing_ssu(**dict(ring(), algorithm="monolith", enable_pdl=True))
    assert len(session.asked) == 1 and driver.launches == 2 and driver.last.pdl == 1


def test_a_packed_ring_takes_any_total(session, driver, fresh_calls):
    for total in (11, 9):
        given = ring((1, total), cu_seqlens=memory.of([0, 6, 6, total], "int32"), max_seqlen=TOKENS)
        flashinfer.checkpointing_ssu(**given)
    assert session.described["varlen"] is True and len(session.asked) == 1 and driver.launches == 2


def test_a_quantised_ring_has_scales(session, driver, fresh_calls):
    scale = memory.empty((SLOTS, HEADS, DIM), "fp32")
    flashinfer.checkpointing_ssu(**ring(state="int8", state_scale=scale, rand_seed=memory.of([7], "int64")))
    assert session.described["state"] == "int8"
    assert session.described["rounding"] == {"kind": "stochastic", "philox_rounds": 10}
    with pytest.raises(AssertionError, match="requires a state_scale tensor"):
        flashinfer.checkpointing_ssu(**ring(state="int8"))
    with pytest.raises(AssertionError, match="state_scale must be None"):
        flashinfer.checkpointing_ssu(**ring(state_scale=scale))


RING_WRONG = {
    "a window above 16": (dict(window=17), AssertionError, "at most 16 cache tokens"),
    "more tokens than the window": (dict(rows=(BATCH, 12), tokens=4, window=16), AssertionError, "npredicted"),
    "scratch in part": (dict(cb_scaled=memory.empty((1,))), ValueError, "must be provided together"),
    "two kernels without scratch": (dict(algorithm="two-kernel"), ValueError, "requires the cb_scaled"),
    "an unknown algorithm": (dict(algorithm="fast"), AssertionError, "algorithm must be one of"),
    "max_seqlen alone": (dict(max_seqlen=6), AssertionError, "only valid with cu_seqlens"),
    "cu_seqlens alone": (dict(rows=(1, 11), cu_seqlens=memory.of([0, 6, 11], "int32")), AssertionError,
                         "requires max_seqlen"),
    "weights of two dtypes": (dict(dt_bias=tied(memory.empty((HEADS,)), DIM)), AssertionError, "must match"),
    "a split of four": (dict(d_split=4), ValueError, "d_split"),
    "a seed of two": (dict(rand_seed=memory.of([7, 8], "int64")), AssertionError, "single-element"),
    "rings of another length": (dict(dt_cache=memory.empty((SLOTS, HEADS, 21), "fp32")), AssertionError, "dt_cache"),
    "an element's A": (dict(A=memory.empty((HEADS, DIM, DSTATE), "fp32")), NotImplementedError, "A: has a value"),
    "fp32 activations": (dict(x=memory.empty((BATCH, TOKENS, HEADS, DIM), "fp32")), NotImplementedError, "x is fp32"),
    "a tensor on the CPU": (dict(ring_start=memory.empty((SLOTS,), "int32", (memory.CPU, 0))), ssmjit.InvalidError,
                            "ring_start: got a tensor on cpu"),
}


@pytest.mark.parametrize("case", RING_WRONG)
def test_what_a_ring_does_not_take_is_said_as_the_peer_says_it(session, driver, fresh_calls, case):
    changed, kind, sentence = RING_WRONG[case]
    with pytest.raises(kind) as caught:
        flashinfer.checkpointing_ssu(**ring(**changed))
    assert sentence in str(caught.value) and driver.launches == 0


def test_signatures_are_flashinfer_s():
    peer = pytest.importorskip("flashinfer.mamba", reason="flashinfer is not installed")
    for name in ("selective_state_update", "checkpointing_ssu"):
        ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (flashinfer, peer))
        assert [(each.name, each.default) for each in ours.values()] == [(each.name, each.default)
                                                                        for each in theirs.values()]
