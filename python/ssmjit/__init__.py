"""ssmjit: kernels for the decode step of state-space models, chosen by measured tables and compiled when first wanted.

    import ssmjit

    step = ssmjit.Session().prepare(ssmjit.load_model("nemotron3-super-tp8").kernel("update"), max_batch=64)
    step.launch(state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, out=out, state_batch_indices=slots)

Drop-ins with their peers' signatures: ssmjit.mamba_ssm, ssmjit.causal_conv1d, ssmjit.flashinfer.
"""

from ._dropin import use_session
from ._ffi import function as _function
from .description import (Description, Model, conv1d, from_hf, gated_norm, load_model, mamba2, shipped_models)
from .errors import Error, InternalError, InvalidError, MachineError, MissingError
from .session import (Choice, PrepareA, Prepared, RingSlots, Session, SlotCopies, bundle_problems, devices, is_bundle,
                      set_log, write_bundle)
from .slots import (SLOT_PIECE_WORDS, WORKING_SLOT, OutputPool, SlotCopy, SlotRequest, accepted_slot, checkpoint_copy,
                    input_slot, output_row, output_slot, retract_copy, slot_copy_table)

__version__ = str(_function("version")())
__all__ = [
    "SLOT_PIECE_WORDS", "WORKING_SLOT", "Choice", "Description", "Error", "InternalError", "InvalidError",
    "MachineError", "MissingError", "Model", "OutputPool", "PrepareA", "Prepared", "RingSlots", "Session", "SlotCopies",
    "SlotCopy", "SlotRequest", "accepted_slot", "bundle_problems", "checkpoint_copy", "conv1d", "devices", "from_hf",
    "gated_norm", "input_slot", "is_bundle", "load_model", "mamba2", "output_row", "output_slot", "retract_copy",
    "set_log", "shipped_models", "slot_copy_table", "use_session", "write_bundle",
]
