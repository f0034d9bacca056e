import device_memory as memory
import pytest
from conftest import addresses

import ssmjit

BATCH, SLOTS, HEADS, DIM, DSTATE, GROUPS = 3, 8, 4, 64, 128, 1
STEP = ssmjit.mamba2(HEADS, DIM, DSTATE, GROUPS, state="bf16", gate="silu(z)")


def tensors(**changed):
    made = dict(state=memory.empty((SLOTS, HEADS, DIM, DSTATE)), x=memory.empty((BATCH, HEADS, DIM)),
                dt=memory.empty((BATCH, HEADS), "fp32"), A=memory.empty((HEADS,), "fp32"),
                B=memory.empty((BATCH, GROUPS, DSTATE)), C=memory.empty((BATCH, GROUPS, DSTATE)),
                D=memory.empty((HEADS,), "fp32"), dt_bias=memory.empty((HEADS,), "fp32"),
                z=memory.empty((BATCH, HEADS, DIM)), out=memory.empty((BATCH, HEADS, DIM)),
                state_batch_indices=memory.of([2, 5, -1], "int64"))
    made.update(changed)
    return made


def test_a_launch_passes_every_tensor_s_address_on(session, driver):
    step = session.prepare(STEP, 64)
    given = tensors()
    step.launch(**given)
    assert driver.launches == 1
    for name, tensor in given.items():
        assert tensor.data_ptr() in addresses(driver), name


def test_the_stream_is_the_given_one_else_the_framework_s(session, driver):
    import tvm_ffi

    step = session.prepare(STEP, 64)
    step.launch(stream=0x1234, **tensors())
    assert driver.last.stream == 0x1234
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), 0x5678):
        step.launch(**tensors())
    assert driver.last.stream == 0x5678
    step.launch(**tensors())
    assert not driver.last.stream


def test_pdl_is_asked_for_by_name(session, driver):
    step = session.prepare(STEP, 64)
    step.launch(**tensors())
    assert driver.last.pdl == 0
    step.launch(pdl="wait_first", **tensors())
    assert driver.last.pdl == 1
    with pytest.raises(ssmjit.InvalidError, match="pdl: got 'soon'"):
        step.launch(pdl="soon", **tensors())


WRONG = {
    "a tensor on the CPU": (dict(x=memory.empty((BATCH, HEADS, DIM), device=(memory.CPU, 0))),
                            "x: got a tensor on cpu; wants one on cuda:0"),
    "another GPU's": (dict(B=memory.empty((BATCH, GROUPS, DSTATE), device=(memory.CUDA, 1))),
                      "B: got a tensor on cuda:1; the kernel was prepared on cuda:0"),
    "a wrong dtype": (dict(dt=memory.empty((BATCH, HEADS), "bf16")), "dt: got dtype bf16; wants fp32"),
    "a dtype of no kernel": (dict(A=memory.empty((HEADS,), "fp64")), "A: got dtype float64; kernels take fp32"),
    "a wrong shape": (dict(C=memory.empty((BATCH, GROUPS, 64))), "C: got shape"),
    "six dimensions": (dict(z=memory.empty((BATCH, 1, 1, 1, HEADS, DIM))), "z: got 6 dimensions"),
    "not contiguous": (dict(x=memory.empty((BATCH, HEADS, 2 * DIM))[:, :, ::2]), "x: dimension 2 has stride 2"),
    "requires grad": (dict(D=memory.Tensor(memory.empty((HEADS,), "fp32").array, "fp32", requires_grad=True)),
                      "D: requires grad"),
    "not given": (dict(dt_bias=None), "dt_bias: not given"),
    "superfluous": (dict(dst_state_batch_indices=memory.of([1, 3, 4], "int64")),
                    "dst_state_batch_indices: given, but the description has no destination slots"),
    "no tensor": (dict(out="here"), "out: got"),
    "a name of no tensor": (dict(bias=memory.empty((HEADS,), "fp32")),
                            "bias: a launch of op update has no such tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_tensor_that_does_not_fit_is_named_before_any_launch(session, driver, case, monkeypatch):
    monkeypatch.setattr("ssmjit.session.is_grad_enabled", lambda: True)
    changed, sentence = WRONG[case]
    step = session.prepare(STEP, 64)
    with pytest.raises(ssmjit.InvalidError) as caught:
        step.launch(**tensors(**changed))
    assert sentence in str(caught.value)
    assert driver.launches == 0


def test_all_wrong_tensors_are_named_in_one_go(session, driver):
    step = session.prepare(STEP, 64)
    with pytest.raises(ssmjit.InvalidError, match="(?s)dt: got dtype.*C: got shape"):
        step.launch(**tensors(dt=memory.empty((BATCH, HEADS), "bf16"), C=memory.empty((BATCH, GROUPS, 64))))


def test_a_batch_above_what_was_prepared_is_refused_with_the_way_out(session, driver):
    step = session.prepare(STEP, 2)
    with pytest.raises(ssmjit.InvalidError, match="prepare"):
        step.launch(**tensors())
    assert driver.launches == 0


def test_nothing_is_prepared_while_its_stream_is_captured(session, driver):
    driver.capturing = 1
    with pytest.raises(ssmjit.InvalidError, match="captur"):
        session.prepare(STEP.set(dt="bf16"), 16, stream=0x1234)
    driver.capturing = 0
    step = session.prepare(STEP, 64)
    driver.capturing = 1
    step.launch(**tensors())  # what is prepared is safe there
    assert driver.launches == 1
    with pytest.raises(ssmjit.InvalidError, match="checked"):
        step.launch(checked=True, **tensors())


def test_checked_names_what_the_indices_do(session, driver):
    step = session.prepare(STEP, 64)
    with pytest.raises(ssmjit.InvalidError, match="slot 5"):
        step.launch(checked=True, **tensors(state_batch_indices=memory.of([5, 5, -1], "int32")))
    with pytest.raises(ssmjit.InvalidError, match="99"):
        step.launch(checked=True, **tensors(state_batch_indices=memory.of([1, 99, -1], "int32")))


def test_an_empty_batch_launches_nothing(session, driver):
    step = session.prepare(STEP, 64)
    step.launch(**tensors(x=memory.empty((0, HEADS, DIM)), dt=memory.empty((0, HEADS), "fp32"),
                          B=memory.empty((0, GROUPS, DSTATE)), C=memory.empty((0, GROUPS, DSTATE)),
                          z=memory.empty((0, HEADS, DIM)), out=memory.empty((0, HEADS, DIM)),
                          state_batch_indices=memory.empty((0,), "int64")))
    assert driver.launches == 0


def test_a_prepared_says_what_it_holds(session):
    step = session.prepare(STEP, 64)
    assert step.max_batch == 64 and step.device["key"] == "h200"
    assert sum(kernel["batches_off"] for kernel in step.kernels()) == 64
    choice = step.choose(8)
    assert choice == session.choose(STEP, 8) and "block_m" in choice.plan
    assert step.scratch_bytes() == 0
    with pytest.raises(ssmjit.InvalidError):
        step.choose(65)
    forced = session.prepare(STEP, 4, force=choice.plan)
    assert forced.choose(3).reason == "forced"


def test_what_a_forced_plan_leaves_out_is_the_default_plan_s(session):
    whole = session.plan_of("warps=2", STEP, 4)
    assert "warps=2" in whole and "block_m=" in whole
    assert session.prepare(STEP, 4, force="warps=2").choose(3).plan == whole
    with pytest.raises(ssmjit.InvalidError, match='plan: got "colour=blue"'):
        session.plan_of("colour=blue", STEP)


def test_all_kernels_of_a_model_are_prepared_at_once(session, driver):
    described = [STEP, ssmjit.conv1d(256), ssmjit.gated_norm(256)]
    steps = ssmjit.Session().prepare_all(described, 2, chain=False)
    assert [step.description for step in steps] == described and all(step.max_batch == 2 for step in steps)
    steps[0].launch(**{name: tensor if name in ("state", "A", "D", "dt_bias") else tensor[:2]
                       for name, tensor in tensors().items()})
    assert driver.launches == 1
    assert session.prepare_all([]) == []


def test_a_plan_of_another_gpu_is_chosen_without_one(session):
    shipped = ssmjit.load_model("nemotron3-super-tp8").kernel("update")
    assert session.choose(shipped, 8, device="h200").why == "exact"
    with pytest.raises(ssmjit.InvalidError):
        session.choose(STEP, 8, device="abacus")


def test_no_jit_names_what_is_missing(driver, tmp_path):
    cold = ssmjit.Session(cache_dir=tmp_path, no_jit=True)
    with pytest.raises(ssmjit.MissingError, match="mamba2 update|block_m"):
        cold.prepare(STEP.set(dt="bf16", weights="bf16"), 4)
    assert cold.cache_dir == str(tmp_path)


def test_a_bundle_stands_in_for_the_compiler(session, driver, tmp_path):
    step = STEP.set(store="in_place")
    folder = tmp_path / "bundle"
    files = ssmjit.write_bundle(folder, {"tiny:update": step}, ["sm_90a"], ["h200"], max_batch=2)
    assert files and ssmjit.is_bundle(folder) and not ssmjit.is_bundle(tmp_path)
    assert ssmjit.bundle_problems(folder) == {}
    bundled = ssmjit.Session(seeds=[folder], cache_dir=tmp_path / "cold", no_jit=True).prepare(step, 2)
    bundled.launch(**{name: tensor if name in ("state", "A", "D", "dt_bias") else tensor[:2]
                      for name, tensor in tensors().items()})
    assert driver.launches == 1


def test_a_replay_is_launched(session, driver):
    tokens = 4
    replay = ssmjit.mamba2(HEADS, DIM, DSTATE, GROUPS, store="replay", tokens=tokens, state="bf16")
    step = session.prepare(replay, 8)
    rows = (BATCH, tokens)
    given = dict(state=memory.empty((SLOTS, HEADS, DIM, DSTATE)), old_x=memory.empty((SLOTS, tokens, HEADS, DIM)),
                 old_B=memory.empty((SLOTS, 2, tokens, GROUPS, DSTATE)),
                 old_dt=memory.empty((SLOTS, 2, HEADS, tokens), "fp32"),
                 old_cumAdt=memory.empty((SLOTS, 2, HEADS, tokens), "fp32"),
                 cache_buf_idx=memory.empty((SLOTS,), "int32"),
                 prev_num_accepted_tokens=memory.empty((SLOTS,), "int32"), x=memory.empty((*rows, HEADS, DIM)),
                 dt=memory.empty((*rows, HEADS), "fp32"), A=memory.empty((HEADS,), "fp32"),
                 B=memory.empty((*rows, GROUPS, DSTATE)), C=memory.empty((*rows, GROUPS, DSTATE)),
                 D=memory.empty((HEADS,), "fp32"), dt_bias=memory.empty((HEADS,), "fp32"),
                 out=memory.empty((*rows, HEADS, DIM)), state_batch_indices=memory.of([2, 5, -1], "int32"))
    if step.scratch_bytes():
        given["scratch"] = memory.empty((step.scratch_bytes(),), "int8")
    step.launch(**given)
    assert driver.launches >= 1
    for name in ("old_x", "old_cumAdt", "cache_buf_idx"):
        assert given[name].data_ptr() in addresses(driver), name


def test_a_is_prepared_from_a_log(session, driver):
    prepare_A = session.prepare_A()
    A_log, A = memory.empty((HEADS,), "bf16"), memory.empty((HEADS,), "fp32")
    prepare_A.launch(A_log, A)
    assert driver.launches == 1 and A.data_ptr() in addresses(driver)
    with pytest.raises(ssmjit.InvalidError, match="A: got dtype"):
        prepare_A.launch(A_log, memory.empty((HEADS,), "bf16"))


def test_slots_of_a_ring_are_reset(session, driver):
    ring = ssmjit.mamba2(HEADS, DIM, DSTATE, GROUPS, store="ring:16", state="bf16")
    slots = session.ring_slots(ring)
    layer = dict(state=memory.empty((SLOTS, HEADS, DIM, DSTATE)), x_ring=memory.empty((SLOTS, HEADS, 17, DIM)),
                 B_ring=memory.empty((SLOTS, GROUPS, 17, DSTATE)), dt_ring=memory.empty((SLOTS, HEADS, 17), "fp32"),
                 A=memory.empty((HEADS,), "fp32"))
    table = slots.layer_table([layer, layer])
    assert len(table) == 2 and table[0] == table[1] and layer["state"].data_ptr() in table[0]
    slots.reset(layers=memory.of(table, "int64"), slots=memory.of([1, 2], "int32"),
                ring_start=memory.empty((SLOTS,), "int32"), ring_count=memory.empty((SLOTS,), "int32"))
    assert driver.launches == 1


def test_warnings_go_to_the_callback(tmp_path):
    said = []
    ssmjit.set_log(lambda level, text: said.append((str(level), str(text))))
    try:
        ssmjit.Session(tables=[tmp_path / "none.json"])
    finally:
        ssmjit.set_log(None)
    assert any(level == "warning" and "none.json" in text for level, text in said)


def test_what_a_model_needs_beside_its_steps_belongs_to_the_current_gpu(session, driver):
    driver.devices, driver.device = 2, 1
    gpu = (memory.CUDA, 1)
    prepare_A = ssmjit.Session().prepare_A()
    prepare_A.launch(memory.empty((HEADS,), "bf16", gpu), memory.empty((HEADS,), "fp32", gpu))
    assert driver.launches == 1
    with pytest.raises(ssmjit.InvalidError, match="A_log: got a tensor on cuda:0; the kernel was prepared on cuda:1"):
        prepare_A.launch(memory.empty((HEADS,), "bf16"), memory.empty((HEADS,), "fp32"))
    slots = ssmjit.Session().ring_slots(ssmjit.mamba2(HEADS, DIM, DSTATE, GROUPS, store="ring:16", state="bf16"))
    with pytest.raises(ssmjit.InvalidError, match="layers: got a tensor on cuda:0; the kernel was prepared on cuda:1"):
        slots.reset(layers=memory.empty((1, 12), "int64"), slots=memory.of([1], "int32", gpu))
    with pytest.raises(ssmjit.InvalidError, match="pieces: got a tensor on cuda:0; the kernel was prepared on cuda:1"):
        ssmjit.Session().slot_copies().launch(pieces=memory.empty((1, 4), "int64"))
    assert driver.launches == 1


def test_only_a_checked_launch_lets_other_threads_run():
    # It waits for the stream, whose work may wait for another thread; without it a launch is over before that.
    from ssmjit import session as module

    assert module._launch_checked.release_gil and not module._launch.release_gil


def test_a_checked_launch_goes_where_threads_may_run(session, driver, monkeypatch):
    step, went = session.prepare(STEP, 64), []
    for name in ("_launch", "_launch_checked"):
        monkeypatch.setattr(f"ssmjit.session.{name}", lambda *_, name=name: went.append(name))
    step.launch(**tensors())
    step.launch(checked=True, **tensors())
    assert went == ["_launch", "_launch_checked"]
