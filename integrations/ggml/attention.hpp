#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <bsfa/attention.hpp>
#include <bsfa/executor.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "mask.hpp"
#include "settings.hpp"
#include "stats.hpp"

namespace bsfa::ggml {

// Whether one FLASH_ATTN_EXT node is computed here, by its shapes and types alone: when a graph is
// divided there is no data yet.
Decline decline(const ggml_tensor* node, const Settings& settings);

// Computes the nodes that were claimed, for one llama.cpp context.
class Attention {
 public:
  Attention() = default;
  ~Attention();
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

  void set_num_threads(int num_threads) { num_threads_ = num_threads; }

  // Throws Error.
  void compute(ggml_tensor* node);

  // How often a call had to be planned.
  std::int64_t num_prepared() const { return num_prepared_; }

 private:
  // The call of one stream of a node.
  struct StreamCall {
    AttentionParams params;
    CausalMask mask;
    std::int64_t q_blocks;  // of block_max, CALIBRATE
    std::int64_t kv_blocks;
    std::shared_ptr<const PreparedAttention> prepared;
  };

  // Completes the call; false if no backend serves it.
  bool prepare(StreamCall* call, const Settings& settings);
  void run(StreamCall* call, int layer, const Settings& settings);
  std::shared_ptr<const PreparedAttention> prepared_for(const AttentionParams& params);
  void compute_on_host(ggml_tensor* node);
  std::optional<CausalMask> mask_of(const ggml_tensor* node, std::int64_t stream, int layer);
  Executor& executor();
  void* workspace(std::size_t bytes);

  // A mask that was read in full, and the layer that used it last: llama.cpp computes a graph's
  // layers in ascending order and gives all of them the same mask, so a layer that is not above the
  // last one begins another graph, whose mask is read again.
  struct SeenMask {
    int layer;
    std::optional<CausalMask> meaning;
  };

  int num_threads_ = 1;
  std::shared_ptr<const Settings> checked_;  // for which this context's weights were looked at
  std::unique_ptr<Executor> pool_;
  std::unordered_map<const void*, SeenMask> masks_;
  std::vector<std::shared_ptr<const PreparedAttention>> prepared_;  // the last ones used
  std::int64_t num_prepared_ = 0;
  std::vector<std::byte> workspace_;
  std::vector<std::int64_t> counts_;
  std::vector<float> block_max_;
  ggml_backend_t host_ = nullptr;  // ggml's own CPU backend, made when first needed
};

}  // namespace bsfa::ggml
