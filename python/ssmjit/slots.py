"""Output slots: a verify step of several tokens writes the state after each token to a slot of its own (store=slots),
so that keeping some of the tokens is to read another slot in the next step. The names of include/ssmjit/slots.h.

    pool = OutputPool(working=256, requests=65, tokens=6)   # each pool of states has pool.total() slots
    current = [WORKING_SLOT] * 65
    # a step: state_batch_indices[b] and row b of dst_state_batch_indices, of the request of row b
    input_slot(pool, request, current[r]), output_row(pool, request)
    current[r] = accepted_slot(pool, request, accepted)     # after it; a prefill sets WORKING_SLOT again
"""

from typing import NamedTuple

from ._ffi import function

_validate_pool = function("validate_pool")
_output_slot = function("output_slot")
_output_row = function("output_row")
_input_slot = function("input_slot")
_accepted_slot = function("accepted_slot")
_retract_copy = function("retract_copy")
_checkpoint_copy = function("checkpoint_copy")
_slot_copy_table = function("slot_copy_table")

WORKING_SLOT = -1  # where a request's state is: a slot, or this, its working slot
SLOT_PIECE_WORDS = 4


class OutputPool(NamedTuple):
    """How a pool's slots are divided: the scheduler's `working` ones, then for each of the engine's `requests` (one
    that pads use included) one for every token of a step but the first."""

    working: int = 0
    requests: int = 0
    tokens: int = 1

    def drafts_each(self):
        return max(self.tokens - 1, 0)

    def draft_base(self):
        return self.working

    def total(self):
        return self.working + self.requests * self.drafts_each()

    def validate(self):
        """InvalidError for sizes below 1 and for more slots than an int32 counts."""
        _validate_pool(self)


class SlotRequest(NamedTuple):
    """A row of a step's batch: its row of the engine's table, its working slot, and, only in the step that it starts
    with from a slot that others read too, that slot. A pad has -1 in either of the first two."""

    request: int = -1
    working: int = -1
    shared: int = -1


class SlotCopy(NamedTuple):
    """Of one slot to another; none where `source` is -1."""

    source: int = -1
    target: int = -1


# All raise InvalidError for a request or a slot outside the pool, and for a `current` that is neither the request's
# working slot nor one of its own draft slots.


def output_slot(pool, request, token):
    """Where the state after token `token` goes; -1 for a pad."""
    return _output_slot(pool, request, token)


def output_row(pool, request):
    """The same of all tokens, a list."""
    return list(_output_row(pool, request))


def input_slot(pool, request, current):
    """The slot that the step reads; -1 for a pad."""
    return _input_slot(pool, request, current)


def accepted_slot(pool, request, accepted):
    """`current` after a step of which `accepted` tokens are kept (clamped to 1 to pool.tokens). -1 for a pad."""
    return _accepted_slot(pool, request, accepted)


def retract_copy(pool, request, current):
    """The copy that a request asks for whose working slot is about to be saved or moved; its `current` is WORKING_SLOT
    afterwards."""
    return SlotCopy(*_retract_copy(pool, request, current))


def checkpoint_copy(pool, request, length, accepted, page, checkpoint):
    """The copy to `checkpoint` of the state at the first boundary of a page of `page` tokens that a step passed:
    `length` tokens were in the state before it, `accepted` of the step's are kept."""
    return SlotCopy(*_checkpoint_copy(pool, request, length, accepted, page, checkpoint))


def slot_copy_table(pools):
    """What SlotCopies.launch copies of a slot, rows of SLOT_PIECE_WORDS numbers for the device, good as long as the
    pools stay where they are. `pools`: layers' states, factors, windows, [slots, ...], all but dimension 0 contiguous;
    InvalidError names by number those that are not so."""
    words = list(_slot_copy_table(*pools))
    return [words[i:i + SLOT_PIECE_WORDS] for i in range(0, len(words), SLOT_PIECE_WORDS)]
