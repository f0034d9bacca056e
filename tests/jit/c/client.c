/* A client in C11, with nothing but the header and libssmjit_c.so: describes, prepares with the machine's NVRTC,
 * launches on the stub driver, bundles, and loads the bundle where nothing may be compiled. Exit 0: well; 1: not, said
 * on stderr; 3: no NVRTC here. Usage: client FOLDER */
#include <stdio.h>
#include <string.h>

#include <ssmjit/ssmjit_c.h>

static int failures;

static void expect(int well, const char* what) {
  if (well) return;
  fprintf(stderr, "%s: %s\n", what, ssmjit_last_error());
  ++failures;
}

static SsmjitTensor tensor(size_t address, int32_t dtype, int32_t rank, int64_t a, int64_t b, int64_t c, int64_t d) {
  const int64_t shape[4] = {a, b, c, d};
  return ssmjit_contiguous((const void*)address, dtype, rank, shape);
}

/* Prepares and launches a norm of 3 rows; returns the status of the first call that failed. */
static ssmjit_status step(const SsmjitSessionOptions* options, const char* json) {
  ssmjit_session* session = NULL;
  ssmjit_prepared* norm = NULL;
  SsmjitPrepareOptions prepare = SSMJIT_PREPARE_OPTIONS_INIT;
  prepare.max_batch = 4;
  ssmjit_status status = ssmjit_session_create(options, &session);
  if (status == SSMJIT_OK) status = ssmjit_prepare(session, json, &prepare, &norm);
  if (status == SSMJIT_OK) {
    SsmjitNormArgs args = SSMJIT_NORM_ARGS_INIT;
    args.x = args.z = args.out = tensor(0x1000000, SSMJIT_BF16, 2, 3, 1024, 0, 0);
    args.weight = tensor(0x2000000, SSMJIT_BF16, 1, 1024, 0, 0, 0);
    status = ssmjit_launch_norm(norm, &args, NULL);
    args.x.rank = 1;
    expect(ssmjit_launch_norm(norm, &args, NULL) == SSMJIT_INVALID, "a tensor of another rank is refused");
  }
  if (norm != NULL) expect(ssmjit_prepared_destroy(norm) == SSMJIT_OK, "destroy the step");
  if (session != NULL) expect(ssmjit_session_destroy(session) == SSMJIT_OK, "destroy the session");
  return status;
}

int main(int argc, char** argv) {
  char json[4096], cache[1024], bundle[1024];
  const char* specs[] = {"nemotron3-super-tp8:norm"};
  const char* seeds[] = {bundle};
  size_t files = 0;
  SsmjitSessionOptions options = SSMJIT_SESSION_OPTIONS_INIT;
  SsmjitBundleOptions bundling = SSMJIT_BUNDLE_OPTIONS_INIT;
  ssmjit_session* session = NULL;
  if (argc != 2) return 1;
  snprintf(cache, sizeof cache, "%s/cache", argv[1]);
  snprintf(bundle, sizeof bundle, "%s/bundle", argv[1]);
  expect(ssmjit_abi_version() == SSMJIT_ABI_VERSION, "the library is of this header's ABI");
  expect(strlen(ssmjit_version()) > 0, "a version");
  expect(ssmjit_describe(specs[0], NULL, json, sizeof json, NULL) == SSMJIT_OK, "describe");
  options.cache_dir = cache;
  const ssmjit_status status = step(&options, json);
  if (status == SSMJIT_MISSING) {
    printf("skipped: %s\n", ssmjit_last_error());
    return 3;
  }
  expect(status == SSMJIT_OK, "prepare and launch");
  expect(ssmjit_session_create(&options, &session) == SSMJIT_OK, "a session");
  bundling.archs = "sm_90a";
  bundling.devices = "h200";
  bundling.max_batch = 4;
  expect(ssmjit_bundle(session, specs, 1, &bundling, bundle, &files) == SSMJIT_OK, "bundle");
  expect(files > 0, "files in the bundle");
  expect(ssmjit_session_destroy(session) == SSMJIT_OK, "destroy the session");
  options.cache_dir = "/dev/null/none";
  options.no_jit = 1;
  expect(step(&options, json) == SSMJIT_MISSING, "nothing is there without the bundle");
  options.seeds = seeds;
  options.seed_count = 1;
  expect(step(&options, json) == SSMJIT_OK, "prepare and launch from the bundle");
  return failures == 0 ? 0 : 1;
}
