// The C interface over Session: handles for objects, C structs for arguments, a status and a message for exceptions.
#include <ssmjit/ssmjit_c.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ssmjit/ssmjit.h>

#include "codegen/fail.h"
#include "jit/c/handles.h"

namespace ssmjit {
namespace {

thread_local std::string last_error;

ssmjit_status status_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid:
      return SSMJIT_INVALID;
    case ErrorKind::missing:
      return SSMJIT_MISSING;
    case ErrorKind::machine:
      return SSMJIT_MACHINE;
    case ErrorKind::internal:
      break;
  }
  return SSMJIT_INTERNAL;
}

[[gnu::cold, gnu::noinline]] ssmjit_status remember(ssmjit_status status, const char* sentence) noexcept {
  try {
    last_error = sentence;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

// No exception crosses into C.
template <class Action>
ssmjit_status guarded(const Action& action) noexcept {
  try {
    action();
    return SSMJIT_OK;
  } catch (const Error& error) {
    return remember(status_of(error.kind()), error.what());
  } catch (const std::bad_alloc&) {
    return remember(SSMJIT_MACHINE, "the host's memory is full");
  } catch (const std::exception& error) {
    return remember(SSMJIT_INTERNAL, error.what());
  } catch (...) {
    return remember(SSMJIT_INTERNAL, "an exception of an unknown type");
  }
}

template <class T>
T& given(T* pointer, const char* name) {
  if (pointer == nullptr) [[unlikely]]
    fail(ErrorKind::invalid, "{}: got a null pointer", name);
  return *pointer;
}

// Text to a caller's buffer. SSMJIT_TOO_SMALL is no error: the caller asks for the length so.
template <class Make>
ssmjit_status give_text(char* text, std::size_t capacity, std::size_t* length, const Make& make) noexcept {
  std::string made;
  const ssmjit_status status = guarded([&] { made = make(); });
  if (status != SSMJIT_OK) return status;
  if (length != nullptr) *length = made.size();
  if (text == nullptr || capacity < made.size() + 1)
    return remember(SSMJIT_TOO_SMALL, "text: the buffer is too small; the length that was written says what it takes");
  std::memcpy(text, made.c_str(), made.size() + 1);
  return SSMJIT_OK;
}

// A struct of the caller's as this version has it: `storage` where the caller's is of an older one. `defaults` makes
// one as its macro does; `least` is the size of the part that every version has; behind it come fields of `step` bytes.
template <class Struct, class Defaults>
const Struct& complete(const Struct* from, Struct& storage, const Defaults& defaults, const char* name,
                       std::size_t least, std::size_t step) {
  const std::size_t size = given(from, name).size;
  if (size == sizeof(Struct)) [[likely]]
    return *from;
  if (size > sizeof(Struct))
    fail(ErrorKind::invalid, "{}: size is {}; wants {} at most: built against a newer ssmjit_c.h than this library, {}",
         name, size, sizeof(Struct), SSMJIT_VERSION);
  if (size < least || (size - least) % step != 0)
    fail(ErrorKind::invalid, "{}: size is {}; wants {}: initialise the struct with its macro of ssmjit_c.h", name, size,
         sizeof(Struct));
  storage = defaults();
  std::memcpy(&storage, from, size);
  return storage;
}
// Of arguments: tensors behind the rest.
template <class Struct, class Defaults>
const Struct& complete_args(const Struct* args, Struct& storage, const Defaults& defaults, std::size_t first_tensor) {
  return complete(args, storage, defaults, "args", first_tensor, sizeof(SsmjitTensor));
}

Tensor tensor_of(const SsmjitTensor& from, const char* name_) {
  static_assert(SSMJIT_MOST_DIMENSIONS == kMostDimensions);
  if (from.rank < 0 || from.rank > kMostDimensions) [[unlikely]]
    fail(ErrorKind::invalid, "{}: got {} dimensions; wants 0 to {}", name_, from.rank, kMostDimensions);
  if (from.dtype < 0 || from.dtype > SSMJIT_I64) [[unlikely]]
    fail(ErrorKind::invalid, "{}: got dtype {}; wants one of SSMJIT_F32 to SSMJIT_I64, {} to {}", name_, from.dtype, 0,
         static_cast<int>(SSMJIT_I64));
  Tensor tensor;
  tensor.data = from.data;
  tensor.dtype = static_cast<DType>(from.dtype);
  tensor.rank = from.rank;
  std::memcpy(tensor.shape.data(), from.shape, sizeof from.shape);
  std::memcpy(tensor.stride.data(), from.stride, sizeof from.stride);
  return tensor;
}
static_assert(static_cast<int>(DType::f32) == SSMJIT_F32 && static_cast<int>(DType::bf16) == SSMJIT_BF16 &&
              static_cast<int>(DType::f16) == SSMJIT_F16 && static_cast<int>(DType::i8) == SSMJIT_I8 &&
              static_cast<int>(DType::f8) == SSMJIT_F8 && static_cast<int>(DType::i16) == SSMJIT_I16 &&
              static_cast<int>(DType::i32) == SSMJIT_I32 && static_cast<int>(DType::i64) == SSMJIT_I64);
static_assert(static_cast<int>(Pdl::off) == SSMJIT_PDL_OFF &&
              static_cast<int>(Pdl::wait_first) == SSMJIT_PDL_WAIT_FIRST &&
              static_cast<int>(Pdl::early_state) == SSMJIT_PDL_EARLY_STATE);
static_assert(static_cast<int>(Why::exact) == SSMJIT_EXACT && static_cast<int>(Why::fallback) == SSMJIT_DEFAULT);
static_assert(kRingLayerWords == SSMJIT_RING_LAYER_WORDS);

// The tensors of each struct, by their common name in C and C++.
// clang-format off
#define SSMJIT_UPDATE_TENSORS(X) \
  X(state) X(state_scale) X(x) X(dt) X(A) X(B) X(C) X(D) X(dt_bias) X(z) X(out) X(state_batch_indices) \
  X(dst_state_batch_indices) X(num_accepted_tokens) X(intermediate_states) X(intermediate_state_scales) \
  X(intermediate_state_indices) X(retrieve_parent_token) X(cu_seqlens) X(rand_seed)
#define SSMJIT_RING_TENSORS(X) \
  X(state) X(state_scale) X(x_ring) X(B_ring) X(dt_ring) X(ring_start) X(ring_count) X(x) X(dt) X(A) X(B) X(C) X(D) \
  X(dt_bias) X(z) X(out) X(state_batch_indices) X(cu_seqlens) X(rand_seed)
#define SSMJIT_CONV1D_TENSORS(X) \
  X(conv_state) X(x) X(w) X(bias) X(out) X(state_batch_indices) X(output_state_indices) X(intermediate_states) \
  X(intermediate_state_indices) X(cache_seqlens) X(num_accepted_tokens)
#define SSMJIT_LAYER_TENSORS(X) \
  X(state) X(conv_state) X(x) X(B) X(C) X(dt) X(z) X(conv_weight) X(conv_bias) X(A) X(D) X(dt_bias) X(norm_weight) \
  X(norm_bias) X(out) X(state_batch_indices) X(scratch) X(state_scale) X(x_ring) X(B_ring) X(dt_ring) X(ring_start) \
  X(ring_count) X(rand_seed) X(output_state_indices) X(intermediate_states) X(intermediate_state_indices) \
  X(cache_seqlens) X(num_accepted_tokens)
#define SSMJIT_NORM_TENSORS(X) X(x) X(z) X(weight) X(bias) X(out)
#define SSMJIT_REPLAY_TENSORS(X) \
  X(state) X(old_x) X(old_B) X(old_dt) X(old_cumAdt) X(cache_buf_idx) X(prev_num_accepted_tokens) X(x) X(dt) X(A) \
  X(B) X(C) X(D) X(dt_bias) X(z) X(out) X(state_batch_indices) X(rand_seed) X(scratch)
#define SSMJIT_RING_LAYER_TENSORS(X) X(state) X(state_scale) X(x_ring) X(B_ring) X(dt_ring) X(A) X(conv_state)
#define SSMJIT_MATERIALISE_TENSORS(X) \
  X(layers) X(src_slots) X(dst_slots) X(ring_start) X(ring_count) X(prefix_length) X(active_request_indices) \
  X(rand_seed)
#define SSMJIT_RESET_SLOTS_TENSORS(X) X(layers) X(slots) X(ring_start) X(ring_count)
#define SSMJIT_COPY_SLOTS_TENSORS(X) X(layers) X(src_slots) X(dst_slots) X(ring_start) X(ring_count)
#define SSMJIT_SLOT_COPIES_TENSORS(X) X(pieces) X(src_slots) X(dst_slots)
// clang-format on

#define SSMJIT_COPY_TENSOR(tensor) to.tensor = tensor_of(from.tensor, #tensor);
#define SSMJIT_COUNT_TENSOR(tensor) +1
// Whether a C struct holds these tensors and nothing behind them.
#define SSMJIT_CHECK_TENSORS(Struct, first, TENSORS) \
  static_assert(sizeof(Struct) == offsetof(Struct, first) + (0 TENSORS(SSMJIT_COUNT_TENSOR)) * sizeof(SsmjitTensor))
SSMJIT_CHECK_TENSORS(SsmjitUpdateArgs, state, SSMJIT_UPDATE_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitRingArgs, state, SSMJIT_RING_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitConv1dArgs, conv_state, SSMJIT_CONV1D_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitLayerArgs, state, SSMJIT_LAYER_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitNormArgs, x, SSMJIT_NORM_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitReplayArgs, state, SSMJIT_REPLAY_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitSlotCopiesArgs, pieces, SSMJIT_SLOT_COPIES_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitRingLayer, state, SSMJIT_RING_LAYER_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitMaterialiseArgs, layers, SSMJIT_MATERIALISE_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitResetSlotsArgs, layers, SSMJIT_RESET_SLOTS_TENSORS);
SSMJIT_CHECK_TENSORS(SsmjitCopySlotsArgs, layers, SSMJIT_COPY_SLOTS_TENSORS);

template <class To, class From>
void copy_settings(const From& from, To& to) {
  to.pad_slot_id = from.pad_slot_id;
  to.pdl = static_cast<Pdl>(from.pdl);
  to.checked = from.checked != 0;
}

const Prepared& prepared_of(const ssmjit_prepared* step) { return object_of<Prepared>(step, HandleKind::prepared); }
const Session& session_of(const ssmjit_session* session) { return object_of<Session>(session, HandleKind::session); }
const RingSlots& slots_of(const ssmjit_ring_slots* slots) {
  return object_of<RingSlots>(slots, HandleKind::ring_slots);
}

OutputPool pool_of(const SsmjitOutputPool* pool) {
  SsmjitOutputPool storage;
  const SsmjitOutputPool& from = complete(
      pool, storage, [] { return SsmjitOutputPool SSMJIT_OUTPUT_POOL_INIT; }, "pool", sizeof(SsmjitOutputPool), 1);
  return {.working = from.working, .requests = from.requests, .tokens = from.tokens};
}
SlotRequest request_of(const SsmjitSlotRequest* request) {
  SsmjitSlotRequest storage;
  const SsmjitSlotRequest& from = complete(
      request, storage, [] { return SsmjitSlotRequest SSMJIT_SLOT_REQUEST_INIT; }, "request", sizeof(SsmjitSlotRequest),
      1);
  return {.request = from.request, .working = from.working, .shared = from.shared};
}
void give_copy(const SlotCopy& copy, std::int32_t* from, std::int32_t* to) {
  given(from, "from") = copy.from;
  given(to, "to") = copy.to;
}

template <class Object>
void* handle_of(HandleKind kind, Object&& object) {
  auto owned = std::make_unique<std::remove_cvref_t<Object>>(std::forward<Object>(object));
  Handle* handle = new_handle(kind, owned.get());
  owned.release();
  return handle;
}

std::vector<std::string> texts_of(const char* const* texts, std::size_t count, const char* name_) {
  std::vector<std::string> list;
  if (count > 0) given(texts, name_);
  for (std::size_t i = 0; i < count; ++i) list.emplace_back(&given(texts[i], name_));
  return list;
}

std::vector<std::string> split(const char* text) {
  std::vector<std::string> parts;
  if (text == nullptr || *text == '\0') return parts;
  std::string rest = text;
  for (std::size_t comma = rest.find(','); comma != rest.npos; comma = rest.find(',')) {
    parts.push_back(rest.substr(0, comma));
    rest.erase(0, comma + 1);
  }
  parts.push_back(rest);
  return parts;
}

Model model_of(const char* spec) {
  const std::string text = &given(spec, "spec");
  return text.find('{') != text.npos ? Model::from_json(text) : load_model(text);
}

Description description_of(const char* spec, const char* set) {
  const Model model = model_of(spec);
  if (model.kernels.size() != 1) {
    std::string names;
    for (const auto& [name_, kernel] : model.kernels) names += (names.empty() ? "" : ", ") + name_;
    fail(ErrorKind::invalid, "spec: {} has {} kernels; name one as NAME:KERNEL, of {}", in_quotes(spec),
         model.kernels.size(), names);
  }
  Description description = model.kernels.front().second;
  if (set != nullptr && *set != '\0') description.set(set);
  description.validate();
  return description;
}

// A handle a description; all of them or an exception.
std::vector<ssmjit_prepared*> prepare_all(const ssmjit_session* session, const std::vector<std::string>& specs,
                                          const SsmjitPrepareOptions* options) {
  const Session& of = session_of(session);
  const SsmjitPrepareOptions defaults = SSMJIT_PREPARE_OPTIONS_INIT;
  SsmjitPrepareOptions storage;
  const SsmjitPrepareOptions& from = complete(
      options == nullptr ? &defaults : options, storage, [&] { return defaults; }, "options",
      offsetof(SsmjitPrepareOptions, max_batch), sizeof(std::int32_t));
  std::vector<Description> descriptions;
  for (const std::string& spec : specs) descriptions.push_back(description_of(spec.c_str(), nullptr));
  PrepareOptions to{.max_batch = from.max_batch, .off = from.off != 0, .chain = from.chain != 0};
  to.stream = from.stream;
  if (from.force != nullptr && *from.force != '\0')
    to.force = of.plan_of(from.force, descriptions.front(), from.max_batch, from.stream);
  std::vector<Prepared> prepared = of.prepare_all(descriptions, to);
  std::vector<ssmjit_prepared*> steps;
  steps.reserve(prepared.size());
  try {
    for (Prepared& step : prepared)
      steps.push_back(static_cast<ssmjit_prepared*>(handle_of(HandleKind::prepared, std::move(step))));
  } catch (...) {
    for (ssmjit_prepared* step : steps) destroy<Prepared>(step, HandleKind::prepared);
    throw;
  }
  return steps;
}

}  // namespace
}  // namespace ssmjit

using namespace ssmjit;

uint32_t ssmjit_abi_version(void) { return SSMJIT_ABI_VERSION; }
const char* ssmjit_version(void) { return SSMJIT_VERSION; }
const char* ssmjit_last_error(void) { return last_error.c_str(); }

ssmjit_status ssmjit_set_log(SsmjitLog log, void* user) {
  return guarded([&] {
    if (log == nullptr) return set_log({});
    set_log([log, user](LogLevel level, std::string_view text) {
      log(user, level == LogLevel::warning ? 1 : 0, std::string(text).c_str());
    });
  });
}

ssmjit_status ssmjit_describe(const char* spec, const char* set, char* text, size_t capacity, size_t* length) {
  return give_text(text, capacity, length, [&] { return description_of(spec, set).json(); });
}

ssmjit_status ssmjit_session_create(const SsmjitSessionOptions* options, ssmjit_session** session) {
  return guarded([&] {
    given(session, "session") = nullptr;
    const SsmjitSessionOptions defaults = SSMJIT_SESSION_OPTIONS_INIT;
    SsmjitSessionOptions storage;
    const SsmjitSessionOptions& from = complete(
        options == nullptr ? &defaults : options, storage, [&] { return defaults; }, "options",
        offsetof(SsmjitSessionOptions, tables), sizeof(std::int32_t));
    SessionOptions to;
    to.tables = texts_of(from.tables, from.table_count, "tables");
    to.seeds = texts_of(from.seeds, from.seed_count, "seeds");
    to.cache_dir = from.cache_dir == nullptr ? "" : from.cache_dir;
    to.no_jit = from.no_jit != 0;
    to.threads = from.threads;
    *session = static_cast<ssmjit_session*>(handle_of(HandleKind::session, Session(to)));
  });
}

ssmjit_status ssmjit_session_destroy(ssmjit_session* session) {
  return guarded([&] { destroy<Session>(session, HandleKind::session); });
}

ssmjit_status ssmjit_cache_dir(const ssmjit_session* session, char* text, size_t capacity, size_t* length) {
  return give_text(text, capacity, length, [&] { return session_of(session).cache_dir(); });
}

ssmjit_status ssmjit_prepare(const ssmjit_session* session, const char* description_json,
                             const SsmjitPrepareOptions* options, ssmjit_prepared** step) {
  return guarded([&] {
    given(step, "step") = nullptr;
    *step = prepare_all(session, {&given(description_json, "description_json")}, options).front();
  });
}

ssmjit_status ssmjit_prepare_all(const ssmjit_session* session, const char* const* description_jsons, size_t count,
                                 const SsmjitPrepareOptions* options, ssmjit_prepared** steps) {
  return guarded([&] {
    if (count == 0) return;
    std::fill_n(&given(steps, "steps"), count, nullptr);
    const std::vector<ssmjit_prepared*> made =
        prepare_all(session, texts_of(description_jsons, count, "description_jsons"), options);
    std::copy(made.begin(), made.end(), steps);
  });
}

ssmjit_status ssmjit_prepared_destroy(ssmjit_prepared* step) {
  return guarded([&] { destroy<Prepared>(step, HandleKind::prepared); });
}

ssmjit_status ssmjit_choose(const ssmjit_prepared* step, int64_t batch, int32_t chain, SsmjitChoice* choice, char* plan,
                            size_t plan_capacity, size_t* plan_length) {
  Choice chosen;
  const ssmjit_status status = guarded([&] {
    chosen = prepared_of(step).choose(batch, chain != 0 ? PdlMode::chain : PdlMode::off);
    if (choice == nullptr) return;
    // What an older client has no field for is not written.
    SsmjitChoice to = SSMJIT_CHOICE_INIT;
    SsmjitChoice storage;
    complete(
        choice, storage, [&] { return to; }, "choice", offsetof(SsmjitChoice, why), sizeof(std::int32_t));
    to.size = choice->size;
    to.why = static_cast<std::int32_t>(chosen.why);
    to.expected_us = chosen.expected_us;
    to.floor_us = chosen.floor_us;
    std::memcpy(choice, &to, choice->size);
  });
  if (status != SSMJIT_OK || (plan_capacity == 0 && plan_length == nullptr)) return status;
  return give_text(plan, plan_capacity, plan_length, [&] { return chosen.plan.text(); });
}

ssmjit_status ssmjit_scratch_bytes(const ssmjit_prepared* step, int64_t batch, int64_t* bytes) {
  return guarded([&] { given(bytes, "bytes") = prepared_of(step).scratch_bytes(batch); });
}

ssmjit_status ssmjit_launch_update(const ssmjit_prepared* step, const SsmjitUpdateArgs* args, void* stream) {
  return guarded([&] {
    const Prepared& prepared = prepared_of(step);
    SsmjitUpdateArgs storage;
    const SsmjitUpdateArgs& from = complete_args(
        args, storage, [] { return SsmjitUpdateArgs SSMJIT_UPDATE_ARGS_INIT; }, offsetof(SsmjitUpdateArgs, state));
    UpdateArgs to;
    SSMJIT_UPDATE_TENSORS(SSMJIT_COPY_TENSOR)
    copy_settings(from, to);
    to.disable_state_update = from.disable_state_update != 0;
    prepared.launch(to, stream);
  });
}

ssmjit_status ssmjit_launch_ring(const ssmjit_prepared* step, const SsmjitRingArgs* args, void* stream) {
  return guarded([&] {
    const Prepared& prepared = prepared_of(step);
    SsmjitRingArgs storage;
    const SsmjitRingArgs& from = complete_args(
        args, storage, [] { return SsmjitRingArgs SSMJIT_RING_ARGS_INIT; }, offsetof(SsmjitRingArgs, state));
    RingArgs to;
    SSMJIT_RING_TENSORS(SSMJIT_COPY_TENSOR)
    copy_settings(from, to);
    prepared.launch(to, stream);
  });
}

ssmjit_status ssmjit_launch_conv1d(const ssmjit_prepared* step, const SsmjitConv1dArgs* args, void* stream) {
  return guarded([&] {
    const Prepared& prepared = prepared_of(step);
    SsmjitConv1dArgs storage;
    const SsmjitConv1dArgs& from = complete_args(
        args, storage, [] { return SsmjitConv1dArgs SSMJIT_CONV1D_ARGS_INIT; }, offsetof(SsmjitConv1dArgs, conv_state));
    Conv1dArgs to;
    SSMJIT_CONV1D_TENSORS(SSMJIT_COPY_TENSOR)
    copy_settings(from, to);
    prepared.launch(to, stream);
  });
}

ssmjit_status ssmjit_launch_layer(const ssmjit_prepared* step, const SsmjitLayerArgs* args, void* stream) {
  return guarded([&] {
    const Prepared& prepared = prepared_of(step);
    SsmjitLayerArgs storage;
    const SsmjitLayerArgs& from = complete_args(
        args, storage, [] { return SsmjitLayerArgs SSMJIT_LAYER_ARGS_INIT; }, offsetof(SsmjitLayerArgs, state));
    LayerArgs to;
    SSMJIT_LAYER_TENSORS(SSMJIT_COPY_TENSOR)
    copy_settings(from, to);
    prepared.launch(to, stream);
  });
}

ssmjit_status ssmjit_launch_norm(const ssmjit_prepared* step, const SsmjitNormArgs* args, void* stream) {
  return guarded([&] {
    const Prepared& prepared = prepared_of(step);
    SsmjitNormArgs storage;
    const SsmjitNormArgs& from = complete_args(
        args, storage, [] { return SsmjitNormArgs SSMJIT_NORM_ARGS_INIT; }, offsetof(SsmjitNormArgs, x));
    NormArgs to;
    SSMJIT_NORM_TENSORS(SSMJIT_COPY_TENSOR)
    to.pdl = static_cast<Pdl>(from.pdl);
    prepared.launch(to, stream);
  });
}

ssmjit_status ssmjit_launch_replay(const ssmjit_prepared* step, const SsmjitReplayArgs* args, void* stream) {
  return guarded([&] {
    const Prepared& prepared = prepared_of(step);
    SsmjitReplayArgs storage;
    const SsmjitReplayArgs& from = complete_args(
        args, storage, [] { return SsmjitReplayArgs SSMJIT_REPLAY_ARGS_INIT; }, offsetof(SsmjitReplayArgs, state));
    ReplayArgs to;
    SSMJIT_REPLAY_TENSORS(SSMJIT_COPY_TENSOR)
    copy_settings(from, to);
    to.internal_pdl = from.internal_pdl != 0;
    prepared.launch(to, stream);
  });
}

ssmjit_status ssmjit_ring_flushes(const ssmjit_prepared* step, int32_t start, int32_t count, int32_t tokens,
                                  int32_t* flushes) {
  return guarded([&] {
    given(flushes, "flushes") =
        ring_flushes(prepared_of(step).description(), {.start = start, .count = count}, tokens) ? 1 : 0;
  });
}

ssmjit_status ssmjit_advance_ring(const ssmjit_prepared* step, int32_t tokens, int32_t accepted, int32_t* start,
                                  int32_t* count) {
  return guarded([&] {
    const RingCursor cursor{.start = given(start, "start"), .count = given(count, "count")};
    const RingCursor next = advance_ring(prepared_of(step).description(), cursor, tokens, accepted);
    *start = next.start;
    *count = next.count;
  });
}

ssmjit_status ssmjit_advance_replay(const ssmjit_prepared* step, int32_t accepted, int32_t* buffer, int32_t* kept) {
  return guarded([&] {
    const ReplayCursor cursor{.buffer = given(buffer, "buffer"), .accepted = given(kept, "kept")};
    const ReplayCursor next = advance_replay(prepared_of(step).description(), cursor, accepted);
    *buffer = next.buffer;
    *kept = next.accepted;
  });
}

ssmjit_status ssmjit_prepare_A_create(const ssmjit_session* session, void* stream, ssmjit_prepare_A** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    *out = static_cast<ssmjit_prepare_A*>(handle_of(HandleKind::prepare_A, session_of(session).prepare_A(stream)));
  });
}

ssmjit_status ssmjit_prepare_A_destroy(ssmjit_prepare_A* prepare_A) {
  return guarded([&] { destroy<PrepareA>(prepare_A, HandleKind::prepare_A); });
}

ssmjit_status ssmjit_prepare_A_launch(const ssmjit_prepare_A* prepare_A, const SsmjitTensor* A_log,
                                      const SsmjitTensor* A, void* stream) {
  return guarded([&] {
    object_of<PrepareA>(prepare_A, HandleKind::prepare_A)
        .launch(tensor_of(given(A_log, "A_log"), "A_log"), tensor_of(given(A, "A"), "A"), stream);
  });
}

ssmjit_status ssmjit_ring_slots_create(const ssmjit_session* session, const char* description_json, void* stream,
                                       ssmjit_ring_slots** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    const Session& of = session_of(session);
    const Description description = description_of(&given(description_json, "description_json"), nullptr);
    *out = static_cast<ssmjit_ring_slots*>(handle_of(HandleKind::ring_slots, of.ring_slots(description, stream)));
  });
}

ssmjit_status ssmjit_ring_slots_destroy(ssmjit_ring_slots* slots) {
  return guarded([&] { destroy<RingSlots>(slots, HandleKind::ring_slots); });
}

ssmjit_status ssmjit_ring_layer_table(const ssmjit_ring_slots* slots, const SsmjitRingLayer* layers, size_t count,
                                      int64_t* words) {
  return guarded([&] {
    const RingSlots& of = slots_of(slots);
    given(words, "words");
    std::vector<RingLayer> all(count);
    for (std::size_t i = 0; i < count; ++i) {
      const SsmjitRingLayer& from = (&given(layers, "layers"))[i];
      if (from.size != sizeof(SsmjitRingLayer))
        fail(
            ErrorKind::invalid,
            "layers[{}].size: got {}; wants {}, with which the words of a layer are {}; compile against this library's "
            "header",
            i, from.size, sizeof(SsmjitRingLayer), kRingLayerWords);
      RingLayer& to = all[i];
      SSMJIT_RING_LAYER_TENSORS(SSMJIT_COPY_TENSOR)
    }
    const std::vector<std::int64_t> table = ring_layer_table(of.description(), all);
    std::memcpy(words, table.data(), table.size() * sizeof(std::int64_t));
  });
}

ssmjit_status ssmjit_materialise(const ssmjit_ring_slots* slots, const SsmjitMaterialiseArgs* args, void* stream) {
  return guarded([&] {
    const RingSlots& of = slots_of(slots);
    SsmjitMaterialiseArgs storage;
    const SsmjitMaterialiseArgs& from = complete_args(
        args, storage, [] { return SsmjitMaterialiseArgs SSMJIT_MATERIALISE_ARGS_INIT; },
        offsetof(SsmjitMaterialiseArgs, layers));
    MaterialiseArgs to;
    SSMJIT_MATERIALISE_TENSORS(SSMJIT_COPY_TENSOR)
    to.pad_slot_id = from.pad_slot_id;
    to.checked = from.checked != 0;
    of.materialise(to, stream);
  });
}

ssmjit_status ssmjit_reset(const ssmjit_ring_slots* slots, const SsmjitResetSlotsArgs* args, void* stream) {
  return guarded([&] {
    const RingSlots& of = slots_of(slots);
    SsmjitResetSlotsArgs storage;
    const SsmjitResetSlotsArgs& from = complete_args(
        args, storage, [] { return SsmjitResetSlotsArgs SSMJIT_RESET_SLOTS_ARGS_INIT; },
        offsetof(SsmjitResetSlotsArgs, layers));
    ResetSlotsArgs to;
    SSMJIT_RESET_SLOTS_TENSORS(SSMJIT_COPY_TENSOR)
    to.pad_slot_id = from.pad_slot_id;
    to.checked = from.checked != 0;
    of.reset(to, stream);
  });
}

ssmjit_status ssmjit_copy(const ssmjit_ring_slots* slots, const SsmjitCopySlotsArgs* args, void* stream) {
  return guarded([&] {
    const RingSlots& of = slots_of(slots);
    SsmjitCopySlotsArgs storage;
    const SsmjitCopySlotsArgs& from = complete_args(
        args, storage, [] { return SsmjitCopySlotsArgs SSMJIT_COPY_SLOTS_ARGS_INIT; },
        offsetof(SsmjitCopySlotsArgs, layers));
    CopySlotsArgs to;
    SSMJIT_COPY_SLOTS_TENSORS(SSMJIT_COPY_TENSOR)
    to.pad_slot_id = from.pad_slot_id;
    to.checked = from.checked != 0;
    of.copy(to, stream);
  });
}

ssmjit_status ssmjit_output_row(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request, int32_t* row,
                                int32_t tokens) {
  return guarded([&] {
    given(row, "row");
    if (tokens < 0) fail(ErrorKind::invalid, "row: got {} tokens; wants 0 or more", tokens);
    output_row(pool_of(pool), request_of(request), std::span(row, static_cast<std::size_t>(tokens)));
  });
}

ssmjit_status ssmjit_input_slot(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request, int32_t current,
                                int32_t* slot) {
  return guarded([&] { given(slot, "slot") = input_slot(pool_of(pool), request_of(request), current); });
}

ssmjit_status ssmjit_accepted_slot(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request, int32_t accepted,
                                   int32_t* current) {
  return guarded([&] { given(current, "current") = accepted_slot(pool_of(pool), request_of(request), accepted); });
}

ssmjit_status ssmjit_retract_copy(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request, int32_t current,
                                  int32_t* from, int32_t* to) {
  return guarded([&] { give_copy(retract_copy(pool_of(pool), request_of(request), current), from, to); });
}

ssmjit_status ssmjit_checkpoint_copy(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request, int64_t length,
                                     int32_t accepted, int64_t page, int64_t checkpoint, int32_t* from, int32_t* to) {
  return guarded([&] {
    give_copy(checkpoint_copy(pool_of(pool), request_of(request), length, accepted, page, checkpoint), from, to);
  });
}

ssmjit_status ssmjit_slot_copy_table(const SsmjitTensor* pools, size_t count, int64_t* words, size_t capacity,
                                     size_t* length) {
  std::vector<std::int64_t> table;
  const ssmjit_status status = guarded([&] {
    std::vector<Tensor> all;
    for (std::size_t i = 0; i < count; ++i)
      all.push_back(tensor_of((&given(pools, "pools"))[i], fmt::format("pools[{}]", i).c_str()));
    table = slot_copy_table(all);
  });
  if (status != SSMJIT_OK) return status;
  if (length != nullptr) *length = table.size();
  if (words == nullptr || capacity < table.size())
    return remember(SSMJIT_TOO_SMALL, "words: the buffer is too small; the length that was written says what it takes");
  std::memcpy(words, table.data(), table.size() * sizeof(std::int64_t));
  return SSMJIT_OK;
}

ssmjit_status ssmjit_slot_copies_create(const ssmjit_session* session, void* stream, ssmjit_slot_copies** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    *out =
        static_cast<ssmjit_slot_copies*>(handle_of(HandleKind::slot_copies, session_of(session).slot_copies(stream)));
  });
}

ssmjit_status ssmjit_slot_copies_destroy(ssmjit_slot_copies* copies) {
  return guarded([&] { destroy<SlotCopies>(copies, HandleKind::slot_copies); });
}

ssmjit_status ssmjit_slot_copies_launch(const ssmjit_slot_copies* copies, const SsmjitSlotCopiesArgs* args,
                                        void* stream) {
  return guarded([&] {
    const auto& of = object_of<SlotCopies>(copies, HandleKind::slot_copies);
    SsmjitSlotCopiesArgs storage;
    const SsmjitSlotCopiesArgs& from = complete_args(
        args, storage, [] { return SsmjitSlotCopiesArgs SSMJIT_SLOT_COPIES_ARGS_INIT; },
        offsetof(SsmjitSlotCopiesArgs, pieces));
    SlotCopiesArgs to;
    SSMJIT_SLOT_COPIES_TENSORS(SSMJIT_COPY_TENSOR)
    to.pad_slot_id = from.pad_slot_id;
    to.checked = from.checked != 0;
    of.launch(to, stream);
  });
}

ssmjit_status ssmjit_bundle(const ssmjit_session* session, const char* const* specs, size_t spec_count,
                            const SsmjitBundleOptions* options, const char* folder, size_t* files) {
  return guarded([&] {
    const Session& of = session_of(session);
    const SsmjitBundleOptions defaults = SSMJIT_BUNDLE_OPTIONS_INIT;
    SsmjitBundleOptions storage;
    const SsmjitBundleOptions& from = complete(
        options == nullptr ? &defaults : options, storage, [&] { return defaults; }, "options",
        offsetof(SsmjitBundleOptions, archs), sizeof(std::int32_t));
    std::vector<BundleItem> items;
    for (const std::string& spec : texts_of(specs, spec_count, "specs")) {
      const Model model = model_of(spec.c_str());
      for (const auto& [name_, kernel] : model.kernels) items.push_back({model.model + ":" + name_, kernel});
    }
    BundleOptions to{.devices = split(from.devices),
                     .max_batch = from.max_batch,
                     .off = from.off != 0,
                     .chain = from.chain != 0,
                     .compile = {.cache_dir = of.cache_dir()},
                     .threads = from.threads};
    for (const std::string& arch : split(from.archs)) to.archs.push_back(Arch::parse(arch));
    const std::size_t count = write_bundle(&given(folder, "folder"), items, of.table(), to).size();
    if (files != nullptr) *files = count;
  });
}
