#pragma once
#include "conv1d_args.cuh"
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/scalar.cuh"
#include "fast_silu.cuh"
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
// it is stored, and takes products, the new state and whatever else is written of it from there. It reads all of its
// channels before it writes any, and no other lane touches them: a slot may be read and written by one row.

enum class ConvStore { shift, circular };
enum class ConvKeep { last, snapshots, slots };

struct alignas(8) Vec8 {
  u32 word[2];
};

SSMJIT_DEVICE u32 bits_of(float v) { return float_bits(v); }
SSMJIT_DEVICE u32 bits_of(bf16 v) { return v.bits; }
SSMJIT_DEVICE u32 bits_of(f16 v) { return v.bits; }

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
  SSMJIT_DEVICE void narrow_from(const float (&v)[kCount]) {
    if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        float part[kPerWord<T>];
#pragma unroll
        for (int e = 0; e < kPerWord<T>; ++e) part[e] = v[i * kPerWord<T> + e];
        unit[i] = pack_word(part, T{});
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        T one;
        narrow(v[i], one);
        unit[i] = bits_of(one);
      }
    }
  }
};

template <class T, class U>
constexpr bool kSameType = false;
template <class T>
constexpr bool kSameType<T, T> = true;

// Cfg is a struct of constants: the types Input, State, Weight, kTokens, kWidth, kStateLen, kSnapshotLen, kHasBias,
// kChannelsLast, kStore, kKeep, kAccepted, kAlignedRows, kPadOutput, the plan's fields, and the function activation.
template <class Cfg>
struct ConvShape {
  static constexpr int kChannels = Cfg::kBlockM / (32 * Cfg::kWarps);  // a lane, side by side
  // Whether the entries that are read are the newest width - 1, from a place that the run knows, or all from the first.
  static constexpr bool kAnywhere = Cfg::kAccepted || Cfg::kStore == ConvStore::circular;
  static constexpr bool kWhole = !Cfg::kChannelsLast && !kAnywhere;  // the lane's share of a slot is read as it lies
  static constexpr int kOld = kAnywhere ? Cfg::kWidth - 1 : Cfg::kStateLen;  // entries of the stream before the tokens
  // Those of the stream before kFirst are neither products' nor in a window that is written.
  static constexpr int kUnused = kOld - (Cfg::kWidth - 1);
  static constexpr int kDropped = Cfg::kKeep == ConvKeep::last ? Cfg::kTokens : 1;
  static constexpr int kFirst = kUnused < kDropped ? kUnused : kDropped;
  // Entries of a slot that a shift writes.
  static constexpr int kKept = Cfg::kAccepted ? Cfg::kWidth - 1 + Cfg::kTokens - 1 : Cfg::kStateLen;
  static_assert(Cfg::kStateLen >= Cfg::kWidth - 1 && Cfg::kStateLen >= kKept);
  static_assert(Cfg::kAlignedRows || kChannels == 1);
};

template <class Cfg>
struct ConvStep {
  using S = ConvShape<Cfg>;
  using Input = typename Cfg::Input;
  using State = typename Cfg::State;
  using Weight = typename Cfg::Weight;
  using Entry = Elements<State, S::kChannels, Cfg::kAlignedRows>;
  template <int kLength>
  using Window = Elements<State, S::kChannels * kLength, Cfg::kAlignedRows>;

  const Conv1dArgs& args;
  int request;
  int channel;  // the lane's first
  bool inside;  // whether there is such a channel

  // As they lie in memory.
  IndexEntry slot_entry, snapshot_entry, accepted_entry, seqlen_entry;
  IndexEntry target_entry[Cfg::kKeep == ConvKeep::slots ? Cfg::kTokens : 1];
  Elements<Weight, S::kChannels * Cfg::kWidth, Cfg::kAlignedRows> w;
  Elements<Weight, S::kChannels, Cfg::kAlignedRows> bias;
  Elements<Input, S::kChannels, Cfg::kAlignedRows> x[Cfg::kTokens];
  Window<S::kWhole ? Cfg::kStateLen : 1> window;
  Entry entry[S::kWhole ? 1 : S::kOld];

  i64 slot;
  bool live;
  int place;  // circular: where the first token goes

  SSMJIT_DEVICE bool usable(i64 index, i64 slots) const {
    return index >= 0 && index < slots && index != args.pad_slot_id;
  }
  SSMJIT_DEVICE IndexEntry index(const void* indices, i64 at, i64 otherwise) const {
    return IndexEntry::load(indices, args.wide_indices, at, otherwise, args.w);
  }

  SSMJIT_DEVICE void load_indices() {
    slot_entry = index(args.state_batch_indices, request * args.index_stride, request);
    if constexpr (Cfg::kStore == ConvStore::circular)
      seqlen_entry = index(args.cache_seqlens, request * args.seqlen_stride, 0);
    if constexpr (Cfg::kAccepted) accepted_entry = index(args.num_accepted_tokens, request * args.accepted_stride, 1);
    if constexpr (Cfg::kKeep == ConvKeep::snapshots) {
      snapshot_entry = slot_entry;
      if (args.intermediate_state_indices != nullptr)
        snapshot_entry = index(args.intermediate_state_indices, request * args.snapshot_index_stride, request);
    }
    if constexpr (Cfg::kKeep == ConvKeep::slots) {
#pragma unroll
      for (int t = 0; t < Cfg::kTokens; ++t)
        target_entry[t] = index(args.output_state_indices,
                                request * args.output_index_stride + t * args.output_index_token_stride, -1);
    }
  }
  SSMJIT_DEVICE void load_weights() {
    w.zero();
    bias.zero();
    if (!inside) return;
    w.template load<false>(static_cast<const Weight*>(args.w) + static_cast<i64>(channel) * Cfg::kWidth);
    if constexpr (Cfg::kHasBias) bias.template load<false>(static_cast<const Weight*>(args.bias) + channel);
  }
  SSMJIT_DEVICE void load_tokens() {
    const Input* from = static_cast<const Input*>(args.x) + request * args.x_stride + channel;
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      if (inside)
        x[t].template load<false>(from + t * args.x_token_stride);
      else
        x[t].zero();
    }
  }

  // Waits for the slot's index.
  SSMJIT_DEVICE void find_slot() {
    slot = slot_entry.value();
    live = usable(slot, args.slots);
  }
  // Asks for the slot's entries.
  SSMJIT_DEVICE void load_state() {
    place = 0;
    int first = 0;  // entry that the first of the old ones is
    if constexpr (Cfg::kStore == ConvStore::circular) {
      const i64 next = seqlen_entry.value() % Cfg::kStateLen;
      place = static_cast<int>(next < 0 ? next + Cfg::kStateLen : next);
      first = place - S::kOld + Cfg::kStateLen;
    }
    if constexpr (Cfg::kAccepted) {
      const i64 accepted = accepted_entry.value();
      first = accepted < 1 ? 0 : static_cast<int>(accepted < Cfg::kTokens ? accepted : Cfg::kTokens) - 1;
    }
    const State* from = static_cast<const State*>(args.conv_state) + slot * args.state_stride;
    if constexpr (S::kWhole) {
      if (inside)
        window.template load<Cfg::kStreaming>(from + static_cast<i64>(channel) * Cfg::kStateLen);
      else
        window.zero();
    } else {
#pragma unroll
      for (int j = 0; j < S::kOld; ++j) {
        entry[j].zero();
        if (!inside || j < S::kFirst) continue;
        int at = first + j;
        if constexpr (Cfg::kStore == ConvStore::circular) at = at < Cfg::kStateLen ? at : at - Cfg::kStateLen;
        if constexpr (Cfg::kChannelsLast) {
          entry[j].template load<Cfg::kStreaming>(from + static_cast<i64>(at) * args.channels + channel);
        } else {
#pragma unroll
          for (int c = 0; c < S::kChannels; ++c) {
            Elements<State, 1, false> one;
            one.template load<false>(from + static_cast<i64>(channel + c) * Cfg::kStateLen + at);
            entry[j].set_bits(c, one.bits(0));
          }
        }
      }
    }
  }

  // Entry i of the stream, of the lane's channel c, as the state stores it.
  SSMJIT_DEVICE u32 stream(int i, int c) const {
    if (i < S::kOld) {
      if constexpr (S::kWhole)
        return window.bits(c * Cfg::kStateLen + i);
      else
        return entry[i].bits(c);
    }
    if constexpr (kSameType<Input, State>) {
      return x[i - S::kOld].bits(c);
    } else {
      State stored;
      narrow(widen(x[i - S::kOld].element(c)), stored);
      return bits_of(stored);
    }
  }

  // The kLength entries that end before entry `end` of the stream, to a slot of kStride entries a channel.
  template <int kLength, int kStride>
  SSMJIT_DEVICE void store_window(int end, State* to) const {
    if constexpr (Cfg::kChannelsLast) {
#pragma unroll
      for (int j = 0; j < kLength; ++j) {
        Entry one;
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) one.set_bits(c, stream(end - kLength + j, c));
        one.template store<Cfg::kStreaming>(to + static_cast<i64>(j) * args.channels + channel);
      }
    } else {
      Window<kLength> all;
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c)
#pragma unroll
        for (int j = 0; j < kLength; ++j) all.set_bits(c * kLength + j, stream(end - kLength + j, c));
      State* const mine = to + static_cast<i64>(channel) * kStride;
      if constexpr (kLength == kStride) {
        all.template store<Cfg::kStreaming>(mine);
      } else {
#pragma unroll
        for (int e = 0; e < S::kChannels * kLength; ++e) mine[e / kLength * kStride + e % kLength] = all.element(e);
      }
    }
  }
  // Circular: the tokens, the newest state_len of them, over the oldest entries.
  SSMJIT_DEVICE void store_tokens(State* to) const {
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      if (t < Cfg::kTokens - Cfg::kStateLen) continue;
      const int at = (place + t) % Cfg::kStateLen;
      Entry one;
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) one.set_bits(c, stream(S::kOld + t, c));
      if constexpr (Cfg::kChannelsLast) {
        one.template store<Cfg::kStreaming>(to + static_cast<i64>(at) * args.channels + channel);
      } else {
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) to[static_cast<i64>(channel + c) * Cfg::kStateLen + at] = one.element(c);
      }
    }
  }

  // Of a live request.
  SSMJIT_DEVICE void write_state() const {
    State* const pool = static_cast<State*>(args.conv_state);
    if constexpr (Cfg::kKeep == ConvKeep::slots) {
#pragma unroll
      for (int t = 0; t < Cfg::kTokens; ++t) {
        const i64 target = target_entry[t].value();
        if (usable(target, args.slots))
          store_window<Cfg::kStateLen, Cfg::kStateLen>(S::kOld + t + 1, pool + target * args.state_stride);
      }
      return;
    }
    if constexpr (Cfg::kKeep == ConvKeep::snapshots) {
      const i64 target = snapshot_entry.value();
      if (usable(target, args.snapshot_slots)) {
        State* const to = static_cast<State*>(args.intermediate_states) + target * args.snapshot_stride;
#pragma unroll
        for (int t = 0; t < Cfg::kTokens; ++t)
          store_window<Cfg::kSnapshotLen, Cfg::kSnapshotLen>(S::kOld + t + 1, to + t * args.snapshot_token_stride);
      }
    }
    State* const to = pool + slot * args.state_stride;
    if constexpr (Cfg::kStore == ConvStore::circular)
      store_tokens(to);
    else
      store_window<S::kKept, Cfg::kStateLen>(S::kOld + Cfg::kTokens, to);
  }

  SSMJIT_DEVICE Input* out_row(int t) const {
    return static_cast<Input*>(args.out) + request * args.out_stride + t * args.out_token_stride + channel;
  }
  SSMJIT_DEVICE void write_output() const {
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      float y[S::kChannels];
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) {
        float sum = 0.0f;
        if constexpr (Cfg::kHasBias) sum = widen(bias.element(c));
#pragma unroll
        for (int k = 0; k < Cfg::kWidth; ++k)
          sum = fma_f32(widen(w.element(c * Cfg::kWidth + k)),
                        widen(Entry::from_bits(stream(S::kOld + t - Cfg::kWidth + 1 + k, c))), sum);
        y[c] = Cfg::activation(sum);
      }
      Elements<Input, S::kChannels, Cfg::kAlignedRows> row;
      row.narrow_from(y);
      row.template store<false>(out_row(t));
    }
  }
  SSMJIT_DEVICE void write_zeros() const {
    Elements<Input, S::kChannels, Cfg::kAlignedRows> row;
    row.zero();
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) row.template store<false>(out_row(t));
  }
};

// Grid: x = channels / block_m, rounded up, y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void conv1d(const Conv1dArgs& args) {
  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  const int channel = block_x() * Cfg::kBlockM + thread_index() * ConvShape<Cfg>::kChannels;
  ConvStep<Cfg> step{args, block_y(), channel, channel < args.channels};
  // The index alone is waited for before all is asked for: what is loaded in front of it makes it late. The other wait
  // is none in a launch that depends on nothing.
  step.load_indices();
  step.find_slot();
  if (!step.live) {
    if constexpr (Cfg::kEarlyState) grid_dependency_wait();
    if constexpr (Cfg::kPadOutput == PadOutput::zeros)
      if (step.inside) step.write_zeros();
    return;
  }
  step.load_state();
  if constexpr (Cfg::kEarlyState) {
    step.load_weights();
    grid_dependency_wait();
    step.load_tokens();
  } else {
    step.load_tokens();
    step.load_weights();
  }
  if (!step.inside) return;
  step.write_output();
  step.write_state();
}
