/* ssmjit in plain C (C11), for engines in C, Rust, Go and the like: libssmjit_c.so exports these functions and nothing
 * else. What each does is said in session.h, kernel.h, prepare.h, ring.h, slots.h and bundle.h; the names are the same.
 *
 *   ssmjit_session* session = NULL;
 *   ssmjit_prepared* step = NULL;
 *   SsmjitSessionOptions options = SSMJIT_SESSION_OPTIONS_INIT;
 *   SsmjitPrepareOptions prepare = SSMJIT_PREPARE_OPTIONS_INIT;
 *   char json[4096];
 *   size_t length;
 *   if (ssmjit_session_create(&options, &session) != SSMJIT_OK ||
 *       ssmjit_describe("nemotron3-super-tp8:update", "state=bf16", json, sizeof json, &length) != SSMJIT_OK ||
 *       ssmjit_prepare(session, json, &prepare, &step) != SSMJIT_OK)
 *     fprintf(stderr, "%s\n", ssmjit_last_error());
 *   SsmjitUpdateArgs args = SSMJIT_UPDATE_ARGS_INIT;
 *   args.state = ...;
 *   ssmjit_launch_update(step, &args, stream);
 *
 * Versions. Structs begin with their size, and fields are only ever added at the end: a client that was built against
 * an older header gets the defaults for what it does not know. Initialise every struct with its macro, which sets the
 * size and the defaults that are not 0 (pad_slot_id is -1). A newer client on an older library is refused where its
 * struct is longer than the library's. Functions are never removed within an SSMJIT_ABI_VERSION.
 *
 * Handles. Made by _create and ssmjit_prepare(), given back by _destroy. A null handle, one of another kind, and one
 * that was destroyed are refused; for the last the library keeps 16 bytes a handle for the life of the process. Handles
 * may be destroyed in any order: a step keeps what it needs of its session. Destroying one that a launch or a captured
 * graph still uses is the caller's error.
 *
 * Threads. Any function from any thread; of one handle also at once, but for _destroy. */
#ifndef SSMJIT_SSMJIT_C_H
#define SSMJIT_SSMJIT_C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define SSMJIT_API __attribute__((visibility("default")))
#else
#define SSMJIT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header. ssmjit_abi_version() is that of the library; a client wants them to be equal. */
#define SSMJIT_ABI_VERSION 1
SSMJIT_API uint32_t ssmjit_abi_version(void);
/* "0.1.0" */
SSMJIT_API const char* ssmjit_version(void);

/* What every function returns but those that can't fail. Whose doing it is, as ErrorKind (error.h). */
typedef int32_t ssmjit_status;
enum {
  SSMJIT_OK = 0,
  SSMJIT_INVALID = 1,  /* the caller's: a wrong description, tensor, option, handle or struct */
  SSMJIT_MISSING = 2,  /* the machine lacks something: NVRTC, a driver, a GPU; a bundle lacks a kernel */
  SSMJIT_MACHINE = 3,  /* the machine failed: a compile, a driver call, a disk */
  SSMJIT_INTERNAL = 4, /* ours: please report it */
  SSMJIT_TOO_SMALL = 5 /* a text did not fit; its length was written */
};
/* The sentence of this thread's last call that failed, the same as the C++ interface throws; "" before one has. Valid
 * until the next call of this thread that fails. */
SSMJIT_API const char* ssmjit_last_error(void);

/* Warnings (log.h), instead of dropping them; null: drops them again. level 0: info, 1: warning. `text` is good during
 * the call. May be called from any thread, one call at a time; never from a launch. */
typedef void (*SsmjitLog)(void* user, int32_t level, const char* text);
SSMJIT_API ssmjit_status ssmjit_set_log(SsmjitLog log, void* user);

/* ---- what to compute ---- */

/* Functions that give text write up to `capacity` bytes, the closing zero among them, and the text's length without it
 * to *length, which may be null. SSMJIT_TOO_SMALL where it does not fit: nothing but the length is written then. */

/* The JSON of one description. spec: a shipped model's kernel ("nemotron3-super-tp8:update"), a file
 * ("mine.json:ring"), or the JSON itself, of a description or of a model with one kernel. set: "state=bf16,nheads=64",
 * or null. */
SSMJIT_API ssmjit_status ssmjit_describe(const char* spec, const char* set, char* text, size_t capacity,
                                         size_t* length);

/* ---- session ---- */

typedef struct ssmjit_session ssmjit_session;
typedef struct ssmjit_prepared ssmjit_prepared;
typedef struct ssmjit_prepare_A ssmjit_prepare_A;
typedef struct ssmjit_ring_slots ssmjit_ring_slots;
typedef struct ssmjit_slot_copies ssmjit_slot_copies;

typedef struct SsmjitSessionOptions {
  size_t size;
  const char* const* tables; /* table_count of them; as SessionOptions */
  size_t table_count;
  const char* const* seeds;
  size_t seed_count;
  const char* cache_dir; /* null or "": the default */
  int32_t no_jit;        /* 0 or 1, as are all flags */
  int32_t threads;       /* 0: as many as there are cores */
} SsmjitSessionOptions;
#define SSMJIT_SESSION_OPTIONS_INIT \
  { .size = sizeof(SsmjitSessionOptions) }

typedef struct SsmjitPrepareOptions {
  size_t size;
  int32_t max_batch;
  int32_t off;
  int32_t chain;
  const char* force; /* a plan's text ("block_m=32,warps=4"), over the default plan; null: the tables' plans */
  void* stream;      /* a CUstream, or null for the default one */
} SsmjitPrepareOptions;
#define SSMJIT_PREPARE_OPTIONS_INIT \
  { .size = sizeof(SsmjitPrepareOptions), .max_batch = 256, .off = 1, .chain = 1 }

/* options: null for the defaults. */
SSMJIT_API ssmjit_status ssmjit_session_create(const SsmjitSessionOptions* options, ssmjit_session** session);
SSMJIT_API ssmjit_status ssmjit_session_destroy(ssmjit_session* session);
/* The cache on disk; "" where there is none. */
SSMJIT_API ssmjit_status ssmjit_cache_dir(const ssmjit_session* session, char* text, size_t capacity, size_t* length);

SSMJIT_API ssmjit_status ssmjit_prepare(const ssmjit_session* session, const char* description_json,
                                        const SsmjitPrepareOptions* options, ssmjit_prepared** step);
/* All kernels of a model at once: as one ssmjit_prepare() after the other, but what has to be compiled shares the cores.
 * steps: `count` handles, each destroyed as one of ssmjit_prepare(); all of them null where one fails. */
SSMJIT_API ssmjit_status ssmjit_prepare_all(const ssmjit_session* session, const char* const* description_jsons,
                                            size_t count, const SsmjitPrepareOptions* options, ssmjit_prepared** steps);
SSMJIT_API ssmjit_status ssmjit_prepared_destroy(ssmjit_prepared* step);

/* How good an answer is, as Why (table.h). */
enum {
  SSMJIT_EXACT = 0,
  SSMJIT_INTERPOLATED = 1,
  SSMJIT_NEAREST = 2,
  SSMJIT_SIMILAR = 3,
  SSMJIT_PREDICTED = 4,
  SSMJIT_OTHER_DEVICE = 5,
  SSMJIT_DEFAULT = 6
};
typedef struct SsmjitChoice {
  size_t size;
  int32_t why;
  double expected_us; /* 0 where nothing is known */
  double floor_us;
} SsmjitChoice;
#define SSMJIT_CHOICE_INIT \
  { .size = sizeof(SsmjitChoice) }
/* What a launch of that batch takes; chain: 0 for Pdl off, 1 for the others. `choice` may be null; `plan` is the plan's
 * text, `plan_capacity` 0 for none. */
SSMJIT_API ssmjit_status ssmjit_choose(const ssmjit_prepared* step, int64_t batch, int32_t chain, SsmjitChoice* choice,
                                       char* plan, size_t plan_capacity, size_t* plan_length);
/* batch 0: max_batch */
SSMJIT_API ssmjit_status ssmjit_scratch_bytes(const ssmjit_prepared* step, int64_t batch, int64_t* bytes);

/* ---- launches ---- */

/* As DType (description.h). */
enum {
  SSMJIT_F32 = 0,
  SSMJIT_BF16 = 1,
  SSMJIT_F16 = 2,
  SSMJIT_I8 = 3,
  SSMJIT_F8 = 4,
  SSMJIT_I16 = 5,
  SSMJIT_I32 = 6,
  SSMJIT_I64 = 7
};
/* As Pdl (kernel.h). */
enum { SSMJIT_PDL_OFF = 0, SSMJIT_PDL_WAIT_FIRST = 1, SSMJIT_PDL_EARLY_STATE = 2 };

enum { SSMJIT_MOST_DIMENSIONS = 5 };
/* Device memory of the caller's: strides in elements. data NULL: not given. All zeros: not given. */
typedef struct SsmjitTensor {
  const void* data;
  int32_t dtype;
  int32_t rank;
  int64_t shape[SSMJIT_MOST_DIMENSIONS];
  int64_t stride[SSMJIT_MOST_DIMENSIONS];
} SsmjitTensor;
/* Of `rank` extents, at most SSMJIT_MOST_DIMENSIONS, which are all that is read. */
static inline SsmjitTensor ssmjit_contiguous(const void* data, int32_t dtype, int32_t rank, const int64_t* shape) {
  SsmjitTensor tensor;
  int64_t dense = 1;
  memset(&tensor, 0, sizeof tensor);
  if (rank > SSMJIT_MOST_DIMENSIONS) rank = SSMJIT_MOST_DIMENSIONS;
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.rank = rank;
  for (int32_t i = rank - 1; i >= 0; --i) {
    tensor.shape[i] = shape[i];
    tensor.stride[i] = dense;
    dense *= shape[i];
  }
  return tensor;
}

/* Shapes and meaning of all tensors: kernel.h, the struct of the same name. */
typedef struct SsmjitUpdateArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t pdl;
  int32_t checked;
  int32_t disable_state_update;
  int32_t reserved; /* 0 */
  SsmjitTensor state, state_scale, x, dt, A, B, C, D, dt_bias, z, out;
  SsmjitTensor state_batch_indices, dst_state_batch_indices, num_accepted_tokens;
  SsmjitTensor intermediate_states, intermediate_state_scales, intermediate_state_indices;
  SsmjitTensor retrieve_parent_token, cu_seqlens, rand_seed;
} SsmjitUpdateArgs;
#define SSMJIT_UPDATE_ARGS_INIT \
  { .size = sizeof(SsmjitUpdateArgs), .pad_slot_id = -1 }

typedef struct SsmjitRingArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t pdl;
  int32_t checked;
  SsmjitTensor state, state_scale, x_ring, B_ring, dt_ring, ring_start, ring_count;
  SsmjitTensor x, dt, A, B, C, D, dt_bias, z, out;
  SsmjitTensor state_batch_indices, cu_seqlens, rand_seed;
} SsmjitRingArgs;
#define SSMJIT_RING_ARGS_INIT \
  { .size = sizeof(SsmjitRingArgs), .pad_slot_id = -1 }

typedef struct SsmjitConv1dArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t pdl;
  int32_t checked;
  SsmjitTensor conv_state, x, w, bias, out;
  SsmjitTensor state_batch_indices, output_state_indices, intermediate_states, intermediate_state_indices;
  SsmjitTensor cache_seqlens, num_accepted_tokens;
} SsmjitConv1dArgs;
#define SSMJIT_CONV1D_ARGS_INIT \
  { .size = sizeof(SsmjitConv1dArgs), .pad_slot_id = -1 }

typedef struct SsmjitLayerArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t pdl;
  int32_t checked;
  SsmjitTensor state, conv_state, x, B, C, dt, z, conv_weight, conv_bias, A, D, dt_bias, norm_weight, norm_bias, out;
  SsmjitTensor state_batch_indices, scratch;
  SsmjitTensor state_scale, x_ring, B_ring, dt_ring, ring_start, ring_count, rand_seed;
  SsmjitTensor output_state_indices, intermediate_states, intermediate_state_indices, cache_seqlens,
      num_accepted_tokens;
} SsmjitLayerArgs;
#define SSMJIT_LAYER_ARGS_INIT \
  { .size = sizeof(SsmjitLayerArgs), .pad_slot_id = -1 }

typedef struct SsmjitNormArgs {
  size_t size;
  int32_t pdl;
  int32_t reserved; /* 0 */
  SsmjitTensor x, z, weight, bias, out;
} SsmjitNormArgs;
#define SSMJIT_NORM_ARGS_INIT \
  { .size = sizeof(SsmjitNormArgs) }

typedef struct SsmjitReplayArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t pdl;
  int32_t checked;
  int32_t internal_pdl;
  int32_t reserved; /* 0 */
  SsmjitTensor state, old_x, old_B, old_dt, old_cumAdt, cache_buf_idx, prev_num_accepted_tokens;
  SsmjitTensor x, dt, A, B, C, D, dt_bias, z, out;
  SsmjitTensor state_batch_indices, rand_seed, scratch;
} SsmjitReplayArgs;
#define SSMJIT_REPLAY_ARGS_INIT \
  { .size = sizeof(SsmjitReplayArgs), .pad_slot_id = -1, .internal_pdl = 1 }

/* stream: a CUstream (a cudaStream_t is one), or null for the default one. */
SSMJIT_API ssmjit_status ssmjit_launch_update(const ssmjit_prepared* step, const SsmjitUpdateArgs* args, void* stream);
SSMJIT_API ssmjit_status ssmjit_launch_ring(const ssmjit_prepared* step, const SsmjitRingArgs* args, void* stream);
SSMJIT_API ssmjit_status ssmjit_launch_conv1d(const ssmjit_prepared* step, const SsmjitConv1dArgs* args, void* stream);
SSMJIT_API ssmjit_status ssmjit_launch_layer(const ssmjit_prepared* step, const SsmjitLayerArgs* args, void* stream);
SSMJIT_API ssmjit_status ssmjit_launch_norm(const ssmjit_prepared* step, const SsmjitNormArgs* args, void* stream);
SSMJIT_API ssmjit_status ssmjit_launch_replay(const ssmjit_prepared* step, const SsmjitReplayArgs* args, void* stream);

/* The host's cursors (kernel.h), of a slot, in place. */
SSMJIT_API ssmjit_status ssmjit_ring_flushes(const ssmjit_prepared* step, int32_t start, int32_t count, int32_t tokens,
                                             int32_t* flushes);
SSMJIT_API ssmjit_status ssmjit_advance_ring(const ssmjit_prepared* step, int32_t tokens, int32_t accepted,
                                             int32_t* start, int32_t* count);
SSMJIT_API ssmjit_status ssmjit_advance_replay(const ssmjit_prepared* step, int32_t accepted, int32_t* buffer,
                                               int32_t* kept);

/* ---- beside the steps ---- */

/* A = -exp(A_log) (prepare.h). */
SSMJIT_API ssmjit_status ssmjit_prepare_A_create(const ssmjit_session* session, void* stream, ssmjit_prepare_A** out);
SSMJIT_API ssmjit_status ssmjit_prepare_A_destroy(ssmjit_prepare_A* prepare_A);
SSMJIT_API ssmjit_status ssmjit_prepare_A_launch(const ssmjit_prepare_A* prepare_A, const SsmjitTensor* A_log,
                                                 const SsmjitTensor* A, void* stream);

/* Slots of a ring (ring.h). */
typedef struct SsmjitRingLayer {
  size_t size;
  SsmjitTensor state, state_scale, x_ring, B_ring, dt_ring, A, conv_state;
} SsmjitRingLayer;
#define SSMJIT_RING_LAYER_INIT \
  { .size = sizeof(SsmjitRingLayer) }
enum { SSMJIT_RING_LAYER_WORDS = 15 };
/* layers: `count` of them side by side. words: count * SSMJIT_RING_LAYER_WORDS. A size of another header, which counts
   other words, is refused. */
SSMJIT_API ssmjit_status ssmjit_ring_layer_table(const ssmjit_ring_slots* slots, const SsmjitRingLayer* layers,
                                                 size_t count, int64_t* words);

typedef struct SsmjitMaterialiseArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t checked;
  int32_t reserved; /* 0 */
  SsmjitTensor layers, src_slots, dst_slots, ring_start, ring_count, prefix_length, active_request_indices, rand_seed;
} SsmjitMaterialiseArgs;
#define SSMJIT_MATERIALISE_ARGS_INIT \
  { .size = sizeof(SsmjitMaterialiseArgs), .pad_slot_id = -1 }

typedef struct SsmjitResetSlotsArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t checked;
  int32_t reserved; /* 0 */
  SsmjitTensor layers, slots, ring_start, ring_count;
} SsmjitResetSlotsArgs;
#define SSMJIT_RESET_SLOTS_ARGS_INIT \
  { .size = sizeof(SsmjitResetSlotsArgs), .pad_slot_id = -1 }

typedef struct SsmjitCopySlotsArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t checked;
  int32_t reserved; /* 0 */
  SsmjitTensor layers, src_slots, dst_slots, ring_start, ring_count;
} SsmjitCopySlotsArgs;
#define SSMJIT_COPY_SLOTS_ARGS_INIT \
  { .size = sizeof(SsmjitCopySlotsArgs), .pad_slot_id = -1 }

SSMJIT_API ssmjit_status ssmjit_ring_slots_create(const ssmjit_session* session, const char* description_json,
                                                  void* stream, ssmjit_ring_slots** out);
SSMJIT_API ssmjit_status ssmjit_ring_slots_destroy(ssmjit_ring_slots* slots);
SSMJIT_API ssmjit_status ssmjit_materialise(const ssmjit_ring_slots* slots, const SsmjitMaterialiseArgs* args,
                                            void* stream);
SSMJIT_API ssmjit_status ssmjit_reset(const ssmjit_ring_slots* slots, const SsmjitResetSlotsArgs* args, void* stream);
SSMJIT_API ssmjit_status ssmjit_copy(const ssmjit_ring_slots* slots, const SsmjitCopySlotsArgs* args, void* stream);

/* Output slots of verify steps (slots.h): the host's bookkeeping, and copies of whole slots. */
typedef struct SsmjitOutputPool {
  size_t size;
  int64_t working;
  int64_t requests;
  int32_t tokens;
  int32_t reserved; /* 0 */
} SsmjitOutputPool;
#define SSMJIT_OUTPUT_POOL_INIT \
  { .size = sizeof(SsmjitOutputPool), .tokens = 1 }
typedef struct SsmjitSlotRequest {
  size_t size;
  int64_t request;
  int64_t working;
  int64_t shared;
} SsmjitSlotRequest;
#define SSMJIT_SLOT_REQUEST_INIT \
  { .size = sizeof(SsmjitSlotRequest), .request = -1, .working = -1, .shared = -1 }
enum { SSMJIT_WORKING_SLOT = -1, SSMJIT_SLOT_PIECE_WORDS = 4 };
/* row: `tokens` of them, pool->tokens at most. */
SSMJIT_API ssmjit_status ssmjit_output_row(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request, int32_t* row,
                                           int32_t tokens);
SSMJIT_API ssmjit_status ssmjit_input_slot(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request,
                                           int32_t current, int32_t* slot);
SSMJIT_API ssmjit_status ssmjit_accepted_slot(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request,
                                              int32_t accepted, int32_t* current);
/* Both give -1 where there is nothing to copy. */
SSMJIT_API ssmjit_status ssmjit_retract_copy(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request,
                                             int32_t current, int32_t* from, int32_t* to);
SSMJIT_API ssmjit_status ssmjit_checkpoint_copy(const SsmjitOutputPool* pool, const SsmjitSlotRequest* request,
                                                int64_t length, int32_t accepted, int64_t page, int64_t checkpoint,
                                                int32_t* from, int32_t* to);
/* words: room for `capacity`; *length: how many there are, a multiple of SSMJIT_SLOT_PIECE_WORDS. SSMJIT_TOO_SMALL as
 * for text. */
SSMJIT_API ssmjit_status ssmjit_slot_copy_table(const SsmjitTensor* pools, size_t count, int64_t* words,
                                                size_t capacity, size_t* length);

typedef struct SsmjitSlotCopiesArgs {
  size_t size;
  int64_t pad_slot_id;
  int32_t checked;
  int32_t reserved; /* 0 */
  SsmjitTensor pieces, src_slots, dst_slots;
} SsmjitSlotCopiesArgs;
#define SSMJIT_SLOT_COPIES_ARGS_INIT \
  { .size = sizeof(SsmjitSlotCopiesArgs), .pad_slot_id = -1 }
SSMJIT_API ssmjit_status ssmjit_slot_copies_create(const ssmjit_session* session, void* stream,
                                                   ssmjit_slot_copies** out);
SSMJIT_API ssmjit_status ssmjit_slot_copies_destroy(ssmjit_slot_copies* copies);
SSMJIT_API ssmjit_status ssmjit_slot_copies_launch(const ssmjit_slot_copies* copies, const SsmjitSlotCopiesArgs* args,
                                                   void* stream);

/* ---- bundles (bundle.h) ---- */

typedef struct SsmjitBundleOptions {
  size_t size;
  const char* archs;   /* "sm_90a,sm_100a" */
  const char* devices; /* "h200,h100"; null: all that the table has of these archs */
  int32_t max_batch;
  int32_t off;
  int32_t chain;
  int32_t threads;
} SsmjitBundleOptions;
#define SSMJIT_BUNDLE_OPTIONS_INIT \
  { .size = sizeof(SsmjitBundleOptions), .max_batch = 256, .off = 1, .chain = 1 }
/* specs: as ssmjit_describe() takes them, but a model stands for all of its kernels. The tables are the session's.
 * files: how many the folder holds, or null. */
SSMJIT_API ssmjit_status ssmjit_bundle(const ssmjit_session* session, const char* const* specs, size_t spec_count,
                                       const SsmjitBundleOptions* options, const char* folder, size_t* files);

#ifdef __cplusplus
}
#endif

#endif /* SSMJIT_SSMJIT_C_H */
