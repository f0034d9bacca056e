import device_memory as memory
import pytest
from conftest import addresses

import ssmjit
from ssmjit.causal_conv1d import causal_conv1d_update

BATCH, SLOTS, DIM, WIDTH = 3, 8, 256, 4


def windows(state_len=WIDTH - 1, dtype="bf16", slots=SLOTS):
    """As callers allocate them: channels side by side."""
    return memory.empty((slots, state_len, DIM), dtype).transpose(1, 2)


def conv(**changed):
    given = dict(x=memory.empty((BATCH, DIM)), conv_state=windows(), weight=memory.empty((DIM, WIDTH)),
                 bias=memory.empty((DIM,)), activation="silu", conv_state_indices=memory.of([2, 5, -1], "int32"))
    given.update(changed)
    return given


def test_a_convolution_is_described_as_the_peer_computes_it(session, driver, fresh_calls):
    given = conv()
    out = causal_conv1d_update(**given)
    assert out.shape == (BATCH, DIM)
    described = session.described
    assert described["op"] == "conv1d" and described["pad_output"] == "zeros" and described["tokens"] == 1
    assert described["conv"] == {"channels": DIM, "width": WIDTH, "state_len": 3, "bias": True, "activation": "silu(x)",
                                 "channels_last": True, "store": "shift", "keep": "last", "accepted": False}
    for tensor in (out, *(given[name] for name in given if name != "activation")):
        assert tensor.data_ptr() in addresses(driver)


@pytest.mark.parametrize("changed, field, value", [
    (dict(activation="swish"), "activation", "silu(x)"),
    (dict(activation=None), "activation", None),
    (dict(bias=None), "bias", False),
    (dict(conv_state=memory.empty((SLOTS, DIM, 3))), "channels_last", False),
    (dict(conv_state=memory.empty((SLOTS, DIM, 4))), "state_len", 4),
    (dict(weight=memory.empty((DIM, 2)), conv_state=windows(1)), "width", 2),
    (dict(cache_seqlens=memory.of([0, 7, 9], "int32")), "store", "circular"),
])
def test_each_difference_makes_a_kernel_of_its_own(session, driver, fresh_calls, changed, field, value):
    causal_conv1d_update(**conv())
    causal_conv1d_update(**conv(**changed))
    assert session.described["conv"][field] == value
    assert driver.launches == 2


def test_several_tokens_stand_behind_the_channels(session, driver, fresh_calls):
    x = memory.empty((BATCH, 6, DIM)).transpose(1, 2)
    out = causal_conv1d_update(**conv(x=x))
    assert out.shape == (BATCH, DIM, 6) and out.stride(1) == 1
    assert session.described["tokens"] == 6
    assert causal_conv1d_update(**conv(x=memory.empty((BATCH, DIM, 1)))).shape == (BATCH, DIM, 1)
    with pytest.raises(NotImplementedError, match="x: has channels apart"):
        causal_conv1d_update(**conv(x=memory.empty((BATCH, DIM, 6))))


@pytest.mark.parametrize("channels, aligned", [(DIM, True), (DIM + 8, True), (DIM + 1, False)])
def test_tokens_apart_by_no_whole_vectors_are_unaligned(session, driver, fresh_calls, channels, aligned):
    x = memory.empty((BATCH, 6, channels))[:, :, :DIM].transpose(1, 2)
    causal_conv1d_update(**conv(x=x))
    assert session.described["aligned_rows"] is aligned
    assert driver.launches == 1


def test_windows_of_both_orders_are_served_side_by_side(session, driver, fresh_calls):
    entries_last = memory.empty((SLOTS, DIM, 3))
    for _ in range(2):
        causal_conv1d_update(**conv())
        causal_conv1d_update(**conv(conv_state=entries_last))
    assert [each.fields()["conv"]["channels_last"] for each, _ in session.asked] == [True, False]
    assert driver.launches == 4


def test_a_second_call_of_its_kind_prepares_nothing(session, driver, fresh_calls):
    causal_conv1d_update(**conv())
    driver.capturing = 1
    causal_conv1d_update(**conv())
    assert len(session.asked) == 1 and driver.launches == 2
    with pytest.raises(ssmjit.InvalidError, match="captur"):
        causal_conv1d_update(**conv(conv_state=windows(11)))


def test_what_is_not_covered_or_wrong_is_said_by_name(session, driver, fresh_calls):
    with pytest.raises(NotImplementedError, match="activation must be None, silu, or swish"):
        causal_conv1d_update(**conv(activation="gelu"))
    with pytest.raises(NotImplementedError, match="weight: has 5 taps"):
        causal_conv1d_update(**conv(weight=memory.empty((DIM, 5)), conv_state=windows(4)))
    with pytest.raises(NotImplementedError, match="bias: got fp32 where weight is bf16"):
        causal_conv1d_update(**conv(bias=memory.empty((DIM,), "fp32")))
    with pytest.raises(NotImplementedError, match="conv_state: got fp32 where x is bf16"):
        causal_conv1d_update(**conv(conv_state=windows(dtype="fp32")))
    with pytest.raises(RuntimeError, match="conv_state: got 2 entries; wants 3 or more"):
        causal_conv1d_update(**conv(conv_state=windows(2)))
    with pytest.raises(RuntimeError, match="conv_state_indices: got int64; wants int32"):
        causal_conv1d_update(**conv(conv_state_indices=memory.of([1, 2, 3], "int64")))
    with pytest.raises(RuntimeError, match="conv_state: got 8 slots for 3 rows"):
        causal_conv1d_update(**conv(conv_state_indices=None))
    with pytest.raises(ssmjit.InvalidError, match="weight: got a tensor on cpu"):
        causal_conv1d_update(**conv(weight=memory.empty((DIM, WIDTH), device=(memory.CPU, 0))))
    assert driver.launches == 0
