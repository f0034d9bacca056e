"""Output slots as C++ has them, and copies of whole slots."""

import device_memory as memory
import pytest
from conftest import addresses

import ssmjit

POOL = ssmjit.OutputPool(working=10, requests=4, tokens=4)
REQUEST = ssmjit.SlotRequest(request=1, working=5)


def test_a_pool_counts_its_slots_and_refuses_sizes_below_1():
    assert (POOL.drafts_each(), POOL.draft_base(), POOL.total()) == (3, 10, 22)
    POOL.validate()
    with pytest.raises(ssmjit.InvalidError, match="pool of output slots: requests: got 0; wants 1 or more"):
        POOL._replace(requests=0).validate()
    with pytest.raises(ssmjit.InvalidError, match="slots at most in all"):
        POOL._replace(requests=2**31).validate()


def test_the_first_token_goes_to_the_working_slot_all_others_to_the_request_s_own():
    assert ssmjit.output_row(POOL, REQUEST) == [5, 13, 14, 15]
    assert [ssmjit.output_slot(POOL, REQUEST, token) for token in range(4)] == [5, 13, 14, 15]
    assert ssmjit.output_row(POOL, ssmjit.SlotRequest()) == [-1] * 4
    with pytest.raises(ssmjit.InvalidError, match="token: got 4; wants 0 to 3"):
        ssmjit.output_slot(POOL, REQUEST, 4)
    with pytest.raises(ssmjit.InvalidError, match="request: got 4; wants 0 to 3"):
        ssmjit.output_row(POOL, ssmjit.SlotRequest(4, 5))


def test_keeping_some_tokens_is_to_read_another_slot():
    current = ssmjit.WORKING_SLOT
    assert ssmjit.input_slot(POOL, REQUEST, current) == 5
    for accepted, slot in ((1, 5), (3, 14), (0, 5), (9, 15)):  # clamped to 1 to 4
        current = ssmjit.accepted_slot(POOL, REQUEST, accepted)
        assert ssmjit.input_slot(POOL, REQUEST, current) == slot
    assert ssmjit.input_slot(POOL, REQUEST._replace(shared=9), ssmjit.WORKING_SLOT) == 9
    with pytest.raises(ssmjit.InvalidError, match="current slot of request 1: got 16"):
        ssmjit.input_slot(POOL, REQUEST, 16)


def test_copies_are_asked_for_where_a_scheduler_takes_the_working_slot():
    assert ssmjit.retract_copy(POOL, REQUEST, 14) == ssmjit.SlotCopy(source=14, target=5)
    assert ssmjit.retract_copy(POOL, REQUEST, ssmjit.WORKING_SLOT).source == -1
    assert ssmjit.checkpoint_copy(POOL, REQUEST, 30, 4, 32, 7) == ssmjit.SlotCopy(source=13, target=7)
    assert ssmjit.checkpoint_copy(POOL, REQUEST, 30, 1, 32, 7).source == -1
    with pytest.raises(ssmjit.InvalidError, match="page: got 0"):
        ssmjit.checkpoint_copy(POOL, REQUEST, 30, 4, 0, 7)


def test_slots_of_all_pools_are_copied_in_one_launch(session, driver):
    copies = session.slot_copies()
    states, windows = memory.empty((8, 4, 64, 128)), memory.empty((8, 3, 256))
    table = ssmjit.slot_copy_table([states, windows])
    assert all(len(row) == ssmjit.SLOT_PIECE_WORDS for row in table)
    assert states.data_ptr() in [word for row in table for word in row]
    pieces = memory.of(table, "int64")
    given = dict(pieces=pieces, src_slots=memory.of([1, -1], "int32"), dst_slots=memory.of([2, 3], "int32"))
    copies.launch(**given)
    assert driver.launches == 1 and pieces.data_ptr() in addresses(driver)
    with pytest.raises(ssmjit.InvalidError, match="src_slots: got a tensor on cpu"):
        copies.launch(**dict(given, src_slots=memory.of([1, -1], "int32", (memory.CPU, 0))))
    with pytest.raises(ssmjit.InvalidError, match="slots: a launch of op launch_slot_copies has no such tensor"):
        copies.launch(**given, slots=given["src_slots"])
    with pytest.raises(ssmjit.InvalidError, match=r"dst_slots\[0\] and \[1\] are both slot 2"):
        copies.launch(checked=True, **dict(given, src_slots=memory.of([1, 4], "int32"),
                                           dst_slots=memory.of([2, 2], "int32")))
    with pytest.raises(ssmjit.InvalidError, match="pair 0 reads slot 1, which pair 1 of the same launch writes"):
        copies.launch(checked=True, **dict(given, src_slots=memory.of([1, 4], "int32"),
                                           dst_slots=memory.of([2, 1], "int32")))
    assert driver.launches == 1
    with pytest.raises(ssmjit.InvalidError, match=r"pools\[1\]: got shape \[4, 3, 256\]; wants \[8, 3, 256\]"):
        ssmjit.slot_copy_table([states, windows[:4]])
