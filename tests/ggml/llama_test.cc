// The backend inside llama.cpp, on the real model.

#include <ggml-backend.h>
#include <gtest/gtest.h>

#include <bsfa/error.hpp>
#include <bsfa/thresholds.hpp>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "command.hpp"
#include "engine/contest.hpp"
#include "engine/engine.hpp"
#include "engine/module.hpp"
#include "gguf_header.hpp"

namespace bsfa::cli {
namespace {

// Logits of this model spread over tens; its bf16 weights round every activation, so that any
// change of the order of additions moves them by tenths. A wrong key moves them by more.
constexpr double kNear = 1.0;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const Model& model() {
  static const Model model(std::getenv("BSFA_TEST_MODEL"));
  return model;
}

std::vector<llama_token> tale(std::int64_t begin, std::int64_t count) {
  static const std::vector<llama_token> tokens = model().tokenize(
      read_text_file("text", std::getenv("BSFA_TEST_TEXT")).substr(0, 40000), false);
  return {tokens.begin() + begin, tokens.begin() + begin + count};
}

bsfa_ggml_config mode(bsfa_ggml_mode value, bsfa_ggml_compute compute = BSFA_GGML_EXACT) {
  bsfa_ggml_config config{};
  config.mode = value;
  config.compute = compute;
  return config;
}

void configure(const bsfa_ggml_config& config) {
  Module::instance().configure(config);
  Module::instance().reset_stats();
}

// How often attention was left to llama.cpp for a reason that contains `part`.
std::int64_t declined(const std::string& part) {
  std::int64_t count = 0;
  for (const bsfa_ggml_decline& entry : Module::instance().declined()) {
    if (std::string(entry.reason).find(part) != std::string::npos) count += entry.count;
  }
  return count;
}

std::int64_t calls() {
  std::int64_t count = 0;
  for (const bsfa_ggml_layer_stats& layer : Module::instance().layer_stats()) count += layer.calls;
  return count;
}

std::vector<float> last_logits(const Session& session) {
  const float* logits = session.logits(-1);
  return {logits, logits + model().vocabulary_size()};
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    largest = difference > largest || std::isnan(difference) ? difference : largest;
  }
  return largest;
}

// Logits after reading `tokens` in one configuration.
std::vector<float> read(const bsfa_ggml_config& config, const std::vector<llama_token>& tokens,
                        bool flash_attention = true) {
  configure(config);
  Session session(model(), {1024, 2, flash_attention, false});
  session.read(tokens);
  return last_logits(session);
}

std::string threshold_file(float value, const std::string& fingerprint = "") {
  ThresholdMetadata metadata;
  metadata.fingerprint = fingerprint;
  metadata.budgets = {4};
  metadata.softmax_scale = 0.125F;
  metadata.max_seqlen = 1024;
  metadata.model = "test";
  metadata.num_samples = 1;
  metadata.producer = "test";
  const std::int64_t layers = model().num_layers(), heads = model().num_heads_q();
  const std::string path = testing::TempDir() + "llama_test.safetensors";
  ThresholdTable(metadata, layers, heads, 8,
                 std::vector<float>(static_cast<std::size_t>(layers * heads * 8), value))
      .save(path);
  return path;
}

bsfa_ggml_config threshold(const std::string& file) {
  bsfa_ggml_config config = mode(BSFA_GGML_THRESHOLD);
  config.thresholds = file.c_str();
  config.budget = 4;
  return config;
}

TEST(Llama, DenseComputesEveryLayerAndIsNearStock) {
  // How near exactly, `bsfa bench logits` tells; tests/cli holds it to stock's own differences.
  const auto tokens = tale(0, 700);
  const auto stock = read(mode(BSFA_GGML_OFF), tokens);
  EXPECT_EQ(calls(), 0);
  const auto dense = read(mode(BSFA_GGML_DENSE), tokens);
  EXPECT_EQ(calls(), 2 * model().num_layers());  // chunks of 512 and 188
  EXPECT_LT(largest_difference(dense, stock), kNear);
  EXPECT_GT(largest_difference(dense, read(mode(BSFA_GGML_OFF), tale(1, 700))), 2 * kNear);
}

TEST(Llama, HostModeIsStockToTheBit) {
  const auto tokens = tale(0, 600);
  const auto stock = read(mode(BSFA_GGML_OFF), tokens);
  const auto host = read(mode(BSFA_GGML_HOST), tokens);
  EXPECT_GT(Module::instance().attention_seconds(), 0);
  EXPECT_EQ(stock, host);
}

TEST(Llama, MinusInfinityIsDense) {
  const auto tokens = tale(0, 700);
  const auto dense = read(mode(BSFA_GGML_DENSE), tokens);
  const std::string file = threshold_file(-kInfinity);
  const auto sparse = read(threshold(file), tokens);
  EXPECT_EQ(dense, sparse);
  for (const bsfa_ggml_layer_stats& layer : Module::instance().layer_stats()) {
    EXPECT_EQ(layer.kept_blocks, layer.visible_blocks);
  }
}

// What the module says on stderr while it reads with this file.
std::string said_with(const std::string& file, bool allow_other_model = false) {
  testing::internal::CaptureStderr();
  bsfa_ggml_config config = threshold(file);
  config.allow_other_model = allow_other_model ? 1 : 0;
  read(config, tale(0, 100));
  return testing::internal::GetCapturedStderr();
}

TEST(Llama, ThresholdsOfOtherWeightsAreSaidOnce) {
  const std::string own = gguf::gguf_fingerprint(model().path());
  const std::string other = "gguf:" + std::string(32, '1');
  EXPECT_EQ(said_with(threshold_file(-kInfinity, own)), "");  // whatever the name is
  EXPECT_EQ(said_with(threshold_file(-kInfinity, other), true), "");
  const std::string file = threshold_file(-kInfinity, other);
  const std::string said = said_with(file);
  EXPECT_NE(said.find(other), std::string::npos) << said;
  EXPECT_NE(said.find(own), std::string::npos) << said;
  EXPECT_NE(said.find("BSFA_ALLOW_OTHER_MODEL"), std::string::npos) << said;
  EXPECT_EQ(said_with(file), "");
}

TEST(Llama, PlusInfinityIsAWindowOfNoBlocks) {
  const auto tokens = tale(0, 1000);
  const std::string file = threshold_file(kInfinity);
  const auto sparse = read(threshold(file), tokens);
  std::int64_t kept = 0, visible = 0;
  ASSERT_EQ(std::ssize(Module::instance().layer_stats()), model().num_layers());
  for (const bsfa_ggml_layer_stats& layer : Module::instance().layer_stats()) {
    kept += layer.kept_blocks;
    visible += layer.visible_blocks;
  }
  // 1000 tokens: 8 query blocks, 2 diagonal blocks each and 2i before them.
  EXPECT_EQ(kept, model().num_layers() * model().num_heads_q() * 8 * 2);
  EXPECT_EQ(visible, model().num_layers() * model().num_heads_q() * (8 * 2 + 2 * 28));
  bsfa_ggml_config window = mode(BSFA_GGML_SLIDING_WINDOW);
  window.budget = 0;
  EXPECT_EQ(sparse, read(window, tokens));
  EXPECT_NE(sparse, read(mode(BSFA_GGML_DENSE), tokens));
}

TEST(Llama, DecodeStaysWithLlama) {
  configure(mode(BSFA_GGML_DENSE));
  Session session(model(), {1024, 2, true, false});
  session.read(tale(0, 100));
  const std::int64_t prefill = calls();
  EXPECT_EQ(prefill, model().num_layers());
  (void)session.generate(4);
  EXPECT_EQ(calls(), prefill);
  EXPECT_GT(declined("fewer than 32"), 0);
}

TEST(Llama, AutomaticFlashAttentionStaysOn) {
  // llama.cpp tries one token and turns flash attention off if another backend takes it.
  configure(mode(BSFA_GGML_DENSE));
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 512;
  params.n_threads = params.n_threads_batch = 2;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_AUTO;
  const llama_context_ptr context(llama_init_from_model(model().get(), params));
  ASSERT_NE(context, nullptr);
  auto tokens = tale(0, 64);
  ASSERT_EQ(llama_decode(context.get(), llama_batch_get_one(tokens.data(), 64)), 0);
  EXPECT_EQ(calls(), model().num_layers());
}

TEST(Llama, AQuantisedCacheIsDeclined) {
  const auto tokens = tale(0, 64);
  const auto logits = [&](bsfa_ggml_mode value) {
    configure(mode(value));
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = GGML_TYPE_Q8_0;
    const llama_context_ptr context(llama_init_from_model(model().get(), params));
    auto copy = tokens;
    EXPECT_EQ(llama_decode(context.get(), llama_batch_get_one(copy.data(), 64)), 0);
    const float* values = llama_get_logits_ith(context.get(), -1);
    return std::vector<float>(values, values + model().vocabulary_size());
  };
  const auto stock = logits(BSFA_GGML_OFF);
  const auto dense = logits(BSFA_GGML_DENSE);
  EXPECT_EQ(calls(), 0);
  EXPECT_GT(declined("quantised"), 0);
  EXPECT_EQ(stock, dense);
}

// ---- Two slots, as a server has them
// -------------------------------------------------------------

// One context of two sequences, fed as a server feeds it.
class TwoSlots {
 public:
  explicit TwoSlots(bool unified) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 2048;
    params.n_batch = params.n_ubatch = 512;
    params.n_seq_max = 2;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.kv_unified = unified;
    context_.reset(llama_init_from_model(model().get(), params));
  }

  struct Part {
    llama_seq_id slot;
    std::vector<llama_token> tokens;
  };

  // One llama_decode of all parts; then the logits of each part's last token.
  void decode(const std::vector<Part>& parts) {
    llama_batch batch = llama_batch_init(1024, 0, 1);
    std::vector<std::pair<llama_seq_id, std::int32_t>> last;
    for (const Part& part : parts) {
      for (const llama_token token : part.tokens) {
        const std::int32_t row = batch.n_tokens++;
        batch.token[row] = token;
        batch.pos[row] = positions_[part.slot]++;
        batch.n_seq_id[row] = 1;
        batch.seq_id[row][0] = part.slot;
        batch.logits[row] = 0;
      }
      batch.logits[batch.n_tokens - 1] = 1;
      last.emplace_back(part.slot, batch.n_tokens - 1);
    }
    ASSERT_EQ(llama_decode(context_.get(), batch), 0);
    for (const auto& [slot, row] : last) {
      const float* values = llama_get_logits_ith(context_.get(), row);
      logits_[slot].assign(values, values + model().vocabulary_size());
    }
    llama_batch_free(batch);
  }

  const std::vector<float>& logits(llama_seq_id slot) { return logits_[slot]; }

 private:
  llama_context_ptr context_;
  std::map<llama_seq_id, llama_pos> positions_;
  std::map<llama_seq_id, std::vector<float>> logits_;
};

class Server : public testing::TestWithParam<bool> {};

TEST_P(Server, PromptsOneAfterTheOther) {
  const auto serve = [&](bsfa_ggml_mode value) {
    configure(mode(value));
    TwoSlots slots(GetParam());
    slots.decode({{0, tale(0, 300)}});
    slots.decode({{1, tale(2000, 200)}});
    return std::pair(slots.logits(0), slots.logits(1));
  };
  const auto stock = serve(BSFA_GGML_OFF);
  const auto dense = serve(BSFA_GGML_DENSE);
  EXPECT_EQ(calls(), 2 * model().num_layers());
  EXPECT_GT(largest_difference(stock.first, stock.second), 2 * kNear);
  EXPECT_LT(largest_difference(stock.first, dense.first), kNear);
  EXPECT_LT(largest_difference(stock.second, dense.second), kNear);
}

TEST_P(Server, BothSlotsInOneBatch) {
  const auto serve = [&](bsfa_ggml_mode value) {
    configure(mode(value));
    TwoSlots slots(GetParam());
    slots.decode({{0, tale(0, 100)}});
    slots.decode({{0, tale(100, 64)}, {1, tale(2000, 64)}});
    slots.decode({{0, tale(164, 1)}, {1, tale(2064, 1)}});  // decode, both slots
    return std::pair(slots.logits(0), slots.logits(1));
  };
  const auto stock = serve(BSFA_GGML_OFF);
  const auto dense = serve(BSFA_GGML_DENSE);
  EXPECT_LT(largest_difference(stock.first, dense.first), kNear);
  EXPECT_LT(largest_difference(stock.second, dense.second), kNear);
  if (GetParam()) {
    EXPECT_GT(declined("several sequences"), 0);  // one mask for both: handed to ggml's own kernel
  } else {
    EXPECT_EQ(declined("several sequences"), 0);  // a cache, and a mask, for each
    EXPECT_EQ(calls(), 3 * model().num_layers());
  }
}

INSTANTIATE_TEST_SUITE_P(Cache, Server, testing::Bool(), [](const auto& unified) {
  return std::string(unified.param ? "Unified" : "Split");
});

// ---- Calibration
// ----------------------------------------------------------------------------------

struct Received {
  std::int64_t calls = 0;
  std::int64_t last_offset = -1;
  bool stop = false;
  bool all_finite = true;
};

int receive(void* user, int, std::int64_t q_offset, std::int64_t seqlen_q, std::int64_t num_heads,
            std::int64_t q_blocks, std::int64_t kv_blocks, float softmax_scale,
            const float* block_max) {
  auto& received = *static_cast<Received*>(user);
  ++received.calls;
  received.last_offset = q_offset;
  EXPECT_EQ(num_heads, 9);
  EXPECT_EQ(softmax_scale, 0.125F);
  EXPECT_EQ(q_blocks, (seqlen_q + 127) / 128);
  EXPECT_EQ(kv_blocks, (q_offset + seqlen_q + 63) / 64);
  const std::int64_t first = q_offset / 128;
  for (std::int64_t i = 0; i < num_heads * q_blocks * kv_blocks; ++i) {
    const std::int64_t q_block = first + i / kv_blocks % q_blocks;
    const bool visible = i % kv_blocks * 64 <= q_block * 128 + 127;
    received.all_finite &= std::isfinite(block_max[i]) == visible;
  }
  return received.stop ? 1 : 0;
}

TEST(Llama, CalibrationDeliversTheBlockMaxima) {
  Received received;
  bsfa_ggml_config config = mode(BSFA_GGML_CALIBRATE);
  config.block_max = receive;
  config.user = &received;
  const auto tokens = tale(0, 700);
  const auto calibrating = read(config, tokens);
  EXPECT_EQ(received.calls, 2 * model().num_layers());
  EXPECT_EQ(received.last_offset, 512);
  EXPECT_TRUE(received.all_finite);
  EXPECT_EQ(calibrating, read(mode(BSFA_GGML_DENSE), tokens));  // the exact output, in one pass
}

TEST(Llama, CalibrationCanStop) {
  Received received;
  received.stop = true;
  bsfa_ggml_config config = mode(BSFA_GGML_CALIBRATE);
  config.block_max = receive;
  config.user = &received;
  configure(config);
  Session session(model(), {1024, 2, true, false});
  EXPECT_THROW(session.read(tale(0, 100)), Error);
  EXPECT_EQ(received.calls, 1);
  configure(mode(BSFA_GGML_DENSE));
}

TEST(Llama, CalibrationRefusesChunksThatSplitAQueryBlock) {
  Received received;
  bsfa_ggml_config config = mode(BSFA_GGML_CALIBRATE);
  config.block_max = receive;
  config.user = &received;
  configure(config);
  Session session(model(), {1024, 2, true, false});
  session.read(tale(0, 100));
  EXPECT_THROW(session.read(tale(100, 100)), Error);
  EXPECT_NE(Module::instance().last_error().find("100"), std::string::npos);
  configure(mode(BSFA_GGML_DENSE));
}

}  // namespace
}  // namespace bsfa::cli
