// What Python holds, and how a launch's tensors are read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <tvm/ffi/extra/c_env_api.h>

#include <ssmjit/session.h>

#include "op_args.h"
#include "tensors.h"

namespace ssmjit::python {

struct SessionObject : ffi::Object {
  explicit SessionObject(const SessionOptions& options) : session(options) {}
  Session session;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("ssmjit.Session", SessionObject, ffi::Object);
};

struct PreparedObject : ffi::Object {
  explicit PreparedObject(Prepared prepared)
      : prepared(std::move(prepared)), ordinal(this->prepared.device().ordinal) {}
  Prepared prepared;
  int ordinal;  // of the GPU
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("ssmjit.Prepared", PreparedObject, ffi::Object);
};

struct PrepareAObject : ffi::Object {
  PrepareAObject(PrepareA prepare_A, int ordinal) : prepare_A(std::move(prepare_A)), ordinal(ordinal) {}
  PrepareA prepare_A;
  int ordinal;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("ssmjit.PrepareA", PrepareAObject, ffi::Object);
};

struct RingSlotsObject : ffi::Object {
  RingSlotsObject(RingSlots slots, int ordinal) : slots(std::move(slots)), ordinal(ordinal) {}
  RingSlots slots;
  int ordinal;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("ssmjit.RingSlots", RingSlotsObject, ffi::Object);
};

struct SlotCopiesObject : ffi::Object {
  SlotCopiesObject(SlotCopies copies, int ordinal) : copies(std::move(copies)), ordinal(ordinal) {}
  SlotCopies copies;
  int ordinal;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("ssmjit.SlotCopies", SlotCopiesObject, ffi::Object);
};

// The object that an argument is. Fails: ErrorKind::invalid for anything else.
template <class Object>
const Object* held(const ffi::AnyView& argument) {
  const Object* object = argument.as<Object>();
  if (object == nullptr)
    fail(ErrorKind::invalid, std::string("got ") + argument.GetTypeKey() + "; wants a " + Object::_type_key);
  return object;
}

// Calls `visit` with an empty arguments struct of the op.
template <class Visit>
decltype(auto) with_args_of(Op op, Visit&& visit) {
  switch (op) {
    case Op::update:
      return visit(UpdateArgs{});
    case Op::ring:
      return visit(RingArgs{});
    case Op::conv1d:
      return visit(Conv1dArgs{});
    case Op::norm:
      return visit(NormArgs{});
    case Op::layer:
      return visit(LayerArgs{});
    case Op::replay:
      break;
  }
  return visit(ReplayArgs{});
}

// Fails: ErrorKind::invalid, with the names there are.
Op op_named(std::string_view text);

// The stream that the caller's framework works on, as tvm-ffi was told; the default one where it was not.
inline void* current_stream(int ordinal) { return TVMFFIEnvGetStream(kDLCUDA, ordinal); }

// Fills the tensors of `args` from arguments[first...]. Fails: ErrorKind::invalid for another number of them, for what
// is no tensor or not on GPU `ordinal`, naming it.
template <class Args>
void read_tensors(const ffi::PackedArgs& arguments, int first, int ordinal, Args& args) {
  if (arguments.size() - first != static_cast<int>(kFieldCount<Args>))
    fail(ErrorKind::internal, "a launch got " + std::to_string(arguments.size() - first) + " tensors; it has " +
                                  std::to_string(kFieldCount<Args>));
  for (int i = 0; i < static_cast<int>(kFieldCount<Args>); ++i) {
    const Field<Args>& field = OpArgs<Args>::fields[static_cast<std::size_t>(i)];
    const DLTensor* tensor = dltensor_of(arguments[first + i], field.name);
    if (tensor == nullptr) continue;
    check_device(*tensor, field.name, ordinal);
    args.*field.tensor = tensor_of(*tensor, field.name);
  }
}

Pdl pdl_of(std::int64_t value);

}  // namespace ssmjit::python
