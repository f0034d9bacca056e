#include "calls.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "prepared.h"

namespace ssmjit::python {

namespace {

// What tells calls apart, as plain words.
class Key {
 public:
  explicit Key(std::uint64_t first) { add(first); }

  void add(std::uint64_t word) {
    words_[count_++] = word;
    hash_ = (hash_ ^ word) * 0x9E3779B97F4A7C15u;
    hash_ ^= hash_ >> 29;
  }
  // Dimensions in front of `first_dim` are left out.
  void add(const DLTensor& tensor, int first_dim) {
    add(1u | std::uint64_t{tensor.dtype.code} << 8 | std::uint64_t{tensor.dtype.bits} << 16 |
        static_cast<std::uint64_t>(tensor.ndim) << 24);
    for (int i = first_dim; i < tensor.ndim; ++i) add(static_cast<std::uint64_t>(tensor.shape[i]));
  }
  std::uint64_t hash() const { return hash_; }
  const std::uint64_t* begin() const { return words_.data(); }
  const std::uint64_t* end() const { return words_.data() + count_; }

 private:
  // Two words beside the tensors; one and its extents of each of these, and one about a window's layout.
  std::array<std::uint64_t, 3 + 32 * (1 + kMostDimensions)> words_;
  std::size_t count_ = 0;
  std::uint64_t hash_ = 0;
};

struct Entry {
  std::uint64_t hash;
  std::vector<std::uint64_t> key;
  Prepared prepared;
  std::int64_t max_batch;
};

bool is_aligned(const DLTensor& tensor, int inner) {
  constexpr std::uintptr_t kBytes = 16;
  const auto base = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
  if (base % kBytes != 0) return false;
  if (tensor.strides == nullptr) return true;  // C order of rows that are multiples of 16 bytes
  for (int i = 0; i < tensor.ndim - inner; ++i)
    if (tensor.shape[i] > 1 && (static_cast<std::uint64_t>(tensor.strides[i]) * tensor.dtype.bits / 8) % kBytes != 0)
      return false;
  return true;
}

// How a kernel takes a tensor that its drop-in was given; of most ops as it is.
template <class Args>
class AsTaken {
 public:
  const DLTensor& operator()(const DLTensor& tensor, const Field<Args>&, Key&) { return tensor; }
};

// causal_conv1d has tokens and entries behind the channels; a kernel has channels last wherever they lie side by side.
template <>
class AsTaken<Conv1dArgs> {
 public:
  const DLTensor& operator()(const DLTensor& tensor, const Field<Conv1dArgs>& field, Key& key) {
    if (tensor.ndim != 3) return tensor;
    const bool is_state = field.tensor == &Conv1dArgs::conv_state;
    if (!is_state && field.tensor != &Conv1dArgs::x && field.tensor != &Conv1dArgs::out) return tensor;
    const std::int64_t entries = tensor.shape[2], channels = tensor.shape[1];
    const std::int64_t dense[3] = {channels * entries, entries, 1};
    const std::int64_t* strides = tensor.strides != nullptr ? tensor.strides : dense;
    // Of one entry both orders are the same.
    const bool swaps = !is_state || (strides[1] == 1 && entries > 1);
    if (is_state) key.add(swaps ? 1 : 0);
    if (!swaps) return tensor;
    shape_ = {tensor.shape[0], entries, channels};
    strides_ = {strides[0], strides[2], strides[1]};
    swapped_ = tensor;
    swapped_.shape = shape_.data();
    swapped_.strides = strides_.data();
    return swapped_;
  }

 private:
  DLTensor swapped_{};
  std::array<std::int64_t, 3> shape_{}, strides_{};
};

template <class Args>
std::int64_t batch_of(const Args& args) {
  if constexpr (requires { args.cu_seqlens; })
    if (args.cu_seqlens.data != nullptr) return args.cu_seqlens.shape[0] - 1;
  return args.x.rank > 0 ? args.x.shape[0] : 0;
}

template <class Args>
class Calls {
 public:
  explicit Calls(int first_dim) : first_dim_(first_dim) {}

  bool call(const ffi::PackedArgs& arguments) {
    constexpr int kFirst = 4;
    Key key(static_cast<std::uint64_t>(arguments[0].cast<std::int64_t>()));
    Args args;
    int ordinal = 0;
    if (!read(arguments, kFirst, key, &args, ordinal)) return false;
    const Entry* entry = find(key);
    if (entry == nullptr || batch_of(args) > entry->max_batch) return false;
    args.pdl = pdl_of(arguments[2].cast<std::int64_t>());
    OpArgs<Args>::set_flags(args, arguments[3].cast<std::int64_t>());
    if constexpr (requires { args.pad_slot_id; }) args.pad_slot_id = arguments[1].cast<std::int64_t>();
    translated([&] { entry->prepared.launch(args, current_stream(ordinal)); });
    return true;
  }

  void put(const ffi::PackedArgs& arguments) {
    constexpr int kFirst = 2;
    const Prepared& prepared = held<PreparedObject>(arguments[0])->prepared;
    Key key(static_cast<std::uint64_t>(arguments[1].cast<std::int64_t>()));
    int ordinal = 0;
    if (!read(arguments, kFirst, key, static_cast<Args*>(nullptr), ordinal))
      translated([] { fail(ErrorKind::internal, "a call was put whose tensors can't be read"); });
    const std::lock_guard lock(writing_);
    auto next = std::make_unique<std::vector<Entry>>();
    if (const auto* now = entries_.load(std::memory_order_relaxed))
      for (const Entry& entry : *now)
        if (entry.hash != key.hash() || !std::equal(entry.key.begin(), entry.key.end(), key.begin(), key.end()))
          next->push_back(entry);
    next->push_back({key.hash(), {key.begin(), key.end()}, prepared, prepared.max_batch()});
    entries_.store(next.get(), std::memory_order_release);
    all_.push_back(std::move(next));
  }

  bool aligned(const ffi::PackedArgs& arguments) const {
    Key unused(0);
    AsTaken<Args> as_taken;
    for (int i = 0; i < arguments.size(); ++i) {
      const Field<Args>& field = OpArgs<Args>::fields[static_cast<std::size_t>(i)];
      const DLTensor* tensor = dltensor_of(arguments[i], field.name);
      if (tensor != nullptr && field.inner >= 0 && !is_aligned(as_taken(*tensor, field, unused), field.inner))
        return false;
    }
    return true;
  }

 private:
  // What all tensors together look like into `key`, and themselves into `args`, if there is one. False where a kernel
  // can't take them: the function's own checks then say why.
  bool read(const ffi::PackedArgs& arguments, int first, Key& key, Args* args, int& ordinal) const {
    const int given = arguments.size() - first;
    if (given > static_cast<int>(kFieldCount<Args>)) return false;
    bool all_aligned = true, is_first = true;
    DLDevice device{};
    AsTaken<Args> as_taken;
    for (int i = 0; i < given; ++i) {
      const ffi::AnyView argument = arguments[first + i];
      const std::int32_t type = argument.type_index();
      if (type == ffi::TypeIndex::kTVMFFINone) {
        key.add(0);
        continue;
      }
      if (type != ffi::TypeIndex::kTVMFFIDLTensorPtr && type != ffi::TypeIndex::kTVMFFITensor) return false;
      const DLTensor& own = *argument.cast<DLTensor*>();
      if (!is_readable(own)) return false;
      if (is_first) {
        device = own.device;
        if (device.device_type != kDLCUDA) return false;
        is_first = false;
      } else if (own.device.device_type != device.device_type || own.device.device_id != device.device_id) {
        return false;
      }
      const Field<Args>& field = OpArgs<Args>::fields[static_cast<std::size_t>(i)];
      const DLTensor& tensor = as_taken(own, field, key);
      key.add(tensor, first_dim_);
      if (field.inner >= 0) all_aligned = all_aligned && is_aligned(tensor, field.inner);
      if (args != nullptr) args->*field.tensor = tensor_of(tensor, field.name);
    }
    ordinal = device.device_id;
    key.add(static_cast<std::uint64_t>(ordinal) << 1 | (all_aligned ? 1 : 0));
    return true;
  }

  const Entry* find(const Key& key) const {
    const auto* entries = entries_.load(std::memory_order_acquire);
    if (entries == nullptr) return nullptr;
    for (const Entry& entry : *entries)
      if (entry.hash == key.hash() && std::equal(entry.key.begin(), entry.key.end(), key.begin(), key.end()))
        return &entry;
    return nullptr;
  }

  const int first_dim_;
  // Read without a lock; those that were replaced stay, for who is reading them.
  std::atomic<const std::vector<Entry>*> entries_{nullptr};
  std::mutex writing_;
  std::vector<std::unique_ptr<std::vector<Entry>>> all_;
};

}  // namespace

ffi::Array<ffi::Function> calls(const ffi::String& op, std::int64_t first_dim) {
  return translated([&] {
    return with_args_of(op_named({op.data(), op.size()}), [&](auto empty) {
      using OpCalls = Calls<decltype(empty)>;
      auto shared = std::make_shared<OpCalls>(static_cast<int>(first_dim));
      return ffi::Array<ffi::Function>{
          ffi::Function::FromPacked([shared](ffi::PackedArgs arguments, ffi::Any* out) {
            *out = std::int64_t{shared->call(arguments) ? 1 : 0};
          }),
          ffi::Function::FromPacked([shared](ffi::PackedArgs arguments, ffi::Any*) { shared->put(arguments); }),
          ffi::Function::FromPacked([shared](ffi::PackedArgs arguments, ffi::Any* out) {
            *out = std::int64_t{translated([&] { return shared->aligned(arguments); }) ? 1 : 0};
          })};
    });
  });
}

}  // namespace ssmjit::python
