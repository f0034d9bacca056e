#include <utility>

#include <ssmjit/description.h>

#include "codegen/chain_scratch.h"

namespace ssmjit {

std::vector<Description> layer_parts(const Description& description) {
  const Description& d = description;
  std::vector<Description> parts;
  if (d.op() != Op::layer) return parts;
  if (d.conv) {
    Conv conv = *d.conv;
    conv.channels = d.conv_channels();
    Description part = conv1d(std::move(conv)).tokens(d.token_count).input(d.input_dtype);
    part.weights(d.input_dtype).state(d.input_dtype);
    // What the update or ring makes of a pad row it makes without x, B and C.
    if (d.pad_output_kind == PadOutput::untouched) part.pad_output(PadOutput::untouched);
    parts.push_back(std::move(part));
  }
  Description update = d;
  update.conv.reset();
  update.norm.reset();
  parts.push_back(std::move(update));
  if (d.norm) {
    Norm norm = *d.norm;
    norm.channels = d.norm_channels();
    norm.group_size = d.norm_group_size();
    parts.push_back(gated_norm(std::move(norm)).tokens(d.token_count).input(d.input_dtype).weights(d.input_dtype));
  }
  return parts;
}

ChainScratch chain_scratch(const Description& description, std::int64_t batch) {
  const Description& d = description;
  const auto place = [&](std::int64_t channels) {
    const std::int64_t bytes = batch * d.token_count * channels * size_bytes(d.input_dtype);
    return (bytes + kScratchAlign - 1) / kScratchAlign * kScratchAlign;
  };
  ChainScratch scratch;
  scratch.y = place(d.conv_channels());
  scratch.bytes = scratch.y + place(d.norm_channels());
  return scratch;
}

std::int64_t replay_scratch_bytes(const Description& description, std::int64_t batch) {
  const std::int64_t eights = (description.token_count + 7) / 8;
  return batch * description.nheads * (32 * eights * eights + 8 * eights) * 4;
}

}  // namespace ssmjit
