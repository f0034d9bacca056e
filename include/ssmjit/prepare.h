// What a model load prepares once, so that no decode step does.
//
//   PrepareA prepare_A = PrepareA::load();                       // a module for all layers
//   prepare_A.launch(A_log, A, stream);                          // a layer; A: nheads * 4 bytes of the caller's
//   ...                                                          // UpdateArgs::A, RingArgs::A = A, in captured graphs
//   too prepare_A.launch(A_log, A, stream);                          // whenever A_log has changed: same address, new
//   values
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/kernel.h>

namespace ssmjit {

// A = -exp(A_log), fp32, as the kernels take A. A is the caller's memory and stays where it is for as long as a
// captured graph reads it: a replay runs no code of the host, so nothing but another launch brings it up to date.
// Refresh it after every change of A_log (a load of weights, an update in training or RL, a dtype cast in place), on
// the stream of the steps or before they start.
class PrepareA {
 public:
  // As Kernel::load(); for any number of heads and layers.
  static PrepareA load(const CompileOptions& options = {}, void* stream = nullptr);
  // A given cubin of emit_prepare_A(). Fails: as Kernel::load() does.
  static PrepareA load(const Source& source, const Cubin& cubin);

  // A_log: [nheads], fp32, bf16 or fp16, contiguous. A: [nheads], fp32, contiguous; written; not A_log itself, which a
  // refresh needs. As Kernel::launch(): asynchronous, safe under capture and from many threads; launches nothing for no
  // heads. A step behind it with Pdl::early_state would read A too early: one launch without PDL must stand in between.
  // Fails: ErrorKind::invalid for a tensor that does not fit, naming it; ErrorKind::machine when the driver refuses.
  void launch(const Tensor& A_log, const Tensor& A, void* stream) const;

  // Fails: ErrorKind::invalid for a PrepareA that was never loaded; so does launch().
  const Cubin& cubin() const;

  // The checks of launch() alone: one sentence a wrong tensor; empty when all is well. Needs no GPU.
  static std::vector<std::string> problems(const Tensor& A_log, const Tensor& A);

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace ssmjit
