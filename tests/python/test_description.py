import pytest

import ssmjit


def test_a_shipped_model_has_its_kernels():
    model = ssmjit.load_model("nemotron3-super-tp8")
    assert model.kernel("update").op == "update"
    assert model.kernel("ring").op == "ring"
    assert model.name in ssmjit.shipped_models()
    with pytest.raises(KeyError, match="there are .*update"):
        model.kernel("nothing")


def test_a_description_survives_its_json():
    made = ssmjit.mamba2(16, 64, 128, state="bf16", gate="silu(z)", store="ring:16", tokens=6)
    assert ssmjit.Description(made.json()) == made
    assert ssmjit.Description(made.fields()) == made
    assert made.fields()["store"] == {"kind": "ring", "window": 16}
    assert made.kernel_digest() != made.set(state="fp32").kernel_digest()
    assert len({made, ssmjit.Description(made.json())}) == 1


def test_parts_are_set_by_their_own_names():
    conv = ssmjit.conv1d(1280, conv__width=3, conv__bias=False, input="fp16", weights="fp16", state="fp16")
    assert conv.op == "conv1d" and conv.problems() == []
    assert conv.fields()["conv"]["width"] == 3 and conv.fields()["conv"]["bias"] is False
    assert ssmjit.gated_norm(4096, norm__group_size=512).op == "norm"


def test_wrong_fields_are_named_in_one_go_by_an_invalid_error():
    with pytest.raises(ssmjit.InvalidError, match="(?s)head_dim: missing.*dstate: missing") as caught:
        ssmjit.Description({"nheads": 3})
    assert caught.value.kind == "invalid" and isinstance(caught.value, (ssmjit.Error, ValueError))
    with pytest.raises(ssmjit.InvalidError, match='state: unknown dtype "int9"'):
        ssmjit.mamba2(16, 64, 128).set(state="int9")
    assert any("head_dim" in problem for problem in ssmjit.mamba2(16, 65, 128).problems())


def test_sizes_of_32_bits_are_asked_for():
    with pytest.raises(ssmjit.InvalidError, match="nheads: got 4294967312"):
        ssmjit.mamba2(2**32 + 16, 64, 128)


def test_bytes_are_counted():
    step = ssmjit.mamba2(16, 64, 128, state="bf16")
    one, eight = step.bytes_moved(1), step.bytes_moved(8)
    assert one["written_back"] == 16 * 64 * 128 * 2
    assert eight["read"] == 8 * one["read"]
    with pytest.raises(ssmjit.InvalidError, match="phase"):
        step.bytes_moved(1, phase="sometimes")


def test_a_ring_s_cursor_moves_as_the_host_keeps_it():
    ring = ssmjit.mamba2(16, 64, 128, store="ring:16", tokens=6, state="bf16")
    assert not ring.ring_flushes((0, 0), 6)
    assert ring.advance_ring((0, 0), 6, 4) == (0, 4)
    assert ring.ring_flushes((0, 12), 6)
    assert ring.advance_ring((0, 12), 6, 3) == (12, 3)
    assert ring.ring_slot_bytes() > 16 * 64 * 128 * 2
    with pytest.raises(ssmjit.InvalidError):
        ring.advance_ring((0, 99), 6, 3)


def test_a_replay_s_cursor_takes_the_other_buffer():
    replay = ssmjit.mamba2(16, 64, 128, store="replay", tokens=6, state="bf16")
    assert replay.op == "replay" and replay.problems() == []
    assert replay.advance_replay((0, 0), 4) == (1, 4)
    assert replay.advance_replay((1, 4), 6) == (0, 6)
    with pytest.raises(ssmjit.InvalidError):
        replay.advance_replay((0, 0), 7)


def test_a_config_of_hugging_face_becomes_a_model():
    config = {"model_type": "mamba2", "num_heads": 80, "head_dim": 64, "state_size": 128, "n_groups": 1,
              "conv_kernel": 4, "expand": 2, "hidden_size": 2560, "hidden_act": "silu", "use_conv_bias": True,
              "rms_norm": True, "layer_norm_epsilon": 1e-5, "torch_dtype": "bfloat16"}
    assert ssmjit.from_hf(config).kernel("update").fields()["nheads"] == 80
    with pytest.raises(ssmjit.InvalidError, match="model_type"):
        ssmjit.from_hf({"model_type": "bert"})
