#include "autotune/gpu_verify.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <future>
#include <map>
#include <thread>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include <ssmjit/device.h>
#include <ssmjit/error.h>

#include "autotune/compile_pool.h"
#include "autotune/layers.h"
#include "autotune/target.h"
#include "codegen/fail.h"
#include "jit/gpu.h"

namespace ssmjit {
namespace {

// Device memory that may be gone after a candidate has run: more than the driver keeps of what was released.
constexpr std::int64_t kMayBeGone = std::int64_t{8} << 20;

}  // namespace

// The GPU of the current context. What a block holds before a launch stays on the device beside the memory that is
// launched on, so that putting it back costs no way over the bus; nor does comparing launches, by hashes.
class GpuVerifier::Memory : public Target {
 public:
  Memory(const DeviceFacts& gpu, const CompileOptions& options, const KernelCases& cases)
      : kernels_(gpu.arch(), gpu.sms, options), hashes_(8) {
    std::size_t end = 0;
    for (const auto& test : cases) {
      for (const KernelCase::Block& block : test->blocks()) {
        Place& place = blocks_[&block];
        place.bytes = block.before.size();
        place.before = end;
        place.now = DeviceBuffer((place.bytes + 3) / 4 * 4);  // hashes are of whole words
        end += place.now.size();
        by_address_[place.now.data()] = &place;
      }
    }
    before_ = DeviceBuffer(end);
    upload();
    before_hash_ = hash_of_before();
  }
  // Uploads what blocks hold before a launch once more where a launch wrote into it; whether none did.
  bool mend() {
    if (hash_of_before() == before_hash_) return true;
    upload();
    return false;
  }
  void use(const Kernel* kernel) { kernel_ = kernel; }

  std::byte* allocate(const KernelCase::Block& block) override {
    const Place& place = blocks_.at(&block);
    place.now.copy_from(before_, place.before, stream_.handle());
    return place.now.data();
  }
  void restore(std::byte* address, const KernelCase::Block&) override {
    const Place& place = of(address);
    place.now.copy_from(before_, place.before, stream_.handle());
  }
  void read(const std::byte* address, std::vector<std::byte>& contents) override {
    const Place& place = of(address);
    contents.resize(place.bytes);
    stream_.synchronize();
    place.now.download(contents.data(), contents.size());
  }
  std::vector<std::uint64_t> hash(const std::vector<std::byte*>& addresses) override {
    std::vector<std::uint64_t> hashes(addresses.size());
    if (hashes_.size() < 8 * hashes.size()) hashes_ = DeviceBuffer(8 * hashes.size());
    hashes_.fill(0, stream_.handle());
    for (std::size_t i = 0; i < addresses.size(); ++i)
      kernels_.hash(addresses[i], static_cast<std::int64_t>(of(addresses[i]).now.size()), hashes_.data() + 8 * i,
                    stream_);
    stream_.synchronize();
    hashes_.download(hashes.data(), 8 * hashes.size());
    return hashes;
  }
  void release_all() override {}  // the next plan runs on the same memory
  int launches() const override { return 5; }
  std::vector<std::string> launch(const KernelCase&, const CaseArgs& args) override {
    std::visit(
        [&](auto launched) {
          launched.pdl = kernel_->plan().early_state && kernel_->plan().form == PlanForm::fused ? Pdl::early_state : Pdl::off;
          kernel_->launch(launched, stream_.handle());
        },
        args);
    stream_.synchronize();
    return {};
  }

 private:
  struct Place {
    std::size_t bytes = 0;
    std::size_t before = 0;  // offset in before_
    DeviceBuffer now;
  };
  void upload() const {
    std::vector<std::byte> all(before_.size(), std::byte{0xff});
    for (const auto& [block, place] : blocks_)
      std::copy(block->before.begin(), block->before.end(), all.begin() + static_cast<std::ptrdiff_t>(place.before));
    before_.upload(all.data(), all.size());
  }
  std::uint64_t hash_of_before() const {
    hashes_.fill(0, stream_.handle());
    kernels_.hash(before_.data(), static_cast<std::int64_t>(before_.size()), hashes_.data(), stream_);
    stream_.synchronize();
    std::uint64_t hash = 0;
    hashes_.download(&hash, 8);
    return hash;
  }
  const Place& of(const std::byte* address) {
    const auto found = by_address_.find(address);
    if (found == by_address_.end()) fail(ErrorKind::internal, "verify: an address that was not allocated");
    return *found->second;
  }

  BenchKernels kernels_;
  const Kernel* kernel_ = nullptr;
  const Stream& stream_ = measuring_stream();
  std::map<const KernelCase::Block*, Place> blocks_;
  std::map<const std::byte*, const Place*> by_address_;
  DeviceBuffer before_;  // of all blocks, one behind the other
  std::uint64_t before_hash_ = 0;
  DeviceBuffer hashes_;
};

GpuVerifier::GpuVerifier(const Description& description, const VerifyOptions& options)
    : description_(description), options_(options) {
  nvrtc_version();  // one sentence where there is none, not one a plan
  turn_ = measuring_turn();
  use_device(options.device);
  gpu_ = device(options.device);
  cases_ = standard_cases(description, gpu_.sms, options.seed);
  memory_ = std::make_unique<Memory>(gpu_, options.compile, cases_);
}

GpuVerifier::~GpuVerifier() = default;

std::vector<CaseRun> GpuVerifier::run_watching_memory(const Kernel& kernel, Verdict& verdict) {
  memory_->use(&kernel);
  std::int64_t free = free_device_bytes();
  std::vector<CaseRun> runs = run_cases(*memory_, cases_, verdict, &right_);
  // What a first run takes for the context and the cases is taken once; what a second takes is lost.
  if (verdict.outcome != Outcome::ok || free - free_device_bytes() <= kMayBeGone) return runs;
  free = free_device_bytes();
  Verdict again;
  run_cases(*memory_, cases_, again, &right_);
  const std::int64_t gone = free - free_device_bytes();
  if (gone > kMayBeGone) {
    verdict.outcome = Outcome::leaked;
    verdict.failures.push_back(fmt::format("{} bytes of device memory are gone after it ran, twice in a row", gone));
  }
  return runs;
}

std::vector<Verdict> GpuVerifier::run(const std::vector<Plan>& plans) {
  std::vector<Verdict> verdicts(plans.size());
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  pool_ = std::make_unique<CompilePool>(description_, plans, gpu_.arch(), options_.compile, options_.source,
                                        options_.compile_threads);
  // The GPU runs one candidate while the cores judge those before it; what waits to be judged is held in memory.
  std::deque<std::pair<std::size_t, std::future<void>>> judging;
  const std::size_t waiting_at_most = std::max(1u, std::thread::hardware_concurrency());
  const auto step = [&](const char* stage, std::size_t i) {
    if (options_.on_step) options_.on_step(stage, i);
  };
  const auto settled = [&](std::size_t i) {
    if (options_.on_verdict) options_.on_verdict(i, verdicts[i]);
  };
  const auto judge_first = [&] {
    const std::size_t i = judging.front().first;
    judging.front().second.get();
    judging.pop_front();
    settled(i);
  };
  for (std::size_t i = 0; i < plans.size(); ++i) {
    Verdict& v = verdicts[i];
    v.plan = plans[i];
    step("compile", i);
    const CompilePool::Result& compiled = pool_->get(i);
    if (!compiled.error.empty()) {
      v.outcome = Outcome::not_compiled;
      v.failures.push_back(compiled.error);
    } else {
      v.registers = compiled.cubin.registers;
      v.spill_bytes = compiled.cubin.spill_bytes;
      std::vector<CaseRun> runs;
      step("verify", i);
      try {
        runs = run_watching_memory(Kernel::load(description_, plans[i], compiled.source, compiled.cubin), v);
        if (!memory_->mend()) {
          if (v.outcome == Outcome::ok) v.outcome = Outcome::faulty;
          v.failures.emplace_back("it wrote outside of its memory, into what the verifier keeps beside it");
        }
      } catch (const Error& e) {
        v.outcome = Outcome::launch_failed;
        v.failures.emplace_back(e.what());
      }
      step("verified", i);
      // Verdicts are told in the plans' order, so one that needs no thread waits for its turn too.
      const bool known =
          std::all_of(runs.begin(), runs.end(), [](const CaseRun& run) { return run.right.has_value(); });
      judging.emplace_back(i, std::async(known ? std::launch::deferred : std::launch::async,
                                         [this, runs = std::move(runs), &v] { judge_runs(runs, v, &right_); }));
    }
    if (judging.empty() || judging.back().first != i) judging.emplace_back(i, std::async(std::launch::deferred, [] {}));
    while (judging.size() > waiting_at_most) judge_first();
    if (options_.progress) {
      const double t = elapsed();
      const auto done = static_cast<std::int64_t>(i + 1), total = static_cast<std::int64_t>(plans.size());
      options_.progress({"verify", done, total, t, t / static_cast<double>(done) * static_cast<double>(total - done)});
    }
  }
  while (!judging.empty()) judge_first();
  pool_.reset();
  return verdicts;
}

}  // namespace ssmjit
