// The handles of the C interface: an object of the library behind a pointer that outlives it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>

#include "codegen/fail.h"

namespace ssmjit {

// What a handle is of; any other value is no handle. The letters say which it is in a debugger.
enum class HandleKind : std::uint64_t {
  session = 0x5353454A53545353,      // "SSTSJESS"
  prepared = 0x5353504A53545050,     // "PPTSJPSS"
  prepare_A = 0x5353414A53544141,    // "AATSJASS"
  ring_slots = 0x5353524A53545252,   // "RRTSJRSS"
  slot_copies = 0x5353434A53544343,  // "CCTSJCSS"
  none = 0x5353000053530000,         // destroyed
};
struct HandleWords {
  const char *name, *made_by, *destroyed_by;
};
HandleWords words_of(HandleKind kind);

// 16 bytes, never given back, so that a handle that was destroyed is known for what it was.
struct Handle {
  std::atomic<HandleKind> kind;
  void* object;
};

// Never freed, and reachable for leak checkers.
Handle* new_handle(HandleKind kind, void* object);

// Says what is wrong with a handle that is not of `wanted`.
[[noreturn]] void refuse_handle(const Handle* handle, HandleKind wanted);

template <class Object>
const Object& object_of(const void* pointer, HandleKind wanted) {
  const auto* handle = static_cast<const Handle*>(pointer);
  const bool aligned = reinterpret_cast<std::uintptr_t>(pointer) % alignof(Handle) == 0;
  if (handle == nullptr || !aligned || handle->kind.load(std::memory_order_acquire) != wanted) [[unlikely]]
    refuse_handle(handle, wanted);
  return *static_cast<const Object*>(handle->object);
}

template <class Object>
void destroy(void* pointer, HandleKind kind) {
  object_of<Object>(pointer, kind);
  auto* handle = static_cast<Handle*>(pointer);
  HandleKind expected = kind;
  if (!handle->kind.compare_exchange_strong(expected, HandleKind::none)) refuse_handle(handle, kind);
  delete static_cast<Object*>(handle->object);
}

}  // namespace ssmjit
