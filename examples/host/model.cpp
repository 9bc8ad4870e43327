#include "model.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <thread>

#include <lagkv/adapters/llama/whereabouts.hpp>

namespace host {
namespace {

constexpr std::size_t batch_size = 512;

// llama.cpp says why something failed only in its log. The last error is kept for our own message, the rest dropped:
// it also logs as an error what it returns as a status (no room in the cache).
std::string last_error;

void keep_error(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) last_error = text;
}

// `what`, with llama.cpp's reason behind it.
std::string reason(std::string what) {
  if (!last_error.empty()) what += " (" + last_error.substr(0, last_error.find_last_not_of('\n') + 1) + ")";
  return what;
}

std::int32_t length(std::size_t n) { return static_cast<std::int32_t>(n); }

// The devices of these servers. llama.cpp ends the program where a server is lost later.
std::vector<ggml_backend_dev_t> devices_of(const std::vector<std::string>& servers) {
  std::vector<ggml_backend_dev_t> devices;
  if (servers.empty()) return devices;
  ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
  if (rpc == nullptr) throw std::invalid_argument("this llama.cpp has been built without GGML_RPC");
  using add_server = ggml_backend_reg_t (*)(const char*);
  const auto add = reinterpret_cast<add_server>(ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server"));
  for (const std::string& server : servers) {
    ggml_backend_reg_t found = add != nullptr ? add(server.c_str()) : nullptr;
    const std::size_t n = found != nullptr ? ggml_backend_reg_dev_count(found) : 0;
    if (n == 0) throw std::invalid_argument(server + ": no ggml-rpc-server answers there");
    for (std::size_t i = 0; i < n; ++i) devices.push_back(ggml_backend_reg_dev_get(found, i));
  }
  devices.push_back(nullptr);
  return devices;
}

}  // namespace

model::model(const std::string& path, const model_options& options) {
  llama_log_set(keep_error, nullptr);
  llama_backend_init();
  ggml_backend_load_all();  // for an installed llama.cpp whose backends are plug-ins
  llama_model_params params = llama_model_default_params();
  params.use_extra_bufts = options.repack;
  std::vector<ggml_backend_dev_t> devices = devices_of(options.servers);
  if (!devices.empty()) {
    params.devices = devices.data();
    params.n_gpu_layers = std::numeric_limits<std::int32_t>::max();  // all
  }
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (!model_) throw std::invalid_argument(reason(path + ": not a model that this llama.cpp can load"));
}

std::vector<llama_token> model::tokenize(std::string_view text, bool begins) const {
  const llama_vocab* vocab = llama_model_get_vocab(get());
  std::vector<llama_token> tokens(text.size() + 8);  // a token is a byte or more; a few are added around them
  const std::int32_t n =
      llama_tokenize(vocab, text.data(), length(text.size()), tokens.data(), length(tokens.size()), begins, true);
  if (n < 0) throw std::runtime_error("the prompt could not be cut into tokens");
  tokens.resize(static_cast<std::size_t>(n));
  return tokens;
}

std::string model::piece(llama_token token) const {
  const llama_vocab* vocab = llama_model_get_vocab(get());
  std::array<char, 512> buffer{};
  const std::int32_t n = llama_token_to_piece(vocab, token, buffer.data(), length(buffer.size()), 0, true);
  return n > 0 ? std::string(buffer.data(), static_cast<std::size_t>(n)) : std::string();
}

std::optional<std::pair<std::size_t, std::size_t>> model::find(std::span<const llama_token> tokens, std::string_view text) const {
  // In the text of the tokens themselves: some tokenizers put bytes before the first one.
  std::string whole;
  std::vector<std::size_t> ends;
  for (const llama_token token : tokens) {
    whole += piece(token);
    ends.push_back(whole.size());
  }
  const std::size_t begin = whole.find(text);
  if (begin == std::string::npos || text.empty()) return std::nullopt;
  const auto token_at = [&](std::size_t byte) {
    return static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), byte) - ends.begin());
  };
  return std::pair{token_at(begin), token_at(begin + text.size() - 1) + 1};
}

std::string model::chat(const std::string& message) const {
  const char* chat_template = llama_model_chat_template(get(), nullptr);
  if (chat_template == nullptr) return message;
  const llama_chat_message turn{"user", message.c_str()};
  std::string text(message.size() + 1024, '\0');
  std::int32_t n = llama_chat_apply_template(chat_template, &turn, 1, true, text.data(), length(text.size()));
  if (n > length(text.size())) {
    text.resize(static_cast<std::size_t>(n));
    n = llama_chat_apply_template(chat_template, &turn, 1, true, text.data(), length(text.size()));
  }
  if (n < 0) return message;
  text.resize(static_cast<std::size_t>(n));
  return text;
}

std::string model::signature() const {
  char architecture[128] = {};
  llama_model_meta_val_str(get(), "general.architecture", architecture, sizeof architecture);
  return std::string(architecture) + ", " + std::to_string(llama_model_n_params(get())) + " parameters";
}

bool model::ends(llama_token token) const { return llama_vocab_is_eog(llama_model_get_vocab(get()), token); }

llama_token likeliest(std::span<const float> logits) {
  return static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

cache_types parse_cache_types(const std::string& text) {
  const auto type_of = [](const std::string& name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
      const auto type = static_cast<ggml_type>(i);
      if (lagkv::llama::dtype_of_ggml(type) && name == ggml_type_name(type)) return type;
    }
    throw std::invalid_argument("cache type " + name + ": must be f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1");
  };
  const std::size_t slash = text.find('/');
  return {type_of(text.substr(0, slash)), type_of(slash == std::string::npos ? text : text.substr(slash + 1))};
}

session::session(const model& m, const session_options& options) : counted_(options.counted) {
  llama_context_params params = llama_context_default_params();
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  params.n_ctx = options.cells;
  params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(batch_size);
  params.n_threads_batch = options.threads > 0 ? options.threads : cores;
  params.n_threads = options.answer_threads > 0 ? options.answer_threads : params.n_threads_batch;
  params.type_k = options.types.keys, params.type_v = options.types.values;
  params.flash_attn_type = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  hidden_.attach(params);
  probe_.attach(params);
  context_.reset(llama_init_from_model(m.get(), params));
  if (!context_) throw std::runtime_error(reason("llama.cpp could not make a context for this model"));
}

bool session::feed(std::span<const llama_token> tokens, const progress& report) {
  const std::size_t most = llama_n_batch(get());  // not batch_size in a smaller cache; llama.cpp aborts on more
  std::vector<llama_token> batch;
  for (std::size_t done = 0; done < tokens.size();) {
    const auto part = tokens.subspan(done, std::min(most, tokens.size() - done));
    batch.assign(part.begin(), part.end());  // llama_batch_get_one wants to be able to write
    // Positions are left to llama.cpp: it goes on after the last one of the sequence.
    if (!decode(llama_batch_get_one(batch.data(), length(batch.size())))) return false;
    done += part.size();
    if (report) report(done);
  }
  return true;
}

bool session::feed_all(std::span<const llama_token> tokens, const listener& listen) {
  const std::size_t most = llama_n_batch(get());
  llama_pos position = llama_memory_seq_pos_max(llama_get_memory(get()), 0) + 1;
  struct batch_owner : llama_batch {
    explicit batch_owner(std::size_t n) : llama_batch(llama_batch_init(length(n), 0, 1)) {}
    batch_owner(const batch_owner&) = delete;
    batch_owner& operator=(const batch_owner&) = delete;
    ~batch_owner() { llama_batch_free(*this); }
  } batch(most);
  for (std::size_t done = 0; done < tokens.size();) {
    const auto part = tokens.subspan(done, std::min(most, tokens.size() - done));
    batch.n_tokens = length(part.size());
    for (std::size_t i = 0; i < part.size(); ++i) {
      batch.token[i] = part[i];
      batch.pos[i] = position++;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = 1;
    }
    if (!decode(batch)) return false;
    for (std::size_t i = 0; i < part.size(); ++i) listen(done + i, logits_after(length(i)));
    done += part.size();
  }
  return true;
}

// False when the cache has no room.
bool session::decode(const llama_batch& batch) {
  const std::int32_t status = llama_decode(get(), batch);
  if (status != 0 && status != 1) throw std::runtime_error(reason("llama_decode failed with status " + std::to_string(status)));
  return status == 0;
}

std::span<const float> session::logits_after(std::int32_t index) const {
  const float* logits = llama_get_logits_ith(get(), index);
  if (logits == nullptr) throw std::runtime_error("llama.cpp has no logits: nothing was fed yet");
  return {logits, static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(get()))))};
}

std::span<const float> session::logits() const { return logits_after(-1); }

llama_token session::next() const { return likeliest(logits()); }

void session::clear() { llama_memory_clear(llama_get_memory(get()), false); }

saved_sequence session::save() {
  std::vector<std::uint8_t> state(llama_state_seq_get_size(get(), 0));
  state.resize(llama_state_seq_get_data(get(), state.data(), state.size(), 0));
  if (probe_.what().any())
    if (const lagkv::status found = lagkv::llama::find_recorded_cache(get(), probe_); !found)
      throw std::runtime_error(found.message());
  return {std::move(state), probe_.recorded()};
}

void session::restore(const saved_sequence& saved) {
  const std::vector<std::uint8_t>& state = saved.state;
  clear();
  if (llama_state_seq_set_data(get(), state.data(), state.size(), 0) != state.size())
    throw std::runtime_error("llama.cpp did not take its own saved state back");
}

}  // namespace host
