/* The same of a consumer in C. */
#include <stdio.h>

#include <ssmjit/ssmjit_c.h>

int main(void) {
  char json[4096];
  ssmjit_session* session = NULL;
  if (ssmjit_abi_version() != SSMJIT_ABI_VERSION) return 1;
  if (ssmjit_describe("nemotron3-super-tp8:update", "state=bf16", json, sizeof json, NULL) != SSMJIT_OK ||
      ssmjit_session_create(NULL, &session) != SSMJIT_OK || ssmjit_session_destroy(session) != SSMJIT_OK) {
    fprintf(stderr, "%s\n", ssmjit_last_error());
    return 1;
  }
  printf("%s\n", json);
  return ssmjit_describe("no such model", NULL, json, sizeof json, NULL) == SSMJIT_INVALID ? 0 : 1;
}
