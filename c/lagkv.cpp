// liblagkv: the C interface. Each function turns plain structs into views, calls the library, and lets no exception out.
#define LAGKV_BUILDING
#include <lagkv.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lagkv/attention/head_budgets.hpp>
#include <lagkv/lagkv.hpp>

struct lagkv_policy {
  lagkv::policy policy;
};
struct lagkv_cursor {
  lagkv::cursor at;
};
struct lagkv_workspace {
  lagkv::workspace scratch;
};

namespace {

using lagkv::status;

int32_t say(int32_t code, std::string_view message, lagkv_error* error) noexcept {
  if (error != nullptr) {
    const std::size_t n = std::min(message.size(), sizeof error->message - 1);
    std::memcpy(error->message, message.data(), n);
    error->message[n] = '\0';
  }
  return code;
}

/// Runs work() -> status.
template <class Work>
int32_t edge(lagkv_error* error, const Work& work) noexcept {
  try {
    const status s = work();
    return s ? say(LAGKV_OK, "", error) : say(LAGKV_REFUSED, s.message(), error);
  } catch (const std::bad_alloc&) {
    return say(LAGKV_OUT_OF_MEMORY, "out of memory", error);
  } catch (const std::exception& e) {
    return say(LAGKV_FAILED, e.what(), error);
  } catch (...) {
    return say(LAGKV_FAILED, "unknown failure", error);
  }
}

lagkv::error refuse(std::initializer_list<lagkv::detail::piece> pieces) { return lagkv::detail::refuse(pieces); }

/// Refuses the first of the arguments that is null.
struct argument {
  const char* name;
  const void* value;
};
status given(std::initializer_list<argument> arguments) {
  for (const argument& a : arguments)
    if (a.value == nullptr) return refuse({a.name, ": is NULL"});
  return {};
}

lagkv::result<lagkv::toward> toward_of(int32_t x) {
  if (x == LAGKV_FRONT) return lagkv::toward::front;
  if (x == LAGKV_WINDOW) return lagkv::toward::window;
  return refuse({"toward=", x, ": must be LAGKV_FRONT (0) or LAGKV_WINDOW (1)"});
}

lagkv::result<lagkv::gap> gap_of(int32_t x) {
  if (x == LAGKV_GAP_KEPT) return lagkv::gap::kept;
  if (x == LAGKV_GAP_CLOSED) return lagkv::gap::closed;
  return refuse({"gap=", x, ": must be LAGKV_GAP_KEPT (0) or LAGKV_GAP_CLOSED (1)"});
}

template <class T>
lagkv::tensor typed(const lagkv_view& v) {
  T* data = static_cast<T*>(v.data);
  const lagkv::shape size{v.heads, v.channels};
  const lagkv::strides step{v.head_stride, v.token_stride, v.channel_stride};
  if (v.table == nullptr) return lagkv::strided<T>(data, size, step, v.tokens);
  return lagkv::paged<T>(data, size, {v.block_tokens, v.block_stride, step, v.pool_blocks}, std::span(v.table, v.table_size));
}

lagkv::result<lagkv::tensor> tensor_of(const char* name, const lagkv_view& v) {
  if (v.data == nullptr) return lagkv::tensor{};
  if (v.table != nullptr && v.block_tokens == 0) return refuse({name, ": block_tokens=0: must be 1 or more"});
  switch (v.type) {
    case LAGKV_F32:
      return typed<float>(v);
    case LAGKV_F16:
      return typed<lagkv::f16>(v);
    case LAGKV_BF16:
      return typed<lagkv::bf16>(v);
    case LAGKV_FP8_E4M3:
      return typed<lagkv::fp8_e4m3>(v);
    case LAGKV_FP8_E5M2:
      return typed<lagkv::fp8_e5m2>(v);
    case LAGKV_INT8:
      return typed<std::int8_t>(v);
    case LAGKV_UINT8:
      return typed<std::uint8_t>(v);
    case LAGKV_Q8_0:
      return typed<lagkv::q8_0>(v);
    case LAGKV_Q4_0:
      return typed<lagkv::q4_0>(v);
    case LAGKV_Q4_1:
      return typed<lagkv::q4_1>(v);
    case LAGKV_Q5_0:
      return typed<lagkv::q5_0>(v);
    case LAGKV_Q5_1:
      return typed<lagkv::q5_1>(v);
    default:
      return refuse({name, ": type=", v.type, ": must be from 0 to ", static_cast<int32_t>(LAGKV_Q5_1), " (lagkv_dtype)"});
  }
}

/// A layer with what its pointers lead to. Not to be moved: it points into itself.
class held_layer {
 public:
  held_layer() = default;
  held_layer(const held_layer&) = delete;
  held_layer& operator=(const held_layer&) = delete;

  status set(const lagkv_layer& l) {
    layer_.tokens = l.tokens;
    if (l.keys.data == nullptr) return refuse({"keys: data is NULL"});
    if (status s = take(layer_.keys, "keys", l.keys); !s) return s;
    if (status s = take(layer_.values, "values", l.values); !s) return s;
    return l.extras != nullptr ? set(*l.extras) : status{};
  }

  status set(const lagkv_extras& given);

  const lagkv::layer& get() const { return layer_; }
  const lagkv::extras& extras() const { return extras_; }

 private:
  static status take(lagkv::tensor& to, const char* name, const lagkv_view& v) {
    const lagkv::result<lagkv::tensor> t = tensor_of(name, v);
    if (!t) return lagkv::error{t.message()};
    to = *t;
    return {};
  }

  lagkv::layer layer_{};
  lagkv::extras extras_{};
  lagkv::rope rope_{};
};

status held_layer::set(const lagkv_extras& given) {
  // A caller that was compiled with a smaller struct offers nothing of the rest.
  lagkv_extras e{};
  if (given.struct_size < offsetof(lagkv_extras, queries) || given.struct_size > sizeof e)
    return refuse({"extras: struct_size=", given.struct_size, ": must be sizeof(lagkv_extras), ", sizeof e, " here"});
  std::memcpy(&e, &given, given.struct_size);
  const struct {
    lagkv::tensor& to;
    const char* name;
    const lagkv_view& from;
  } views[] = {{extras_.queries, "queries", e.queries},
               {extras_.weights, "weights", e.weights},
               {extras_.query_mean, "query_mean", e.query_mean},
               {extras_.query_covariance, "query_covariance", e.query_covariance},
               {extras_.query_factors, "query_factors", e.query_factors},
               {extras_.importance, "importance", e.importance}};
  for (const auto& v : views)
    if (status s = take(v.to, v.name, v.from); !s) return s;
  extras_.query_count = e.query_count;
  extras_.accumulated_attention = {e.accumulated_attention, e.accumulated_attention_stride};
  extras_.positions = {e.positions, e.positions_stride};
  extras_.key_statistics = {e.key_statistics};
  extras_.scale = e.scale;
  if (e.protect == nullptr && e.protect_count != 0) return refuse({"protect: is NULL, protect_count=", e.protect_count});
  extras_.protect = {e.protect, e.protect_count};
  if (e.head_budgets == nullptr && e.head_budget_count != 0)
    return refuse({"head_budgets: is NULL, head_budget_count=", e.head_budget_count});
  extras_.head_budgets = {e.head_budgets, e.head_budget_count};
  if (e.rope != nullptr) {
    const lagkv_rope& r = *e.rope;
    if (r.pairs != LAGKV_HALVES && r.pairs != LAGKV_NEIGHBOURS)
      return refuse({"rope: pairs=", r.pairs, ": must be LAGKV_HALVES (1) or LAGKV_NEIGHBOURS (2)"});
    if (r.factors == nullptr && r.factor_count != 0) return refuse({"rope: factors are NULL, factor_count=", r.factor_count});
    using pairing = lagkv::rope::pairing;
    rope_.base = r.base, rope_.pairs = r.pairs == LAGKV_HALVES ? pairing::halves : pairing::neighbours;
    rope_.dims = r.dims, rope_.position_scale = r.position_scale;
    rope_.factors = {r.factors, r.factor_count};
    extras_.rope = &rope_;
  }
  layer_.extra = &extras_;
  return {};
}

status check_cursor(const lagkv::cursor& at, std::size_t tokens) {
  if (at.tokens <= tokens) return {};
  return refuse({"tokens=", tokens, ": the cursor counts ", at.tokens,
                 " rows: call lagkv_cursor_take_back() or lagkv_cursor_take_out(), or begin a sequence with a new cursor"});
}

/// The scratch of several workspaces side by side, as long as this lives.
struct lent_scratch {
  std::span<lagkv_workspace* const> owners;
  std::vector<lagkv::workspace> scratch{};

  explicit lent_scratch(std::span<lagkv_workspace* const> of) : owners(of) {
    scratch.reserve(of.size());  // from here on nothing fails
    for (lagkv_workspace* owner : of) scratch.push_back(std::move(owner->scratch));
  }
  ~lent_scratch() {
    for (std::size_t i = 0; i < owners.size(); ++i) owners[i]->scratch = std::move(scratch[i]);
  }
  lent_scratch(const lent_scratch&) = delete;
  lent_scratch& operator=(const lent_scratch&) = delete;
};

/// Whether a side array has the rows that a plan moves.
template <class T>
status check_side(const char* name, const lagkv::side_array<T>& side, const lagkv::plan& p, bool may_be_shared) {
  if (!side || p.heads() < 2) return {};
  const std::ptrdiff_t stride = side.head_stride.value;
  if (!lagkv::detail::addressable(p.heads(), stride, sizeof(T)))
    return refuse({name, "_stride=", stride, ": ", p.heads(), " heads exceed what memory can address"});
  if (lagkv::detail::magnitude(stride) >= p.tokens_before) return {};
  if (stride == 0 && may_be_shared && lagkv::detail::same_for_all_heads(p)) return {};
  return refuse({name, "_stride=", stride, ": must be at least the ", p.tokens_before, " rows of the plan",
                 may_be_shared ? ", or 0 if all heads keep the same tokens" : ""});
}

/// Takes back the last plan of a workspace, so that a call that is refused or fails leaves an empty one: before all else.
void forget_plan(lagkv_workspace* w) {
  if (w != nullptr) w->scratch.kept<lagkv::plan>().clear(0);
}

/// Sets the layer, and checks it if the policy has something to do.
status prepare(const lagkv_policy* p, const lagkv_layer* l, const lagkv::cursor& at, held_layer& out, bool any_length) {
  if (status s = check_cursor(at, l->tokens); !s) return s;
  if (status s = out.set(*l); !s) return s;
  return check(p->policy, out.get(), any_length);
}

/// prepare() for a call that moves rows.
status prepare_to_move(const lagkv_policy* p, const lagkv_layer* l, const lagkv::cursor& at, held_layer& out) {
  if (status s = prepare(p, l, at, out, false); !s) return s;
  return lagkv::detail::check_rows_apart(out.get());
}

/// Nothing is due: a few comparisons, and the plan is empty.
bool nothing_due(const lagkv::policy& p, const lagkv_layer& l, const lagkv::cursor& at) {
  return at.tokens <= l.tokens && p.budget.as<lagkv::keep::bytes>() == nullptr && p.budget.due(at, l.tokens).empty();
}

template <class T>
void out_of(T* to, T value) {
  if (to != nullptr) *to = value;
}

/// A layer whose rows are only counted.
lagkv::layer counted(const lagkv_layer& l) { return {{}, {}, l.tokens, nullptr}; }

/// Counts the rows, and says that it has, if nothing is due.
bool only_counts(const lagkv_policy* p, const lagkv_layer* l, lagkv_cursor* at, lagkv_workspace* w, size_t* tokens) {
  if (!nothing_due(p->policy, *l, at->at)) return false;
  out_of(tokens, lagkv::compress(p->policy, counted(*l), at->at, w->scratch));
  return true;
}

/// The tasks of one call of the caller's threads. A task's exception must not pass through the caller's frames.
class tasks {
 public:
  tasks(std::size_t n, std::size_t workers, lagkv::detail::function_ref<void(std::size_t, std::size_t)> work)
      : work_(work), n_(n), failed_(workers), taken_(std::make_unique<std::atomic<bool>[]>(n)) {}

  /// Each of them once, whatever the caller's `run` calls: what it leaves out is done by this thread.
  void run(lagkv_run with, void* context) {
    const lagkv_work one = [](void* self, std::size_t task, std::size_t worker) {
      static_cast<tasks*>(self)->take(task, worker);
    };
    with(context, n_, one, this);
    for (std::size_t task = 0; task < n_; ++task) take(task, 0);
    for (const std::exception_ptr& f : failed_)
      if (f) std::rethrow_exception(f);  // before the first row moves
  }

 private:
  void take(std::size_t task, std::size_t worker) {
    if (task >= n_ || worker >= failed_.size() || taken_[task].exchange(true)) return;
    try {
      work_(task, worker);
    } catch (...) {
      failed_[worker] = std::current_exception();
    }
  }

  lagkv::detail::function_ref<void(std::size_t, std::size_t)> work_;
  std::size_t n_;
  std::vector<std::exception_ptr> failed_;
  std::unique_ptr<std::atomic<bool>[]> taken_;
};

const lagkv_plan* as_c(const lagkv::plan& p) { return reinterpret_cast<const lagkv_plan*>(&p); }
const lagkv::plan& as_cpp(const lagkv_plan* p) { return *reinterpret_cast<const lagkv::plan*>(p); }

}  // namespace

extern "C" {

int32_t lagkv_version(void) { return LAGKV_VERSION; }

lagkv_view lagkv_dense_view(void* data, int32_t type, size_t heads, size_t tokens, size_t channels) {
  lagkv_view v{};
  const bool known = type >= LAGKV_F32 && type <= LAGKV_Q5_1;
  const std::size_t units = channels / (known ? elements_of(static_cast<lagkv::dtype>(type)) : 1);
  v.data = data, v.type = type;
  v.heads = heads, v.tokens = tokens, v.channels = channels;
  v.head_stride = static_cast<ptrdiff_t>(tokens * units);  // where that wraps, the tokens alone exceed what check() accepts
  v.token_stride = static_cast<ptrdiff_t>(units), v.channel_stride = 1;
  return v;
}

// ---- policies ---------------------------------------------------------------------------------------------------------

int32_t lagkv_policy_parse(const char* text, lagkv_policy** policy, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"text", text}, {"policy", policy}}); !s) return s;
    *policy = nullptr;
    const lagkv::result<lagkv::policy> made = lagkv::parse(text);
    if (!made) return lagkv::error{made.message()};
    *policy = new lagkv_policy{*made};
    return {};
  });
}

void lagkv_policy_free(lagkv_policy* policy) { delete policy; }

int32_t lagkv_policy_for_layer(const lagkv_policy* policy, size_t i, size_t n, lagkv_policy** out, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"policy", policy}, {"out", out}}); !s) return s;
    *out = nullptr;
    if (i >= n) return refuse({"i=", i, ": must be below the ", n, " layers"});
    *out = new lagkv_policy{lagkv::for_layer(policy->policy, i, n)};
    return {};
  });
}

int32_t lagkv_policy_for_head(const lagkv_policy* policy, double multiple, lagkv_policy** out, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"policy", policy}, {"out", out}}); !s) return s;
    *out = nullptr;
    if (!lagkv::detail::finite(multiple) || !(multiple >= 0))
      return refuse({"multiple=", multiple, ": must be 0 or more, and finite"});
    if (policy->policy.budget.as<lagkv::keep::bytes>() != nullptr) return lagkv::detail::is_in_bytes();
    *out = new lagkv_policy{lagkv::for_head(policy->policy, multiple)};
    return {};
  });
}

int32_t lagkv_head_budgets(const float* importance, size_t layers, size_t heads, size_t n, double share, double least,
                           float* budgets, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"importance", importance}, {"budgets", budgets}}); !s) return s;
    std::vector<std::vector<std::vector<float>>> lists(layers, std::vector<std::vector<float>>(heads));
    for (std::vector<std::vector<float>>& layer : lists)
      for (std::vector<float>& head : layer) head.assign(importance, importance + n), importance += n;
    const lagkv::result<std::vector<std::vector<float>>> made = lagkv::head_budgets(lists, share, least);
    if (!made) return lagkv::error{made.message()};
    for (const std::vector<float>& layer : *made) budgets = std::copy(layer.begin(), layer.end(), budgets);
    return {};
  });
}

int32_t lagkv_policy_fit(const lagkv_policy* policy, const lagkv_layer* layer, size_t n, lagkv_policy** out, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"policy", policy}, {"layer", layer}, {"out", out}}); !s) return s;
    *out = nullptr;
    if (n == 0) return refuse({"n=0: must be 1 or more layers"});
    held_layer l;
    if (status s = l.set(*layer); !s) return s;
    const lagkv::result<lagkv::policy> made = lagkv::fit(policy->policy, l.get(), n);
    if (!made) return lagkv::error{made.message()};
    *out = new lagkv_policy{*made};
    return {};
  });
}

uint32_t lagkv_policy_needs(const lagkv_policy* policy) {
  if (policy == nullptr) return 0;
  const lagkv::needs& n = policy->policy.needs;
  const auto bit = [](bool is, uint32_t b) { return is ? b : 0U; };
  return bit(n.values, LAGKV_NEEDS_VALUES) | bit(n.queries > 0, LAGKV_NEEDS_QUERIES) |
         bit(n.accumulated_attention, LAGKV_NEEDS_ACCUMULATED_ATTENTION) | bit(n.query_statistics, LAGKV_NEEDS_QUERY_STATISTICS) |
         bit(n.rope, LAGKV_NEEDS_ROPE) | bit(n.key_statistics, LAGKV_READS_KEY_STATISTICS) |
         bit(n.importance, LAGKV_NEEDS_IMPORTANCE) | bit(n.calibrated, LAGKV_NEEDS_QUERY_MEAN) |
         bit(lagkv::detail::reads_positions(policy->policy), LAGKV_NEEDS_POSITIONS) | bit(n.all_rows, LAGKV_READS_ALL_ROWS) |
         bit(n.head_budgets, LAGKV_NEEDS_HEAD_BUDGETS) | bit(policy->policy.ragged, LAGKV_IS_RAGGED) |
         bit(policy->policy.budget.slope.sloped(), LAGKV_IS_SLOPED);
}

size_t lagkv_policy_queries(const lagkv_policy* policy) { return policy == nullptr ? 0 : policy->policy.needs.queries; }

size_t lagkv_peak_rows(const lagkv_policy* policy, size_t chunk, size_t tokens) {
  return policy == nullptr ? tokens : lagkv::peak_rows(policy->policy, chunk, tokens);
}

// ---- cursors and workspaces -------------------------------------------------------------------------------------------

lagkv_cursor* lagkv_cursor_new(void) { return new (std::nothrow) lagkv_cursor{}; }

lagkv_cursor* lagkv_cursor_copy(const lagkv_cursor* cursor) {
  return cursor == nullptr ? nullptr : new (std::nothrow) lagkv_cursor{*cursor};
}

void lagkv_cursor_free(lagkv_cursor* cursor) { delete cursor; }

size_t lagkv_cursor_tokens(const lagkv_cursor* cursor) { return cursor == nullptr ? 0 : cursor->at.tokens; }
size_t lagkv_cursor_dropped(const lagkv_cursor* cursor) { return cursor == nullptr ? 0 : cursor->at.dropped; }
size_t lagkv_cursor_compressed(const lagkv_cursor* cursor) { return cursor == nullptr ? 0 : cursor->at.compressed; }
size_t lagkv_cursor_seen(const lagkv_cursor* cursor) { return cursor == nullptr ? 0 : cursor->at.seen(); }

void lagkv_cursor_take_back(lagkv_cursor* cursor, size_t rows) {
  if (cursor != nullptr) lagkv::take_back(cursor->at, rows);
}

int32_t lagkv_cursor_take_out(lagkv_cursor* cursor, size_t begin, size_t end, int32_t gap, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"cursor", cursor}}); !s) return s;
    const lagkv::result<lagkv::gap> positions = gap_of(gap);
    if (!positions) return lagkv::error{positions.message()};
    if (status s = lagkv::detail::check_take_out(cursor->at, begin, end); !s) return s;
    lagkv::take_out(cursor->at, begin, end, *positions);
    return {};
  });
}

void lagkv_cursor_save(const lagkv_cursor* cursor, unsigned char bytes[LAGKV_SAVED_CURSOR_BYTES]) {
  if (cursor == nullptr || bytes == nullptr) return;
  const lagkv::saved_cursor saved = lagkv::save(cursor->at);
  static_assert(sizeof saved == LAGKV_SAVED_CURSOR_BYTES);
  std::memcpy(bytes, saved.data(), sizeof saved);
}

int32_t lagkv_cursor_load(const unsigned char* bytes, size_t count, lagkv_cursor** cursor, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"bytes", bytes}, {"cursor", cursor}}); !s) return s;
    *cursor = nullptr;
    const lagkv::result<lagkv::cursor> loaded = lagkv::load_cursor(std::as_bytes(std::span(bytes, count)));
    if (!loaded) return lagkv::error{loaded.message()};
    *cursor = new lagkv_cursor{*loaded};
    return {};
  });
}

int32_t lagkv_workspace_new(const char* target, lagkv_workspace** workspace, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"workspace", workspace}}); !s) return s;
    *workspace = nullptr;
    std::optional<lagkv::simd::target> found;
    std::string runs;
    for (const lagkv::simd::target t : lagkv::simd::all_targets) {
      if (!lagkv::simd::supported(t)) continue;
      if (target != nullptr && std::string_view(target) == lagkv::simd::name(t)) found = t;
      runs.append(runs.empty() ? "" : ", ").append(lagkv::simd::name(t));
    }
    if (target == nullptr) found = lagkv::simd::best();
    if (!found) return refuse({"target=", target, ": must be one of ", runs, " on this machine"});
    *workspace = new lagkv_workspace{lagkv::workspace(*found)};
    return {};
  });
}

void lagkv_workspace_free(lagkv_workspace* workspace) { delete workspace; }

const char* lagkv_workspace_target(const lagkv_workspace* workspace) {
  return workspace == nullptr ? "" : lagkv::simd::name(workspace->scratch.target());
}

// ---- compression ------------------------------------------------------------------------------------------------------

int32_t lagkv_check(const lagkv_policy* policy, const lagkv_layer* layer, int32_t any_length, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"policy", policy}, {"layer", layer}}); !s) return s;
    held_layer l;
    return prepare(policy, layer, {}, l, any_length != 0);
  });
}

int32_t lagkv_compress(const lagkv_policy* policy, const lagkv_layer* layer, lagkv_cursor* cursor, lagkv_workspace* workspace,
                       int32_t toward, size_t* tokens, lagkv_error* error) {
  return edge(error, [&]() -> status {
    forget_plan(workspace);
    if (status s = given({{"policy", policy}, {"layer", layer}, {"cursor", cursor}, {"workspace", workspace}}); !s) return s;
    const lagkv::result<lagkv::toward> direction = toward_of(toward);
    if (!direction) return lagkv::error{direction.message()};
    if (only_counts(policy, layer, cursor, workspace, tokens)) return {};
    held_layer l;
    if (status s = prepare_to_move(policy, layer, cursor->at, l); !s) return s;
    out_of(tokens, lagkv::compress(policy->policy, l.get(), cursor->at, workspace->scratch, *direction));
    return {};
  });
}

int32_t lagkv_compress_layers(const lagkv_policy* policy, const lagkv_layer* layers, lagkv_cursor* const* cursors, size_t count,
                              lagkv_workspace* workspace, int32_t toward, int32_t equal_counts, lagkv_error* error) {
  return edge(error, [&]() -> status {
    forget_plan(workspace);
    if (count == 0) return {};
    if (status s = given({{"policy", policy}, {"layers", layers}, {"cursors", cursors}, {"workspace", workspace}}); !s) return s;
    const lagkv::result<lagkv::toward> direction = toward_of(toward);
    if (!direction) return lagkv::error{direction.message()};
    std::vector<lagkv::layer> all;
    std::vector<lagkv::cursor> at;
    bool due = false;
    for (std::size_t i = 0; i < count; ++i) {
      if (cursors[i] == nullptr) return refuse({"cursors[", i, "]: is NULL"});
      for (std::size_t j = 0; j < i; ++j)
        if (cursors[j] == cursors[i]) return refuse({"cursors[", i, "]: is that of layer ", j, " too"});
      all.push_back(counted(layers[i])), at.push_back(cursors[i]->at);
      const lagkv::policy& p = policy->policy;  // copied only where budgets differ from layer to layer
      due = due || !(p.budget.slope.sloped() ? nothing_due(lagkv::for_layer(p, i, count), layers[i], at[i])
                                             : nothing_due(p, layers[i], at[i]));
    }
    std::vector<held_layer> held(due ? count : 0);  // most calls find nothing due: views are made and checked where they are read
    for (std::size_t i = 0; i < held.size(); ++i) {
      if (status s = prepare_to_move(policy, &layers[i], at[i], held[i]); !s) return refuse({"layer ", i, ": ", s.message()});
      all[i] = held[i].get();
    }
    const lagkv::compress_options options{.direction = *direction, .equal_counts = equal_counts != 0};
    if (status s = lagkv::compress(policy->policy, all, at, workspace->scratch, options); !s) return s;
    for (std::size_t i = 0; i < count; ++i) cursors[i]->at = at[i];
    return {};
  });
}

int32_t lagkv_compress_parallel(const lagkv_policy* policy, const lagkv_layer* layer, lagkv_cursor* cursor,
                                lagkv_workspace* const* workspaces, size_t workers, lagkv_run run, void* context, int32_t toward,
                                size_t* tokens, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (workspaces != nullptr && workers != 0) forget_plan(workspaces[0]);
    if (status s = given({{"policy", policy}, {"layer", layer}, {"cursor", cursor}, {"workspaces", workspaces}}); !s) return s;
    if (run == nullptr) return refuse({"run: is NULL"});
    if (workers == 0) return refuse({"workers=0: must be 1 or more"});
    const lagkv::result<lagkv::toward> direction = toward_of(toward);
    if (!direction) return lagkv::error{direction.message()};
    for (std::size_t i = 0; i < workers; ++i) {
      if (workspaces[i] == nullptr) return refuse({"workspaces[", i, "]: is NULL"});
      for (std::size_t j = 0; j < i; ++j)
        if (workspaces[i] == workspaces[j])
          return refuse({"workspaces[", i, "]: is workspaces[", j, "]: each worker needs its own"});
    }
    if (only_counts(policy, layer, cursor, workspaces[0], tokens)) return {};
    held_layer l;
    if (status s = prepare_to_move(policy, layer, cursor->at, l); !s) return s;
    lent_scratch lent({workspaces, workers});
    const auto in_parallel = [&](std::size_t n, const auto& work) { tasks(n, workers, work).run(run, context); };
    out_of(tokens, lagkv::compress(policy->policy, l.get(), cursor->at, lent.scratch, in_parallel, *direction));
    return {};
  });
}

int32_t lagkv_accumulate(const lagkv_policy* policy, const lagkv_layer* layer, const lagkv_cursor* cursor, size_t n,
                         lagkv_workspace* workspace, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"policy", policy}, {"layer", layer}, {"cursor", cursor}, {"workspace", workspace}}); !s) return s;
    if (n > layer->tokens) return refuse({"n=", n, ": must be at most the ", layer->tokens, " rows in use"});
    held_layer l;
    if (status s = l.set(*layer); !s) return s;
    const lagkv::needs& reads = policy->policy.needs;
    const bool before_rope = reads.rope && reads.key_statistics && l.extras().key_statistics;
    if (status s = before_rope ? check(policy->policy, l.get(), true) : check(l.get()); !s) return s;
    lagkv::accumulate(policy->policy, l.get(), cursor->at, n, workspace->scratch);
    return {};
  });
}

// ---- plans and scores -------------------------------------------------------------------------------------------------

int32_t lagkv_plan_eviction(const lagkv_policy* policy, const lagkv_layer* layer, const lagkv_cursor* cursor,
                            lagkv_workspace* workspace, const lagkv_plan** plan, lagkv_error* error) {
  return edge(error, [&]() -> status {
    forget_plan(workspace);
    if (status s = given({{"policy", policy}, {"layer", layer}, {"cursor", cursor}, {"workspace", workspace}, {"plan", plan}});
        !s)
      return s;
    *plan = nullptr;
    held_layer l;
    if (status s = prepare(policy, layer, cursor->at, l, true); !s) return s;
    *plan = as_c(lagkv::plan_eviction(policy->policy, l.get(), cursor->at, workspace->scratch));
    return {};
  });
}

const lagkv_plan* lagkv_last_plan(lagkv_workspace* workspace) {
  return workspace == nullptr ? nullptr : as_c(lagkv::last_plan(workspace->scratch));
}

int32_t lagkv_plan_empty(const lagkv_plan* plan) { return plan == nullptr || as_cpp(plan).empty() ? 1 : 0; }
size_t lagkv_plan_heads(const lagkv_plan* plan) { return plan == nullptr ? 0 : as_cpp(plan).heads(); }
size_t lagkv_plan_begin(const lagkv_plan* plan) { return plan == nullptr ? 0 : as_cpp(plan).candidates.begin; }
size_t lagkv_plan_end(const lagkv_plan* plan) { return plan == nullptr ? 0 : as_cpp(plan).candidates.end; }

size_t lagkv_plan_tokens_after(const lagkv_plan* plan, size_t head) {
  if (plan == nullptr || (as_cpp(plan).heads() != 0 && head >= as_cpp(plan).heads())) return 0;
  return as_cpp(plan).tokens_after(head);
}

const uint32_t* lagkv_plan_kept(const lagkv_plan* plan, size_t head, size_t* count) {
  out_of<size_t>(count, 0);
  if (plan == nullptr || head >= as_cpp(plan).heads()) return nullptr;
  const std::span<const std::uint32_t> kept = as_cpp(plan).of(head);
  out_of(count, kept.size());
  return kept.data();
}

int32_t lagkv_compact(const lagkv_view* view, const lagkv_plan* plan, int32_t toward, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"view", view}, {"plan", plan}}); !s) return s;
    const lagkv::result<lagkv::toward> direction = toward_of(toward);
    if (!direction) return lagkv::error{direction.message()};
    const lagkv::plan& p = as_cpp(plan);
    const lagkv::result<lagkv::tensor> t = tensor_of("view", *view);
    if (!t) return lagkv::error{t.message()};
    if (status s = t->check(p.tokens_before); !s) return s;
    if (p.empty()) return {};
    if (t->heads() != p.heads()) return refuse({"view: heads=", t->heads(), ": must be the ", p.heads(), " of the plan"});
    lagkv::compact(*t, p, *direction);
    return {};
  });
}

int32_t lagkv_compact_extras(const lagkv_extras* extras, const lagkv_plan* plan, int32_t toward, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"extras", extras}, {"plan", plan}}); !s) return s;
    const lagkv::result<lagkv::toward> direction = toward_of(toward);
    if (!direction) return lagkv::error{direction.message()};
    held_layer beside;
    if (status s = beside.set(*extras); !s) return s;
    const lagkv::plan& p = as_cpp(plan);
    const lagkv::extras& e = beside.extras();
    if (status s = check_side("positions", e.positions, p, true); !s) return s;
    if (status s = check_side("accumulated_attention", e.accumulated_attention, p, false); !s) return s;
    lagkv::compact(e, p, *direction);
    return {};
  });
}

int32_t lagkv_advance(lagkv_cursor* cursor, const lagkv_plan* plan, size_t head, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given({{"cursor", cursor}, {"plan", plan}}); !s) return s;
    const lagkv::plan& p = as_cpp(plan);
    if (p.heads() != 0 && head >= p.heads()) return refuse({"head=", head, ": the plan has ", p.heads()});
    if (p.tokens_before < cursor->at.tokens)
      return refuse(
          {"plan: is of ", p.tokens_before, " rows: must be at least the ", cursor->at.tokens, " that the cursor counts"});
    lagkv::advance(cursor->at, p, head);
    return {};
  });
}

lagkv_candidates lagkv_due(const lagkv_policy* policy, const lagkv_cursor* cursor, size_t tokens) {
  if (policy == nullptr || cursor == nullptr) return {};
  const lagkv::candidates c = policy->policy.budget.due(cursor->at, tokens);
  return {c.rows.begin, c.rows.end, c.keep, c.partition, c.keep_each, c.positions.dropped};
}

int32_t lagkv_score(const lagkv_policy* policy, const lagkv_layer* layer, const lagkv_candidates* candidates,
                    lagkv_workspace* workspace, float* scores, size_t count, lagkv_error* error) {
  return edge(error, [&]() -> status {
    if (status s = given(
            {{"policy", policy}, {"layer", layer}, {"candidates", candidates}, {"workspace", workspace}, {"scores", scores}});
        !s)
      return s;
    if (!policy->policy.score) return refuse({"policy: has no scores"});
    const lagkv_candidates& c = *candidates;
    if (c.begin > c.end || c.end > layer->tokens)
      return refuse({"candidates=", c.begin, " to ", c.end, ": must lie within the ", layer->tokens, " rows in use"});
    if (const std::size_t lag = policy->policy.budget.lag();
        lag != 0 && ((c.end - c.begin) % lag != 0 ||
                     (c.begin != c.end && c.end + lag > layer->tokens)))  // the scorer reads the partition behind them
      return refuse({"candidates=", c.begin, " to ", c.end, ": must be whole partitions of lag=", lag,
                     " tokens, with one more behind them within the ", layer->tokens, " rows in use"});
    if (c.partition != 0 && (c.end - c.begin) % c.partition != 0)
      return refuse({"partition=", c.partition, ": must divide the ", c.end - c.begin, " candidates"});
    held_layer l;
    if (status s = prepare(policy, layer, {}, l, true); !s) return s;
    if (const std::size_t all = l.get().keys.heads() * (c.end - c.begin); count < all)
      return refuse({"count=", count, ": must be ", all, " or more"});
    if (c.begin == c.end) return {};
    std::ranges::copy(lagkv::score(policy->policy, l.get(),
                                   {.rows = {c.begin, c.end},
                                    .keep = c.keep,
                                    .partition = c.partition,
                                    .keep_each = c.keep_each,
                                    .positions = {{}, c.dropped}},
                                   workspace->scratch),
                      scores);
    return {};
  });
}

}  // extern "C"
