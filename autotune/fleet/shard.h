// A sweep that several processes share without a word between them: each takes every n-th cell.
#pragma once

#include <string>
#include <string_view>

namespace ssmjit {

struct Shard {
  int index = 0;  // from 0
  int count = 1;

  bool takes(std::size_t cell) const {
    return cell % static_cast<std::size_t>(count) == static_cast<std::size_t>(index);
  }
  // "sweep.jsonl" -> "sweep.jsonl.shard-0-of-4"; of one shard the name as it is.
  std::string journal(const std::string& whole) const;

  // "0/4", or "auto": from_environment(). Fails: ErrorKind::invalid.
  static Shard parse(std::string_view text);
  // The place among the processes that Slurm, MPI or torchrun started: OMPI_COMM_WORLD_RANK of .._SIZE, PMI_RANK of
  // PMI_SIZE, RANK of WORLD_SIZE, SLURM_PROCID of SLURM_NTASKS, the first that is set; of the tasks of an array,
  // SLURM_ARRAY_TASK_ID of SLURM_ARRAY_TASK_COUNT, each has as many. Fails: ErrorKind::invalid where none is set.
  static Shard from_environment();
};

// The place among the processes of this host, by OMPI_COMM_WORLD_LOCAL_RANK, MPI_LOCALRANKID, LOCAL_RANK or
// SLURM_LOCALID, the first that is set; 0 without. Fails: ErrorKind::invalid for one that is no number.
int local_rank();

}  // namespace ssmjit
