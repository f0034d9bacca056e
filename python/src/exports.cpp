// The functions that ssmjit/_ffi.py finds here. Descriptions and plans cross as text, what is loaded as objects.
#include <array>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <tvm/ffi/container/map.h>

#include <ssmjit/bundle.h>
#include <ssmjit/log.h>
#include <ssmjit/ring.h>
#include <ssmjit/slots.h>
#include <ssmjit/ssmjit.h>

#include "calls.h"
#include "prepared.h"

namespace ssmjit::python {

using ffi::Any;
using ffi::Array;
using ffi::Function;
using ffi::Map;
using ffi::PackedArgs;
using ffi::String;

namespace {

std::string text_of(const String& text) { return std::string(text.data(), text.size()); }

std::vector<std::string> texts_of(const Array<String>& texts) {
  std::vector<std::string> out;
  for (const String& text : texts) out.push_back(text_of(text));
  return out;
}

Description description_of(const String& json) { return Description::from_json(text_of(json)); }

Map<String, Any> fields_of(const Choice& choice) {
  return {{"plan", String(choice.plan.text())},
          {"why", String(name(choice.why))},
          {"reason", String(choice.reason)},
          {"expected_us", choice.expected_us},
          {"floor_us", choice.floor_us}};
}

Map<String, Any> fields_of(const DeviceFacts& device) {
  return {{"ordinal", std::int64_t{device.ordinal}},
          {"name", String(device.name)},
          {"key", String(device.key)},
          {"driver", String(device.driver)},
          {"arch", String(device.arch().text())},
          {"sms", std::int64_t{device.sms}},
          {"l2_bytes", device.l2_bytes},
          {"memory_bytes", device.memory_bytes}};
}

Map<String, Any> fields_of(const Bytes& bytes) {
  return {{"read", bytes.read},
          {"written_back", bytes.written_back},
          {"written_new", bytes.written_new},
          {"warm", bytes.warm}};
}

Map<String, Any> fields_of(const Model& model) {
  Array<Array<String>> kernels;
  for (const auto& [kernel, description] : model.kernels)
    kernels.push_back({String(kernel), String(description.json())});
  return {{"model", String(model.model)}, {"source", String(model.source)}, {"kernels", kernels}};
}

Phase phase_of(const String& text) {
  for (const Phase phase : {Phase::no_flush, Phase::flush})
    if (text_of(text) == name(phase)) return phase;
  fail(ErrorKind::invalid, "phase: got \"" + text_of(text) + "\"; wants no_flush or flush");
}

int number_of(std::int64_t value, const char* name) {
  if (value != static_cast<int>(value))
    fail(ErrorKind::invalid, std::string(name) + ": got " + std::to_string(value) + "; wants a number of 32 bits");
  return static_cast<int>(value);
}

void* stream_of(const ffi::AnyView& stream, int ordinal) {
  if (stream.type_index() == ffi::TypeIndex::kTVMFFINone) return current_stream(ordinal);
  return reinterpret_cast<void*>(stream.cast<std::int64_t>());
}

// launch(prepared, stream, pad_slot_id, pdl, flags, tensors...).
void launch(PackedArgs arguments, Any*) {
  translated([&] {
    const auto* object = held<PreparedObject>(arguments[0]);
    with_args_of(object->prepared.description().op(), [&](auto args) {
      args.pdl = pdl_of(arguments[3].cast<std::int64_t>());
      if constexpr (requires { args.pad_slot_id; }) args.pad_slot_id = arguments[2].cast<std::int64_t>();
      OpArgs<decltype(args)>::set_flags(args, arguments[4].cast<std::int64_t>());
      read_tensors(arguments, 5, object->ordinal, args);
      object->prepared.launch(args, stream_of(arguments[1], object->ordinal));
    });
  });
}

// NAME(object, stream, pad_slot_id, checked, tensors...); `run` launches what the object holds.
template <class Object, class Args, class Launch>
Function slots_launch(Launch run) {
  return Function::FromPacked([run](PackedArgs arguments, Any*) {
    translated([&] {
      const auto* object = held<Object>(arguments[0]);
      Args args;
      args.pad_slot_id = arguments[2].cast<std::int64_t>();
      args.checked = arguments[3].cast<bool>();
      read_tensors(arguments, 4, object->ordinal, args);
      run(*object, args, stream_of(arguments[1], object->ordinal));
    });
  });
}

template <class Args>
Array<String> field_names() {
  Array<String> out;
  for (const Field<Args>& field : OpArgs<Args>::fields) out.push_back(String(std::string(field.name)));
  return out;
}

template <class Number>
Array<std::int64_t> numbers_of(const std::vector<Number>& values) {
  Array<std::int64_t> out;
  for (const Number value : values) out.push_back(std::int64_t{value});
  return out;
}

// (device, GPU's ordinal or -1, dtype, shape, strides in elements) of a tensor.
Array<Any> facts(const DLTensor& view) {
  std::vector<std::int64_t> shape(view.shape, view.shape + view.ndim), strides(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 0;)
    strides[i] = view.strides != nullptr ? view.strides[i] : i + 1 < shape.size() ? strides[i + 1] * shape[i + 1] : 1;
  const bool is_gpu = view.device.device_type == kDLCUDA || view.device.device_type == kDLCUDAManaged;
  return {String(device_text(view.device)), std::int64_t{is_gpu ? view.device.device_id : -1},
          String(dtype_text(view.dtype)), numbers_of(shape), numbers_of(strides)};
}

}  // namespace

Op op_named(std::string_view text) {
  std::string known;
  for (const Op op : kOps) {
    if (text == name(op)) return op;
    known += (known.empty() ? "" : ", ") + std::string(name(op));
  }
  fail(ErrorKind::invalid, "op: got \"" + std::string(text) + "\"; there are " + known);
}

Pdl pdl_of(std::int64_t value) {
  switch (value) {
    case 0:
      return Pdl::off;
    case 1:
      return Pdl::wait_first;
    case 2:
      return Pdl::early_state;
    default:
      fail(ErrorKind::invalid, "pdl: got " + std::to_string(value) + "; wants off, wait_first or early_state");
  }
}

namespace {

// A function whose errors are Python's.
template <class Action>
Function typed(Action action) {
  return []<class Result, class... Arguments>(Action action, Result (Action::*)(Arguments...) const) {
    return Function::FromTyped([action](Arguments... arguments) -> Result {
      return translated([&]() -> Result { return action(arguments...); });
    });
  }(action, &Action::operator());
}

Map<String, Function> description_functions() {
  return {
      {"describe", typed([](String json, String set) {
         Description description = description_of(json);
         if (!set.empty()) description.set(text_of(set));
         return String(description.json());
       })},
      {"mamba2", typed([](std::int64_t nheads, std::int64_t head_dim, std::int64_t dstate, std::int64_t ngroups) {
         return String(mamba2({.nheads = number_of(nheads, "nheads"),
                               .head_dim = number_of(head_dim, "head_dim"),
                               .dstate = number_of(dstate, "dstate"),
                               .ngroups = number_of(ngroups, "ngroups")})
                           .json());
       })},
      {"conv1d", typed([](std::int64_t channels) {
         return String(conv1d({.channels = number_of(channels, "channels"), .activation_expr = silu(dsl::x)}).json());
       })},
      {"gated_norm", typed([](std::int64_t channels) {
         return String(gated_norm({.channels = number_of(channels, "channels"), .gate_expr = silu(dsl::z)}).json());
       })},
      {"problems", typed([](String json) {
         Array<String> out;
         for (const std::string& problem : description_of(json).problems()) out.push_back(String(problem));
         return out;
       })},
      {"summary", typed([](String json) { return String(description_of(json).summary()); })},
      {"kernel_digest", typed([](String json) { return String(description_of(json).kernel_digest()); })},
      {"cost_digest", typed([](String json) { return String(description_of(json).cost_digest()); })},
      {"op", typed([](String json) { return String(name(description_of(json).op())); })},
      {"bytes_moved", typed([](String json, std::int64_t batch, String phase, std::int64_t ring_count) {
         return fields_of(bytes_moved(description_of(json), number_of(batch, "batch"), phase_of(phase),
                                      number_of(ring_count, "ring_count")));
       })},
      {"load_model", typed([](String spec) { return fields_of(load_model(text_of(spec))); })},
      {"from_hf",
       typed([](String config, std::int64_t tp) { return fields_of(from_hf(text_of(config), number_of(tp, "tp"))); })},
      {"shipped_models", typed([]() {
         Array<String> out;
         for (const std::string& model : shipped_models()) out.push_back(String(model));
         return out;
       })},
      {"ring_flushes", typed([](String json, std::int64_t start, std::int64_t count, std::int64_t tokens) {
         return ring_flushes(description_of(json), {number_of(start, "start"), number_of(count, "count")},
                             number_of(tokens, "tokens"));
       })},
      {"advance_ring",
       typed([](String json, std::int64_t start, std::int64_t count, std::int64_t tokens, std::int64_t accepted) {
         const RingCursor next =
             advance_ring(description_of(json), {number_of(start, "start"), number_of(count, "count")},
                          number_of(tokens, "tokens"), number_of(accepted, "accepted"));
         return Array<std::int64_t>{next.start, next.count};
       })},
      {"advance_replay", typed([](String json, std::int64_t buffer, std::int64_t before, std::int64_t accepted) {
         const ReplayCursor next =
             advance_replay(description_of(json), {number_of(buffer, "buffer"), number_of(before, "accepted before")},
                            number_of(accepted, "accepted"));
         return Array<std::int64_t>{next.buffer, next.accepted};
       })},
      {"ring_slot_bytes", typed([](String json) { return ring_slot_bytes(description_of(json)); })},
  };
}

// Pools and requests cross as their numbers, in the order of their structs.
OutputPool pool_of(const Array<std::int64_t>& numbers) {
  return {.working = numbers[0], .requests = numbers[1], .tokens = number_of(numbers[2], "tokens")};
}

SlotRequest request_of(const Array<std::int64_t>& numbers) {
  return {.request = numbers[0], .working = numbers[1], .shared = numbers[2]};
}

Array<std::int64_t> numbers_of(const SlotCopy& copy) { return {std::int64_t{copy.from}, std::int64_t{copy.to}}; }

Map<String, Function> slot_functions() {
  using Numbers = Array<std::int64_t>;
  return {
      {"validate_pool", typed([](Numbers pool) { pool_of(pool).validate(); })},
      {"output_slot", typed([](Numbers pool, Numbers request, std::int64_t token) {
         return std::int64_t{output_slot(pool_of(pool), request_of(request), number_of(token, "token"))};
       })},
      {"output_row", typed([](Numbers pool, Numbers request) {
         pool_of(pool).validate();
         std::vector<std::int32_t> row(static_cast<std::size_t>(pool[2]));
         output_row(pool_of(pool), request_of(request), row);
         return numbers_of(row);
       })},
      {"input_slot", typed([](Numbers pool, Numbers request, std::int64_t current) {
         return std::int64_t{input_slot(pool_of(pool), request_of(request), number_of(current, "current"))};
       })},
      {"accepted_slot", typed([](Numbers pool, Numbers request, std::int64_t accepted) {
         return std::int64_t{accepted_slot(pool_of(pool), request_of(request), number_of(accepted, "accepted"))};
       })},
      {"retract_copy", typed([](Numbers pool, Numbers request, std::int64_t current) {
         return numbers_of(retract_copy(pool_of(pool), request_of(request), number_of(current, "current")));
       })},
      {"checkpoint_copy", typed([](Numbers pool, Numbers request, std::int64_t length, std::int64_t accepted,
                                   std::int64_t page, std::int64_t checkpoint) {
         return numbers_of(checkpoint_copy(pool_of(pool), request_of(request), length, number_of(accepted, "accepted"),
                                           page, checkpoint));
       })},
      {"slot_copy_table", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // the pools
         translated([&] {
           std::vector<Tensor> pools;
           for (int i = 0; i < arguments.size(); ++i) {
             const std::string name = "pools[" + std::to_string(i) + "]";
             const DLTensor* tensor = dltensor_of(arguments[i], name);
             pools.push_back(tensor == nullptr ? Tensor{} : tensor_of(*tensor, name));
           }
           const std::vector<std::int64_t> words = slot_copy_table(pools);
           *out = numbers_of(words);
         });
       })},
  };
}

Map<String, Function> session_functions() {
  return {
      {"session", typed([](Array<String> tables, Array<String> seeds, String cache_dir, bool no_jit,
                           std::int64_t threads) -> ffi::ObjectRef {
         return ffi::ObjectRef(
             ffi::make_object<SessionObject>(SessionOptions{.tables = texts_of(tables),
                                                            .seeds = texts_of(seeds),
                                                            .cache_dir = text_of(cache_dir),
                                                            .no_jit = no_jit,
                                                            .threads = number_of(threads, "threads")}));
       })},
      {"prepare", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // session, max_batch, off, chain, plan or "", stream or None, descriptions...: a list of as many
         translated([&] {
           const Session& session = held<SessionObject>(arguments[0])->session;
           PrepareOptions options{.max_batch = number_of(arguments[1].cast<std::int64_t>(), "max_batch"),
                                  .off = arguments[2].cast<bool>(),
                                  .chain = arguments[3].cast<bool>()};
           if (arguments[5].type_index() != ffi::TypeIndex::kTVMFFINone)
             options.stream = reinterpret_cast<void*>(arguments[5].cast<std::int64_t>());
           std::vector<Description> descriptions;
           for (int i = 6; i < arguments.size(); ++i)
             descriptions.push_back(description_of(arguments[i].cast<String>()));
           if (const auto plan = arguments[4].cast<String>(); !plan.empty() && !descriptions.empty())
             options.force = session.plan_of(text_of(plan), descriptions.front(), options.max_batch, options.stream);
           Array<Any> prepared;
           for (const Prepared& each : session.prepare_all(descriptions, options))
             prepared.push_back(ffi::ObjectRef(ffi::make_object<PreparedObject>(each)));
           *out = prepared;
         });
       })},
      {"plan_of", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // session, plan, description, max_batch
         translated([&] {
           *out = String(held<SessionObject>(arguments[0])
                             ->session
                             .plan_of(text_of(arguments[1].cast<String>()), description_of(arguments[2].cast<String>()),
                                      number_of(arguments[3].cast<std::int64_t>(), "max_batch"))
                             .text());
         });
       })},
      {"launch", Function::FromPacked(launch)},
      {"choose_prepared", Function::FromPacked([](PackedArgs arguments, Any* out) {
         translated([&] {
           *out = fields_of(held<PreparedObject>(arguments[0])
                                ->prepared.choose(arguments[1].cast<std::int64_t>(),
                                                  parse_pdl_mode(text_of(arguments[2].cast<String>()))));
         });
       })},
      {"scratch_bytes", Function::FromPacked([](PackedArgs arguments, Any* out) {
         translated([&] {
           *out = held<PreparedObject>(arguments[0])->prepared.scratch_bytes(arguments[1].cast<std::int64_t>());
         });
       })},
      {"prepared_facts", Function::FromPacked([](PackedArgs arguments, Any* out) {
         translated([&] {
           const Prepared& prepared = held<PreparedObject>(arguments[0])->prepared;
           Array<Any> kernels;
           for (const PreparedKernel& kernel : prepared.kernels())
             kernels.push_back(Map<String, Any>{{"plan", String(kernel.plan.text())},
                                                {"arch", String(kernel.arch.text())},
                                                {"registers", std::int64_t{kernel.registers}},
                                                {"spill_bytes", std::int64_t{kernel.spill_bytes}},
                                                {"compile_ms", kernel.compile_ms},
                                                {"from_cache", kernel.from_cache},
                                                {"batches_off", std::int64_t{kernel.batches_off}},
                                                {"batches_chain", std::int64_t{kernel.batches_chain}}});
           *out = Map<String, Any>{{"device", fields_of(prepared.device())},
                                   {"max_batch", std::int64_t{prepared.max_batch()}},
                                   {"kernels", kernels}};
         });
       })},
      {"choose", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // session, description, batch, mode, device key or "" for the current device
         translated([&] {
           const Session& session = held<SessionObject>(arguments[0])->session;
           const Description description = description_of(arguments[1].cast<String>());
           const auto batch = arguments[2].cast<std::int64_t>();
           const PdlMode mode = parse_pdl_mode(text_of(arguments[3].cast<String>()));
           const std::string key = text_of(arguments[4].cast<String>());
           *out = fields_of(key.empty() ? session.choose(description, batch, mode)
                                        : session.choose(description, batch, mode, key, arch_of_device_key(key)));
         });
       })},
      {"cache_dir", Function::FromPacked([](PackedArgs arguments, Any* out) {
         translated([&] { *out = String(held<SessionObject>(arguments[0])->session.cache_dir()); });
       })},
      {"table", Function::FromPacked([](PackedArgs arguments, Any* out) {
         translated([&] { *out = String(held<SessionObject>(arguments[0])->session.table().json()); });
       })},
  };
}

Map<String, Function> side_functions() {
  return {
      {"prepare_A", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // session, stream or None
         translated([&] {
           const Session& session = held<SessionObject>(arguments[0])->session;
           const int ordinal = current_device().ordinal;
           *out = ffi::ObjectRef(
               ffi::make_object<PrepareAObject>(session.prepare_A(stream_of(arguments[1], ordinal)), ordinal));
         });
       })},
      {"launch_A", Function::FromPacked([](PackedArgs arguments, Any*) {
         // prepare_A, stream or None, A_log, A
         translated([&] {
           const auto* object = held<PrepareAObject>(arguments[0]);
           std::array<Tensor, 2> tensors;
           constexpr const char* kNames[] = {"A_log", "A"};
           for (int i = 0; i < 2; ++i) {
             const DLTensor* tensor = dltensor_of(arguments[2 + i], kNames[i]);
             if (tensor == nullptr) continue;
             check_device(*tensor, kNames[i], object->ordinal);
             tensors[static_cast<std::size_t>(i)] = tensor_of(*tensor, kNames[i]);
           }
           object->prepare_A.launch(tensors[0], tensors[1], stream_of(arguments[1], object->ordinal));
         });
       })},
      {"ring_slots", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // session, description, stream or None
         translated([&] {
           const Session& session = held<SessionObject>(arguments[0])->session;
           const Description description = description_of(arguments[1].cast<String>());
           const int ordinal = current_device().ordinal;
           *out = ffi::ObjectRef(ffi::make_object<RingSlotsObject>(
               session.ring_slots(description, stream_of(arguments[2], ordinal)), ordinal));
         });
       })},
      {"slot_copies", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // session, stream or None
         translated([&] {
           const Session& session = held<SessionObject>(arguments[0])->session;
           const int ordinal = current_device().ordinal;
           *out = ffi::ObjectRef(
               ffi::make_object<SlotCopiesObject>(session.slot_copies(stream_of(arguments[1], ordinal)), ordinal));
         });
       })},
      {"ring_layer_table", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // description, then the tensors of each layer
         translated([&] {
           constexpr int kTensors = static_cast<int>(kFieldCount<RingLayer>);
           std::vector<RingLayer> layers(static_cast<std::size_t>((arguments.size() - 1) / kTensors));
           for (int i = 1; i < arguments.size(); ++i) {
             const Field<RingLayer>& field = OpArgs<RingLayer>::fields[static_cast<std::size_t>((i - 1) % kTensors)];
             const DLTensor* tensor = dltensor_of(arguments[i], field.name);
             if (tensor != nullptr)
               layers[static_cast<std::size_t>((i - 1) / kTensors)].*field.tensor = tensor_of(*tensor, field.name);
           }
           Array<std::int64_t> words;
           for (const std::int64_t word : ring_layer_table(description_of(arguments[0].cast<String>()), layers))
             words.push_back(word);
           *out = words;
         });
       })},
      {"materialise",
       slots_launch<RingSlotsObject, MaterialiseArgs>([](const RingSlotsObject& object, const MaterialiseArgs& args,
                                                         void* stream) { object.slots.materialise(args, stream); })},
      {"reset_slots",
       slots_launch<RingSlotsObject, ResetSlotsArgs>([](const RingSlotsObject& object, const ResetSlotsArgs& args,
                                                        void* stream) { object.slots.reset(args, stream); })},
      {"copy_slots",
       slots_launch<RingSlotsObject, CopySlotsArgs>([](const RingSlotsObject& object, const CopySlotsArgs& args,
                                                       void* stream) { object.slots.copy(args, stream); })},
      {"launch_slot_copies",
       slots_launch<SlotCopiesObject, SlotCopiesArgs>([](const SlotCopiesObject& object, const SlotCopiesArgs& args,
                                                         void* stream) { object.copies.launch(args, stream); })},
      {"write_bundle", typed([](String folder, Array<Array<String>> items, String table, Array<String> archs,
                                Array<String> devices, std::int64_t max_batch) {
         std::vector<BundleItem> kernels;
         for (const Array<String>& item : items) kernels.push_back({text_of(item[0]), description_of(item[1])});
         BundleOptions options;
         for (const String& arch : archs) options.archs.push_back(Arch::parse(text_of(arch)));
         options.devices = texts_of(devices);
         options.max_batch = number_of(max_batch, "max_batch");
         Array<String> files;
         for (const BundleFile& file : write_bundle(
                  text_of(folder), kernels, table.empty() ? load_tables() : Table::from_json(text_of(table)), options))
           files.push_back(String(file.name));
         return files;
       })},
      {"is_bundle", typed([](String folder) { return is_bundle(text_of(folder)); })},
      {"bundle_problems", typed([](String folder) {
         Array<Array<String>> out;
         for (const BundleFile& file : read_bundle(text_of(folder)))
           if (!file.problem.empty()) out.push_back({String(file.name), String(file.problem)});
         return out;
       })},
      {"devices", typed([]() {
         std::string why;
         Array<Any> out;
         for (const DeviceFacts& device : devices(&why)) out.push_back(fields_of(device));
         return Array<Any>{out, String(why)};
       })},
      {"set_log", typed([](ffi::Optional<Function> callback) {
         if (!callback.has_value()) return set_log({});
         set_log([callback = callback.value()](LogLevel level, std::string_view text) {
           callback(String(level == LogLevel::warning ? "warning" : "info"), String(std::string(text)));
         });
       })},
      {"calls", typed([](String op, std::int64_t first_dim) { return calls(op, first_dim); })},
      {"facts", Function::FromPacked([](PackedArgs arguments, Any* out) {
         // a tensor, its name
         translated([&] {
           const auto name = arguments[1].cast<String>();
           const DLTensor* tensor = dltensor_of(arguments[0], text_of(name));
           if (tensor == nullptr) fail(ErrorKind::invalid, text_of(name) + ": not given");
           *out = facts(*tensor);
         });
       })},
      {"tensor_fields", typed([](String op) {
         if (op == "materialise") return field_names<MaterialiseArgs>();
         if (op == "reset_slots") return field_names<ResetSlotsArgs>();
         if (op == "copy_slots") return field_names<CopySlotsArgs>();
         if (op == "launch_slot_copies") return field_names<SlotCopiesArgs>();
         if (op == "ring_layer") return field_names<RingLayer>();
         return with_args_of(op_named(text_of(op)), [](auto args) { return field_names<decltype(args)>(); });
       })},
      {"version", typed([]() { return String(SSMJIT_VERSION); })},
  };
}

Map<String, Function> functions() {
  Map<String, Function> all = description_functions();
  for (const auto& [name, function] : slot_functions()) all.Set(name, function);
  for (const auto& [name, function] : session_functions()) all.Set(name, function);
  for (const auto& [name, function] : side_functions()) all.Set(name, function);
  return all;
}

}  // namespace

}  // namespace ssmjit::python

TVM_FFI_DLL_EXPORT_TYPED_FUNC(functions, ssmjit::python::functions)
