/* Part of lagkv (MIT). The C interface of liblagkv: for engines in C, Rust, Go, and whatever calls C. docs/c.md has a page on it.
 *
 * The library owns policies, cursors and workspaces; the caller owns the cache. Views, layers and extras are plain structs that
 * point to the caller's memory; the library keeps none of their pointers after a call, but those of lagkv_run's arguments during
 * it.
 *
 * Calls that can be refused return LAGKV_OK (0) or another lagkv_status, and write the reason to a lagkv_error of the caller's,
 * if one is given. What is refused has moved no row. Nothing is thrown, printed or kept in globals. Objects serve one call at a
 * time; policies are only read, so that threads may share one. Every lagkv_*_free takes NULL.
 *
 * Structs that may grow begin with `struct_size`: set it to sizeof, and all that is not used to 0 (lagkv_no_extras() does).
 */
#ifndef LAGKV_H
#define LAGKV_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#if defined(LAGKV_BUILDING)
#define LAGKV_API __declspec(dllexport)
#else
#define LAGKV_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define LAGKV_API __attribute__((visibility("default")))
#else
#define LAGKV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- outcomes --------------------------------------------------------------------------------------------------------- */

/* What a call returns. All enumerations cross as int32_t. */
enum lagkv_status {
  LAGKV_OK = 0,
  LAGKV_REFUSED = 1,       /* an argument is not accepted: the message names its value and the limit */
  LAGKV_OUT_OF_MEMORY = 2, /* scratch could not be allocated: nothing has moved or changed */
  LAGKV_FAILED = 3         /* anything else that the C++ run time reports */
};

/* The reason, cut where it is longer. */
typedef struct lagkv_error {
  char message[1024];
} lagkv_error;

/* major * 10000 + minor * 100 + patch of the library that runs. */
LAGKV_API int32_t lagkv_version(void);

/* ---- views ------------------------------------------------------------------------------------------------------------- */

/* Element types. Those from q8_0 on are ggml's blocks of 32 elements. */
enum lagkv_dtype {
  LAGKV_F32 = 0,
  LAGKV_F16 = 1,
  LAGKV_BF16 = 2,
  LAGKV_FP8_E4M3 = 3,
  LAGKV_FP8_E5M2 = 4,
  LAGKV_INT8 = 5,
  LAGKV_UINT8 = 6,
  LAGKV_Q8_0 = 7,
  LAGKV_Q4_0 = 8,
  LAGKV_Q4_1 = 9,
  LAGKV_Q5_0 = 10,
  LAGKV_Q5_1 = 11
};

/* An array [heads][tokens][channels], or a pool of blocks and one sequence's table of them. All strides count units: elements, or
 * blocks of 32 for ggml's types.
 *
 *  table NULL   element (h, t, c) lies at data + h * head_stride + t * token_stride + c * channel_stride
 *  else         token t lies in block table[t / block_tokens], whose first unit is data + table[..] * block_stride; the other
 *               strides count within a block
 *
 * data NULL: there is no such array. */
typedef struct lagkv_view {
  void* data;
  int32_t type; /* lagkv_dtype */
  int32_t reserved;
  size_t heads;
  size_t channels;
  size_t tokens; /* that the array has room for; not read where there is a table */
  ptrdiff_t head_stride;
  ptrdiff_t token_stride;
  ptrdiff_t channel_stride;
  const int32_t* table;
  size_t table_size;
  size_t block_tokens; /* tokens a block; 1: a list of slots */
  ptrdiff_t block_stride;
  size_t pool_blocks; /* blocks in the pool; 0: not checked */
} lagkv_view;

/* A dense array [heads][tokens][channels]. */
LAGKV_API lagkv_view lagkv_dense_view(void* data, int32_t type, size_t heads, size_t tokens, size_t channels);

/* The rotary embedding that keys carry. */
enum lagkv_pairing {
  LAGKV_HALVES = 1,    /* channels j and j + dims / 2: Hugging Face, NeoX */
  LAGKV_NEIGHBOURS = 2 /* channels 2j and 2j + 1: llama.cpp's "norm" */
};

typedef struct lagkv_rope {
  double base;          /* theta, above 0 */
  int32_t pairs;        /* lagkv_pairing; no default */
  float position_scale; /* 1; 0.25 stretches the context to 4 times its length */
  size_t dims;          /* rotated channels, the first ones, even; 0: all */
  const float* factors; /* divisors of the frequencies, one a pair; NULL: 1 */
  size_t factor_count;
} lagkv_rope;

/* What may be offered beside keys and values, all of it optional: 0 and NULL where it is not. docs/offers.md says more. */
typedef struct lagkv_extras {
  size_t struct_size;           /* sizeof(lagkv_extras) */
  lagkv_view queries;           /* [query heads][n][channels]: of the last n tokens, oldest first, after RoPE */
  lagkv_view weights;           /* [query heads][n][at least tokens]: attention weights in their place */
  size_t query_count;           /* n, if fewer than their `tokens` are in use */
  float* accumulated_attention; /* [heads][tokens]; entry (h, t) is [h * stride + t] */
  ptrdiff_t accumulated_attention_stride;
  uint32_t* positions; /* [heads][tokens]; a stride of 0: one row for all heads, which keep the same tokens */
  ptrdiff_t positions_stride;
  double* key_statistics;      /* [heads][2 channels + 1] */
  lagkv_view query_mean;       /* [query heads][1][channels] */
  lagkv_view query_covariance; /* [query heads][channels][channels] */
  lagkv_view query_factors;    /* [query heads][n][channels], in place of the covariance */
  const lagkv_rope* rope;
  const uint32_t* protect; /* positions that are never dropped, ascending */
  size_t protect_count;
  float scale;               /* of q.k before the softmax; 0: 1 / sqrt(channels) */
  lagkv_view importance;     /* [heads][1][channels of keys + channels of values + 1]: the map that kvzap reads */
  const float* head_budgets; /* [heads], for select=by_head: multiples of the policy's budget, 0 or more */
  size_t head_budget_count;  /* the number of heads */
} lagkv_extras;

/* Nothing offered yet. Compiled into the caller, so that struct_size is the caller's. */
static inline lagkv_extras lagkv_no_extras(void) {
  lagkv_extras e;
  memset(&e, 0, sizeof e);
  e.struct_size = sizeof e;
  return e;
}

/* One layer of a cache: the first `tokens` rows are in use. values.data NULL: for policies that do not read them. Values that lie
 * in the rows of the keys (latent rows, MLA) would move twice: they are refused where rows move. */
typedef struct lagkv_layer {
  lagkv_view keys;
  lagkv_view values;
  size_t tokens;
  const lagkv_extras* extras; /* NULL: nothing */
} lagkv_layer;

/* ---- policies ---------------------------------------------------------------------------------------------------------- */

typedef struct lagkv_policy lagkv_policy;
typedef struct lagkv_cursor lagkv_cursor;
typedef struct lagkv_workspace lagkv_workspace;
typedef struct lagkv_plan lagkv_plan;

/* The policy that a text describes: "lagkv:lag=128,ratio=0.25". docs/methods.md lists all keys. */
LAGKV_API int32_t lagkv_policy_parse(const char* text, lagkv_policy** policy, lagkv_error* error);
LAGKV_API void lagkv_policy_free(lagkv_policy* policy);

/* The policy for layer i of n, if its budgets fall from layer to layer (pyramid); a copy otherwise. */
LAGKV_API int32_t lagkv_policy_for_layer(const lagkv_policy* policy, size_t i, size_t n, lagkv_policy** out, lagkv_error* error);

/* The policy for one head by itself: with `multiple` times its budget, 0 or more (the head's entry of head_budgets). */
LAGKV_API int32_t lagkv_policy_for_head(const lagkv_policy* policy, double multiple, lagkv_policy** out, lagkv_error* error);

/* Once a model: budgets [layers][heads] for select=by_head, 1 on the average. importance [layers][heads][n]: how much each head
 * looks back at n tokens of texts, in any order. share: of all rows that stay, above 0 and at most 1. least: the share that a
 * head keeps whatever their importance, 0 to share; give that of sinks and window. */
LAGKV_API int32_t lagkv_head_budgets(const float* importance, size_t layers, size_t heads, size_t n, double share, double least,
                                     float* budgets, lagkv_error* error);

/* The policy with a budget in bytes (budget_mb) made one of rows, for n layers like this one; a copy otherwise. */
LAGKV_API int32_t lagkv_policy_fit(const lagkv_policy* policy, const lagkv_layer* layer, size_t n, lagkv_policy** out,
                                   lagkv_error* error);

/* What a policy reads beside keys: these bits of lagkv_policy_needs(). */
enum lagkv_needs {
  LAGKV_NEEDS_VALUES = 1,
  LAGKV_NEEDS_QUERIES = 2, /* of the last lagkv_policy_queries() tokens, or weights */
  LAGKV_NEEDS_ACCUMULATED_ATTENTION = 4,
  LAGKV_NEEDS_QUERY_STATISTICS = 8,
  LAGKV_NEEDS_ROPE = 16,
  LAGKV_READS_KEY_STATISTICS = 32, /* if they are offered */
  LAGKV_IS_RAGGED = 64,            /* heads keep different numbers of rows: plans only */
  LAGKV_IS_SLOPED = 128,           /* layers keep different numbers of rows */
  LAGKV_NEEDS_IMPORTANCE = 256,
  LAGKV_NEEDS_QUERY_MEAN = 512, /* with LAGKV_NEEDS_QUERY_STATISTICS: query_mean, and not queries in its place */
  LAGKV_NEEDS_POSITIONS = 1024,
  LAGKV_READS_ALL_ROWS = 2048, /* those before the candidates too */
  LAGKV_NEEDS_HEAD_BUDGETS = 4096
};
LAGKV_API uint32_t lagkv_policy_needs(const lagkv_policy* policy);
LAGKV_API size_t lagkv_policy_queries(const lagkv_policy* policy);

/* The most rows that a layer has in use at once: what to allocate. chunk: the most tokens appended between two calls. */
LAGKV_API size_t lagkv_peak_rows(const lagkv_policy* policy, size_t chunk, size_t tokens);

/* ---- cursors and workspaces --------------------------------------------------------------------------------------------- */

/* How far a layer of one sequence has been compressed: a new one for a new sequence, a copy for a fork. NULL: out of memory. */
LAGKV_API lagkv_cursor* lagkv_cursor_new(void);
LAGKV_API lagkv_cursor* lagkv_cursor_copy(const lagkv_cursor* cursor);
LAGKV_API void lagkv_cursor_free(lagkv_cursor* cursor);
LAGKV_API size_t lagkv_cursor_tokens(const lagkv_cursor* cursor);     /* rows in use after the last compression */
LAGKV_API size_t lagkv_cursor_dropped(const lagkv_cursor* cursor);    /* rows dropped so far */
LAGKV_API size_t lagkv_cursor_compressed(const lagkv_cursor* cursor); /* rows before this one are sinks or survivors */
LAGKV_API size_t lagkv_cursor_seen(const lagkv_cursor* cursor);       /* tokens + dropped: the next position for RoPE */

/* The caller has removed rows from the end, so that `rows` are left: no further back than lagkv_cursor_compressed(). */
LAGKV_API void lagkv_cursor_take_back(lagkv_cursor* cursor, size_t rows);

enum lagkv_gap {
  LAGKV_GAP_KEPT = 0,  /* later tokens have the positions that they had, and the removed ones count as dropped */
  LAGKV_GAP_CLOSED = 1 /* later tokens move up (a context shift), and the removed ones never were */
};

/* The caller has removed rows [begin, end) of those in use and moved the later ones up: an old turn of a chat, the output of a
 * tool. Rows appended since the last call count, too; an empty range changes nothing. `gap`: a lagkv_gap. docs/cursor.md says
 * when a policy must be offered positions then. Fails if begin > end, if `gap` is none, or if a count becomes too large. */
LAGKV_API int32_t lagkv_cursor_take_out(lagkv_cursor* cursor, size_t begin, size_t end, int32_t gap, lagkv_error* error);

/* A cursor as bytes, the same on every machine. */
#define LAGKV_SAVED_CURSOR_BYTES 28
LAGKV_API void lagkv_cursor_save(const lagkv_cursor* cursor, unsigned char bytes[LAGKV_SAVED_CURSOR_BYTES]);
LAGKV_API int32_t lagkv_cursor_load(const unsigned char* bytes, size_t count, lagkv_cursor** cursor, lagkv_error* error);

/* Scratch that only grows, for one thread at a time. target: NULL for the widest instruction set of this machine, or one that it
 * has of "sse2", "avx2", "avx512" and "neon" ("scalar" where it has none of them); another is refused. */
LAGKV_API int32_t lagkv_workspace_new(const char* target, lagkv_workspace** workspace, lagkv_error* error);
LAGKV_API void lagkv_workspace_free(lagkv_workspace* workspace);
LAGKV_API const char* lagkv_workspace_target(const lagkv_workspace* workspace);

/* ---- compression ------------------------------------------------------------------------------------------------------- */

enum lagkv_toward {
  LAGKV_FRONT = 0, /* the rows in use are the first ones again */
  LAGKV_WINDOW = 1 /* the window stays where it is; the freed rows lie after the rows before the candidates */
};

/* Whether the policy can work on this layer and finds what it reads: call it when a cache is set up. any_length: not 0 if the
 * caller can hold heads of different lengths. */
LAGKV_API int32_t lagkv_check(const lagkv_policy* policy, const lagkv_layer* layer, int32_t any_length, lagkv_error* error);

/* Drops what is due, moves the rows that stay, in place, advances the cursor. `tokens` (may be NULL): the rows now in use. Call
 * it after attention has used the tokens appended. Most calls find nothing due and return after a few comparisons; others check
 * the layer as lagkv_check() does. */
LAGKV_API int32_t lagkv_compress(const lagkv_policy* policy, const lagkv_layer* layer, lagkv_cursor* cursor,
                                 lagkv_workspace* workspace, int32_t toward, size_t* tokens, lagkv_error* error);

/* The same for all layers of a sequence, all or nothing: layers[i] with cursors[i]. Layers are checked where something is due in
 * one of them; two that share their first row, positions or accumulated attention are refused then. equal_counts: not 0 to
 * refuse what would leave layers with different numbers of rows. lagkv_cursor_tokens(cursors[i]) are then in use. */
LAGKV_API int32_t lagkv_compress_layers(const lagkv_policy* policy, const lagkv_layer* layers, lagkv_cursor* const* cursors,
                                        size_t count, lagkv_workspace* workspace, int32_t toward, int32_t equal_counts,
                                        lagkv_error* error);

/* The caller's threads. `run` calls work(argument, task, worker) once for each task below n, with a worker below the number of
 * workspaces, never the same worker twice at one time, and returns when all are done. Tasks that it leaves out are done by the
 * calling thread, so a pool that shuts down may return early; calls with another task or worker do nothing. */
typedef void (*lagkv_work)(void* argument, size_t task, size_t worker);
typedef void (*lagkv_run)(void* context, size_t n, lagkv_work work, void* argument);

/* lagkv_compress() with the heads of the layer shared among workers; the same bytes as with one. */
LAGKV_API int32_t lagkv_compress_parallel(const lagkv_policy* policy, const lagkv_layer* layer, lagkv_cursor* cursor,
                                          lagkv_workspace* const* workspaces, size_t workers, lagkv_run run, void* context,
                                          int32_t toward, size_t* tokens, lagkv_error* error);

/* Adds the last n tokens to accumulated_attention and key_statistics, if the policy reads them and they are offered: call it
 * before lagkv_compress(). Only tokens whose queries or weights are offered add attention. */
LAGKV_API int32_t lagkv_accumulate(const lagkv_policy* policy, const lagkv_layer* layer, const lagkv_cursor* cursor, size_t n,
                                   lagkv_workspace* workspace, lagkv_error* error);

/* ---- plans and scores --------------------------------------------------------------------------------------------------- */

/* What would be dropped, without touching the cache. The plan is the workspace's and holds until its next use. */
LAGKV_API int32_t lagkv_plan_eviction(const lagkv_policy* policy, const lagkv_layer* layer, const lagkv_cursor* cursor,
                                      lagkv_workspace* workspace, const lagkv_plan** plan, lagkv_error* error);

/* The plan of the last call with this workspace: lagkv_compress(), lagkv_compress_layers() (of the last layer),
 * lagkv_compress_parallel() (the first of its workspaces) or lagkv_plan_eviction(). Empty if nothing was due, or the call was
 * refused or failed. */
LAGKV_API const lagkv_plan* lagkv_last_plan(lagkv_workspace* workspace);

LAGKV_API int32_t lagkv_plan_empty(const lagkv_plan* plan); /* not 0: nothing is a candidate */
LAGKV_API size_t lagkv_plan_heads(const lagkv_plan* plan);
LAGKV_API size_t lagkv_plan_begin(const lagkv_plan* plan); /* the candidates [begin, end) that it speaks of */
LAGKV_API size_t lagkv_plan_end(const lagkv_plan* plan);
LAGKV_API size_t lagkv_plan_tokens_after(const lagkv_plan* plan, size_t head);
/* The candidates that a head keeps, ascending; NULL and 0 where there is no such head. */
LAGKV_API const uint32_t* lagkv_plan_kept(const lagkv_plan* plan, size_t head, size_t* count);

/* Moves the rows of a view as a plan says; then positions and accumulated attention, where the extras have them; advances a
 * cursor past a plan, as `head` has it. */
LAGKV_API int32_t lagkv_compact(const lagkv_view* view, const lagkv_plan* plan, int32_t toward, lagkv_error* error);
LAGKV_API int32_t lagkv_compact_extras(const lagkv_extras* extras, const lagkv_plan* plan, int32_t toward, lagkv_error* error);
LAGKV_API int32_t lagkv_advance(lagkv_cursor* cursor, const lagkv_plan* plan, size_t head, lagkv_error* error);

/* Rows that may be dropped now; begin == end: nothing is due. */
typedef struct lagkv_candidates {
  size_t begin;
  size_t end;
  size_t keep;      /* of these rows each head keeps so many */
  size_t partition; /* not 0: keep_each of each partition of so many rows */
  size_t keep_each;
  size_t dropped; /* rows dropped so far: row r holds position r + dropped, where the extras have no positions */
} lagkv_candidates;

LAGKV_API lagkv_candidates lagkv_due(const lagkv_policy* policy, const lagkv_cursor* cursor, size_t tokens);

/* The scores of the candidates, [heads][end - begin], to `scores`, which has room for `count`; higher stays. Their partition, if
   it is not 0, must divide end - begin. */
LAGKV_API int32_t lagkv_score(const lagkv_policy* policy, const lagkv_layer* layer, const lagkv_candidates* candidates,
                              lagkv_workspace* workspace, float* scores, size_t count, lagkv_error* error);

#ifdef __cplusplus
}
#endif

#endif
