// The launch that prepares A.
#include <ssmjit/prepare.h>

#include <ssmjit/source.h>

#include "jit/kernel_args.h"
#include "jit/launch_checks.h"
#include "jit/module.h"

namespace ssmjit {

struct PrepareA::State {
  State(const Source& source, const Cubin& c)
      : cubin(c), block_threads(source.entries.front().block_threads), module(source, c) {}

  Cubin cubin;
  int block_threads;
  Module module;
};

namespace {

// Of A_log; the entries of the source, in order.
constexpr DType kDtypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr std::size_t kEntries = std::size(kDtypes);
constexpr std::int64_t kMostHeads = std::numeric_limits<int>::max();

template <class State>
const State& loaded(const std::shared_ptr<const State>& state) {
  if (state == nullptr) [[unlikely]]
    fail(ErrorKind::invalid, "an empty PrepareA can't be launched; make one with PrepareA::load()");
  return *state;
}

template <class Report>
void check_launch(const Tensor& A_log, const Tensor& A, Report&& report) {
  constexpr const char* kNeeded = "every launch needs it";
  const bool has_A_log = check_given("A_log", is_given(A_log), true, kNeeded, report);
  const bool has_A = check_given("A", is_given(A), true, kNeeded, report);
  if (has_A_log && std::find(std::begin(kDtypes), std::end(kDtypes), A_log.dtype) == std::end(kDtypes))
    report([&] { return fmt::format("A_log: got dtype {}; wants fp32, bf16 or fp16", name(A_log.dtype)); });
  else if (has_A_log)
    check_tensor(A_log, {"A_log", A_log.dtype, 1, {kAny}}, report);
  const std::int64_t nheads = A_log.rank == 1 && A_log.shape[0] >= 0 ? A_log.shape[0] : kAny;
  if (nheads > kMostHeads)
    report([&] { return fmt::format("A_log: got {} heads; a launch takes up to {}", nheads, kMostHeads); });
  if (has_A) check_tensor(A, {"A", DType::f32, 1, {nheads}}, report);
  if (has_A_log && has_A && A.data == A_log.data && A.data != nullptr)
    report([] { return std::string("A: is A_log itself, which a refresh needs; give it memory of its own"); });
}

}  // namespace

device_args::PrepareAArgs prepare_to_device(const Tensor& A_log, const Tensor& A) {
  return {.A_log = A_log.data,
          .A = static_cast<float*>(const_cast<void*>(A.data)),
          .count = static_cast<int>(A_log.shape[0])};
}

PrepareA PrepareA::load(const CompileOptions& options, void* stream) {
  const Source source = emit_prepare_A(arch_to_load_for(static_cast<CUstream>(stream)));
  return load(source, compile(source, options));
}

PrepareA PrepareA::load(const Source& source, const Cubin& cubin) {
  if (source.entries.size() != kEntries)
    fail(ErrorKind::invalid, "source: has {} entries; emit_prepare_A() writes {}", source.entries.size(), kEntries);
  PrepareA prepare;
  prepare.state_ = std::make_shared<const State>(source, cubin);
  return prepare;
}

void PrepareA::launch(const Tensor& A_log, const Tensor& A, void* stream) const {
  const State& state = loaded(state_);
  bool fits = true;
  check_launch(A_log, A, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    fail(ErrorKind::invalid, "{}", lines_of(problems(A_log, A)));
  const std::int64_t nheads = A_log.shape[0];
  if (nheads == 0) return;
  device_args::PrepareAArgs device = prepare_to_device(A_log, A);
  const auto entry =
      static_cast<std::size_t>(std::find(std::begin(kDtypes), std::end(kDtypes), A_log.dtype) - std::begin(kDtypes));
  state.module.launch(entry, (nheads + state.block_threads - 1) / state.block_threads, 1, &device, false,
                      static_cast<CUstream>(stream));
}

const Cubin& PrepareA::cubin() const { return loaded(state_).cubin; }

std::vector<std::string> PrepareA::problems(const Tensor& A_log, const Tensor& A) {
  std::vector<std::string> found;
  check_launch(A_log, A, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

}  // namespace ssmjit
