/* A client that was built against the first ssmjit_c.h (SSMJIT_ABI_VERSION 1), whose structs were shorter than today's:
 * what it was compiled with is written out here and is not to be changed with the header. It links and runs for as long
 * as the ABI version is 1. Exit 0: well; 3: no NVRTC here. Usage: old_client FOLDER */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct Session Session;
typedef struct Step Step;
typedef struct {
  size_t size;
  const char* const* tables;
  size_t table_count;
  const char* const* seeds;
  size_t seed_count;
  const char* cache_dir; /* the last field that it knows of */
} SessionOptions;
typedef struct {
  size_t size;
  int32_t max_batch, off, chain;
} PrepareOptions;
typedef struct {
  const void* data;
  int32_t dtype, rank;
  int64_t shape[5], stride[5];
} Tensor;
typedef struct {
  size_t size;
  int64_t pad_slot_id;
  int32_t pdl, checked, disable_state_update, reserved;
  Tensor state, state_scale, x, dt, A, B, C, D, dt_bias, z, out, state_batch_indices;
} UpdateArgs;

extern uint32_t ssmjit_abi_version(void);
extern const char* ssmjit_last_error(void);
extern int32_t ssmjit_describe(const char*, const char*, char*, size_t, size_t*);
extern int32_t ssmjit_session_create(const SessionOptions*, Session**);
extern int32_t ssmjit_session_destroy(Session*);
extern int32_t ssmjit_prepare(const Session*, const char*, const PrepareOptions*, Step**);
extern int32_t ssmjit_prepared_destroy(Step*);
extern int32_t ssmjit_launch_update(const Step*, const UpdateArgs*, void*);

static Tensor dense(size_t address, int32_t dtype, int32_t rank, int64_t a, int64_t b, int64_t c, int64_t d) {
  Tensor tensor = {(const void*)address, dtype, rank, {a, b, c, d, 0}, {0, 0, 0, 0, 0}};
  int64_t stride = 1;
  for (int i = rank - 1; i >= 0; --i) tensor.stride[i] = stride, stride *= tensor.shape[i];
  return tensor;
}

int main(int argc, char** argv) {
  enum { kF32 = 0, kBf16 = 1, kMissing = 2, kBatch = 2 };
  SessionOptions options = {sizeof(SessionOptions), NULL, 0, NULL, 0, argc == 2 ? argv[1] : NULL};
  PrepareOptions prepare = {sizeof(PrepareOptions), kBatch, 1, 0};
  UpdateArgs args = {.size = sizeof(UpdateArgs), .pad_slot_id = -1};
  Session* session = NULL;
  Step* step = NULL;
  char json[4096];
  if (ssmjit_abi_version() != 1) return 1;
  int32_t status = ssmjit_describe("nemotron3-super-tp8:update", "state=bf16", json, sizeof json, NULL);
  if (status == 0) status = ssmjit_session_create(&options, &session);
  if (status == 0) status = ssmjit_prepare(session, json, &prepare, &step);
  if (status == kMissing) {
    printf("skipped: %s\n", ssmjit_last_error());
    return 3;
  }
  args.state = dense(0x1000000, kBf16, 4, 8, 16, 64, 128);
  args.x = args.out = dense(0x2000000, kBf16, 3, kBatch, 16, 64, 0);
  args.B = args.C = dense(0x3000000, kBf16, 3, kBatch, 1, 128, 0);
  args.dt = dense(0x4000000, kF32, 2, kBatch, 16, 0, 0);
  args.A = args.D = args.dt_bias = dense(0x5000000, kF32, 1, 16, 0, 0, 0);
  if (status == 0) status = ssmjit_launch_update(step, &args, NULL);
  if (status == 0) status = ssmjit_prepared_destroy(step);
  if (status == 0) status = ssmjit_session_destroy(session);
  if (status != 0) fprintf(stderr, "%s\n", ssmjit_last_error());
  return status == 0 ? 0 : 1;
}
