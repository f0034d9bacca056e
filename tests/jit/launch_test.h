// What the tests of every op's launches share.
#pragma once

#include <cstdint>
#include <cstring>

#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/kernel.h>
#include <ssmjit/source.h>

#include "tests/jit/stub_driver.h"

namespace ssmjit {

// Well-aligned addresses that nothing reads.
inline const void* address(std::uintptr_t value) { return reinterpret_cast<const void*>(value); }

inline Error error_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(ErrorKind::internal, "");
}

// Launches on the stub driver, of a kernel whose arguments on the device are `DeviceArgs`.
template <class DeviceArgs>
class StubLaunchTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!stub_.ready()) GTEST_SKIP() << "the stub driver was not built (SSMJIT_STUB_LIBCUDA)";
    stub_->argument_bytes = sizeof(DeviceArgs);
  }

  // With its default plan, which is left in plan_.
  Kernel load(const Description& description) {
    plan_ = default_plan(description, arch_, 3 * description.nheads);
    const LaunchShape shape = launch_shape(plan_, description, 1);
    Source source;
    source.text = "never compiled";
    source.arch = arch_;
    source.entries = {{"k", shape.block_threads, shape.smem_bytes}};
    Cubin cubin;
    cubin.image.assign(16, 'c');
    cubin.arch = arch_;
    return Kernel::load(description, plan_, source, cubin);
  }

  DeviceArgs launched() const {
    DeviceArgs args{};
    std::memcpy(&args, stub_->last.arguments, sizeof args);
    return args;
  }

  StubDriver stub_;
  Arch arch_{9, 0, 'a'};
  Plan plan_;
};

}  // namespace ssmjit
