#!/usr/bin/env python3
"""A Hugging Face model of random weights decodes with ssmjit's convolution and update in place of its own.

    python3 examples/python/huggingface.py [mamba2|nemotron_h|bamba]     # needs a GPU, torch, transformers 5 and ssmjit

`replaced(conv, update, module)` is all there is to it: the modelling code of each family calls two functions of its
module. Attention and MLP layers stay as they are.
"""

import contextlib
import copy
import importlib
import sys
from typing import NamedTuple

import torch

# One letter a layer: Mamba-2, attention, MLP.
_NANO_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
_KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}


def _mamba2(layers, is_tiny):
    """The sizes of mamba2-2.7b. Chunks as short as the prompt: plain PyTorch makes tensors of chunk x chunk of them."""
    from transformers import Mamba2Config

    if is_tiny:
        return Mamba2Config(num_heads=4, head_dim=32, hidden_size=64, expand=2, n_groups=2, state_size=32,
                            num_hidden_layers=3, vocab_size=211, initializer_range=0.05, chunk_size=8)
    return Mamba2Config(num_heads=80, head_dim=64, hidden_size=2560, expand=2, n_groups=1, state_size=128,
                        num_hidden_layers=layers or 64, vocab_size=50288, initializer_range=0.02, chunk_size=8)


def _nemotron_h(layers, is_tiny):
    """The sizes of Nemotron-Nano-9B-v2, as remembered."""
    from transformers import NemotronHConfig

    kinds = [_KINDS[each] for each in (_NANO_9B[:layers] if layers else _NANO_9B)]
    if is_tiny:
        return NemotronHConfig(vocab_size=211, hidden_size=64, layers_block_type=[_KINDS[each] for each in "M-*M"],
                               num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
                               ssm_state_size=32, mamba_num_heads=4, mamba_head_dim=32, n_groups=2, chunk_size=8,
                               initializer_range=0.05)
    return NemotronHConfig(vocab_size=131072, hidden_size=4480, layers_block_type=kinds, num_attention_heads=40,
                           num_key_value_heads=8, head_dim=128, intermediate_size=15680, ssm_state_size=128,
                           mamba_num_heads=128, mamba_head_dim=80, n_groups=8, chunk_size=8)


def _bamba(layers, is_tiny):
    """The sizes of Bamba-9B, as remembered."""
    from transformers import BambaConfig

    if is_tiny:
        return BambaConfig(vocab_size=211, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                           num_attention_heads=4, num_key_value_heads=2, attn_layer_indices=[2], mamba_n_heads=4,
                           mamba_d_head=32, mamba_d_state=32, mamba_n_groups=1, mamba_chunk_size=8,
                           initializer_range=0.05)
    layers = layers or 32
    return BambaConfig(vocab_size=128256, num_hidden_layers=layers, mamba_d_state=128, mamba_chunk_size=8,
                       attn_layer_indices=[each for each in (9, 18, 27) if each < layers])


class Family(NamedTuple):
    module: str  # of its modelling code
    model: str
    cache: str  # what its forward calls the cache
    config: object  # (layers or None for all, whether a tiny one)


FAMILIES = {
    "mamba2": Family("transformers.models.mamba2.modeling_mamba2", "Mamba2ForCausalLM", "cache_params", _mamba2),
    "nemotron_h": Family("transformers.models.nemotron_h.modeling_nemotron_h", "NemotronHForCausalLM",
                         "past_key_values", _nemotron_h),
    "bamba": Family("transformers.models.bamba.modeling_bamba", "BambaForCausalLM", "past_key_values", _bamba),
}


class Client:
    """A model of random weights, and how to decode with it."""

    def __init__(self, family, dtype, device, layers=None, is_tiny=False):
        self.family = FAMILIES[family]
        self.config = self.family.config(layers, is_tiny)
        of = getattr(importlib.import_module(self.family.module), self.family.model)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(0)
            with torch.device(device):  # weights are made where they stay
                self.model = of(self.config).eval()
        finally:
            torch.set_default_dtype(before)

    def in_fp32(self):
        """A client of the same weights that computes in fp32."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model).float()
        return other

    def static_cache(self, length):
        """A cache for up to `length` tokens that stays where it is, as a captured graph wants it."""
        from transformers import StaticCache

        return StaticCache(config=self.config, max_cache_len=length)

    def prompt(self, tokens, cache=None):
        """Logits (batch, vocabulary) behind the prompt `tokens` (batch, any), and the cache to decode with; `cache`: to
        put it into."""
        result = self.model(tokens, use_cache=True, **({} if cache is None else {self.family.cache: cache}))
        return result.logits[:, -1], getattr(result, self.family.cache)

    def step(self, tokens, cache, **more):
        """Logits (batch, vocabulary) behind one more token (batch,) of each request."""
        return self.model(tokens[:, None], use_cache=True, **{self.family.cache: cache}, **more).logits[:, -1]

    @torch.no_grad()
    def decode(self, tokens):
        """Logits of each step of tokens (steps, batch), the first four of them read at once as a prompt."""
        prompt = min(4, len(tokens) - 1)
        logits, cache = self.prompt(tokens[:prompt].T)
        yield logits
        for each in tokens[prompt:]:
            yield self.step(each, cache)

    @torch.no_grad()
    def greedy(self, batch, steps):
        """Tokens (steps, batch) that follow a prompt of row numbers."""
        device = self.model.lm_head.weight.device
        logits, cache = self.prompt(torch.arange(4 * batch, device=device).reshape(batch, 4))
        said = []
        for _ in range(steps):
            said.append(logits.argmax(-1))
            logits = self.step(said[-1], cache)
        return torch.stack(said)


@contextlib.contextmanager
def replaced(conv, update, module):
    """The modelling code's decode steps are these functions, of causal_conv1d's and mamba_ssm's signatures."""
    module = importlib.import_module(module)
    its_conv, its_update = module.causal_conv1d_update, module.mamba2_selective_state_update

    def update_of_module(state, x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, z=None, **_):
        return update(state, x, dt, A, B, C, D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus)

    module.causal_conv1d_update, module.mamba2_selective_state_update = conv, update_of_module
    try:
        yield
    finally:
        module.causal_conv1d_update, module.mamba2_selective_state_update = its_conv, its_update


def main():
    if not torch.cuda.is_available():
        print("needs a GPU: torch.cuda.is_available() is False", file=sys.stderr)
        return 3
    from ssmjit.causal_conv1d import causal_conv1d_update
    from ssmjit.mamba_ssm import selective_state_update

    client = Client(sys.argv[1] if len(sys.argv) > 1 else "mamba2", torch.bfloat16, "cuda")
    with replaced(causal_conv1d_update, selective_state_update, client.family.module):
        print(client.greedy(batch=2, steps=16).T.tolist())
    return 0


if __name__ == "__main__":
    sys.exit(main())
