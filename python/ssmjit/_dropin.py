"""What the drop-ins share. A call costs one lookup by what its tensors look like; the first of its kind is checked as
the peer checks it, described, prepared and kept."""

from ._ffi import function
from .description import Description
from .errors import InternalError, InvalidError
from .session import Session, _capturable, wants_grad  # noqa: F401  the drop-ins ask it too

try:
    import torch
    from torch import empty_like, is_grad_enabled
except ImportError:  # tensors that look like torch's
    torch = None

    def empty_like(tensor):
        return tensor.new_empty(tensor.shape)

    def is_grad_enabled():
        return False


_facts = function("facts")
_held = {}  # the session, made when first wanted
MOST_ROWS = 65535


def use_session(session):
    """The Session that drop-ins prepare their kernels with from now on: tables, bundles and cache of the caller's
    choice. What they have prepared stays."""
    _held["session"] = session


def current_session():
    if "session" not in _held:
        _held["session"] = Session()
    return _held["session"]


class Facts:
    """What a tensor is: its name as the peer calls it, device, dtype ("bf16"), shape and strides in elements."""

    def __init__(self, name, tensor):
        self.name = name
        device, ordinal, dtype, shape, strides = _facts(tensor, name)
        self.device, self.ordinal, self.dtype = str(device), int(ordinal), str(dtype)
        self.shape, self.strides = tuple(shape), tuple(strides)

    def stride(self, dim):
        """As the kernels see it: of a dimension of one element 0."""
        return self.strides[dim] if self.shape[dim] > 1 else 0


def facts_of(**tensors):
    """Facts by name, None for what is not given. InvalidError, naming it, for what is no tensor or lies elsewhere than
    the first one, which has to be on a GPU."""
    found = {name: None if tensor is None else Facts(name, tensor) for name, tensor in tensors.items()}
    first = next(each for each in found.values() if each is not None)
    for each in found.values():
        if each is None:
            continue
        if each.ordinal < 0:
            raise InvalidError(f"{each.name}: got a tensor on {each.device}; wants one on a GPU")
        if each.ordinal != first.ordinal:
            raise InvalidError(f"{each.name}: got a tensor on {each.device}; wants one on {first.device}, as "
                               f"{first.name}")
    return found


def peer_asserts(condition, sentence):
    """What the peer asserts, with a sentence."""
    if not condition:
        raise AssertionError(sentence)


def not_covered(name, sentence):
    raise NotImplementedError(f"{name}: {sentence}")


def wants_dtype(tensor, allowed, why):
    if tensor is not None and tensor.dtype not in allowed:
        not_covered(tensor.name, f"got {tensor.dtype}; {why} {' or '.join(allowed)}")


def same_dtype(tensor, other):
    if tensor is not None and tensor.dtype != other.dtype:
        not_covered(tensor.name, f"got {tensor.dtype} where {other.name} is {other.dtype}; kernels take one dtype for "
                                 "both")


def one_value_a_head(tensor, dims):
    """The last `dims` dimensions are a head's value expanded, with strides of 0."""
    if tensor is None:
        return
    if any(tensor.stride(dim) != 0 for dim in range(-dims, 0)):
        not_covered(tensor.name, f"has a value for each element (strides {list(tensor.strides)}); kernels take one a "
                                 f"head, as a view expanded over the last {dims} dimension{'s' if dims > 1 else ''}")


def refuse_grad(**tensors):
    """For callers that would expect a backward: the first of the tensors that wants_grad() is about, by name."""
    for name, tensor in tensors.items():
        if getattr(tensor, "requires_grad", False):
            not_covered(name, "requires grad, and there is no backward; call under torch.no_grad() or give "
                              f"{name}.detach()")


class Elsewhere:
    """Whether a tensor is on another GPU than the thread works on; one GPU is the common case, known for good."""

    several = None

    def __call__(self, tensor):
        if self.several is None:
            self.several = torch is not None and torch.cuda.is_available() and torch.cuda.device_count() > 1
        return self.several and tensor.is_cuda and tensor.get_device() != torch.cuda.current_device()


elsewhere = Elsewhere()


def on_its_device(call, tensor, *arguments, **more):
    with torch.cuda.device(tensor.device):
        return call(*arguments, **more)


class Calls:
    """The calls of one drop-in. `call(key, pad_slot_id, pdl, flags, *tensors)` launches and says so, or does nothing
    and says that too; tensors in the order of the op's arguments (python/src/calls.h)."""

    def __init__(self, op, first_dim=1):
        self.op, self.first_dim = op, first_dim
        self.call, self._put, self._aligned = function("calls")(op, first_dim)
        self.call.release_gil = False

    def aligned(self, tensors):
        return bool(self._aligned(*tensors))

    def first(self, description, batch, arguments):
        """Prepares what `description` (a dict of its JSON form) says, and launches; `arguments` as call() takes them.
        NotImplementedError for what kernels can't do, with the library's sentence."""
        key, _, _, _, *tensors = arguments
        if batch > MOST_ROWS:
            not_covered("x", f"has {batch} rows; a launch takes up to {MOST_ROWS}")
        described = Description(description)
        problems = described.problems()
        if problems:
            raise NotImplementedError("\n".join(problems))
        # Room for the batches to come, so that the next one is not a first one again.
        max_batch = min(max(256, 1 << max(batch - 1, 0).bit_length()), MOST_ROWS)
        try:
            prepared = current_session().prepare(described, max_batch, stream=_capturable(None))
        except InvalidError as error:
            if "is being captured" not in str(error):
                raise
            raise InvalidError(f"{error}; for a drop-in: call it once with such tensors before the capture") from error
        self._put(prepared._held, key, *tensors)
        self.again(arguments)

    def again(self, arguments):
        try:
            if not self.call(*arguments):
                raise InternalError("a drop-in does not find the kernel that it has just prepared; please report it")
        except InvalidError as error:
            # What the peer takes and kernels do not: strides, alignment.
            raise NotImplementedError(str(error)) from error
