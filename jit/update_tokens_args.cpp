// The arguments of an update of several tokens, with snapshots, slots, accepted counts or varlen.
#include <map>
#include <utility>

#include "jit/kernel_args.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

constexpr const char* kNeeded = "every update needs it";
constexpr const char* kRead = "the description's maths reads it";

// Whether a varlen tensor is [1, total, ...] and not [total, ...]. `inner`: the dimensions behind the tokens.
bool has_leading_one(const Tensor& tensor, int inner) { return tensor.rank == inner + 2; }

// Of all requests together.
std::int64_t total_tokens(const UpdateArgs& args) {
  if (args.x.rank != 3 && args.x.rank != 4) return kAny;
  const std::int64_t total = args.x.shape[has_leading_one(args.x, 2) ? 1 : 0];
  return total >= 0 ? total : kAny;
}

// What is wanted of a tensor of this step's tokens, whose dimensions behind them are `inner`.
[[gnu::always_inline]] inline TensorWants of_tokens(const Wants& wants, const Tensor& tensor, const char* name,
                                                    DType dtype, std::int64_t batch, std::int64_t total,
                                                    std::initializer_list<std::int64_t> inner) {
  const int behind = static_cast<int>(inner.size());
  TensorWants out{.name = name, .dtype = dtype, .rank = behind + 2, .shape = {batch, wants.tokens}, .strided = 2};
  std::size_t at = 2;
  if (wants.is_varlen && has_leading_one(tensor, behind)) {
    out.shape = {1, total};
  } else if (wants.is_varlen || wants.tokens == 1) {
    out.shape = {wants.is_varlen ? total : batch};
    out.rank = behind + 1;
    out.strided = at = 1;
    if (wants.is_varlen) out.rows = {"token", ""};
  }
  for (const std::int64_t extent : inner) out.shape[at++] = extent;
  return out;
}

// Indices by token, or columns of them: [batch, columns], of one column [batch] too.
template <class Report>
void check_columns(const char* name_, const Tensor& indices, std::int64_t batch, std::int64_t columns, bool or_more,
                   Report& report) {
  if (columns == 1 && indices.rank == 1) return check_indices_shape(name_, indices, batch, report);
  if (indices.dtype != DType::i32 && indices.dtype != DType::i64) {
    report([&] { return fmt::format("{}: got dtype {}; wants int32 or int64", name_, name(indices.dtype)); });
    return;
  }
  const bool fits = indices.rank == 2 && (batch == kAny || indices.shape[0] == batch) &&
                    (or_more ? indices.shape[1] >= columns : indices.shape[1] == columns);
  if (!fits) {
    report([&] {
      return fmt::format("{}: got shape {}; wants [{}, {}{}]", name_, shape_text(indices.shape, indices.rank),
                         batch == kAny ? "batch" : std::to_string(batch), columns, or_more ? " or more" : "");
    });
    return;
  }
  for (const std::size_t i : {0, 1})
    if (indices.shape[i] > 1 && indices.stride[i] < 0)
      report([&] { return fmt::format("{}: stride {}; wants 0 or more", name_, indices.stride[i]); });
  if (!is_aligned(indices.data, element_bytes(indices.dtype)))
    report([&] {
      return fmt::format("{}: base address {} is not a multiple of {} bytes", name_, fmt::ptr(indices.data),
                         size_bytes(indices.dtype));
    });
}

template <class Report>
void check_index_tensors(const Wants& wants, const UpdateArgs& args, std::int64_t batch, Report& report) {
  const bool indexed = is_given(args.state_batch_indices), redirected = is_given(args.dst_state_batch_indices);
  if (wants.has_accepted) {
    if (check_given("state_batch_indices", indexed, true, "accepted counts choose one of its columns", report))
      check_columns("state_batch_indices", args.state_batch_indices, batch, wants.tokens, true, report);
  } else if (indexed) {
    check_indices_shape("state_batch_indices", args.state_batch_indices, batch, report);
  } else {
    check_slot_of_each_row(args.state, batch, report);
  }
  if (check_given("num_accepted_tokens", is_given(args.num_accepted_tokens), wants.has_accepted,
                  "the description has accepted counts", report))
    check_indices_shape("num_accepted_tokens", args.num_accepted_tokens, batch, report);

  if (wants.keeps_slots) {
    if (check_given("dst_state_batch_indices", redirected, true, "the description stores to a slot after each token",
                    report))
      check_columns("dst_state_batch_indices", args.dst_state_batch_indices, batch, wants.tokens, false, report);
  } else if (redirected && !wants.has_destination) {
    report([] {
      return std::string(
          "dst_state_batch_indices: given, but the description has no destination slots; leave it out, or "
          "describe the kernel with destination_slots()");
    });
  } else if (redirected) {
    check_indices_shape("dst_state_batch_indices", args.dst_state_batch_indices, batch, report);
  }

  const Tensor& snapshots = args.intermediate_states;
  if (is_given(args.intermediate_state_indices) &&
      check_given("intermediate_state_indices", true, wants.keeps_snapshots, "", report))
    check_indices_shape("intermediate_state_indices", args.intermediate_state_indices, batch, report);
  if (wants.keeps_snapshots && !is_given(args.intermediate_state_indices) && snapshots.rank == 5 &&
      args.state.rank == 4 && snapshots.shape[0] < (indexed ? args.state.shape[0] : batch))
    report([&] {
      return fmt::format(
          "intermediate_states: {} slots; without intermediate_state_indices a row's states go to the slot that it "
          "reads, so give indices or {} slots",
          snapshots.shape[0], indexed ? args.state.shape[0] : batch);
    });
  if (check_given("retrieve_parent_token", is_given(args.retrieve_parent_token), wants.has_tree,
                  "the description's tokens form a tree", report))
    check_columns("retrieve_parent_token", args.retrieve_parent_token, batch, wants.tokens, false, report);

  const Tensor* first = nullptr;
  const char* first_name = nullptr;
  for (const auto& [name_, tensor] : {std::pair("state_batch_indices", &args.state_batch_indices),
                                      {"dst_state_batch_indices", &args.dst_state_batch_indices},
                                      {"num_accepted_tokens", &args.num_accepted_tokens},
                                      {"intermediate_state_indices", &args.intermediate_state_indices},
                                      {"retrieve_parent_token", &args.retrieve_parent_token}}) {
    if (tensor->data == nullptr) continue;
    if (first == nullptr) first = tensor, first_name = name_;
    if (tensor->dtype != first->dtype)
      report([&, name_ = name_, tensor = tensor] {
        return fmt::format("{}: got dtype {}; wants {}, as {}", name_, name(tensor->dtype), name(first->dtype),
                           first_name);
      });
  }
}

template <class Report>
void check_launch(const Wants& wants, const UpdateArgs& args, Report&& report) {
  if (!check_version(args, report)) return;  // nothing behind it can be trusted
  const std::int64_t batch = token_batch(wants, args), total = wants.is_varlen ? total_tokens(args) : kAny;
  if (batch > kMostRows)
    report([&] {
      return fmt::format("{}: got {} requests; a launch takes up to {}: split the batch",
                         wants.is_varlen ? "cu_seqlens" : "x", batch, kMostRows);
    });
  const std::int64_t slots = args.state.rank == 4 && args.state.shape[0] >= 0 ? args.state.shape[0] : kAny;
  const auto check = [&](const Tensor& tensor, const TensorWants& tensor_wants, bool wanted, const char* reader) {
    if (check_given(tensor_wants.name, is_given(tensor), wanted, reader, report))
      check_tensor(tensor, tensor_wants, report);
  };
  check(args.state,
        {.name = "state",
         .dtype = wants.state,
         .rank = 4,
         .shape = {kAny, wants.nheads, wants.head_dim, wants.dstate},
         .align = Align::vector_rows,
         .rows_apart = true,
         .rows = {"slot", ""}},
        true, kNeeded);
  constexpr const char* kScale = "such a state has a scale for each row";
  check(args.state_scale,
        {.name = "state_scale",
         .dtype = DType::f32,
         .rank = 3,
         .shape = {slots, wants.nheads, wants.head_dim},
         .rows_apart = true,
         .rows = {"slot", ""}},
        wants.has_state_scale, kScale);

  const Align rows = wants.aligned_rows ? Align::vector_rows : Align::element;
  const auto tokens = [&](const Tensor& tensor, const char* name, DType dtype,
                          std::initializer_list<std::int64_t> inner, Align align, bool wanted = true,
                          const char* reader = kNeeded, bool written = false) {
    TensorWants tensor_wants = of_tokens(wants, tensor, name, dtype, batch, total, inner);
    if (inner.size() == 1) tensor_wants.or_expanded = kOrExpandedHeads;
    tensor_wants.align = align;
    tensor_wants.may_be_unaligned = true;
    tensor_wants.rows_apart = written;
    check(tensor, tensor_wants, wanted, reader);
  };
  tokens(args.x, "x", wants.input, {wants.nheads, wants.head_dim}, rows);
  tokens(in_front_of({wants.head_dim}, args.dt), "dt", wants.dt, {wants.nheads}, Align::element);
  check(in_front_of({wants.head_dim, wants.dstate}, args.A),
        {.name = "A", .dtype = DType::f32, .rank = 1, .shape = {wants.nheads}, .or_expanded = kOrExpandedA}, true,
        kNeeded);
  tokens(args.B, "B", wants.input, {wants.ngroups, wants.dstate}, rows);
  tokens(args.C, "C", wants.input, {wants.ngroups, wants.dstate}, rows);
  const auto weight = [&](const Tensor& tensor, const char* name, bool wanted) {
    check(in_front_of({wants.head_dim}, tensor),
          {.name = name, .dtype = wants.weight, .rank = 1, .shape = {wants.nheads}, .or_expanded = kOrExpandedHeads},
          wanted, kRead);
  };
  weight(args.D, "D", wants.has_D);
  weight(args.dt_bias, "dt_bias", wants.has_dt_bias);
  tokens(args.z, "z", wants.input, {wants.nheads, wants.head_dim}, rows, wants.has_z, kRead);
  tokens(args.out, "out", wants.input, {wants.nheads, wants.head_dim}, Align::element, true, kNeeded, true);

  check(args.intermediate_states,
        {.name = "intermediate_states",
         .dtype = wants.state,
         .rank = 5,
         .shape = {kAny, kAny, wants.nheads, wants.head_dim, wants.dstate},
         .align = Align::vector_rows,
         .strided = 0},
        wants.keeps_snapshots, "the description stores snapshots");
  check(args.intermediate_state_scales,
        {.name = "intermediate_state_scales",
         .dtype = DType::f32,
         .rank = 4,
         .shape = {args.intermediate_states.rank == 5 ? args.intermediate_states.shape[0] : kAny,
                   args.intermediate_states.rank == 5 ? args.intermediate_states.shape[1] : kAny, wants.nheads,
                   wants.head_dim},
         .strided = 0},
        wants.keeps_snapshots && wants.has_state_scale, kScale);
  if (wants.keeps_snapshots && args.intermediate_states.rank == 5 && args.intermediate_states.shape[1] < wants.tokens)
    report([&] {
      return fmt::format("intermediate_states: got {} steps; wants {} or more, one a token",
                         args.intermediate_states.shape[1], wants.tokens);
    });
  if (wants.keeps_snapshots && args.intermediate_states.rank == 5 && args.intermediate_states.shape[1] > kMostIntStride)
    report([&] {
      return fmt::format("intermediate_states: got {} steps; wants {} at most", args.intermediate_states.shape[1],
                         kMostIntStride);
    });

  check(args.cu_seqlens, {"cu_seqlens", DType::i32, 1, {batch == kAny ? kAny : batch + 1}}, wants.is_varlen,
        "the description has varlen");
  if (wants.is_varlen && args.cu_seqlens.rank == 1 && args.cu_seqlens.shape[0] < 1)
    report([&] { return fmt::format("cu_seqlens: shape [{}]; wants [batch + 1]", args.cu_seqlens.shape[0]); });
  if (total > kMostIntStride)
    report([&] { return fmt::format("x: got {} tokens; a launch takes up to {}", total, kMostIntStride); });
  check_seeds(args.rand_seed, slots, wants.is_stochastic, report);
  check_index_tensors(wants, args, batch, report);
  if (args.disable_state_update && !wants.keeps_snapshots && !wants.keeps_slots &&
      !is_given(args.dst_state_batch_indices))
    report([] {
      return std::string(
          "disable_state_update: got true, but the new state goes nowhere else; wants false, or a description with "
          "snapshots or slots");
    });
  check_pdl(args.pdl, report);
}

// Who writes which slot of a pool: the row, and the token where there is one.
struct Writer {
  std::size_t row = 0;
  std::int64_t token = -1;
};
using Writers = std::map<std::int64_t, Writer>;

std::string place_text(const char* name, const Writer& writer) {
  return writer.token < 0 ? fmt::format("{}[{}]", name, writer.row)
                          : fmt::format("{}[{}, {}]", name, writer.row, writer.token);
}

}  // namespace

std::int64_t token_batch(const Wants& wants, const UpdateArgs& args) {
  if (wants.is_varlen)
    return args.cu_seqlens.rank == 1 && args.cu_seqlens.shape[0] >= 1 ? args.cu_seqlens.shape[0] - 1 : kAny;
  return args.x.rank == (wants.tokens == 1 ? 3 : 4) && args.x.shape[0] >= 0 ? args.x.shape[0] : kAny;
}

std::vector<std::string> token_problems(const Wants& wants, const UpdateArgs& args) {
  std::vector<std::string> found;
  check_launch(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

bool tokens_fit(const Wants& wants, const UpdateArgs& args) {
  bool fits = true;
  check_launch(wants, args, [&](auto&&) { fits = false; });
  return fits;
}

std::vector<std::string> token_memory_problems(const Driver& driver, const Wants& wants, const UpdateArgs& args,
                                               std::int64_t batch) {
  const std::int64_t slots = args.state.shape[0];
  const auto rows = static_cast<std::size_t>(batch);
  std::vector<std::string> wrong;
  const auto column_of = [&](const Tensor& indices, std::int64_t column) {
    Tensor out = indices;
    if (indices.rank == 2) {
      out.data =
          static_cast<const std::byte*>(indices.data) + column * stride_of(indices, 1) * size_bytes(indices.dtype);
      out.shape[1] = out.stride[1] = 1;
    }
    return read_integers(driver, out, batch);
  };

  // How many tokens each row has.
  std::vector<std::int64_t> tokens_of(rows, wants.tokens);
  if (wants.is_varlen) {
    const std::int64_t total = total_tokens(args);
    const std::vector<std::int64_t> first_of = read_integers(driver, args.cu_seqlens, batch + 1);
    if (first_of.front() != 0) wrong.push_back(fmt::format("cu_seqlens[0] is {}; wants 0", first_of.front()));
    for (std::size_t i = 1; i < first_of.size(); ++i) {
      const std::int64_t tokens = first_of[i] - first_of[i - 1];
      tokens_of[i - 1] = std::clamp<std::int64_t>(tokens, 0, wants.tokens);
      if (tokens < 0)
        wrong.push_back(fmt::format("cu_seqlens[{}] is {}, below the {} in front of it; wants it never to decrease", i,
                                    first_of[i], first_of[i - 1]));
      else if (tokens > wants.tokens)
        wrong.push_back(
            fmt::format("cu_seqlens[{}] is {}, {} more than the entry in front of it; a request of this kernel has up "
                        "to {} tokens",
                        i, first_of[i], tokens, wants.tokens));
    }
    if (first_of.back() != total)
      wrong.push_back(
          fmt::format("cu_seqlens[{}] is {}; wants {}, the tokens of x", first_of.size() - 1, first_of.back(), total));
  }

  // Which slot each row reads.
  std::vector<std::int64_t> source(rows);
  std::vector<std::int64_t> which(rows, 0);
  if (wants.has_accepted) {
    const std::vector<std::int64_t> accepted = read_integers(driver, args.num_accepted_tokens, batch);
    const std::int64_t columns = args.state_batch_indices.rank == 2 ? args.state_batch_indices.shape[1] : 1;
    for (std::size_t row = 0; row < rows; ++row) {
      if (accepted[row] < 0 || accepted[row] > wants.tokens)
        wrong.push_back(fmt::format("num_accepted_tokens[{}] is {}; wants 0 to {}", row, accepted[row], wants.tokens));
      which[row] = std::clamp<std::int64_t>(accepted[row], 1, wants.tokens) - 1;
    }
    for (std::int64_t column = 0; column < columns; ++column) {
      const std::vector<std::int64_t> values = column_of(args.state_batch_indices, column);
      for (std::size_t row = 0; row < rows; ++row)
        if (which[row] == column) source[row] = values[row];
    }
  } else if (is_given(args.state_batch_indices)) {
    source = column_of(args.state_batch_indices, 0);
  } else {
    for (std::size_t row = 0; row < rows; ++row) source[row] = static_cast<std::int64_t>(row);
  }
  const auto each_live = [&](const auto& visit) {
    for (std::size_t row = 0; row < rows; ++row)
      if (!is_pad(source[row], args.pad_slot_id) && source[row] < slots && tokens_of[row] > 0) visit(row);
  };
  for (std::size_t row = 0; row < rows; ++row)
    if (!is_pad(source[row], args.pad_slot_id) && source[row] >= slots)
      wrong.push_back(fmt::format("{} is {}; the state has {} slots",
                                  place_text("state_batch_indices", {row, wants.has_accepted ? which[row] : -1}),
                                  source[row], slots));

  // Who writes which slot; each only once.
  const auto writes = [&](const char* name, Writers& writers, std::int64_t slot, Writer writer, std::int64_t pool,
                          const char* pool_name) {
    if (is_pad(slot, args.pad_slot_id)) return;
    if (slot >= pool) {
      wrong.push_back(fmt::format("{} is {}; the {} has {} slots", place_text(name, writer), slot, pool_name, pool));
      return;
    }
    const auto [first, is_first] = writers.emplace(slot, writer);
    if (!is_first)
      wrong.push_back(fmt::format("{} and {} are both slot {}; each of one launch must be another slot",
                                  place_text(name, first->second), place_text("", writer), slot));
  };
  Writers written, snapshots;
  const bool redirected = is_given(args.dst_state_batch_indices);
  if (wants.keeps_slots) {
    for (std::int64_t t = 0; t < wants.tokens; ++t) {
      const std::vector<std::int64_t> target = column_of(args.dst_state_batch_indices, t);
      each_live([&](std::size_t row) {
        if (t < tokens_of[row]) writes("dst_state_batch_indices", written, target[row], {row, t}, slots, "state");
      });
    }
  } else if (redirected) {
    const std::vector<std::int64_t> target = column_of(args.dst_state_batch_indices, 0);
    each_live([&](std::size_t row) {
      writes("dst_state_batch_indices", written, target[row], {row, -1}, slots, "state");
    });
  } else if (!args.disable_state_update) {
    each_live([&](std::size_t row) {
      writes("state_batch_indices", written, source[row], {row, wants.has_accepted ? which[row] : -1}, slots, "state");
    });
  }
  each_live([&](std::size_t row) {
    const auto found = written.find(source[row]);
    if (found != written.end() && found->second.row != row)
      wrong.push_back(fmt::format("row {} reads slot {}, which row {} of the same launch writes", row, source[row],
                                  found->second.row));
  });
  if (wants.keeps_snapshots) {
    const bool own = is_given(args.intermediate_state_indices);
    const std::vector<std::int64_t> target = own ? column_of(args.intermediate_state_indices, 0) : source;
    const char* const name = own ? "intermediate_state_indices" : "state_batch_indices";
    each_live([&](std::size_t row) {
      writes(name, snapshots, target[row], {row, -1}, args.intermediate_states.shape[0], "buffer of snapshots");
      if (wants.has_tree && is_pad(target[row], args.pad_slot_id))
        wrong.push_back(
            fmt::format("{}[{}] is {}, a pad; the tokens of a tree go back to its snapshots", name, row, target[row]));
    });
  }
  if (wants.has_tree) {
    for (std::int64_t t = 1; t < wants.tokens; ++t) {
      const std::vector<std::int64_t> parent = column_of(args.retrieve_parent_token, t);
      each_live([&](std::size_t row) {
        if (t < tokens_of[row] && parent[row] >= t && parent[row] < wants.tokens)
          wrong.push_back(
              fmt::format("retrieve_parent_token[{}, {}] is {}; wants a token before it", row, t, parent[row]));
      });
    }
  }
  return wrong;
}

device_args::UpdateTokensArgs tokens_to_device(const Description& description, const UpdateArgs& args, Pdl pdl) {
  const bool packed = description.is_varlen, flat = !packed && description.token_count == 1;
  // Between requests (0 where they are packed) and between tokens; `inner`: the dimensions behind them.
  const auto request = [&](const Tensor& tensor) { return packed || tensor.rank == 0 ? 0 : stride_of(tensor, 0); };
  const auto token = [&](const Tensor& tensor, int inner) -> std::int64_t {
    if (tensor.rank == 0 || flat) return 0;
    return stride_of(tensor, packed && !has_leading_one(tensor, inner) ? 0 : 1);
  };
  const auto column = [](const Tensor& tensor) { return tensor.rank == 2 ? stride_of(tensor, 1) : 0; };
  bool wide = false;
  for (const Tensor* indices : {&args.state_batch_indices, &args.dst_state_batch_indices, &args.num_accepted_tokens,
                                &args.intermediate_state_indices, &args.retrieve_parent_token})
    wide = wide || (indices->data != nullptr && indices->dtype == DType::i64);
  const auto data = [](const Tensor& tensor) { return const_cast<void*>(tensor.data); };
  const Tensor dt = in_front_of({description.head_dim}, args.dt);

  device_args::UpdateTokensArgs device{};
  device.state_batch_indices = args.state_batch_indices.data;
  device.index_stride = stride_of(args.state_batch_indices, 0);
  device.index_column_stride = column(args.state_batch_indices);
  device.index_columns = args.state_batch_indices.rank == 2 ? static_cast<int>(args.state_batch_indices.shape[1]) : 1;
  device.wide_indices = wide ? 1 : 0;
  device.pdl = device_pdl(pdl);
  device.A = args.A.data;
  device.num_accepted_tokens = args.num_accepted_tokens.data;
  device.accepted_stride = stride_of(args.num_accepted_tokens, 0);
  device.cu_seqlens = static_cast<const int*>(args.cu_seqlens.data);
  device.total = packed ? static_cast<int>(total_tokens(args)) : 0;
  device.slots = args.state.shape[0];
  device.pad_slot_id = args.pad_slot_id;
  device.state = data(args.state);
  device.state_stride = stride_of(args.state, 0);
  device.state_scale = static_cast<float*>(data(args.state_scale));
  device.state_scale_stride = stride_of(args.state_scale, 0);
  device.B = args.B.data;
  device.B_stride = request(args.B);
  device.B_token_stride = token(args.B, 2);
  device.C = args.C.data;
  device.C_stride = request(args.C);
  device.C_token_stride = token(args.C, 2);
  device.x = args.x.data;
  device.x_stride = request(args.x);
  device.x_token_stride = token(args.x, 2);
  device.z = args.z.data;
  device.z_stride = request(args.z);
  device.z_token_stride = token(args.z, 2);
  device.dt = args.dt.data;
  device.dt_stride = request(dt);
  device.dt_token_stride = token(dt, 1);
  device.dt_bias = args.dt_bias.data;
  device.D = args.D.data;
  device.out = data(args.out);
  device.out_stride = request(args.out);
  device.out_token_stride = token(args.out, 2);
  device.dst_state_batch_indices = args.dst_state_batch_indices.data;
  device.dst_index_stride = stride_of(args.dst_state_batch_indices, 0);
  device.dst_index_token_stride = column(args.dst_state_batch_indices);
  device.intermediate_states = data(args.intermediate_states);
  device.intermediate_state_scales = static_cast<float*>(data(args.intermediate_state_scales));
  device.snapshot_slots = args.intermediate_states.shape[0];
  device.snapshot_steps = static_cast<int>(args.intermediate_states.shape[1]);
  device.nheads = static_cast<int>(args.A.shape[0]);
  device.intermediate_state_indices = args.intermediate_state_indices.data;
  device.snapshot_index_stride = stride_of(args.intermediate_state_indices, 0);
  device.retrieve_parent_token = args.retrieve_parent_token.data;
  device.parent_stride = stride_of(args.retrieve_parent_token, 0);
  device.parent_token_stride = column(args.retrieve_parent_token);
  device.rand_seed = static_cast<const long long*>(args.rand_seed.data);
  device.seed_stride = args.rand_seed.rank == 1 ? stride_of(args.rand_seed, 0) : 0;
  device.disable_state_update = args.disable_state_update ? 1 : 0;
  return device;
}

}  // namespace ssmjit
