// NVIDIA's run-time compiler, libnvrtc, opened when first asked for.
#pragma once

#include <string>
#include <vector>

#include <nvrtc.h>

namespace ssmjit {

class Nvrtc {
 public:
  struct Result {
    nvrtcResult status = NVRTC_SUCCESS;
    std::string status_text;
    std::vector<char> image;  // empty unless status is NVRTC_SUCCESS
    std::string log;          // of compiler and assembler, whatever the status
  };

  // The library of <ssmjit/cubin.h>'s search order: SSMJIT_NVRTC alone where it is set; else, of all that are found,
  // the newest whose major version is not above the driver's (any, where there is no driver), the first of equals.
  // Fails: ErrorKind::missing, with each place that was looked at and why it did not do. Thread-safe; a library stays
  // open for the life of the process.
  static const Nvrtc& get();

  // Never throws for what the compiler has to say.
  Result compile(const std::string& text, const std::string& name, const std::vector<std::string>& options) const;

  int major() const { return major_; }
  int minor() const { return minor_; }
  std::string version() const { return std::to_string(major_) + "." + std::to_string(minor_); }
  const std::string& path() const { return path_; }

  // Opens one library, its builtins library first. Fails: ErrorKind::missing, naming the file.
  explicit Nvrtc(const std::string& path);

 private:
  std::string path_;
  int major_ = 0;
  int minor_ = 0;
  decltype(&::nvrtcVersion) version_call_ = nullptr;
  decltype(&::nvrtcGetErrorString) error_string_ = nullptr;
  decltype(&::nvrtcCreateProgram) create_ = nullptr;
  decltype(&::nvrtcDestroyProgram) destroy_ = nullptr;
  decltype(&::nvrtcCompileProgram) compile_ = nullptr;
  decltype(&::nvrtcGetProgramLogSize) log_size_ = nullptr;
  decltype(&::nvrtcGetProgramLog) log_ = nullptr;
  decltype(&::nvrtcGetCUBINSize) cubin_size_ = nullptr;
  decltype(&::nvrtcGetCUBIN) cubin_ = nullptr;
};

// What the assembler said of the entries in a log: the most of each, and whether it said anything.
struct Resources {
  int registers = 0;
  int spill_bytes = 0;
  int smem_bytes = 0;
  bool found = false;
};
Resources read_resources(const std::string& log);

}  // namespace ssmjit
