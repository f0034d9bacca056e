/* 01_launch.cpp in C: from a shipped model's name to a launched kernel, with libssmjit_c.so alone. Exit 3: no GPU, or
 * no NVRTC, here. State, dt and A are 0 and all other inputs 1, so that every output is the same known number. */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <ssmjit/ssmjit_c.h>

enum { kBatch = 8, kHeads = 16, kHeadDim = 64, kState = 128 };

static void* cuda(const char* call) {
  static void* library;
  if (library == NULL) library = dlopen("libcuda.so.1", RTLD_NOW);
  return library == NULL ? NULL : dlsym(library, call);
}

/* A contiguous device tensor (bf16 or fp32), every element 1 or 0; data NULL where the driver refuses. */
static SsmjitTensor filled(int one, int32_t dtype, int32_t rank, const int64_t* shape) {
  int (*allocate)(uint64_t*, size_t) = NULL;
  int (*set_32)(uint64_t, unsigned, size_t) = NULL;
  int (*set_16)(uint64_t, unsigned short, size_t) = NULL;
  *(void**)&allocate = cuda("cuMemAlloc_v2");
  *(void**)&set_32 = cuda("cuMemsetD32_v2");
  *(void**)&set_16 = cuda("cuMemsetD16_v2");
  size_t count = 1;
  uint64_t address = 0;
  for (int32_t i = 0; i < rank; ++i) count *= (size_t)shape[i];
  if (allocate == NULL || allocate(&address, count * (dtype == SSMJIT_F32 ? 4 : 2)) != 0) address = 0;
  if (address != 0 && dtype == SSMJIT_F32) set_32(address, one ? 0x3f800000u : 0u, count);
  if (address != 0 && dtype == SSMJIT_BF16) set_16(address, one ? 0x3f80 : 0, count);
  return ssmjit_contiguous((const void*)(uintptr_t)address, dtype, rank, shape);
}

static int failed(const char* what, ssmjit_status status) {
  if (status == SSMJIT_OK) return 0;
  fprintf(stderr, "%s: %s\n", what, ssmjit_last_error());
  return status == SSMJIT_MISSING ? 3 : 1;
}

int main(void) {
  ssmjit_session* session = NULL;
  ssmjit_prepared* step = NULL;
  SsmjitPrepareOptions prepare = SSMJIT_PREPARE_OPTIONS_INIT;
  SsmjitChoice choice = SSMJIT_CHOICE_INIT;
  char json[4096], plan[512];
  int exit;
  prepare.max_batch = kBatch;
  if ((exit = failed("describe", ssmjit_describe("nemotron3-super-tp8:update", NULL, json, sizeof json, NULL))) ||
      (exit = failed("session", ssmjit_session_create(NULL, &session))) ||
      (exit = failed("prepare", ssmjit_prepare(session, json, &prepare, &step))) ||
      (exit = failed("choose", ssmjit_choose(step, kBatch, 0, &choice, plan, sizeof plan, NULL))))
    return exit;
  printf("%s, %.2f us expected\n", plan, choice.expected_us);

  const int64_t states[] = {kBatch, kHeads, kHeadDim, kState}, rows[] = {kBatch, kHeads, kHeadDim},
                groups[] = {kBatch, 1, kState}, heads[] = {kBatch, kHeads};
  SsmjitUpdateArgs args = SSMJIT_UPDATE_ARGS_INIT;
  args.state = filled(0, SSMJIT_F32, 4, states);
  args.x = filled(1, SSMJIT_BF16, 3, rows);
  args.out = filled(0, SSMJIT_BF16, 3, rows);
  args.B = args.C = filled(1, SSMJIT_BF16, 3, groups);
  args.dt = filled(0, SSMJIT_F32, 2, heads);
  args.A = filled(0, SSMJIT_F32, 1, heads + 1);
  args.D = args.dt_bias = filled(1, SSMJIT_F32, 1, heads + 1);
  if ((exit = failed("launch", ssmjit_launch_update(step, &args, NULL)))) return exit;

  int (*to_host)(void*, uint64_t, size_t) = NULL;
  *(void**)&to_host = cuda("cuMemcpyDtoH_v2");
  static uint16_t out[kBatch * kHeads * kHeadDim]; /* bf16 */
  if (to_host == NULL || to_host(out, (uint64_t)(uintptr_t)args.out.data, sizeof out) != 0) return 1;
  const double want = kState * log1p(exp(1.0)) + 1;
  const int count = kBatch * kHeads * kHeadDim;
  int wrong = 0;
  float y = 0;
  for (int i = count - 1; i >= 0; --i) {
    const uint32_t wide = (uint32_t)out[i] << 16;
    memcpy(&y, &wide, sizeof y);
    if (!(fabs(y - want) < 0.01 * want)) ++wrong;
  }
  printf("y = %g; wants dstate * softplus(1) + 1 = %g; %d of %d outputs are wrong\n", y, want, wrong, count);
  if ((exit = failed("destroy", ssmjit_prepared_destroy(step))) ||
      (exit = failed("destroy", ssmjit_session_destroy(session))))
    return exit;
  return wrong == 0 ? 0 : 1;
}
