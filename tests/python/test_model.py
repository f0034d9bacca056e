"""The example's model, in plain PyTorch on the CPU: what its decoding on a GPU is compared with is itself right."""

import pathlib
import random
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples" / "python"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench"))
try:
    import torch

    import mamba2_model
    import plain_ops
    import python_on_gpu
    from mamba2_model import EXACT, PLAIN, TINY, Mamba2

    torch.set_num_threads(1)  # small tensors; and tests share the machine
except ImportError:
    torch = None

pytestmark = pytest.mark.skipif(torch is None, reason="torch is not installed")
BATCH, STEPS, TOKENS, WINDOW = 3, 40, 4, 8


@pytest.fixture(scope="module")
def model():
    return Mamba2(TINY, torch.float32, "cpu")


def test_verifying_with_the_ring_equals_decoding_token_by_token(model):
    chance = random.Random(1)
    truth = torch.randint(TINY.vocabulary, (BATCH, STEPS + TOKENS), generator=torch.Generator().manual_seed(1))
    caches, plain = model.caches(BATCH), []
    for t in range(STEPS + TOKENS):
        plain.append(model.step(truth[:, t], caches, PLAIN))
    at = [0] * BATCH
    ring = model.ring_caches(BATCH, TOKENS, WINDOW)
    while min(at) < STEPS:
        drafts, accepted = truth.new_zeros(BATCH, TOKENS), []
        for b in range(BATCH):
            place = min(at[b], STEPS)
            drafts[b] = truth[b, place:place + TOKENS]
            kept = chance.randint(1, TOKENS)
            drafts[b, kept:] = (drafts[b, kept:] + 1) % TINY.vocabulary
            accepted.append(kept)
        logits = model.verify(drafts, ring, plain_ops.conv_of_accepted, plain_ops.checkpointing_ssu,
                              plain_ops.rmsnorm_fn)
        for b in range(BATCH):
            for t in range(accepted[b]):
                if at[b] < STEPS:
                    torch.testing.assert_close(logits[b, t], plain[at[b]][b], rtol=1e-4, atol=1e-4)
                    at[b] += 1
        model.keep(ring, TOKENS, WINDOW, accepted)
        if max(at) >= STEPS:
            break
    assert max(at) >= STEPS and len(set(at)) > 1


def test_pads_are_zeros_and_leave_their_slots_alone():
    state = torch.randn(4, 2, 8, 16)
    before = state.clone()
    x, dt = torch.randn(2, 2, 8), torch.rand(2, 2, 1).expand(-1, -1, 8)
    y = plain_ops.selective_state_update(state, x, dt, -torch.ones(2, 1, 1).expand(-1, 8, 16), torch.randn(2, 1, 16),
                                         torch.randn(2, 1, 16), state_batch_indices=torch.tensor([-1, 2]))
    assert torch.equal(y[0], torch.zeros(2, 8)) and not torch.equal(y[1], torch.zeros(2, 8))
    assert torch.equal(state[[0, 1, 3]], before[[0, 1, 3]]) and not torch.equal(state[2], before[2])


def judged(ours):
    """How many findings pass and fail of a model that decodes with these ops."""
    found = python_on_gpu.Findings()
    python_on_gpu.teacher(torch, "cpu", TINY, {"ours": ours, "exact": EXACT}, PLAIN, BATCH, 8, found)
    return found.passed, found.failed


def too_wide(x, *tensors, **named):
    return 1.02 * plain_ops.causal_conv1d_update(x, *tensors, **named)


def drifts(state, *tensors, **named):
    """A state that is a little off after each step."""
    y = plain_ops.selective_state_update(state, *tensors, **named)
    state.mul_(1.03)
    return y


def test_what_a_gpu_s_decoding_is_judged_by_passes_the_right_and_fails_the_wrong():
    assert judged(PLAIN) == judged(EXACT) == (2, 0)
    assert judged(PLAIN._replace(conv=too_wide))[1] >= 1
    assert judged(PLAIN._replace(update=drifts))[1] >= 1


def test_the_real_size_is_mamba2_s():
    sizes = mamba2_model.MAMBA2_2_7B
    weights = sizes.layers * (sizes.model * (sizes.inner + sizes.channels + sizes.heads) + sizes.inner * sizes.model)
    assert 2.5e9 < weights + 2 * sizes.vocabulary * sizes.model < 2.9e9
