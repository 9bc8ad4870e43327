/* Compresses an f16 cache from C: a prompt of 1,000 tokens, then 200 more, one at a time. Link lagkv::c, or -llagkv. */
#include <stdio.h>
#include <stdlib.h>

#include <lagkv.h>

enum { heads = 4, channels = 64, prompt = 1000, answer = 200 };

static void append(uint16_t* rows, size_t capacity, size_t at, size_t n) { /* your engine writes keys and values here */
  for (size_t h = 0; h < heads; ++h)
    for (size_t i = (h * capacity + at) * channels, end = i + n * channels; i < end; ++i)
      rows[i] = (uint16_t)(0x3800 + rand() % 0x0800); /* f16 numbers from 0.5 to 2 */
}

static int fail(const lagkv_error* e) {
  fprintf(stderr, "%s\n", e->message);
  return 1;
}

int main(void) {
  lagkv_error error;
  lagkv_policy* policy = NULL;
  lagkv_workspace* workspace = NULL;
  lagkv_cursor* cursor = lagkv_cursor_new();
  if (lagkv_policy_parse("lagkv:lag=64,ratio=0.25", &policy, &error) != LAGKV_OK) return fail(&error);
  if (lagkv_workspace_new(NULL, &workspace, &error) != LAGKV_OK) return fail(&error);

  size_t capacity = lagkv_peak_rows(policy, prompt, prompt + answer);
  uint16_t* k = malloc(heads * capacity * channels * sizeof *k);
  uint16_t* v = malloc(heads * capacity * channels * sizeof *v);
  if (cursor == NULL || k == NULL || v == NULL) return 1;
  lagkv_layer layer = {0};
  layer.keys = lagkv_dense_view(k, LAGKV_F16, heads, capacity, channels);
  layer.values = lagkv_dense_view(v, LAGKV_F16, heads, capacity, channels);
  if (lagkv_check(policy, &layer, 0, &error) != LAGKV_OK) return fail(&error);

  for (size_t n = prompt, read = 0; read < prompt + answer; read += n, n = 1) {
    append(k, capacity, layer.tokens, n);
    append(v, capacity, layer.tokens, n);
    layer.tokens += n; /* attention uses them, then: */
    if (lagkv_compress(policy, &layer, cursor, workspace, LAGKV_FRONT, &layer.tokens, &error) != LAGKV_OK) return fail(&error);
  }
  printf("%zu rows of %zu in use; the next token has position %zu\n", layer.tokens, capacity, lagkv_cursor_seen(cursor));

  lagkv_cursor_free(cursor);
  lagkv_workspace_free(workspace);
  lagkv_policy_free(policy);
  free(k);
  free(v);
  return 0;
}
