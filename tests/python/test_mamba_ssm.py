import device_memory as memory
import pytest
from conftest import addresses

import ssmjit
from ssmjit import _dropin, mamba_ssm

BATCH, SLOTS, HEADS, DIM, DSTATE, GROUPS = 3, 8, 4, 64, 128, 1


def tied(values, *behind):
    """A value a head, expanded over further dimensions as the peers' callers do."""
    return values.reshape((*values.shape, *(1 for _ in behind))).expand(*values.shape, *behind)


def update(**changed):
    given = dict(state=memory.empty((SLOTS, HEADS, DIM, DSTATE), "fp32"), x=memory.empty((BATCH, HEADS, DIM)),
                 dt=tied(memory.empty((BATCH, HEADS), "fp32"), DIM),
                 A=tied(memory.empty((HEADS,), "fp32"), DIM, DSTATE),
                 B=memory.empty((BATCH, GROUPS, DSTATE)), C=memory.empty((BATCH, GROUPS, DSTATE)),
                 D=tied(memory.empty((HEADS,), "fp32"), DIM), dt_bias=tied(memory.empty((HEADS,), "fp32"), DIM),
                 dt_softplus=True, state_batch_indices=memory.of([2, 5, -1], "int64"))
    given.update(changed)
    return given


def test_an_update_is_described_as_the_peer_computes_it(session, driver, fresh_calls):
    given = update()
    out = mamba_ssm.selective_state_update(**given)
    assert out.shape == (BATCH, HEADS, DIM) and out.dtype == "bf16"
    described = session.described
    assert described["op"] == "update" and described["state"] == "fp32" and described["input"] == "bf16"
    assert described["delta"] == "softplus(dt + dt_bias)" and described["decay"] == "exp(A * delta)"
    assert described["skip"] == "D * x" and described["gate"] is None
    assert described["pad_output"] == "zeros" and described["aligned_rows"] is True
    assert driver.launches == 1
    for tensor in [out, *(given[name] for name in given if name != "dt_softplus")]:
        assert tensor.data_ptr() in addresses(driver)


def test_a_second_call_of_its_kind_prepares_nothing(session, driver, fresh_calls):
    mamba_ssm.selective_state_update(**update())
    driver.capturing = 1  # so neither does one in a captured graph
    for batch in (1, 2, 3):
        given = update()
        for name in ("x", "dt", "B", "C", "state_batch_indices"):
            given[name] = given[name][:batch]
        mamba_ssm.selective_state_update(**given)
    assert len(session.asked) == 1 and driver.launches == 4


@pytest.mark.parametrize("changed, field, value", [
    (dict(dt_softplus=False), "delta", "dt + dt_bias"),
    (dict(dt_bias=None), "delta", "softplus(dt)"),
    (dict(D=None), "skip", None),
    (dict(z=memory.empty((BATCH, HEADS, DIM))), "gate", "silu(z)"),
    (dict(state=memory.empty((SLOTS, HEADS, DIM, DSTATE))), "state", "bf16"),
    (dict(dt=tied(memory.empty((BATCH, HEADS)), DIM)), "dt", "bf16"),
    (dict(x=memory.empty((BATCH, HEADS * DIM + 1))[:, 1:].reshape(BATCH, HEADS, DIM)), "aligned_rows", False),
    (dict(x=memory.empty((BATCH, 1280))[:, 64:64 + HEADS * DIM].reshape(BATCH, HEADS, DIM)), "aligned_rows", True),
])
def test_each_difference_makes_a_kernel_of_its_own(session, driver, fresh_calls, changed, field, value):
    mamba_ssm.selective_state_update(**update())
    assert session.described[field] != value or field == "aligned_rows"
    mamba_ssm.selective_state_update(**update(**changed))
    assert session.described[field] == value
    assert driver.launches == 2


def test_an_unprepared_call_under_capture_is_refused_with_the_way_out(session, driver, fresh_calls):
    of_no_other_test = update(B=memory.empty((BATCH, 4, DSTATE)), C=memory.empty((BATCH, 4, DSTATE)))
    driver.capturing = 1
    with pytest.raises(ssmjit.InvalidError, match="(?s)prepare.*is being captured.*call it once with such tensors "
                                                  "before the capture"):
        mamba_ssm.selective_state_update(**of_no_other_test)
    assert driver.launches == 0
    driver.capturing = 0
    mamba_ssm.selective_state_update(**of_no_other_test)
    assert driver.launches == 1


def test_what_prepare_refuses_for_another_reason_says_nothing_of_captures(session, driver, fresh_calls, monkeypatch):
    def refuses(*_, **__):
        raise ssmjit.InvalidError("table: got a broken one")

    monkeypatch.setattr(session, "prepare", refuses)
    with pytest.raises(ssmjit.InvalidError, match="^table: got a broken one$"):
        mamba_ssm.selective_state_update(**update())


def test_a_larger_batch_is_prepared_when_it_comes(session, driver, fresh_calls):
    mamba_ssm.selective_state_update(**update())
    assert session.asked[-1][1] == 256
    batch = 300
    given = update(state=memory.empty((batch, HEADS, DIM, DSTATE), "fp32"), x=memory.empty((batch, HEADS, DIM)),
                   dt=tied(memory.empty((batch, HEADS), "fp32"), DIM), B=memory.empty((batch, GROUPS, DSTATE)),
                   C=memory.empty((batch, GROUPS, DSTATE)), state_batch_indices=None)
    mamba_ssm.selective_state_update(**given)
    assert session.asked[-1][1] == 512 and driver.launches == 2


NOT_COVERED = {
    "an element's A": (dict(A=memory.empty((HEADS, DIM, DSTATE), "fp32")), "A: has a value for each element"),
    "an element's dt": (dict(dt=memory.empty((BATCH, HEADS, DIM), "fp32")), "dt: has a value for each element"),
    "an element's D": (dict(D=memory.empty((HEADS, DIM), "fp32")), "D: has a value for each element"),
    "A in bf16": (dict(A=tied(memory.empty((HEADS,)), DIM, DSTATE)), "A: got bf16"),
    "dt in fp16": (dict(dt=tied(memory.empty((BATCH, HEADS), "fp16"), DIM)), "dt: got fp16"),
    "B of another dtype": (dict(B=memory.empty((BATCH, GROUPS, DSTATE), "fp16")), "B: got fp16 where x is bf16"),
    "two weights' dtypes": (dict(dt_bias=tied(memory.empty((HEADS,)), DIM)), "dt_bias: got bf16 where D is fp32"),
    "x in fp64": (dict(x=memory.empty((BATCH, HEADS, DIM), "fp64")), "x: got float64"),
    "elements apart": (dict(x=memory.empty((BATCH, HEADS, 2 * DIM))[:, :, ::2]), "x: dimension 2 has stride 2"),
    "indices of bytes": (dict(state_batch_indices=memory.of([0, 1, 2], "int8")), "state_batch_indices: got int8"),
}


@pytest.mark.parametrize("case", NOT_COVERED)
def test_what_is_not_covered_is_said_by_name(session, driver, fresh_calls, case):
    changed, sentence = NOT_COVERED[case]
    with pytest.raises(NotImplementedError) as caught:
        mamba_ssm.selective_state_update(**update(**changed))
    assert sentence in str(caught.value)
    # Also where a kernel for tensors of these dtypes and shapes is there.
    mamba_ssm.selective_state_update(**update())
    before = driver.launches
    with pytest.raises(NotImplementedError) as caught:
        mamba_ssm.selective_state_update(**update(**changed))
    assert sentence in str(caught.value) and driver.launches == before


def test_sizes_of_no_kernel_are_not_covered(session, driver, fresh_calls):
    with pytest.raises(NotImplementedError, match="head_dim"):
        mamba_ssm.selective_state_update(**update(
            state=memory.empty((SLOTS, HEADS, 12, DSTATE), "fp32"), x=memory.empty((BATCH, HEADS, 12)),
            dt=tied(memory.empty((BATCH, HEADS), "fp32"), 12), A=tied(memory.empty((HEADS,), "fp32"), 12, DSTATE),
            D=tied(memory.empty((HEADS,), "fp32"), 12), dt_bias=tied(memory.empty((HEADS,), "fp32"), 12)))


ASSERTED = {
    "x of another batch": dict(x=memory.empty((BATCH + 1, HEADS, DIM))),
    "C of another batch": dict(C=memory.empty((BATCH + 1, GROUPS, DSTATE))),
    "B of another dstate": dict(B=memory.empty((BATCH, GROUPS, 64))),
    "three groups": dict(B=memory.empty((BATCH, 3, DSTATE)), C=memory.empty((BATCH, 3, DSTATE))),
    "indices of another batch": dict(state_batch_indices=memory.of([1, 2], "int64")),
    "D without dim": dict(D=memory.empty((HEADS,), "fp32").reshape(HEADS, 1)),
}


@pytest.mark.parametrize("case", ASSERTED)
def test_shapes_are_asserted_as_the_peer_does(session, driver, fresh_calls, case):
    for _ in range(2):  # without a kernel, and with one
        with pytest.raises(AssertionError):
            mamba_ssm.selective_state_update(**update(**ASSERTED[case]))
        mamba_ssm.selective_state_update(**update())


def test_tensors_elsewhere_are_refused(session, driver, fresh_calls):
    with pytest.raises(ssmjit.InvalidError, match="x: got a tensor on cpu; wants one on cuda:0|x: got a tensor on cpu"):
        mamba_ssm.selective_state_update(**update(x=memory.empty((BATCH, HEADS, DIM), device=(memory.CPU, 0))))
    with pytest.raises(ssmjit.InvalidError, match="B: got a tensor on cuda:1; wants one on cuda:0, as state"):
        mamba_ssm.selective_state_update(**update(B=memory.empty((BATCH, GROUPS, DSTATE), device=(memory.CUDA, 1))))


def test_gradients_are_refused_where_they_would_be_recorded(session, driver, fresh_calls, monkeypatch):
    given = update()
    given["x"].requires_grad = True
    monkeypatch.setattr(mamba_ssm, "is_grad_enabled", lambda: True)
    with pytest.raises(NotImplementedError, match="x: requires grad"):
        mamba_ssm.selective_state_update(**given)
    monkeypatch.setattr(mamba_ssm, "is_grad_enabled", lambda: False)
    mamba_ssm.selective_state_update(**given)


def test_without_heads_there_is_one(session, driver, fresh_calls):
    one = lambda *shape: memory.empty(shape, "fp32")  # noqa: E731
    out = mamba_ssm.selective_state_update(
        memory.empty((BATCH, DIM, DSTATE), "fp32"), memory.empty((BATCH, DIM)), one(BATCH, 1).expand(BATCH, DIM),
        one(1, 1).expand(DIM, DSTATE), memory.empty((BATCH, DSTATE)), memory.empty((BATCH, DSTATE)))
    assert out.shape == (BATCH, DIM) and session.described["nheads"] == 1
    with pytest.raises(NotImplementedError, match="A: has a value for each element"):  # Mamba-1
        mamba_ssm.selective_state_update(
            memory.empty((BATCH, DIM, DSTATE), "fp32"), memory.empty((BATCH, DIM)), one(BATCH, 1).expand(BATCH, DIM),
            one(DIM, DSTATE), memory.empty((BATCH, DSTATE)), memory.empty((BATCH, DSTATE)))


def norm(**changed):
    given = dict(x=memory.empty((BATCH, 512)), weight=memory.empty((512,)), bias=None, z=memory.empty((BATCH, 512)))
    given.update(changed)
    return given


def test_a_norm_is_described_as_the_peer_computes_it(session, driver, fresh_calls):
    out = mamba_ssm.rmsnorm_fn(**norm())
    assert out.shape == (BATCH, 512)
    assert session.described["norm"] == {"channels": 512, "group_size": 512, "eps": 1e-6, "gate": "silu(z)",
                                         "before_gate": True, "bias": False}
    mamba_ssm.rmsnorm_fn(**norm(eps=1e-5, group_size=128, norm_before_gate=False, bias=memory.empty((512,))))
    assert session.described["norm"] == {"channels": 512, "group_size": 128, "eps": 1e-5, "gate": "silu(z)",
                                         "before_gate": False, "bias": True}
    mamba_ssm.rmsnorm_fn(**norm(z=None))
    assert session.described["norm"]["gate"] is None
    asked = len(session.asked)
    mamba_ssm.rmsnorm_fn(**norm(z=None))
    mamba_ssm.rmsnorm_fn(**norm())
    assert len(session.asked) == asked and driver.launches == 5


def test_a_norm_takes_rows_of_any_dimensions(session, driver, fresh_calls):
    out = mamba_ssm.rmsnorm_fn(**norm(x=memory.empty((2, 3, 512)), z=memory.empty((2, 3, 512))))
    assert out.shape == (2, 3, 512)
    strided = memory.empty((BATCH, 2 * 512))[:, :512]
    assert mamba_ssm.rmsnorm_fn(**norm(x=strided)).shape == (BATCH, 512)


def test_a_norm_says_what_it_does_not_take(session, driver, fresh_calls, monkeypatch):
    with pytest.raises(AssertionError, match="z: got shape"):
        mamba_ssm.rmsnorm_fn(**norm(z=memory.empty((BATCH, 256))))
    with pytest.raises(AssertionError, match="group_size"):
        mamba_ssm.rmsnorm_fn(**norm(group_size=100))
    with pytest.raises(AssertionError, match="weight"):
        mamba_ssm.rmsnorm_fn(**norm(weight=memory.empty((256,))))
    with pytest.raises(NotImplementedError, match="z: got fp16 where x is bf16"):
        mamba_ssm.rmsnorm_fn(**norm(z=memory.empty((BATCH, 512), "fp16")))
    wide = 40000
    with pytest.raises(RuntimeError, match="64KB"):
        mamba_ssm.rmsnorm_fn(memory.empty((1, wide)), memory.empty((wide,)), None)
    monkeypatch.setattr(mamba_ssm, "is_grad_enabled", lambda: True)
    weight = memory.empty((512,))
    weight.requires_grad = True
    with pytest.raises(NotImplementedError, match="weight: requires grad"):
        mamba_ssm.rmsnorm_fn(**norm(weight=weight))


def test_a_session_of_the_caller_s_serves_the_drop_ins(session, fresh_calls):
    assert _dropin.current_session() is session
    mamba_ssm.rmsnorm_fn(**norm())
    assert session.asked
