#include "jit/launch_checks.h"

#include <cstring>

namespace ssmjit {

std::string shape_text(const std::array<std::int64_t, kMostDimensions>& shape, int rank) {
  std::string text = "[";
  for (int i = 0; i < std::min(rank, kMostDimensions); ++i) {
    const std::int64_t extent = shape[static_cast<std::size_t>(i)];
    if (i > 0) text += ", ";
    text += extent == kAny ? std::string("any") : std::to_string(extent);
  }
  return text + "]";
}

std::string wrong_args(const char* got, Op kernel) {
  struct Takes {
    const char *kernel, *args;
  };
  const auto takes = [&]() -> Takes {
    switch (kernel) {
      case Op::update:
        return {"kernel that updates in place", "UpdateArgs"};
      case Op::ring:
        return {"ring kernel", "RingArgs"};
      case Op::conv1d:
        return {"conv1d kernel", "Conv1dArgs"};
      case Op::norm:
        return {"norm kernel", "NormArgs"};
      case Op::layer:
        return {"kernel of a fused layer", "LayerArgs"};
      case Op::replay:
        return {"replay kernel", "ReplayArgs"};
      default:
        return {"kernel of another op", "the arguments of that"};
    }
  }();
  return fmt::format("args: got {} for a {}; wants {}", got, takes.kernel, takes.args);
}

std::string lines_of(const std::vector<std::string>& sentences) {
  std::string text;
  for (const std::string& sentence : sentences) text += (text.empty() ? "" : "\n") + sentence;
  return text;
}

bool is_captured(const Driver& driver, CUstream stream) {
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult result = driver.stream_is_capturing(stream, &capture);
  if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) return true;
  driver.check(result, "cuStreamIsCapturing");
  return capture != CU_STREAM_CAPTURE_STATUS_NONE;
}

void wait_to_check(const Driver& driver, CUstream stream) {
  if (is_captured(driver, stream))
    fail(ErrorKind::invalid,
         "checked: the stream is being captured, and a checked launch must wait for it; check before the capture, or "
         "set checked = false");
  driver.check(driver.stream_synchronize(stream), "cuStreamSynchronize");
}

std::vector<std::int64_t> read_integers(const Driver& driver, const Tensor& tensor, std::int64_t count) {
  const auto rows = static_cast<std::size_t>(count);
  if (rows == 0) return {};
  const auto width = static_cast<std::size_t>(size_bytes(tensor.dtype));
  const auto stride = static_cast<std::size_t>(stride_of(tensor, 0));
  const auto address = reinterpret_cast<CUdeviceptr>(tensor.data);
  std::vector<char> raw(rows * width);
  if (rows == 1 || stride == 1) {
    driver.check(driver.copy_to_host(raw.data(), address, raw.size()), "cuMemcpyDtoH");
  } else {
    for (std::size_t i = 0; i < rows; ++i)
      driver.check(driver.copy_to_host(raw.data() + i * width, address + i * stride * width, width), "cuMemcpyDtoH");
  }
  std::vector<std::int64_t> values(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    if (tensor.dtype == DType::i64) {
      std::memcpy(&values[i], raw.data() + i * width, sizeof(std::int64_t));
    } else {
      std::int32_t narrow = 0;
      std::memcpy(&narrow, raw.data() + i * width, sizeof narrow);
      values[i] = narrow;
    }
  }
  return values;
}

std::vector<std::int64_t> read_slots(const Driver& driver, const char* name, const Tensor& indices, std::int64_t batch,
                                     std::int64_t slots, std::int64_t pad_slot_id, std::vector<std::string>& wrong) {
  std::vector<std::int64_t> values;
  if (is_given(indices)) {
    values = read_integers(driver, indices, batch);
  } else {
    for (std::int64_t row = 0; row < batch; ++row) values.push_back(row);
  }
  for (std::size_t row = 0; row < values.size(); ++row)
    if (!is_pad(values[row], pad_slot_id) && values[row] >= slots)
      wrong.push_back(fmt::format("{}[{}] is {}; the state has {} slots", name, row, values[row], slots));
  return values;
}

std::string same_slot_twice(const char* name, std::size_t first_row, std::size_t row, std::int64_t slot) {
  return fmt::format("{}[{}] and [{}] are both slot {}; rows of one launch must write different slots", name, first_row,
                     row, slot);
}

}  // namespace ssmjit
