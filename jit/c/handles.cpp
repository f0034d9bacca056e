#include "jit/c/handles.h"

#include <fmt/format.h>

#include <ssmjit/error.h>

namespace ssmjit {

HandleWords words_of(HandleKind kind) {
  switch (kind) {
    case HandleKind::session:
      return {"session", "ssmjit_session_create()", "ssmjit_session_destroy()"};
    case HandleKind::prepared:
      return {"step", "ssmjit_prepare()", "ssmjit_prepared_destroy()"};
    case HandleKind::prepare_A:
      return {"prepare_A", "ssmjit_prepare_A_create()", "ssmjit_prepare_A_destroy()"};
    case HandleKind::ring_slots:
      return {"slots", "ssmjit_ring_slots_create()", "ssmjit_ring_slots_destroy()"};
    case HandleKind::slot_copies:
      return {"copies", "ssmjit_slot_copies_create()", "ssmjit_slot_copies_destroy()"};
    case HandleKind::none:
      break;
  }
  return {nullptr, nullptr, nullptr};
}

Handle* new_handle(HandleKind kind, void* object) {
  static std::mutex mutex;
  static auto& all = *new std::deque<Handle>;
  const std::lock_guard lock(mutex);
  Handle& handle = all.emplace_back();
  handle.object = object;
  handle.kind.store(kind, std::memory_order_release);
  return &handle;
}

void refuse_handle(const Handle* handle, HandleKind wanted) {
  const HandleWords words = words_of(wanted);
  if (handle == nullptr) fail(ErrorKind::invalid, "{}: got a null handle; make one with {}", words.name, words.made_by);
  if (reinterpret_cast<std::uintptr_t>(handle) % alignof(Handle) == 0) {
    const HandleKind kind = handle->kind.load(std::memory_order_acquire);
    if (kind == HandleKind::none)
      fail(ErrorKind::invalid, "{}: the handle was destroyed; make another with {}", words.name, words.made_by);
    if (const HandleWords other = words_of(kind); other.name != nullptr)
      fail(ErrorKind::invalid, "{}: got a handle made by {}; wants one made by {}", words.name, other.made_by,
           words.made_by);
  }
  fail(ErrorKind::invalid, "{}: {} is no handle of ssmjit; make one with {}", words.name,
       fmt::ptr(static_cast<const void*>(handle)), words.made_by);
}

}  // namespace ssmjit
