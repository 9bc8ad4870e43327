/* The C interface from C: what is refused and how, plans, layers, block tables, threads, saved cursors. */
#include <lagkv.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int faults;
static void expect(int holds, const char* what, int line) {
  if (holds) return;
  fprintf(stderr, "line %d: %s\n", line, what);
  ++faults;
}
#define EXPECT(x) expect((x) != 0, #x, __LINE__)
#define OK(call) expect((call) == LAGKV_OK, error.message, __LINE__)
#define REFUSED(call, words) expect((call) == LAGKV_REFUSED && strstr(error.message, words) != NULL, error.message, __LINE__)

enum { heads = 3, tokens = 300, channels = 32, size = heads * tokens * channels };

static lagkv_error error;

static float* numbers(unsigned seed) {
  float* x = malloc(size * sizeof *x);
  for (int i = 0; i < size; ++i) {
    seed = seed * 1664525U + 1013904223U;
    x[i] = (float)(seed >> 8) / 8388608.0F - 1.0F;
  }
  return x;
}

static lagkv_layer layer_of(float* k, float* v) {
  lagkv_layer l;
  memset(&l, 0, sizeof l);
  l.keys = lagkv_dense_view(k, LAGKV_F32, heads, tokens, channels);
  l.values = lagkv_dense_view(v, LAGKV_F32, heads, tokens, channels);
  l.tokens = tokens;
  return l;
}

static lagkv_policy* policy_of(const char* text) {
  lagkv_policy* p = NULL;
  OK(lagkv_policy_parse(text, &p, &error));
  return p;
}

static lagkv_workspace* new_workspace(void) {
  lagkv_workspace* w = NULL;
  OK(lagkv_workspace_new(NULL, &w, &error));
  return w;
}

static void one_after_the_other(void* context, size_t n, lagkv_work work, void* argument) {
  ++*(int*)context;
  for (size_t i = 0; i < n; ++i) work(argument, i, i % 2);
}

static void test_refusals(void) {
  lagkv_policy *p = NULL, *q = policy_of("snapkv:keep=0.5"), *plain = policy_of("key_diff:keep=0.25");
  lagkv_workspace* w = NULL;
  lagkv_cursor *c = lagkv_cursor_new(), *loaded = NULL;
  float *k = numbers(1), *v = numbers(2), *before = numbers(1);
  lagkv_layer l = layer_of(k, v);
  size_t left = 7;

  REFUSED(lagkv_policy_parse("lagkv:ratio=2", &p, &error), "lagkv: ratio=2: must be above 0 and at most 1");
  EXPECT(p == NULL);
  REFUSED(lagkv_policy_parse(NULL, &p, &error), "text: is NULL");
  REFUSED(lagkv_policy_parse("full", NULL, &error), "policy: is NULL");
  EXPECT(lagkv_policy_parse("nonsense", &p, NULL) == LAGKV_REFUSED); /* no error asked for */
  REFUSED(lagkv_workspace_new("mmx", &w, &error), "target=mmx: must be one of");
  w = new_workspace();
  EXPECT(strlen(lagkv_workspace_target(w)) > 0);

  REFUSED(lagkv_check(q, &l, 0, &error), "queries: the policy reads those of the last 64 tokens");
  EXPECT(lagkv_policy_needs(q) == (LAGKV_NEEDS_QUERIES | LAGKV_READS_ALL_ROWS) && lagkv_policy_queries(q) == 64);
  const struct {
    const char* text;
    uint32_t needs;
  } known[] = {{"key_diff:lag=32,keep=0.25", 0},
               {"key_diff:keep=0.25", LAGKV_READS_ALL_ROWS},
               {"full", 0},
               {"lagkv", LAGKV_NEEDS_VALUES},
               {"kvzap:keep=0.25", LAGKV_NEEDS_VALUES | LAGKV_NEEDS_ROPE | LAGKV_NEEDS_IMPORTANCE},
               {"novelty:keep=0.25", LAGKV_NEEDS_ROPE | LAGKV_READS_KEY_STATISTICS},
               {"novelty:capacity=99", LAGKV_NEEDS_ROPE | LAGKV_READS_KEY_STATISTICS | LAGKV_NEEDS_POSITIONS},
               {"h2o:form=mean,keep=0.5", LAGKV_NEEDS_ACCUMULATED_ATTENTION | LAGKV_READS_ALL_ROWS},
               {"h2o:form=mean,capacity=99", LAGKV_NEEDS_ACCUMULATED_ATTENTION | LAGKV_READS_ALL_ROWS | LAGKV_NEEDS_POSITIONS},
               {"expected_attention:calibrated=yes,covariance=no,values=no,keep=0.5",
                LAGKV_NEEDS_QUERY_STATISTICS | LAGKV_NEEDS_QUERY_MEAN}};
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
    lagkv_policy* one = policy_of(known[i].text);
    if (lagkv_policy_needs(one) != known[i].needs) printf("%s: %u\n", known[i].text, lagkv_policy_needs(one));
    EXPECT(lagkv_policy_needs(one) == known[i].needs);
    lagkv_policy_free(one);
  }
  REFUSED(lagkv_compress(q, &l, c, w, LAGKV_FRONT, &left, &error), "queries");
  REFUSED(lagkv_compress(plain, &l, c, w, 2, &left, &error), "toward=2: must be");
  REFUSED(lagkv_compress(plain, NULL, c, w, 0, &left, &error), "layer: is NULL");
  REFUSED(lagkv_compress(plain, &l, c, NULL, 0, &left, &error), "workspace: is NULL");
  l.keys.type = 12;
  REFUSED(lagkv_compress(plain, &l, c, w, 0, &left, &error), "keys: type=12: must be from 0 to 11");
  l = layer_of(k, v);
  l.keys.head_stride = 0;
  REFUSED(lagkv_compress(plain, &l, c, w, 0, &left, &error), "keys: strides head=0, token=32, channel=1: overlap");
  l = layer_of(k, v);
  l.values.heads = 2;
  REFUSED(lagkv_compress(plain, &l, c, w, 0, &left, &error), "values: heads=2: must be the 3 of the keys");
  l = layer_of(k, v);
  l.tokens = 301;
  REFUSED(lagkv_compress(plain, &l, c, w, 0, &left, &error), "tokens=301: the view addresses at most 300");
  l = layer_of(NULL, v);
  REFUSED(lagkv_check(plain, &l, 0, &error), "keys: data is NULL");
  l = layer_of(k, v);
  lagkv_extras e = lagkv_no_extras();
  l.extras = &e;
  e.struct_size = sizeof e + 8;
  REFUSED(lagkv_check(plain, &l, 0, &error), "extras: struct_size=");
  e.struct_size = sizeof e;
  lagkv_rope rope = {10000, 0, 1, 0, NULL, 0};
  e.rope = &rope;
  REFUSED(lagkv_check(plain, &l, 0, &error), "rope: pairs=0: must be LAGKV_HALVES (1) or LAGKV_NEIGHBOURS (2)");
  e.rope = NULL;
  uint32_t protect[] = {5, 3};
  e.protect = protect, e.protect_count = 2;
  REFUSED(lagkv_check(plain, &l, 0, &error), "position 3 after 5: must be ascending");
  e.protect_count = 1;
  OK(lagkv_check(plain, &l, 0, &error));

  unsigned char bytes[LAGKV_SAVED_CURSOR_BYTES];
  lagkv_cursor_save(c, bytes);
  REFUSED(lagkv_cursor_load(bytes, 27, &loaded, &error), "saved cursor of 27 bytes: must be 28");
  EXPECT(left == 7 && lagkv_cursor_seen(c) == 0 && memcmp(k, before, size * sizeof *k) == 0);
  EXPECT(strlen(error.message) < sizeof error.message);

  lagkv_policy_free(q), lagkv_policy_free(plain), lagkv_policy_free(NULL);
  lagkv_workspace_free(w), lagkv_workspace_free(NULL);
  lagkv_cursor_free(c), lagkv_cursor_free(NULL);
  free(k), free(v), free(before);
}

static void test_compress(const char* text) {
  lagkv_policy* p = policy_of(text);
  lagkv_workspace *w = new_workspace(), *second = new_workspace();
  lagkv_workspace* both[] = {w, second};
  lagkv_cursor *c = lagkv_cursor_new(), *d = lagkv_cursor_new(), *f = NULL, *g = lagkv_cursor_new();
  float *k = numbers(1), *v = numbers(2), *k2 = numbers(1), *v2 = numbers(2), *k3 = numbers(1), *v3 = numbers(2);
  lagkv_layer l = layer_of(k, v), l2 = layer_of(k2, v2), l3 = layer_of(k3, v3);
  size_t left = 0, parallel = 0, kept = 0;
  int runs = 0;

  /* A plan, applied by hand, is what compress() does; so are its heads among threads. */
  const lagkv_plan* plan = NULL;
  OK(lagkv_plan_eviction(p, &l2, d, w, &plan, &error));
  EXPECT(!lagkv_plan_empty(plan) && lagkv_plan_heads(plan) == heads && lagkv_plan_end(plan) <= tokens);
  const uint32_t* rows = lagkv_plan_kept(plan, heads - 1, &kept);
  for (size_t i = 0; i < kept; ++i) EXPECT(rows[i] >= lagkv_plan_begin(plan) && rows[i] < lagkv_plan_end(plan));
  EXPECT(lagkv_plan_kept(plan, heads, &kept) == NULL && kept == 0 && lagkv_plan_tokens_after(plan, heads) == 0);
  OK(lagkv_compact(&l2.keys, plan, LAGKV_FRONT, &error));
  OK(lagkv_compact(&l2.values, plan, LAGKV_FRONT, &error));
  REFUSED(lagkv_advance(d, plan, heads, &error), "head=3: the plan has 3");
  OK(lagkv_advance(d, plan, 0, &error));
  OK(lagkv_compress(p, &l, c, w, LAGKV_FRONT, &left, &error));
  lagkv_workspace* same[] = {w, second, w};
  REFUSED(lagkv_compress_parallel(p, &l3, g, same, 3, one_after_the_other, &runs, LAGKV_FRONT, &parallel, &error),
          "workspaces[2]: is workspaces[0]: each worker needs its own");
  REFUSED(lagkv_compress_parallel(p, &l3, g, both, 2, NULL, NULL, LAGKV_FRONT, &parallel, &error), "run: is NULL");
  REFUSED(lagkv_compress_parallel(p, &l3, g, both, 0, one_after_the_other, &runs, LAGKV_FRONT, &parallel, &error),
          "workers=0: must be 1 or more");
  same[1] = NULL;
  REFUSED(lagkv_compress_parallel(p, &l3, g, same, 3, one_after_the_other, &runs, LAGKV_FRONT, &parallel, &error),
          "workspaces[1]: is NULL");
  EXPECT(runs == 0 && parallel == 0);
  OK(lagkv_compress_parallel(p, &l3, g, both, 2, one_after_the_other, &runs, LAGKV_FRONT, &parallel, &error));
  EXPECT(left < tokens && left == lagkv_cursor_tokens(c) && left == lagkv_cursor_tokens(d) && left == parallel && runs > 0);
  EXPECT(lagkv_cursor_seen(c) == tokens && lagkv_cursor_dropped(c) == tokens - left && lagkv_cursor_compressed(c) <= left);
  for (int h = 0; h < heads; ++h) {
    const size_t first = (size_t)h * tokens * channels, bytes = left * channels * sizeof *k;
    EXPECT(memcmp(k + first, k2 + first, bytes) == 0 && memcmp(v + first, v2 + first, bytes) == 0);
    EXPECT(memcmp(k + first, k3 + first, bytes) == 0 && memcmp(v + first, v3 + first, bytes) == 0);
  }
  EXPECT(!lagkv_plan_empty(lagkv_last_plan(w)) && lagkv_plan_tokens_after(lagkv_last_plan(w), 0) == left);

  /* Nothing more is due; a cursor of more rows than there are is refused. */
  l.tokens = left;
  OK(lagkv_compress(p, &l, c, w, LAGKV_FRONT, &left, &error));
  EXPECT(left == l.tokens && lagkv_plan_empty(lagkv_last_plan(w)));
  l.tokens = left - 1;
  REFUSED(lagkv_compress(p, &l, c, w, LAGKV_FRONT, NULL, &error), "lagkv_cursor_take_back() or lagkv_cursor_take_out(), or");
  unsigned char bytes[LAGKV_SAVED_CURSOR_BYTES];
  lagkv_cursor_save(c, bytes);
  OK(lagkv_cursor_load(bytes, sizeof bytes, &f, &error));
  lagkv_cursor_take_back(f, left - 1);
  EXPECT(lagkv_cursor_tokens(f) == left - 1 && lagkv_cursor_tokens(c) == left);
  OK(lagkv_compress(p, &l, f, w, LAGKV_FRONT, NULL, &error));

  /* Rows taken out among survivors, among those counted, and among those appended since. */
  const size_t dropped = lagkv_cursor_dropped(f), compressed = lagkv_cursor_compressed(f), seen = lagkv_cursor_seen(f);
  OK(lagkv_cursor_take_out(f, 1, 3, LAGKV_GAP_CLOSED, &error));
  EXPECT(lagkv_cursor_compressed(f) == compressed - 2 && lagkv_cursor_dropped(f) == dropped && lagkv_cursor_seen(f) == seen - 2);
  OK(lagkv_cursor_take_out(f, lagkv_cursor_tokens(f) - 1, lagkv_cursor_tokens(f) + 4, LAGKV_GAP_KEPT, &error));
  EXPECT(lagkv_cursor_dropped(f) == dropped + 5 && lagkv_cursor_seen(f) == seen + 2);
  OK(lagkv_cursor_take_out(f, 7, 7, LAGKV_GAP_KEPT, NULL));
  REFUSED(lagkv_cursor_take_out(f, 7, 6, LAGKV_GAP_KEPT, &error), "begin=7: must be at most end=6");
  REFUSED(lagkv_cursor_take_out(f, 7, 9, 2, &error), "gap=2: must be LAGKV_GAP_KEPT (0) or LAGKV_GAP_CLOSED (1)");
  REFUSED(lagkv_cursor_take_out(f, 7, SIZE_MAX / 4, LAGKV_GAP_KEPT, &error), ": must be at most");
  REFUSED(lagkv_cursor_take_out(NULL, 7, 9, LAGKV_GAP_KEPT, &error), "cursor: is NULL");
  EXPECT(lagkv_cursor_dropped(f) == dropped + 5 && lagkv_cursor_seen(f) == seen + 2);

  lagkv_policy_free(p);
  lagkv_workspace_free(w), lagkv_workspace_free(second);
  lagkv_cursor_free(c), lagkv_cursor_free(d), lagkv_cursor_free(f), lagkv_cursor_free(g);
  free(k), free(v), free(k2), free(v2), free(k3), free(v3);
}

/* A pool of blocks [block][head][token in block][channel], blocks in another order: the same rows stay. */
static void test_block_table(void) {
  enum { block = 20, blocks = tokens / block };
  lagkv_policy* p = policy_of("lagkv:sink=4,lag=32,ratio=0.25");
  lagkv_workspace* w = new_workspace();
  lagkv_cursor *c = lagkv_cursor_new(), *d = lagkv_cursor_copy(c);
  float *k = numbers(1), *v = numbers(2), *pool = malloc(2 * size * sizeof *pool);
  lagkv_layer l = layer_of(k, v), paged = l;
  int32_t table[blocks];
  for (int b = 0; b < blocks; ++b) table[b] = (b * 7 + 3) % blocks;
  const int one = heads * block * channels;
  for (int x = 0; x < 2; ++x)
    for (int t = 0; t < tokens; ++t)
      for (int h = 0; h < heads; ++h)
        memcpy(pool + x * size + table[t / block] * one + (h * block + t % block) * channels,
               (x ? v : k) + (h * tokens + t) * channels, channels * sizeof *pool);
  paged.keys.data = pool, paged.values.data = pool + size;
  lagkv_view* views[] = {&paged.keys, &paged.values};
  for (int x = 0; x < 2; ++x) {
    views[x]->head_stride = block * channels;
    views[x]->table = table, views[x]->table_size = blocks, views[x]->block_tokens = block;
    views[x]->block_stride = one, views[x]->pool_blocks = blocks;
  }
  size_t left = 0, same = 0;
  OK(lagkv_compress(p, &l, c, w, LAGKV_FRONT, &left, &error));
  OK(lagkv_compress(p, &paged, d, w, LAGKV_FRONT, &same, &error));
  EXPECT(left == same && left < tokens);
  for (size_t t = 0; t < left; ++t)
    for (int h = 0; h < heads; ++h)
      EXPECT(memcmp(pool + table[t / block] * one + (h * block + (int)t % block) * channels, k + (h * tokens + (int)t) * channels,
                    channels * sizeof *k) == 0);
  table[1] = table[0];
  REFUSED(lagkv_check(p, &paged, 0, &error), "stands twice in the table");
  table[1] = blocks;
  REFUSED(lagkv_check(p, &paged, 0, &error), "the pool has 15 blocks");
  paged.keys.block_tokens = 0;
  REFUSED(lagkv_check(p, &paged, 0, &error), "keys: block_tokens=0: must be 1 or more");
  lagkv_policy_free(p), lagkv_workspace_free(w), lagkv_cursor_free(c), lagkv_cursor_free(d);
  free(k), free(v), free(pool);
}

static void test_layers_and_scores(void) {
  lagkv_policy *p = policy_of("key_norm:sink=2,recent=4,keep=0.25"), *sloped = policy_of("key_norm:keep=0.25,pyramid=20");
  lagkv_policy *first = NULL, *in_bytes = policy_of("key_norm:sink=2,recent=4,budget_mb=0.05"), *rows = NULL;
  lagkv_workspace* w = new_workspace();
  lagkv_cursor* c[] = {lagkv_cursor_new(), lagkv_cursor_new()};
  float *k = numbers(1), *v = numbers(2), *k2 = numbers(3), *v2 = numbers(4), *before = numbers(1);
  lagkv_layer l[] = {layer_of(k, v), layer_of(k2, v2)};

  const lagkv_candidates due = lagkv_due(p, c[0], tokens);
  EXPECT(due.begin == 2 && due.end == tokens - 4 && due.keep == tokens / 4 - 6 && due.partition == 0);
  const size_t n = due.end - due.begin;
  float* scores = malloc(heads * n * sizeof *scores);
  OK(lagkv_score(p, &l[0], &due, w, scores, heads * n, &error));
  for (size_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int j = 0; j < channels; ++j) sum += (double)k[(due.begin + i) * channels + j] * k[(due.begin + i) * channels + j];
    EXPECT(fabs(scores[i] + sqrt(sum)) < 1e-4);
  }
  REFUSED(lagkv_score(p, &l[0], &due, w, scores, 5, &error), "count=5: must be");
  lagkv_policy* uneven_heads = policy_of("key_norm:sink=2,recent=4,keep=0.25,select=adaptive");
  OK(lagkv_score(uneven_heads, &l[0], &due, w, scores, heads * n, &error)); /* nothing moves */
  lagkv_policy_free(uneven_heads);
  const lagkv_candidates outside = {0, tokens + 1, 0, 0, 0, 0};
  REFUSED(lagkv_score(p, &l[0], &outside, w, scores, heads * n, &error), "must lie within the 300 rows in use");
  lagkv_candidates uneven = due;
  uneven.partition = n - 1;
  REFUSED(lagkv_score(p, &l[0], &uneven, w, scores, heads * n, &error), "must divide the");

  l[1].tokens = 200;
  REFUSED(lagkv_compress_layers(p, l, c, 2, w, LAGKV_FRONT, 1, &error), "layer 1: has 200 rows, layer 0 300: nothing moved");
  EXPECT(memcmp(k, before, size * sizeof *k) == 0 && lagkv_cursor_seen(c[0]) == 0);
  l[1].tokens = tokens;
  const lagkv_layer same_keys[] = {l[0], {l[0].keys, l[1].values, tokens, l[1].extras}};
  REFUSED(lagkv_compress_layers(p, same_keys, c, 2, w, LAGKV_FRONT, 1, &error),
          "layer 1: its keys lie where the keys of layer 0 do, and would move twice: nothing moved");
  EXPECT(memcmp(k, before, size * sizeof *k) == 0 && lagkv_cursor_seen(c[0]) == 0);
  OK(lagkv_compress_layers(p, l, c, 2, w, LAGKV_FRONT, 1, &error));
  EXPECT(lagkv_cursor_tokens(c[0]) == tokens / 4 && lagkv_cursor_tokens(c[1]) == tokens / 4);
  lagkv_cursor* twice[] = {c[0], c[0]};
  REFUSED(lagkv_compress_layers(p, l, twice, 2, w, LAGKV_FRONT, 1, &error), "cursors[1]: is that of layer 0 too");
  lagkv_layer three[] = {l[0], l[1], l[1]};
  lagkv_cursor *last_twice[] = {c[0], c[1], c[1]}, *one_missing[] = {c[0], c[1], NULL};
  REFUSED(lagkv_compress_layers(p, three, last_twice, 3, w, LAGKV_FRONT, 1, &error), "cursors[2]: is that of layer 1 too");
  REFUSED(lagkv_compress_layers(p, three, one_missing, 3, w, LAGKV_FRONT, 1, &error), "cursors[2]: is NULL");

  REFUSED(lagkv_policy_for_layer(sloped, 2, 2, &first, &error), "i=2: must be below the 2 layers");
  OK(lagkv_policy_for_layer(sloped, 0, 2, &first, &error));
  lagkv_cursor* fresh = lagkv_cursor_new();
  lagkv_policy *by_head = policy_of("key_diff:sink=4,recent=8,keep=0.25,select=by_head"), *own = NULL;
  EXPECT((lagkv_policy_needs(by_head) & LAGKV_NEEDS_HEAD_BUDGETS) != 0 && (lagkv_policy_needs(by_head) & LAGKV_IS_RAGGED) != 0);
  REFUSED(lagkv_policy_for_head(by_head, -1, &own, &error), "multiple=-1: must be 0 or more");
  OK(lagkv_policy_for_head(by_head, 2, &own, &error));
  EXPECT((lagkv_policy_needs(own) & (LAGKV_NEEDS_HEAD_BUDGETS | LAGKV_IS_RAGGED)) == 0);
  EXPECT(lagkv_due(own, fresh, tokens).keep > lagkv_due(by_head, fresh, tokens).keep);
  float budgets[heads], looks[heads * 10];
  for (int i = 0; i < heads * 10; ++i) looks[i] = i < 10 ? 1.0F : 0.0F; /* the first head looks back, the others do not */
  REFUSED(lagkv_head_budgets(looks, 1, heads, 10, 1.5, 0, budgets, &error), "share=1.5: must be above 0 and at most 1");
  REFUSED(lagkv_head_budgets(looks, 1, heads, 10, 0.25, 0.5, budgets, &error), "least=0.5: must be from 0 to the share, 0.25");
  REFUSED(lagkv_head_budgets(NULL, 1, heads, 10, 0.25, 0, budgets, &error), "importance");
  OK(lagkv_head_budgets(looks, 1, heads, 10, 1.0 / heads, 0, budgets, &error));
  for (int i = 0; i < heads; ++i) EXPECT(fabs(budgets[i] - (i == 0 ? heads : 0)) < 1e-5);
  for (int i = 0; i < heads; ++i) budgets[i] = i == 0 ? 4 : 0;
  lagkv_extras of_heads = lagkv_no_extras();
  lagkv_layer whole = layer_of(numbers(8), numbers(9));
  whole.extras = &of_heads;
  const lagkv_plan* uneven_plan = NULL;
  REFUSED(lagkv_plan_eviction(by_head, &whole, fresh, w, &uneven_plan, &error), "head_budgets: the policy reads");
  of_heads.head_budget_count = heads;
  REFUSED(lagkv_plan_eviction(by_head, &whole, fresh, w, &uneven_plan, &error), "head_budgets: is NULL");
  of_heads.head_budgets = budgets;
  OK(lagkv_plan_eviction(by_head, &whole, fresh, w, &uneven_plan, &error));
  EXPECT(lagkv_plan_tokens_after(uneven_plan, 0) == tokens && lagkv_plan_tokens_after(uneven_plan, 1) == 12);
  lagkv_policy_free(by_head);
  lagkv_policy_free(own);
  free(whole.keys.data);
  free(whole.values.data);
  EXPECT(lagkv_due(first, fresh, tokens).keep > lagkv_due(sloped, fresh, tokens).keep);
  EXPECT((lagkv_policy_needs(sloped) & LAGKV_IS_SLOPED) != 0);
  REFUSED(lagkv_compress(in_bytes, &l[0], fresh, w, LAGKV_FRONT, NULL, &error), "is in bytes");
  OK(lagkv_policy_fit(in_bytes, &l[0], 1, &rows, &error));
  EXPECT(lagkv_due(rows, fresh, tokens).keep == 50000 / (heads * channels * 8) - 6);

  /* Queries, positions and protected tokens. */
  lagkv_policy* h2o = policy_of("h2o:sink=2,recent=4,recent_share=0,capacity=90");
  float *k3 = numbers(1), *v3 = numbers(2), *queries = numbers(5), *attention = calloc(heads * tokens, sizeof *attention);
  uint32_t positions[heads * tokens], protect[] = {100, 101};
  for (int i = 0; i < heads * tokens; ++i) positions[i] = (uint32_t)(i % tokens);
  lagkv_extras e = lagkv_no_extras();
  lagkv_layer seen = layer_of(k3, v3);
  seen.extras = &e;
  e.queries = lagkv_dense_view(queries, LAGKV_F32, heads, tokens, channels);
  e.accumulated_attention = attention, e.accumulated_attention_stride = tokens;
  e.positions = positions, e.positions_stride = tokens;
  e.protect = protect, e.protect_count = 2;
  size_t left = 0;
  OK(lagkv_accumulate(h2o, &seen, fresh, tokens, w, &error));
  /* A plan applied by hand moves what lies beside the rows, too. */
  const lagkv_plan* plan = NULL;
  OK(lagkv_plan_eviction(h2o, &seen, fresh, w, &plan, &error));
  uint32_t positions_by_hand[heads * tokens];
  float* attention_by_hand = malloc(heads * tokens * sizeof *attention);
  memcpy(positions_by_hand, positions, sizeof positions);
  memcpy(attention_by_hand, attention, heads * tokens * sizeof *attention);
  lagkv_extras beside = lagkv_no_extras();
  beside.positions = positions_by_hand, beside.accumulated_attention = attention_by_hand;
  REFUSED(lagkv_compact_extras(&beside, plan, LAGKV_FRONT, &error), "positions_stride=0: must be at least the 300 rows");
  beside.positions_stride = tokens, beside.accumulated_attention_stride = -299;
  REFUSED(lagkv_compact_extras(&beside, plan, LAGKV_FRONT, &error), "accumulated_attention_stride=-299: must be at least");
  beside.accumulated_attention_stride = tokens;
  REFUSED(lagkv_compact_extras(&beside, plan, 2, &error), "toward=2: must be");
  REFUSED(lagkv_compact_extras(NULL, plan, LAGKV_FRONT, &error), "extras: is NULL");
  EXPECT(memcmp(positions_by_hand, positions, sizeof positions) == 0);
  OK(lagkv_compact_extras(&beside, plan, LAGKV_FRONT, &error));
  OK(lagkv_compress(h2o, &seen, fresh, w, LAGKV_FRONT, &left, &error));
  EXPECT(left == 90);
  for (int h = 0; h < heads; ++h) {
    EXPECT(memcmp(positions + h * tokens, positions_by_hand + h * tokens, left * sizeof *positions) == 0);
    EXPECT(memcmp(attention + h * tokens, attention_by_hand + h * tokens, left * sizeof *attention) == 0);
  }
  OK(lagkv_compact_extras(&beside, lagkv_last_plan(w), LAGKV_FRONT, &error));
  free(attention_by_hand);
  for (int h = 0; h < heads; ++h) {
    int found = 0;
    for (size_t i = 0; i < left; ++i) {
      found += positions[h * tokens + i] == 100 || positions[h * tokens + i] == 101;
      EXPECT(attention[h * tokens + i] > 0);
    }
    EXPECT(found == 2);
  }

  lagkv_policy_free(p), lagkv_policy_free(sloped), lagkv_policy_free(first), lagkv_policy_free(in_bytes);
  lagkv_policy_free(rows), lagkv_policy_free(h2o), lagkv_workspace_free(w);
  lagkv_cursor_free(c[0]), lagkv_cursor_free(c[1]), lagkv_cursor_free(fresh);
  free(k), free(v), free(k2), free(v2), free(before), free(scores), free(k3), free(v3), free(queries), free(attention);
}

/* Nothing due: views are neither made nor checked. */
static void test_nothing_due(void) {
  lagkv_policy* p = policy_of("key_diff:sink=2,recent=4,capacity=200");
  lagkv_workspace* w = new_workspace();
  lagkv_cursor* c[] = {lagkv_cursor_new(), lagkv_cursor_new()};
  float *k = numbers(1), *v = numbers(2);
  lagkv_layer l[] = {layer_of(k, v), layer_of(k, v)};
  int runs = 0;
  size_t left = 0;
  l[0].keys.data = l[1].keys.data = NULL;
  l[0].tokens = l[1].tokens = 150;
  OK(lagkv_compress_layers(p, l, c, 2, w, LAGKV_FRONT, 1, &error));
  EXPECT(lagkv_cursor_tokens(c[0]) == 150 && lagkv_cursor_tokens(c[1]) == 150);
  OK(lagkv_compress_parallel(p, &l[0], c[0], &w, 1, one_after_the_other, &runs, LAGKV_FRONT, &left, &error));
  EXPECT(left == 150 && runs == 0);
  l[1].tokens = 151;
  REFUSED(lagkv_compress_layers(p, l, c, 2, w, LAGKV_FRONT, 1, &error), "layer 1: has 151 rows, layer 0 150");
  l[1].tokens = tokens;
  REFUSED(lagkv_compress_layers(p, l, c, 2, w, LAGKV_FRONT, 0, &error), "layer 0: keys: data is NULL");
  l[0].keys.data = l[1].keys.data = k, l[1].tokens = 149;
  REFUSED(lagkv_compress_layers(p, l, c, 2, w, LAGKV_FRONT, 1, &error), "layer 1: tokens=149: the cursor counts 150");
  lagkv_policy_free(p), lagkv_workspace_free(w), lagkv_cursor_free(c[0]), lagkv_cursor_free(c[1]);
  free(k), free(v);
}

/* A pool that shuts down, one that calls twice, one that invents tasks and workers. */
static void does_nothing(void* context, size_t n, lagkv_work work, void* argument) {
  (void)context, (void)n, (void)work, (void)argument;
}
static void does_the_first(void* context, size_t n, lagkv_work work, void* argument) {
  (void)context, (void)n;
  work(argument, 0, 1);
}
static void does_all_twice(void* context, size_t n, lagkv_work work, void* argument) {
  (void)context;
  for (size_t i = 0; i < 2 * n; ++i) work(argument, i / 2, i % 2);
}
static void does_what_is_not_there(void* context, size_t n, lagkv_work work, void* argument) {
  (void)context;
  work(argument, n, 0), work(argument, 0, 2), work(argument, (size_t)-1, (size_t)-1);
}

/* Latent rows hold keys and values: as values of their own they would move twice. Plans may be made of them. */
static void test_values_in_the_rows_of_the_keys(void) {
  lagkv_policy* p = policy_of("lagkv:lag=32,ratio=0.5");
  lagkv_workspace *w = new_workspace(), *both[] = {w, new_workspace()};
  lagkv_cursor *c = lagkv_cursor_new(), *d = lagkv_cursor_new(), *cursors[] = {c, d};
  float *k = numbers(1), *v = numbers(2), *before = numbers(1);
  lagkv_layer l = layer_of(k, k), layers[2];
  const lagkv_plan* plan = NULL;
  size_t left = 7;
  int runs = 0;
  l.values.channels = 24;
  l.values.data = k + 8;
  layers[0] = layer_of(v, numbers(3)), layers[1] = l;
  REFUSED(lagkv_compress(p, &l, c, w, LAGKV_FRONT, &left, &error), "values: lie in the rows of the keys");
  REFUSED(lagkv_compress_layers(p, layers, cursors, 2, w, LAGKV_FRONT, 1, &error),
          "layer 1: values: lie in the rows of the keys");
  REFUSED(lagkv_compress_parallel(p, &l, c, both, 2, one_after_the_other, &runs, LAGKV_FRONT, &left, &error),
          "values: lie in the rows of the keys");
  EXPECT(left == 7 && runs == 0 && lagkv_cursor_tokens(c) == 0 && memcmp(k, before, size * sizeof *k) == 0);
  OK(lagkv_check(p, &l, 0, &error));
  OK(lagkv_plan_eviction(p, &l, c, w, &plan, &error));
  EXPECT(!lagkv_plan_empty(plan));
  l.values.data = NULL;
  lagkv_policy_free(p), p = policy_of("lagkv:lag=32,ratio=0.5,value_weight=0");
  OK(lagkv_compress(p, &l, c, w, LAGKV_FRONT, &left, &error));
  EXPECT(left < tokens);
  free(k), free(v), free(before), free(layers[0].values.data);
  lagkv_cursor_free(c), lagkv_cursor_free(d), lagkv_workspace_free(w), lagkv_workspace_free(both[1]), lagkv_policy_free(p);
}

static void test_careless_runs(void) {
  const lagkv_run runs[] = {does_nothing, does_the_first, does_all_twice, does_what_is_not_there};
  for (int i = 0; i < 8; ++i) {
    lagkv_policy* p = policy_of(i < 4 ? "lagkv:sink=4,lag=32,ratio=0.25" : "key_diff:keep=0.25");
    lagkv_workspace* w[] = {new_workspace(), new_workspace()};
    lagkv_cursor *c = lagkv_cursor_new(), *d = lagkv_cursor_new();
    float *k = numbers(1), *v = numbers(2), *k2 = numbers(1), *v2 = numbers(2);
    lagkv_layer l = layer_of(k, v), l2 = layer_of(k2, v2);
    size_t left = 0, same = 0;
    OK(lagkv_compress(p, &l, c, w[0], LAGKV_FRONT, &left, &error));
    OK(lagkv_compress_parallel(p, &l2, d, w, 2, runs[i % 4], NULL, LAGKV_FRONT, &same, &error));
    EXPECT(left < tokens && left == same);
    for (int h = 0; h < heads; ++h) {
      EXPECT(memcmp(k + h * tokens * channels, k2 + h * tokens * channels, left * channels * sizeof *k) == 0);
      EXPECT(memcmp(v + h * tokens * channels, v2 + h * tokens * channels, left * channels * sizeof *v) == 0);
    }
    lagkv_policy_free(p), lagkv_workspace_free(w[0]), lagkv_workspace_free(w[1]), lagkv_cursor_free(c), lagkv_cursor_free(d);
    free(k), free(v), free(k2), free(v2);
  }
}

/* A refused call leaves no plan of the call before; a plan of fewer rows than a cursor counts is not its own. */
static void test_plans_of_refused_calls(void) {
  lagkv_policy *p = policy_of("key_diff:keep=0.25"), *reads_queries = policy_of("snapkv:keep=0.25");
  lagkv_workspace* w = new_workspace();
  lagkv_cursor* c = lagkv_cursor_new();
  float *k = numbers(1), *v = numbers(2);
  lagkv_layer l = layer_of(k, v);
  const lagkv_plan* plan = NULL;
  OK(lagkv_plan_eviction(p, &l, c, w, &plan, &error));
  EXPECT(!lagkv_plan_empty(plan) && plan == lagkv_last_plan(w));
  REFUSED(lagkv_compress(reads_queries, &l, c, w, LAGKV_FRONT, NULL, &error), "queries: the policy reads");
  EXPECT(lagkv_plan_empty(lagkv_last_plan(w)));
  OK(lagkv_compress(p, &l, c, w, LAGKV_FRONT, NULL, &error));
  EXPECT(!lagkv_plan_empty(lagkv_last_plan(w)));
  l.tokens = tokens;
  REFUSED(lagkv_compress_layers(reads_queries, &l, &c, 1, w, LAGKV_FRONT, 1, &error), "queries: the policy reads");
  EXPECT(lagkv_plan_empty(lagkv_last_plan(w)));
  REFUSED(lagkv_advance(c, lagkv_last_plan(w), 0, &error), "plan: is of 0 rows: must be at least the");
  EXPECT(lagkv_cursor_tokens(c) == tokens / 4);
  lagkv_cursor* fresh = lagkv_cursor_new();
  int runs = 0;
  OK(lagkv_plan_eviction(p, &l, fresh, w, &plan, &error));
  EXPECT(!lagkv_plan_empty(lagkv_last_plan(w)));
  REFUSED(lagkv_plan_eviction(reads_queries, &l, fresh, w, &plan, &error), "queries: the policy reads");
  EXPECT(lagkv_plan_empty(lagkv_last_plan(w)));
  OK(lagkv_plan_eviction(p, &l, fresh, w, &plan, &error));
  REFUSED(lagkv_compress_parallel(reads_queries, &l, fresh, &w, 1, one_after_the_other, &runs, LAGKV_FRONT, NULL, &error),
          "queries: the policy reads");
  EXPECT(lagkv_plan_empty(lagkv_last_plan(w)) && runs == 0);
  /* Whatever of the call it is that is refused. */
#define FORGETS(call, words)                               \
  OK(lagkv_plan_eviction(p, &l, fresh, w, &plan, &error)); \
  EXPECT(!lagkv_plan_empty(lagkv_last_plan(w)));           \
  REFUSED(call, words);                                    \
  EXPECT(lagkv_plan_empty(lagkv_last_plan(w)) && runs == 0)
  lagkv_workspace* twice[] = {w, w};
  lagkv_cursor* no_cursor = NULL;
  FORGETS(lagkv_compress(p, &l, fresh, w, 9, NULL, &error), "toward=9");
  FORGETS(lagkv_compress(p, NULL, fresh, w, LAGKV_FRONT, NULL, &error), "layer: is NULL");
  FORGETS(lagkv_compress_layers(p, &l, &fresh, 1, w, 9, 1, &error), "toward=9");
  FORGETS(lagkv_compress_layers(p, NULL, &fresh, 1, w, LAGKV_FRONT, 1, &error), "layers: is NULL");
  FORGETS(lagkv_compress_layers(p, &l, &no_cursor, 1, w, LAGKV_FRONT, 1, &error), "cursors[0]: is NULL");
  FORGETS(lagkv_compress_parallel(p, &l, fresh, &w, 1, one_after_the_other, &runs, 9, NULL, &error), "toward=9");
  FORGETS(lagkv_compress_parallel(p, &l, fresh, &w, 1, NULL, &runs, LAGKV_FRONT, NULL, &error), "run: is NULL");
  FORGETS(lagkv_compress_parallel(p, &l, fresh, twice, 2, one_after_the_other, &runs, LAGKV_FRONT, NULL, &error),
          "workspaces[1]: is workspaces[0]");
  FORGETS(lagkv_plan_eviction(NULL, &l, fresh, w, &plan, &error), "policy: is NULL");
  FORGETS(lagkv_plan_eviction(p, &l, fresh, w, NULL, &error), "plan: is NULL");
  OK(lagkv_plan_eviction(p, &l, fresh, w, &plan, &error));
  OK(lagkv_compress_layers(p, NULL, NULL, 0, w, LAGKV_FRONT, 1, &error));
  EXPECT(lagkv_plan_empty(lagkv_last_plan(w)));
  lagkv_cursor_free(fresh);
  lagkv_policy_free(p), lagkv_policy_free(reads_queries), lagkv_workspace_free(w), lagkv_cursor_free(c);
  free(k), free(v);
}

/* What is refused hands out nothing: the caller, who frees what he was given, finds NULL in its place. */
static void test_refused_calls_hand_out_nothing(void) {
  lagkv_policy *p = policy_of("key_diff:keep=0.25"), *in_bytes = policy_of("key_norm:budget_mb=1");
  lagkv_policy *reads_queries = policy_of("snapkv:keep=0.25"), *other = p;
  lagkv_workspace *w = new_workspace(), *second = w;
  lagkv_cursor *c = lagkv_cursor_new(), *loaded = c;
  float *k = numbers(1), *v = numbers(2);
  lagkv_layer l = layer_of(k, v), none = layer_of(NULL, v);
  unsigned char bytes[LAGKV_SAVED_CURSOR_BYTES] = {0};
  REFUSED(lagkv_policy_parse("lagkv:ratio=2", &other, &error), "ratio=2");
  EXPECT(other == NULL);
  other = p;
  REFUSED(lagkv_policy_for_layer(p, 0, 0, &other, &error), "i=0: must be below the 0 layers");
  EXPECT(other == NULL);
  const double multiples[] = {-1, NAN, INFINITY};
  for (int i = 0; i < 3; ++i) {
    other = p;
    REFUSED(lagkv_policy_for_head(p, multiples[i], &other, &error), "must be 0 or more, and finite");
    EXPECT(other == NULL);
  }
  other = p;
  REFUSED(lagkv_policy_for_head(in_bytes, 1, &other, &error), "budget: is in bytes");
  EXPECT(other == NULL);
  other = p;
  REFUSED(lagkv_policy_fit(in_bytes, &l, 0, &other, &error), "n=0: must be 1 or more layers");
  EXPECT(other == NULL);
  other = p;
  REFUSED(lagkv_policy_fit(in_bytes, &none, 1, &other, &error), "keys: data is NULL");
  EXPECT(other == NULL);
  other = p;
  REFUSED(lagkv_policy_fit(in_bytes, &l, 1000000, &other, &error), "budget: holds 0 tokens");
  EXPECT(other == NULL);
  REFUSED(lagkv_workspace_new("mmx", &second, &error), "target=mmx");
  EXPECT(second == NULL);
  REFUSED(lagkv_cursor_load(bytes, sizeof bytes, &loaded, &error), "saved cursor of version 0");
  EXPECT(loaded == NULL);
  const lagkv_plan* plan = NULL;
  OK(lagkv_plan_eviction(p, &l, c, w, &plan, &error));
  REFUSED(lagkv_plan_eviction(reads_queries, &l, c, w, &plan, &error), "queries: the policy reads");
  EXPECT(plan == NULL);
  lagkv_policy_free(p), lagkv_policy_free(in_bytes), lagkv_policy_free(reads_queries);
  lagkv_workspace_free(w), lagkv_cursor_free(c);
  free(k), free(v);
}

/* Numbers that no cache has make a view that is refused, whichever of them it is. */
static void test_views_of_huge_numbers(void) {
  lagkv_policy* p = policy_of("key_diff:keep=0.25");
  float* k = numbers(1);
  lagkv_layer l = layer_of(k, NULL);
  const size_t huge[] = {SIZE_MAX, SIZE_MAX / 2 + 1, SIZE_MAX / 64, SIZE_MAX / 128 + 1};
  for (int type = LAGKV_F32; type <= LAGKV_Q5_1 + 1; ++type)
    for (size_t i = 0; i < sizeof huge / sizeof *huge; ++i)
      for (int which = 1; which < 8; ++which) {
        l.keys = lagkv_dense_view(k, type, which & 1 ? huge[i] : heads, which & 2 ? huge[i] : tokens, which & 4 ? huge[i] : 64);
        expect(lagkv_check(p, &l, 0, &error) == LAGKV_REFUSED, error.message, __LINE__);
      }
  lagkv_policy_free(p);
  free(k);
}

/* What only tells something takes NULL for nothing. */
static void test_nothing_is_told_of_null(void) {
  size_t count = 7;
  lagkv_cursor* c = lagkv_cursor_new();
  lagkv_policy* p = policy_of("full");
  unsigned char bytes[LAGKV_SAVED_CURSOR_BYTES];
  memset(bytes, 7, sizeof bytes);
  EXPECT(lagkv_policy_needs(NULL) == 0 && lagkv_policy_queries(NULL) == 0 && lagkv_peak_rows(NULL, 1, 9) == 9);
  EXPECT(lagkv_cursor_copy(NULL) == NULL && lagkv_cursor_tokens(NULL) == 0 && lagkv_cursor_dropped(NULL) == 0);
  EXPECT(lagkv_cursor_compressed(NULL) == 0 && lagkv_cursor_seen(NULL) == 0);
  lagkv_cursor_take_back(NULL, 1), lagkv_cursor_save(NULL, bytes), lagkv_cursor_save(c, NULL);
  for (size_t i = 0; i < sizeof bytes; ++i) EXPECT(bytes[i] == 7);
  EXPECT(strcmp(lagkv_workspace_target(NULL), "") == 0 && lagkv_last_plan(NULL) == NULL);
  EXPECT(lagkv_plan_empty(NULL) != 0 && lagkv_plan_heads(NULL) == 0 && lagkv_plan_tokens_after(NULL, 0) == 0);
  EXPECT(lagkv_plan_begin(NULL) == 0 && lagkv_plan_end(NULL) == 0);
  EXPECT(lagkv_plan_kept(NULL, 0, &count) == NULL && count == 0);
  const lagkv_candidates none[] = {lagkv_due(NULL, c, tokens), lagkv_due(p, NULL, tokens)};
  for (int i = 0; i < 2; ++i) EXPECT(none[i].begin == none[i].end && none[i].keep == 0 && none[i].dropped == 0);
  lagkv_cursor_free(c), lagkv_policy_free(p);
}

/* Views that a plan does not fit are refused before a row moves. */
static void test_compact_of_other_views(void) {
  lagkv_policy* p = policy_of("key_diff:keep=0.25");
  lagkv_workspace* w = new_workspace();
  lagkv_cursor* c = lagkv_cursor_new();
  float *k = numbers(1), *v = numbers(2), *before = numbers(1);
  lagkv_layer l = layer_of(k, v);
  const lagkv_plan* plan = NULL;
  OK(lagkv_plan_eviction(p, &l, c, w, &plan, &error));
  lagkv_view other = l.keys;
  other.tokens = tokens - 1;
  REFUSED(lagkv_compact(&other, plan, LAGKV_FRONT, &error), "tokens=300: the view addresses at most 299");
  other = l.keys, other.heads = heads - 1;
  REFUSED(lagkv_compact(&other, plan, LAGKV_FRONT, &error), "view: heads=2: must be the 3 of the plan");
  other = l.keys, other.token_stride = 0;
  REFUSED(lagkv_compact(&other, plan, LAGKV_FRONT, &error), "overlap");
  other = l.keys, other.type = -1;
  REFUSED(lagkv_compact(&other, plan, LAGKV_FRONT, &error), "view: type=-1");
  other = l.keys, other.data = NULL;
  REFUSED(lagkv_compact(&other, plan, LAGKV_FRONT, &error), "the tensor is empty");
  REFUSED(lagkv_compact(&l.keys, plan, 2, &error), "toward=2: must be");
  REFUSED(lagkv_compact(NULL, plan, LAGKV_FRONT, &error), "view: is NULL");
  REFUSED(lagkv_compact(&l.keys, NULL, LAGKV_FRONT, &error), "plan: is NULL");
  EXPECT(memcmp(k, before, size * sizeof *k) == 0);
  lagkv_policy_free(p), lagkv_workspace_free(w), lagkv_cursor_free(c);
  free(k), free(v), free(before);
}

/* Where all heads keep the same rows, positions may be those of all heads; the attention of a row is each head's own. */
static void test_what_heads_may_share(void) {
  lagkv_policy *shared = policy_of("key_diff:keep=0.25,heads=shared"), *own = policy_of("key_diff:keep=0.25");
  lagkv_workspace* w = new_workspace();
  lagkv_cursor* c = lagkv_cursor_new();
  float *k = numbers(1), *v = numbers(2), attention[heads * tokens] = {0};
  uint32_t positions[tokens];
  lagkv_layer l = layer_of(k, v);
  lagkv_extras e = lagkv_no_extras();
  const lagkv_plan* plan = NULL;
  for (uint32_t i = 0; i < tokens; ++i) positions[i] = i;
  e.positions = positions;
  OK(lagkv_plan_eviction(own, &l, c, w, &plan, &error));
  REFUSED(lagkv_compact_extras(&e, plan, LAGKV_FRONT, &error), "positions_stride=0: must be at least the 300 rows");
  OK(lagkv_plan_eviction(shared, &l, c, w, &plan, &error));
  e.accumulated_attention = attention;
  REFUSED(lagkv_compact_extras(&e, plan, LAGKV_FRONT, &error), "accumulated_attention_stride=0: must be at least the 300 rows");
  const ptrdiff_t strides[] = {PTRDIFF_MAX, PTRDIFF_MAX / 8 + 1, -(PTRDIFF_MAX / 8) - 1, PTRDIFF_MIN};
  for (size_t i = 0; i < sizeof strides / sizeof *strides; ++i) {
    e.accumulated_attention_stride = strides[i];
    REFUSED(lagkv_compact_extras(&e, plan, LAGKV_FRONT, &error), "3 heads exceed what memory can address");
    e.accumulated_attention_stride = tokens, e.positions_stride = strides[i];
    REFUSED(lagkv_compact_extras(&e, plan, LAGKV_FRONT, &error), "3 heads exceed what memory can address");
    e.positions_stride = 0;
  }
  EXPECT(positions[tokens - 1] == tokens - 1);
  e.accumulated_attention_stride = tokens;
  OK(lagkv_compact_extras(&e, plan, LAGKV_FRONT, &error));
  size_t count = 0;
  const uint32_t* kept = lagkv_plan_kept(plan, heads - 1, &count);
  EXPECT(count > 0 && count < tokens);
  for (size_t i = 0; i < count; ++i) EXPECT(positions[lagkv_plan_begin(plan) + i] == kept[i]);
  lagkv_policy_free(shared), lagkv_policy_free(own), lagkv_workspace_free(w), lagkv_cursor_free(c);
  free(k), free(v);
}

/* A scorer of partitions reads the one behind the last candidate: candidates without it are refused. */
static void test_scores_of_partitions(void) {
  enum { lag = 50 };
  lagkv_policy* p = policy_of("lagkv:sink=0,lag=50,ratio=0.5");
  lagkv_workspace* w = new_workspace();
  float *k = numbers(1), *v = numbers(2), *scores = malloc(size * sizeof *scores);
  lagkv_layer l = layer_of(k, v);
  const struct {
    size_t begin, end;
    const char* refused;
  } some[] = {{0, tokens - lag, NULL},
              {lag, 2 * lag, NULL},
              {7, 7 + lag, NULL},
              {tokens, tokens, NULL},
              {0, tokens, "with one more behind them within the 300 rows in use"},
              {1, tokens - lag + 1, "with one more behind them"},
              {0, lag - 1, "must be whole partitions of lag=50"},
              {lag, lag - 1, "must lie within the 300 rows in use"}};
  for (size_t i = 0; i < sizeof some / sizeof *some; ++i) {
    const lagkv_candidates these = {some[i].begin, some[i].end, 0, 0, 0, 0};
    if (some[i].refused == NULL) OK(lagkv_score(p, &l, &these, w, scores, size, &error));
    if (some[i].refused != NULL) REFUSED(lagkv_score(p, &l, &these, w, scores, size, &error), some[i].refused);
  }
  lagkv_policy_free(p), lagkv_workspace_free(w);
  free(k), free(v), free(scores);
}

/* After a compression rows hold later positions: scores are of them, as the plan is. */
static void test_scores_later_on(void) {
  lagkv_policy* p = policy_of("novelty:keep=0.5,heads=own,smooth=0");
  lagkv_workspace* w = new_workspace();
  lagkv_cursor* c = lagkv_cursor_new();
  float *k = numbers(1), *v = numbers(2);
  lagkv_rope rope = {10000.0, LAGKV_HALVES, 1.0F, 0, NULL, 0};
  lagkv_extras e = lagkv_no_extras();
  lagkv_layer l = layer_of(k, v);
  e.rope = &rope, l.extras = &e, l.tokens = 200;
  OK(lagkv_compress(p, &l, c, w, LAGKV_FRONT, NULL, &error));
  l.tokens = tokens;
  const lagkv_candidates due = lagkv_due(p, c, tokens);
  EXPECT(due.dropped == 100 && due.end > due.begin);
  const size_t n = due.end - due.begin;
  float* scores = malloc(heads * n * sizeof *scores);
  const lagkv_plan* plan = NULL;
  OK(lagkv_score(p, &l, &due, w, scores, heads * n, &error));
  OK(lagkv_plan_eviction(p, &l, c, w, &plan, &error));
  for (size_t h = 0; h < heads; ++h) {
    size_t count = 0, above = 0;
    const uint32_t* kept = lagkv_plan_kept(plan, h, &count);
    float least = INFINITY;
    for (size_t i = 0; i < count; ++i) least = fminf(least, scores[h * n + kept[i] - due.begin]);
    for (size_t i = 0; i < n; ++i) above += scores[h * n + i] > least;
    EXPECT(count > 0 && above == count - 1);
  }
  lagkv_policy_free(p), lagkv_workspace_free(w), lagkv_cursor_free(c);
  free(k), free(v), free(scores);
}

/* Of what a policy reads, only what is added to must be there. */
static void test_accumulate_for_every_policy(void) {
  const char* all[] = {"kvzap:keep=0.5", "novelty:keep=0.5", "recommended:capacity=100", "snapkv:keep=0.5", "lagkv:lag=32"};
  lagkv_workspace* w = new_workspace();
  lagkv_cursor* c = lagkv_cursor_new();
  float *k = numbers(1), *v = numbers(2);
  double statistics[heads * (2 * channels + 1)] = {0};
  for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
    lagkv_policy* p = policy_of(all[i]);
    lagkv_layer l = layer_of(k, v);
    OK(lagkv_accumulate(p, &l, c, tokens, w, &error));
    lagkv_policy_free(p);
  }
  lagkv_policy* novelty = policy_of(all[1]);
  lagkv_extras e = lagkv_no_extras();
  lagkv_layer l = layer_of(k, v);
  e.key_statistics = statistics, l.extras = &e;
  REFUSED(lagkv_accumulate(novelty, &l, c, tokens, w, &error), "rope: the policy reads keys as they were before RoPE");
  EXPECT(statistics[2 * channels] == 0);
  /* Heads of different lengths add, too: lagkv_compress() refuses them, and lagkv_plan_eviction() reads the sums. */
  lagkv_rope rope = {10000.0, LAGKV_HALVES, 1.0F, 0, NULL, 0};
  lagkv_policy* uneven = policy_of("novelty:keep=0.5,heads=own,select=adaptive");
  e.rope = &rope;
  OK(lagkv_accumulate(uneven, &l, c, tokens, w, &error));
  EXPECT(statistics[2 * channels] == tokens - 4); /* without sinks */
  lagkv_policy_free(uneven);
  EXPECT(lagkv_peak_rows(novelty, SIZE_MAX, 32768) == 32768);
  lagkv_policy_free(novelty), lagkv_workspace_free(w), lagkv_cursor_free(c);
  free(k), free(v);
}

int main(void) {
  EXPECT(lagkv_version() >= 200);
  test_refusals();
  test_compress("lagkv:sink=4,lag=32,ratio=0.25");
  test_compress("key_diff:sink=2,recent=4,keep=0.25");
  test_compress("value_norm:sink=0,recent=8,capacity=100");
  test_block_table();
  test_layers_and_scores();
  test_nothing_due();
  test_values_in_the_rows_of_the_keys();
  test_careless_runs();
  test_plans_of_refused_calls();
  test_refused_calls_hand_out_nothing();
  test_views_of_huge_numbers();
  test_nothing_is_told_of_null();
  test_compact_of_other_views();
  test_what_heads_may_share();
  test_scores_of_partitions();
  test_scores_later_on();
  test_accumulate_for_every_policy();
  if (faults == 0) puts("the C interface holds");
  return faults != 0;
}
