/* What the stub driver offers its tests beside the driver's own calls. Looked up by dlsym in the opened stub. */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

enum { kStubArgumentBytes = 1024, kStubCalls = 64 };

typedef struct {
  unsigned grid[3];
  unsigned block[3];
  unsigned smem_bytes;
  void* stream;
  int attributes;
  int pdl; /* programmatic stream serialization allowed */
  void* function;
  unsigned char arguments[kStubArgumentBytes]; /* the first argument_bytes of the only parameter */
} StubLaunch;

typedef struct {
  int driver_version;     /* 13000 */
  int devices;            /* 1 */
  int major, minor;       /* 9, 0 */
  const char* name;       /* "NVIDIA H200" */
  int capturing;          /* what cuStreamIsCapturing says */
  const char* fail_call;  /* this call fails ... */
  int fail_code;          /* ... with this code */
  int argument_bytes;     /* how much of a launch's argument to keep */
  int record;             /* 0: a launch only counts */
  int threads;            /* 1: launches come from several at once, and none is to be missed in the count */
  int context_is_current; /* whether a context is there from the start */
  int device;             /* of the current context */
  /* What happened. */
  int launches;
  int synchronised;
  int modules_loaded, modules_unloaded;
  int dynamic_smem_asked;
  int capture_mode; /* of the thread; global is 0, relaxed is 2 */
  int capture_mode_at_load;
  StubLaunch last;
} StubState;

StubState* stub_state(void);
void stub_reset(void);

#ifdef __cplusplus
}
#endif
