#include <ssmjit/device.h>

#include <algorithm>
#include <cctype>

#include <fmt/format.h>

#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "jit/driver.h"

namespace ssmjit {
namespace {

DeviceFacts read_facts(const Driver& driver, int ordinal) {
  CUdevice device = 0;
  driver.check(driver.device_get(&device, ordinal), "cuDeviceGet");
  const auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    driver.check(driver.device_attribute(&value, which, device), "cuDeviceGetAttribute");
    return value;
  };
  char device_name[256] = {};
  driver.check(driver.device_name(device_name, sizeof device_name - 1, device), "cuDeviceGetName");
  std::size_t memory = 0;
  driver.check(driver.device_total_memory(&memory, device), "cuDeviceTotalMem");

  DeviceFacts facts;
  facts.ordinal = ordinal;
  facts.name = device_name;
  facts.key = device_key(facts.name);
  facts.driver = driver.version_text();
  facts.major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  facts.minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  facts.sms = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  facts.smem_per_sm_bytes = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  facts.smem_per_block_bytes = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  facts.registers_per_sm = attribute(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR);
  facts.l2_bytes = attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  facts.memory_bytes = static_cast<std::int64_t>(memory);
  return facts;
}

int device_count(const Driver& driver) {
  int count = 0;
  driver.check(driver.device_count(&count), "cuDeviceGetCount");
  return count;
}

// Words of a device name that say nothing about its speed: "80GB", "HBM3", "SXM4".
bool is_filler(const std::string& word) {
  for (const char* filler : {"nvidia", "geforce", "tesla", "graphics", "device", "edition", "generation"})
    if (word == filler) return true;
  const auto digits_after = [&](std::size_t start) {
    return std::all_of(word.begin() + static_cast<std::ptrdiff_t>(start), word.end(),
                       [](unsigned char c) { return std::isdigit(c) != 0 || c == 'e'; });
  };
  if (word.rfind("hbm", 0) == 0 || word.rfind("sxm", 0) == 0) return digits_after(3);
  return word.size() > 2 && word.compare(word.size() - 2, 2, "gb") == 0 &&
         std::all_of(word.begin(), word.end() - 2, [](unsigned char c) { return std::isdigit(c) != 0; });
}

}  // namespace

std::vector<DeviceFacts> devices(std::string* why) {
  std::vector<DeviceFacts> found;
  try {
    const Driver& the_driver = driver();
    const int count = device_count(the_driver);
    for (int i = 0; i < count; ++i) found.push_back(read_facts(the_driver, i));
    if (found.empty() && why != nullptr)
      *why = fmt::format("the driver {} finds no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES", the_driver.path);
  } catch (const Error& error) {
    found.clear();
    if (why != nullptr) *why = error.what();
  }
  return found;
}

DeviceFacts device(int ordinal) {
  const Driver& the_driver = driver();
  const int count = device_count(the_driver);
  if (ordinal < 0 || ordinal >= count)
    fail(ErrorKind::missing, "GPU {} is not there: {} visible, numbered from 0; see CUDA_VISIBLE_DEVICES", ordinal,
         count);
  return read_facts(the_driver, ordinal);
}

std::string device_key(std::string_view device_name) {
  std::string key;
  std::string word;
  const auto take = [&] {
    if (!word.empty() && !is_filler(word)) key += (key.empty() ? "" : "-") + word;
    word.clear();
  };
  for (const char c : device_name) {
    const auto u = static_cast<unsigned char>(c);
    if (std::isalnum(u) != 0 || c == '.')
      word += static_cast<char>(std::tolower(u));
    else
      take();
  }
  take();
  return key.empty() ? "unknown" : key;
}

}  // namespace ssmjit
