#include "autotune/fleet/shard.h"

#include <charconv>
#include <cstdlib>
#include <optional>

#include <fmt/format.h>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

std::optional<int> number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::optional<int> variable(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  const std::optional<int> value = number(text);
  if (!value) fail(ErrorKind::invalid, "{}: got {}; wants a number from 0", name, in_quotes(text));
  return value;
}

Shard checked(int index, int count, std::string_view from) {
  if (count < 1 || index >= count)
    fail(ErrorKind::invalid, "{}: got {} of {}; wants a number below the second, from 0", from, index, count);
  return {index, count};
}

}  // namespace

std::string Shard::journal(const std::string& whole) const {
  return count == 1 ? whole : fmt::format("{}.shard-{}-of-{}", whole, index, count);
}

Shard Shard::parse(std::string_view text) {
  if (text == "auto") return from_environment();
  const std::size_t slash = text.find('/');
  const auto index = number(text.substr(0, slash));
  const auto count = slash == std::string_view::npos ? std::nullopt : number(text.substr(slash + 1));
  if (!index || !count)
    fail(ErrorKind::invalid, "--shard: got {}; wants 0/4 for the first of four, or auto", in_quotes(text));
  return checked(*index, *count, "--shard");
}

Shard Shard::from_environment() {
  // MPI before Slurm: ranks that mpirun starts in a job script inherit the script's own SLURM_PROCID.
  constexpr const char* kRanks[][2] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                       {"PMI_RANK", "PMI_SIZE"},
                                       {"RANK", "WORLD_SIZE"},
                                       {"SLURM_PROCID", "SLURM_NTASKS"}};
  std::optional<Shard> ranks;
  for (const auto& [rank, size] : kRanks) {
    const auto index = variable(rank), count = variable(size);
    if (!index || !count) continue;
    ranks = checked(*index, *count, rank);
    break;
  }
  const auto task = variable("SLURM_ARRAY_TASK_ID"), tasks = variable("SLURM_ARRAY_TASK_COUNT");
  if (!task || !tasks) {
    if (ranks) return *ranks;
    fail(ErrorKind::invalid,
         "--shard auto: none of SLURM_ARRAY_TASK_ID, SLURM_PROCID, OMPI_COMM_WORLD_RANK, PMI_RANK and RANK is set with "
         "its count; start it by Slurm, mpirun or torchrun, or say --shard 0/4");
  }
  // An array need not begin at 0 nor count by ones.
  const int first = variable("SLURM_ARRAY_TASK_MIN").value_or(0);
  const auto last = variable("SLURM_ARRAY_TASK_MAX");
  const int step = last && *tasks > 1 ? (*last - first) / (*tasks - 1) : 1;
  const int place = step > 0 ? (*task - first) / step : *task - first;
  if (place < 0) fail(ErrorKind::invalid, "SLURM_ARRAY_TASK_ID: got {}, below SLURM_ARRAY_TASK_MIN, {}", *task, first);
  const Shard array = checked(place, *tasks, "SLURM_ARRAY_TASK_ID");
  const Shard rank = ranks.value_or(Shard{});
  return {array.index * rank.count + rank.index, array.count * rank.count};
}

int local_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "LOCAL_RANK", "SLURM_LOCALID"})
    if (const auto rank = variable(name)) return *rank;
  return 0;
}

}  // namespace ssmjit
