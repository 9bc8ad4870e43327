// A model that is split over two machines: its cache lies in the memory of two servers, the policies act as on one machine.
// The servers are processes of this test.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ggml-backend.h>

#include <lagkv/adapters/llama.hpp>

#include "host/compressor.hpp"
#include "host/model.hpp"

namespace {

std::vector<std::string> servers;

/// A port that nobody listens at, as far as can be known.
std::string free_endpoint() {
  const int s = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET, at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  const bool bound =
      bind(s, reinterpret_cast<sockaddr*>(&at), size) == 0 && getsockname(s, reinterpret_cast<sockaddr*>(&at), &size) == 0;
  close(s);
  return bound ? "127.0.0.1:" + std::to_string(ntohs(at.sin_port)) : std::string();
}

/// In a process of its own, which ends with this one.
void start_server(const std::string& endpoint) {
  if (fork() != 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  using start = void (*)(const char*, const char*, std::size_t, std::size_t, ggml_backend_dev_t*);
  ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
  ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  if (rpc == nullptr) _exit(1);
  reinterpret_cast<start>(ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_start_server"))(endpoint.c_str(), nullptr, 1,
                                                                                                   1, &cpu);
  _exit(0);
}

bool answers(const std::string& endpoint) {
  sockaddr_in at{};
  at.sin_family = AF_INET, at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.find(':') + 1))));
  const int s = socket(AF_INET, SOCK_STREAM, 0);
  const bool connected = connect(s, reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0;
  close(s);
  return connected;
}

class Rpc : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (ggml_backend_reg_by_name("RPC") == nullptr) GTEST_SKIP() << "this llama.cpp has been built without GGML_RPC";
    for (const std::string& server : servers)
      for (int i = 0; i < 100 && !answers(server); ++i) usleep(50000);
    here_ = std::make_unique<host::model>(LAGKV_LLAMA_MODEL);
    there_ = std::make_unique<host::model>(LAGKV_LLAMA_MODEL, host::model_options{.servers = servers});
  }
  static void TearDownTestSuite() { here_.reset(), there_.reset(); }

  struct run_result {
    std::vector<llama_token> text;
    std::vector<std::size_t> kept;  ///< after each compression
    std::vector<std::uint8_t> state;
  };

  /// Reads a prompt in chunks and writes on, compressed after each chunk and token.
  static run_result run(const host::model& m, const std::string& policy) {
    host::session s(m, {.cells = 512, .threads = 1});
    auto c = lagkv::llama::compressor::make(s.get(), host::parse(policy).rules, &s.probe());
    EXPECT_TRUE(c) << c.message();
    std::string prompt = "The pass key is 71432. Remember it.";
    for (int i = 0; i < 12; ++i)
      prompt += " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
    const std::vector<llama_token> tokens = m.tokenize(prompt + " What is the pass key? The pass key is");
    run_result made;
    const auto feed = [&](std::span<const llama_token> part) {
      EXPECT_TRUE(s.feed(part));
      const auto done = c->compress(0, lagkv::llama::way::repack);  // in place, sums would be in another order
      EXPECT_TRUE(done) << done.message();
      if (done) made.kept.push_back(done->tokens_after);
    };
    for (std::size_t i = 0; i < tokens.size(); i += 100)
      feed(std::span(tokens).subspan(i, std::min<std::size_t>(100, tokens.size() - i)));
    for (int i = 0; i < 8; ++i) {
      const llama_token next = s.next();
      made.text.push_back(next);
      feed({&next, 1});
    }
    made.state = s.save().state;
    return made;
  }

  static std::unique_ptr<host::model> here_, there_;
};
std::unique_ptr<host::model> Rpc::here_, Rpc::there_;

TEST_F(Rpc, TheSameTextAsOnOneMachine) {
  for (const char* policy : {"lagkv:sink=4,lag=32,ratio=0.25", "key_diff:capacity=100,every=8", "novelty:keep=0.5"}) {
    const run_result here = run(*here_, policy), there = run(*there_, policy);
    EXPECT_EQ(there.text, here.text) << policy;
    EXPECT_EQ(there.kept, here.kept) << policy;
    EXPECT_LT(there.kept.back(), 250U) << policy;
    EXPECT_EQ(there.state, here.state) << policy;
  }
}

TEST_F(Rpc, InPlaceIsRefusedByItsReason) {
  host::session s(*there_, {.cells = 512, .threads = 1});
  auto made = lagkv::llama::compressor::make(s.get(), *lagkv::parse("lagkv:sink=4,lag=16,ratio=0.5"), &s.probe());
  ASSERT_TRUE(made) << made.message();
  ASSERT_TRUE(
      s.feed(there_->tokenize("one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
                              "sixteen seventeen eighteen nineteen twenty one two three four five six seven eight nine "
                              "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty")));
  const auto r = made->compress(0, lagkv::llama::way::in_place);
  ASSERT_FALSE(r);
  EXPECT_NE(r.message().find("in place: the cache is not in host memory"), std::string::npos) << r.message();
  const auto repacked = made->compress(0);
  ASSERT_TRUE(repacked) << repacked.message();
  EXPECT_TRUE(repacked->compressed);
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 0; i < 2; ++i) {  // before anything starts a thread
    servers.push_back(free_endpoint());
    start_server(servers.back());
  }
  return RUN_ALL_TESTS();
}
