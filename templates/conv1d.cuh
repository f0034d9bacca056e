#pragma once
#include "conv1d_args.cuh"
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/scalar.cuh"
#include "index.cuh"
#include "launch.cuh"
#include "maths.cuh"
// One decode step of a causal convolution by channel ("causal_conv1d_update"), one or more tokens a request:
//
//   stream = the entries of the state, the newest last, then the step's tokens
//   out[t] = activation(bias + sum over k < width of w[k] * stream[token t - width + 1 + k])     each channel
//   state  = the last state_len entries of stream
//
// With accepted counts the state's first width - 1 + tokens - 1 entries are used, the history is the width - 1 from
// entry accepted - 1 on, and what follows it is no part of the stream. A circular state has its next token at
// cache_seqlens % state_len and the newest before that.
//
// All of it is memory: a lane reads its channels' entries and tokens once, in vectors, has the stream in registers, as
// it is stored, and takes products, the new state and whatever else is written of it from there. It reads all of a
// request's channels before it writes any, and no other lane touches them: a slot may be read and written by one row.
//
// state_path: how a state whose entries lie side by side comes to a lane and leaves it. direct: by vectors of the
// lane's own; cp_async: through shared memory, so that every access covers whole lines.

enum class ConvStore { shift, circular };
enum class ConvKeep { last, snapshots, slots };

struct alignas(8) Vec8 {
  u32 word[2];
};

// kCount neighbouring elements as they lie in memory: words where the address is a multiple of the largest power of two
// (up to 16 bytes) that divides their size.
template <class T, int kCount, bool kAligned>
struct Elements {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr bool kWords = kAligned && kBytes % 4 == 0;
  static constexpr bool kHalves = sizeof(T) == 2;
  static constexpr int kUnits = kWords ? kBytes / 4 : kCount;
  u32 unit[kUnits];  // words, or the bits of an element each

  template <bool kStreaming>
  SSMJIT_DEVICE void load(const T* p) {
    if constexpr (kWords && kUnits % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kUnits; i += 4) {
        const Vec16 v = load_global<kStreaming>(reinterpret_cast<const u32*>(p) + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) unit[i + j] = v.word[j];
      }
    } else if constexpr (kWords) {
      load_now<kUnits>(p, unit);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) load_element(p, i);
    }
  }
  SSMJIT_DEVICE void load_element(const T* p, int i) {
    if constexpr (kHalves)
      unit[i] = load_now_b16(p + i);
    else
      unit[i] = load_now_b32(p + i);
  }
  template <bool kStreaming>
  SSMJIT_DEVICE void store(T* p) const {
    if constexpr (kWords && kUnits % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kUnits; i += 4)
        store_global<kStreaming>(reinterpret_cast<u32*>(p) + i,
                                 Vec16{{unit[i], unit[i + 1], unit[i + 2], unit[i + 3]}});
    } else if constexpr (kWords && kUnits % 2 == 0) {
#pragma unroll
      for (int i = 0; i < kUnits; i += 2) reinterpret_cast<Vec8*>(p)[i / 2] = Vec8{{unit[i], unit[i + 1]}};
    } else if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) reinterpret_cast<u32*>(p)[i] = unit[i];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) p[i] = element(i);
    }
  }
  SSMJIT_DEVICE void zero() {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) unit[i] = 0;
  }
  // The element's bits, in the low ones.
  SSMJIT_DEVICE u32 bits(int i) const {
    if constexpr (!kWords || !kHalves)
      return unit[i];
    else
      return i % 2 == 0 ? unit[i / 2] & 0xffffu : unit[i / 2] >> 16;
  }
  // Elements are set in order, from 0 on.
  SSMJIT_DEVICE void set_bits(int i, u32 v) {
    if constexpr (!kWords || !kHalves)
      unit[i] = v;
    else
      unit[i / 2] = i % 2 == 0 ? v : unit[i / 2] | v << 16;
  }
  static SSMJIT_DEVICE T from_bits(u32 bits) {
    if constexpr (kHalves)
      return T{static_cast<u16>(bits)};
    else
      return bits_float(bits);
  }
  SSMJIT_DEVICE T element(int i) const { return from_bits(bits(i)); }
};

SSMJIT_DEVICE u32 bits_of(float v) { return float_bits(v); }
SSMJIT_DEVICE u32 bits_of(bf16 v) { return v.bits; }
SSMJIT_DEVICE u32 bits_of(f16 v) { return v.bits; }
template <class T, class U>
constexpr bool kSameType = false;
template <class T>
constexpr bool kSameType<T, T> = true;

// Cfg is a struct of constants: the types Input, State, Weight, kTokens, kWidth, kStateLen, kSnapshotLen, kHasBias,
// kChannelsLast, kStore, kKeep, kAccepted, kAlignedRows, kPadOutput, the plan's fields, and the function activation.
template <class Cfg>
struct ConvShape {
  static constexpr int kThreads = 32 * Cfg::kWarps;
  static constexpr int kChannels = Cfg::kBlockM / kThreads;  // a lane, side by side
  static constexpr int kRows = Cfg::kRowsPerBlock;           // requests a block takes, one after the other
  // Whether the entries that are read are the newest width - 1, from a place that the run knows, or all from the first.
  static constexpr bool kAnywhere = Cfg::kAccepted || Cfg::kStore == ConvStore::circular;
  static constexpr int kOld = kAnywhere ? Cfg::kWidth - 1 : Cfg::kStateLen;  // entries of the stream before the tokens
  static constexpr int kStream = kOld + Cfg::kTokens;
  // Those of the stream before kFirst are neither products' nor in a window that is written.
  static constexpr int kUnused = kOld - (Cfg::kWidth - 1);
  static constexpr int kDropped = Cfg::kKeep == ConvKeep::last ? Cfg::kTokens : 1;
  static constexpr int kFirst = kUnused < kDropped ? kUnused : kDropped;
  static constexpr bool kShared = Cfg::kStatePath != StatePath::direct;
  // Entries of a slot that a shift writes.
  static constexpr int kKept = Cfg::kAccepted ? Cfg::kWidth - 1 + Cfg::kTokens - 1 : Cfg::kStateLen;
  static constexpr int kElement = static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kWarpBytes = 32 * kChannels * Cfg::kStateLen * kElement;
  static_assert(Cfg::kStateLen >= Cfg::kWidth - 1 && Cfg::kStateLen >= kKept);
  static_assert(Cfg::kAlignedRows || kChannels == 1);
  static_assert(!kShared || (!Cfg::kChannelsLast && !kAnywhere && Cfg::kAlignedRows && kChannels * kElement % 16 == 0));
};

// A request: its slots, and the lane's channels of its state and tokens as they lie in memory.
template <class Cfg>
struct ConvRow {
  using S = ConvShape<Cfg>;
  using Input = typename Cfg::Input;
  using State = typename Cfg::State;
  using Entry = Elements<State, S::kChannels, Cfg::kAlignedRows>;
  template <int kLength>
  using Window = Elements<State, S::kChannels * kLength, Cfg::kAlignedRows>;
  static constexpr bool kWhole = !Cfg::kChannelsLast && !S::kAnywhere;  // the state is read as it lies, entries inside

  IndexEntry slot_entry, snapshot_entry, accepted_entry, seqlen_entry;
  IndexEntry target_entry[Cfg::kKeep == ConvKeep::slots ? Cfg::kTokens : 1];
  i64 slot;
  bool live;
  int place;  // circular: where the first token goes
  Window<kWhole ? Cfg::kStateLen : 1> window;
  Entry entry[kWhole ? 1 : (S::kOld > 0 ? S::kOld : 1)];
  Elements<Input, S::kChannels, Cfg::kAlignedRows> x[Cfg::kTokens];

  // Entry i of the stream, of the lane's channel c, as the state stores it.
  SSMJIT_DEVICE u32 stream(int i, int c) const {
    if (i < S::kOld) {
      if constexpr (kWhole)
        return window.bits(c * Cfg::kStateLen + i);
      else
        return entry[i].bits(c);
    }
    const auto& token = x[i - S::kOld];
    if constexpr (kSameType<Input, State>) {
      return token.bits(c);
    } else {
      State stored;
      narrow(widen(token.element(c)), stored);
      return bits_of(stored);
    }
  }
};

template <class Cfg>
struct ConvStep {
  using S = ConvShape<Cfg>;
  using Row = ConvRow<Cfg>;
  using Input = typename Cfg::Input;
  using State = typename Cfg::State;
  using Weight = typename Cfg::Weight;

  const Conv1dArgs& args;
  int channel;  // the lane's first
  bool inside;  // whether there is such a channel
  unsigned char* shared;
  Elements<Weight, S::kChannels * Cfg::kWidth, Cfg::kAlignedRows> w;
  Elements<Weight, S::kChannels, Cfg::kAlignedRows> bias;

  SSMJIT_DEVICE bool usable(i64 slot, i64 slots) const { return slot >= 0 && slot < slots && slot != args.pad_slot_id; }

  SSMJIT_DEVICE void load_weights() {
    w.zero();
    bias.zero();
    if (!inside) return;
    w.template load<false>(static_cast<const Weight*>(args.w) + static_cast<i64>(channel) * Cfg::kWidth);
    if constexpr (Cfg::kHasBias) bias.template load<false>(static_cast<const Weight*>(args.bias) + channel);
  }
  SSMJIT_DEVICE IndexEntry index(const void* indices, i64 at, i64 otherwise) const {
    return IndexEntry::load(indices, args.wide_indices, at, otherwise, args.w);
  }
  SSMJIT_DEVICE void load_indices(Row& row, int request) const {
    row.slot_entry = index(args.state_batch_indices, request * args.index_stride, request);
    if constexpr (Cfg::kStore == ConvStore::circular)
      row.seqlen_entry = index(args.cache_seqlens, request * args.seqlen_stride, 0);
    if constexpr (Cfg::kAccepted)
      row.accepted_entry = index(args.num_accepted_tokens, request * args.accepted_stride, 1);
    if constexpr (Cfg::kKeep == ConvKeep::snapshots) {
      row.snapshot_entry = row.slot_entry;
      if (args.intermediate_state_indices != nullptr)
        row.snapshot_entry = index(args.intermediate_state_indices, request * args.snapshot_index_stride, request);
    }
    if constexpr (Cfg::kKeep == ConvKeep::slots) {
#pragma unroll
      for (int t = 0; t < Cfg::kTokens; ++t)
        row.target_entry[t] = index(args.output_state_indices,
                                    request * args.output_index_stride + t * args.output_index_token_stride, -1);
    }
  }
  SSMJIT_DEVICE void load_tokens(Row& row, int request, bool exists) const {
    const Input* x = static_cast<const Input*>(args.x) + request * args.x_stride + channel;
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      if (inside && exists)
        row.x[t].template load<false>(x + t * args.x_token_stride);
      else
        row.x[t].zero();
    }
  }

  // The stage of row i in shared memory, the warp's own.
  SSMJIT_DEVICE unsigned char* stage(int i) const {
    return shared + ((i % Cfg::kStages) * Cfg::kWarps + thread_index() / 32) * S::kWarpBytes;
  }
  // Calls f(offset in the warp's stage, offset in the slot) for the lane's share of kLength entries of the warp's
  // channels in whole lines, both in bytes.
  template <int kLength, class F>
  SSMJIT_DEVICE void in_lines(const F& f) const {
    const int warp_channel = channel - lane_index() * S::kChannels;
    const int bytes = (args.channels - warp_channel) * kLength * S::kElement;
    const i64 first = static_cast<i64>(warp_channel) * kLength * S::kElement;
#pragma unroll
    for (int v = 0; v < S::kChannels * kLength * S::kElement / 16; ++v) {
      const int at = (v * 32 + lane_index()) * 16;
      if (at < bytes) f(at, first + at);
    }
  }

  // Finds out which slot, and asks for its entries.
  SSMJIT_DEVICE void load_state(Row& row, int i, bool exists) const {
    row.slot = row.slot_entry.value();
    row.live = exists && usable(row.slot, args.slots);
    row.place = 0;
    int first = 0;  // entry that the first of the old ones is
    if constexpr (Cfg::kStore == ConvStore::circular) {
      const i64 place = row.seqlen_entry.value() % Cfg::kStateLen;
      row.place = static_cast<int>(place < 0 ? place + Cfg::kStateLen : place);
      first = row.place - S::kOld + Cfg::kStateLen;
    }
    if constexpr (Cfg::kAccepted) {
      const i64 accepted = row.accepted_entry.value();
      first = accepted < 1 ? 0 : static_cast<int>(accepted < Cfg::kTokens ? accepted : Cfg::kTokens) - 1;
    }
    const bool reads = inside && row.live;
    const State* from = static_cast<const State*>(args.conv_state) + (row.live ? row.slot * args.state_stride : 0);
    if constexpr (S::kShared) {
      if (row.live)
        in_lines<Cfg::kStateLen>([&](int at, i64 in_slot) {
          copy_async(stage(i) + at, reinterpret_cast<const unsigned char*>(from) + in_slot);
        });
      copy_async_commit();  // empty groups too, so that the count of pending ones stays the same
    } else if constexpr (Row::kWhole) {
      if (reads)
        row.window.template load<Cfg::kStreaming>(from + static_cast<i64>(channel) * Cfg::kStateLen);
      else
        row.window.zero();
    } else {
#pragma unroll
      for (int j = 0; j < S::kOld; ++j) {
        if (!reads || j < S::kFirst) {
          row.entry[j].zero();
          continue;
        }
        int at = first + j;
        if constexpr (Cfg::kStore == ConvStore::circular) at = at < Cfg::kStateLen ? at : at - Cfg::kStateLen;
        if constexpr (Cfg::kChannelsLast) {
          row.entry[j].template load<Cfg::kStreaming>(from + static_cast<i64>(at) * args.channels + channel);
        } else {
          row.entry[j].zero();
#pragma unroll
          for (int c = 0; c < S::kChannels; ++c) {
            Elements<State, 1, false> one;
            one.template load<false>(from + static_cast<i64>(channel + c) * Cfg::kStateLen + at);
            row.entry[j].set_bits(c, one.bits(0));
          }
        }
      }
    }
  }
  // Waits for what load_state asked for.
  SSMJIT_DEVICE void take_state(Row& row, int i) const {
    if constexpr (S::kShared) {
      copy_async_wait<Cfg::kStages - 1>();
      sync_warp();
      row.window.zero();
      if (!inside || !row.live) return;
      constexpr int kVectors = S::kWarpBytes / 512;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const Vec16 part = load_shared(stage(i) + (lane_index() * kVectors + v) * 16);
#pragma unroll
        for (int j = 0; j < 4; ++j) row.window.unit[4 * v + j] = part.word[j];
      }
    }
  }

  // The kLength entries that end before entry `end` of the stream, to a slot of kStride entries a channel. All of the
  // warp comes.
  template <int kLength, int kStride>
  SSMJIT_DEVICE void store_window(const Row& row, int i, int end, State* to, bool stores) const {
    if constexpr (Cfg::kChannelsLast) {
      if (!inside || !stores) return;
#pragma unroll
      for (int j = 0; j < kLength; ++j) {
        typename Row::Entry entry;
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) entry.set_bits(c, row.stream(end - kLength + j, c));
        entry.template store<Cfg::kStreaming>(to + static_cast<i64>(j) * args.channels + channel);
      }
    } else {
      typename Row::template Window<kLength> window;
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c)
#pragma unroll
        for (int j = 0; j < kLength; ++j) window.set_bits(c * kLength + j, row.stream(end - kLength + j, c));
      if constexpr (S::kShared) {
        constexpr int kVectors = S::kChannels * kLength * S::kElement / 16;
        sync_warp();  // all have read the stage
#pragma unroll
        for (int v = 0; v < kVectors; ++v)
          store_shared(
              stage(i) + (lane_index() * kVectors + v) * 16,
              Vec16{{window.unit[4 * v], window.unit[4 * v + 1], window.unit[4 * v + 2], window.unit[4 * v + 3]}});
        sync_warp();
        if (stores)
          in_lines<kLength>([&](int at, i64 in_slot) {
            store_global<Cfg::kStreaming>(reinterpret_cast<unsigned char*>(to) + in_slot, load_shared(stage(i) + at));
          });
      } else if (inside && stores) {
        State* const mine = to + static_cast<i64>(channel) * kStride;
        if constexpr (kLength == kStride) {
          window.template store<Cfg::kStreaming>(mine);
        } else {
#pragma unroll
          for (int e = 0; e < S::kChannels * kLength; ++e)
            mine[e / kLength * kStride + e % kLength] = window.element(e);
        }
      }
    }
  }
  // Circular: the tokens, the newest state_len of them, over the oldest entries.
  SSMJIT_DEVICE void store_tokens(const Row& row, State* to) const {
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      if (t < Cfg::kTokens - Cfg::kStateLen) continue;
      const int at = (row.place + t) % Cfg::kStateLen;
      typename Row::Entry entry;
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) entry.set_bits(c, row.stream(S::kOld + t, c));
      if constexpr (Cfg::kChannelsLast) {
        entry.template store<Cfg::kStreaming>(to + static_cast<i64>(at) * args.channels + channel);
      } else {
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c)
          to[static_cast<i64>(channel + c) * Cfg::kStateLen + at] = Row::Entry::from_bits(entry.bits(c));
      }
    }
  }

  SSMJIT_DEVICE void write_state(const Row& row, int i) const {
    State* const pool = static_cast<State*>(args.conv_state);
    if constexpr (Cfg::kKeep == ConvKeep::slots) {
#pragma unroll
      for (int t = 0; t < Cfg::kTokens; ++t) {
        const i64 slot = row.target_entry[t].value();
        const bool stores = row.live && usable(slot, args.slots);
        store_window<Cfg::kStateLen, Cfg::kStateLen>(row, i, S::kOld + t + 1,
                                                     pool + (stores ? slot * args.state_stride : 0), stores);
      }
    } else {
      if constexpr (Cfg::kKeep == ConvKeep::snapshots) {
        const i64 slot = row.snapshot_entry.value();
        const bool stores = row.live && usable(slot, args.snapshot_slots);
        State* const to = static_cast<State*>(args.intermediate_states) + (stores ? slot * args.snapshot_stride : 0);
#pragma unroll
        for (int t = 0; t < Cfg::kTokens; ++t)
          store_window<Cfg::kSnapshotLen, Cfg::kSnapshotLen>(row, i, S::kOld + t + 1,
                                                             to + t * args.snapshot_token_stride, stores);
      }
      State* const to = pool + (row.live ? row.slot * args.state_stride : 0);
      if constexpr (Cfg::kStore == ConvStore::circular) {
        if (inside && row.live) store_tokens(row, to);
      } else {
        store_window<S::kKept, Cfg::kStateLen>(row, i, S::kStream, to, row.live);
      }
    }
  }

  SSMJIT_DEVICE void write_output(const Row& row, int request, bool exists) const {
    if (!inside || !exists || (Cfg::kPadOutput == PadOutput::untouched && !row.live)) return;
    const bool zeros = Cfg::kPadOutput == PadOutput::zeros && !row.live;
    Input* const out = static_cast<Input*>(args.out) + request * args.out_stride + channel;
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      Elements<Input, S::kChannels, Cfg::kAlignedRows> y;
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) {
        float sum = 0.0f;
        if constexpr (Cfg::kHasBias) sum = widen(bias.element(c));
#pragma unroll
        for (int k = 0; k < Cfg::kWidth; ++k) {
          const float v = widen(Row::Entry::from_bits(row.stream(S::kOld + t - Cfg::kWidth + 1 + k, c)));
          sum = fma_f32(widen(w.element(c * Cfg::kWidth + k)), v, sum);
        }
        Input stored;
        narrow(zeros ? 0.0f : Cfg::activation(sum), stored);
        y.set_bits(c, bits_of(stored));
      }
      y.template store<false>(out + t * args.out_token_stride);
    }
  }
};

// Grid: x = channels / block_m, y = batch / rows_per_block, both rounded up. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void conv1d(const Conv1dArgs& args) {
  using S = ConvShape<Cfg>;
  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  extern __shared__ __align__(16) unsigned char stages[];
  ConvStep<Cfg> step{args, block_x() * Cfg::kBlockM + thread_index() * S::kChannels, false, stages, {}, {}};
  step.inside = step.channel < args.channels;

  // A row past the batch takes the indices of the last one, and neither reads nor writes anything else.
  const auto exists = [&](int i) { return S::kRows == 1 || block_y() * S::kRows + i < args.batch; };
  const auto request = [&](int i) { return exists(i) ? block_y() * S::kRows + i : args.batch - 1; };
  ConvRow<Cfg> row[S::kRows];
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) step.load_indices(row[i], request(i));

  // What waits for no index is asked for before the state; unless the state may overtake the producer of x (the wait is
  // none in a launch that depends on nothing).
  if constexpr (Cfg::kEarlyState) {
    step.load_state(row[0], 0, exists(0));
    step.load_weights();
    grid_dependency_wait();
    step.load_tokens(row[0], request(0), exists(0));
  } else {
    step.load_tokens(row[0], request(0), exists(0));
    step.load_weights();
    step.load_state(row[0], 0, exists(0));
  }
#pragma unroll
  for (int i = 1; i < Cfg::kStages; ++i) {
    step.load_tokens(row[i], request(i), exists(i));
    step.load_state(row[i], i, exists(i));
  }
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) {
    step.take_state(row[i], i);
    step.write_output(row[i], request(i), exists(i));
    step.write_state(row[i], i);
    if (i + Cfg::kStages < S::kRows) {
      step.load_tokens(row[i + Cfg::kStages], request(i + Cfg::kStages), exists(i + Cfg::kStages));
      step.load_state(row[i + Cfg::kStages], i + Cfg::kStages, exists(i + Cfg::kStages));
    } else if constexpr (S::kShared) {
      copy_async_commit();
    }
  }
}
