#!/usr/bin/env python3
"""A Hugging Face Mamba-2 model of random weights decodes with ssmjit's convolution and update in place of its own.

    python3 examples/python/huggingface_mamba2.py            # needs a GPU, torch, transformers 5.x and ssmjit

`replaced(conv, update)` is all there is to it: the modelling code calls two functions of its module. The same goes for
the Mamba-2 layers of Nemotron-H and Bamba, whose modules have them too.
"""

import contextlib
import sys

import torch


def config(layers=64):
    """The sizes of mamba2-2.7b; chunks as short as the prompt: plain PyTorch makes tensors of chunk x chunk of them."""
    from transformers import Mamba2Config

    return Mamba2Config(num_heads=80, head_dim=64, hidden_size=2560, expand=2, n_groups=1, state_size=128,
                        num_hidden_layers=layers, vocab_size=50288, initializer_range=0.02, chunk_size=8)


def tiny():
    from transformers import Mamba2Config

    return Mamba2Config(num_heads=4, head_dim=32, hidden_size=64, expand=2, n_groups=2, state_size=32,
                        num_hidden_layers=3, vocab_size=211, initializer_range=0.05, chunk_size=8)


def random_model(of, dtype, device):
    """Weights are made where they stay."""
    from transformers import Mamba2ForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with torch.device(device):
            return Mamba2ForCausalLM(of).eval()
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def replaced(conv, update, module_name="transformers.models.mamba2.modeling_mamba2"):
    """The modelling code's decode steps are these functions, of causal_conv1d's and mamba_ssm's signatures."""
    import importlib

    module = importlib.import_module(module_name)
    its_conv, its_update = module.causal_conv1d_update, module.mamba2_selective_state_update

    def update_of_module(state, x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, z=None, **_):
        return update(state, x, dt, A, B, C, D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus)

    module.causal_conv1d_update, module.mamba2_selective_state_update = conv, update_of_module
    try:
        yield
    finally:
        module.causal_conv1d_update, module.mamba2_selective_state_update = its_conv, its_update


@torch.no_grad()
def decode(model, tokens):
    """Logits (batch, vocabulary) of each step of tokens (steps, batch), the first of them read at once as a prompt."""
    prompt = min(4, len(tokens) - 1)
    result = model(tokens[:prompt].T, use_cache=True)
    yield result.logits[:, -1]
    for each in tokens[prompt:]:
        result = model(each[:, None], cache_params=result.cache_params, use_cache=True)
        yield result.logits[:, -1]


@torch.no_grad()
def greedy(model, batch, steps):
    """Tokens (steps, batch) that follow a prompt of row numbers."""
    device = model.lm_head.weight.device
    chosen = torch.arange(4 * batch, device=device).reshape(batch, 4)
    result, said = model(chosen, use_cache=True), []
    for _ in range(steps):
        chosen = result.logits[:, -1].argmax(-1)
        said.append(chosen)
        result = model(chosen[:, None], cache_params=result.cache_params, use_cache=True)
    return torch.stack(said)


def main():
    if not torch.cuda.is_available():
        print("needs a GPU: torch.cuda.is_available() is False", file=sys.stderr)
        return 3
    from ssmjit.causal_conv1d import causal_conv1d_update
    from ssmjit.mamba_ssm import selective_state_update

    model = random_model(config(), torch.bfloat16, "cuda")
    with replaced(causal_conv1d_update, selective_state_update):
        print(greedy(model, batch=2, steps=16).T.tolist())
    return 0


if __name__ == "__main__":
    sys.exit(main())
