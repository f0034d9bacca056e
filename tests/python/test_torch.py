"""With PyTorch, which needs no GPU here: its tensors reach the library, and what is wrong with them is said."""

import pytest

import ssmjit
from ssmjit import causal_conv1d, flashinfer, mamba_ssm

try:
    import torch
except ImportError:
    torch = None

pytestmark = pytest.mark.skipif(torch is None, reason="torch is not installed")

BATCH, HEADS, DIM, DSTATE = 2, 4, 64, 128


def update(**changed):
    given = dict(state=torch.zeros(BATCH, HEADS, DIM, DSTATE), x=torch.zeros(BATCH, HEADS, DIM, dtype=torch.bfloat16),
                 dt=torch.zeros(BATCH, HEADS, 1).expand(-1, -1, DIM),
                 A=torch.zeros(HEADS, 1, 1).expand(-1, DIM, DSTATE),
                 B=torch.zeros(BATCH, 1, DSTATE, dtype=torch.bfloat16),
                 C=torch.zeros(BATCH, 1, DSTATE, dtype=torch.bfloat16), D=torch.zeros(HEADS, 1).expand(-1, DIM))
    given.update(changed)
    return given


def test_tensors_on_the_cpu_are_refused_by_name():
    with pytest.raises(ssmjit.InvalidError, match="state: got a tensor on cpu; wants one on a GPU"):
        mamba_ssm.selective_state_update(**update())
    with pytest.raises(ssmjit.InvalidError, match="state: got a tensor on cpu"):
        flashinfer.selective_state_update(**update())
    with pytest.raises(ssmjit.InvalidError, match="x: got a tensor on cpu"):
        causal_conv1d.causal_conv1d_update(torch.zeros(2, 64), torch.zeros(2, 64, 3), torch.zeros(64, 4))
    with pytest.raises(ssmjit.InvalidError, match="x: got a tensor on cpu"):
        mamba_ssm.rmsnorm_fn(torch.zeros(2, 64), torch.zeros(64), None)


def test_a_launch_refuses_tensors_on_the_cpu(session, driver):
    step = session.prepare(ssmjit.mamba2(HEADS, DIM, DSTATE), 4)
    with pytest.raises(ssmjit.InvalidError, match="x: got a tensor on cpu; wants one on cuda:0"):
        step.launch(x=torch.zeros(BATCH, HEADS, DIM, dtype=torch.bfloat16))
    assert driver.launches == 0


def test_what_requires_grad_is_refused_while_grad_is_on():
    needs = torch.zeros(HEADS, 1, requires_grad=True)
    with pytest.raises(NotImplementedError, match="D: requires grad"):
        mamba_ssm.selective_state_update(**update(D=needs.expand(-1, DIM)))
    with torch.no_grad(), pytest.raises(ssmjit.InvalidError, match="on cpu"):  # past that check
        mamba_ssm.selective_state_update(**update(D=needs.expand(-1, DIM)))


def test_dtypes_and_views_are_seen_as_torch_has_them():
    from ssmjit._dropin import Facts

    seen = Facts("x", torch.zeros(2, 3, 8, dtype=torch.bfloat16)[:, 1:, ::2])
    assert (seen.device, seen.dtype, seen.shape, seen.strides) == ("cpu", "bf16", (2, 2, 4), (24, 8, 2))
    assert Facts("dt", torch.zeros(2, 3, 1).expand(2, 3, 8)).stride(2) == 0
    for dtype, name in ((torch.float32, "fp32"), (torch.float16, "fp16"), (torch.int8, "int8"), (torch.int16, "int16"),
                        (torch.int32, "int32"), (torch.int64, "int64"), (torch.float8_e4m3fn, "fp8")):
        assert Facts("x", torch.zeros(2, dtype=dtype)).dtype == name


def test_anything_but_a_tensor_is_refused_by_name(session, driver):
    step = session.prepare(ssmjit.mamba2(HEADS, DIM, DSTATE), 4)
    with pytest.raises(ssmjit.InvalidError, match="state: got"):
        step.launch(state=object())
