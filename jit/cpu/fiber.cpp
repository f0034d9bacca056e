#include "jit/cpu/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>

#include "codegen/fail.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ssmjit::cpu {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

// What a fiber does first after a switch to it: it keeps where the other one stands.
struct Arrival {
  Fiber* from;
  Fiber* to;

  void complete(fcontext_t from_context) const {
    from->context_ = from_context;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(to->fake_stack_, &from->bottom_, &from->bytes_);
    to->fake_stack_ = nullptr;
#endif
  }
  [[noreturn]] static void first(transfer_t transfer) {
    const Arrival arrival = *static_cast<const Arrival*>(transfer.data);
    arrival.complete(transfer.fctx);
    arrival.to->run_();
    __builtin_unreachable();
  }
};

namespace {

std::size_t page_bytes() {
  static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Pages::Pages(std::size_t bytes) : bytes_((bytes + page_bytes() - 1) / page_bytes() * page_bytes()) {
  void* data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) fail(ErrorKind::machine, "CPU executor: no {} bytes of address space are left", bytes_);
  data_ = static_cast<std::byte*>(data);
}

Pages::~Pages() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(data_, bytes_);
#endif
  munmap(data_, bytes_);
}

void Pages::guard(std::size_t offset) { mprotect(data_ + offset, page_bytes(), PROT_NONE); }

void Fiber::prepare(std::byte* stack, std::size_t bytes, void (*run)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, bytes);  // what a fiber that was given up left there
#endif
  run_ = run;
  bottom_ = stack;
  bytes_ = bytes;
  fake_stack_ = nullptr;
  context_ = make_fcontext(stack + bytes, bytes, &Arrival::first);
}

void Fiber::change(Fiber& from, Fiber& to) {
  const Arrival arrival{&from, &to};
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.bytes_);
#endif
  const transfer_t back = jump_fcontext(to.context_, const_cast<Arrival*>(&arrival));
  static_cast<const Arrival*>(back.data)->complete(back.fctx);
}

}  // namespace ssmjit::cpu
