"""The example's clients, on the CPU with plain PyTorch for the drop-ins: what bench/python_on_gpu.py compares on a
GPU is the models' own decoding, and a captured graph of them reads and writes where it did."""

import functools
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples" / "python"))
try:
    import torch
    import transformers  # noqa: F401

    import huggingface
    import plain_ops

    torch.set_num_threads(1)  # small tensors; and tests share the machine
except ImportError:
    torch = None

pytestmark = pytest.mark.skipif(torch is None, reason="torch or transformers is not installed")
FAMILIES = ("mamba2", "nemotron_h", "bamba")
STEPS, BATCH, PROMPT = 10, 2, 4


@functools.lru_cache(maxsize=None)
def client(family):
    return huggingface.Client(family, torch.float32, "cpu", is_tiny=True)


def tokens():
    return torch.randint(211, (STEPS, BATCH), generator=torch.Generator().manual_seed(1))


def replaced(family, update=None):
    return huggingface.replaced(plain_ops.causal_conv1d_update, update or plain_ops.selective_state_update,
                                client(family).family.module)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_decodes_with_the_functions_it_is_given_as_with_its_own(family):
    calls = []

    def update(*arguments, **named):
        calls.append(arguments[1].shape)
        return plain_ops.selective_state_update(*arguments, **named)

    own = list(client(family).decode(tokens()))
    with replaced(family, update):
        mine = list(client(family).decode(tokens()))
    mamba_layers = sum(kind == "linear_attention" for kind in client(family).config.layer_types)
    assert len(calls) == (STEPS - PROMPT) * mamba_layers and mamba_layers >= 2
    assert len(mine) == STEPS - PROMPT + 1
    for one, other in zip(mine, own):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    calls.clear()
    list(client(family).decode(tokens()))
    assert not calls, "its own functions are back"


def addresses(cache):
    tensors = []
    for layer in cache.layers:
        for value in vars(layer).values():
            found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            tensors += [each for each in found if isinstance(each, torch.Tensor)]
    return [each.data_ptr() for each in tensors]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_decodes_alike_and_stays_where_it_is(family):
    with torch.no_grad(), replaced(family):
        wanted = list(client(family).decode(tokens()))
        logits, cache = client(family).prompt(tokens()[:PROMPT].T, client(family).static_cache(16))
        found = [logits]
        before = None
        for each in tokens()[PROMPT:]:
            found.append(client(family).step(each, cache))
            assert before in (None, addresses(cache))
            before = addresses(cache)
    assert before
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
