// What the backend claims and why it declines, by the shapes and types of a node alone.

#include <ggml.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "attention.hpp"

namespace bsfa::ggml {
namespace {

// A FLASH_ATTN_EXT node as llama.cpp builds it, without data.
class Node {
 public:
  std::int64_t num_queries = 512;
  std::int64_t num_keys = 1024;
  std::int64_t head_dim = 64;
  std::int64_t num_heads_q = 9;
  std::int64_t num_heads_kv = 3;
  std::string cache_name = "cache_k_l7";
  ggml_type cache_type = GGML_TYPE_F16;
  float softmax_scale = 0.125F;
  float max_bias = 0;
  float softcap = 0;
  bool mask = true;
  bool sinks = false;

  Node() { context_ = ggml_init({std::size_t{1} << 20, nullptr, true}); }
  ~Node() { ggml_free(context_); }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  const ggml_tensor* build() {
    ggml_tensor* q =
        ggml_new_tensor_3d(context_, GGML_TYPE_F32, head_dim, num_heads_q, num_queries);
    ggml_tensor* node = ggml_flash_attn_ext(
        context_, ggml_permute(context_, q, 0, 2, 1, 3), cache(cache_name), cache("cache_v_l7"),
        mask ? ggml_new_tensor_4d(context_, GGML_TYPE_F16, num_keys, num_queries, 1, 1) : nullptr,
        softmax_scale, max_bias, softcap);
    if (sinks) {
      ggml_flash_attn_ext_add_sinks(node, ggml_new_tensor_1d(context_, GGML_TYPE_F32, num_heads_q));
    }
    return node;
  }

 private:
  ggml_tensor* cache(const std::string& name) {
    ggml_tensor* root = ggml_new_tensor_2d(context_, cache_type, head_dim * num_heads_kv, num_keys);
    ggml_set_name(root, name.c_str());
    ggml_tensor* view = ggml_view_4d(context_, root, head_dim, num_heads_kv, num_keys, 1,
                                     ggml_row_size(cache_type, head_dim), root->nb[1],
                                     root->nb[1] * static_cast<std::size_t>(num_keys), 0);
    return ggml_permute(context_, view, 0, 2, 1, 3);
  }

  ggml_context* context_;
};

Settings dense() { return {}; }

Settings threshold(std::int64_t layers, std::int64_t heads, float softmax_scale) {
  ThresholdMetadata metadata;
  metadata.budgets = {4};
  metadata.softmax_scale = softmax_scale;
  metadata.max_seqlen = 1024;
  metadata.model = "test";
  metadata.num_samples = 1;
  metadata.producer = "test";
  Settings settings;
  settings.mode = BSFA_GGML_THRESHOLD;
  settings.budget = 4;
  settings.thresholds = std::make_shared<const ThresholdTable>(
      metadata, layers, heads, 8,
      std::vector<float>(static_cast<std::size_t>(layers * heads * 8), 1.0F));
  return settings;
}

TEST(Decline, ClaimsPrefill) {
  Node node;
  const ggml_tensor* tensor = node.build();
  EXPECT_EQ(decline(tensor, dense()), Decline::kNone);
  EXPECT_EQ(decline(tensor, threshold(30, 9, 0.125F)), Decline::kNone);
  Settings settings;
  settings.mode = BSFA_GGML_HOST;
  EXPECT_EQ(decline(tensor, settings), Decline::kNone);
  settings.mode = BSFA_GGML_SLIDING_WINDOW;
  EXPECT_EQ(decline(tensor, settings), Decline::kNone);
}

TEST(Decline, ASoftcapIsClaimed) {
  Node node;
  node.softcap = 50;
  const ggml_tensor* tensor = node.build();
  EXPECT_EQ(decline(tensor, dense()), Decline::kNone);
  EXPECT_EQ(decline(tensor, threshold(30, 9, 0.125F)), Decline::kNone);
}

TEST(Decline, ModeOff) {
  Node node;
  Settings settings;
  settings.mode = BSFA_GGML_OFF;
  EXPECT_EQ(decline(node.build(), settings), Decline::kOff);
}

TEST(Decline, DecodeAndTheProbeGraphStayWithLlama) {
  for (const std::int64_t num_queries : {1, 31}) {
    Node node;
    node.num_queries = num_queries;
    EXPECT_EQ(decline(node.build(), dense()), Decline::kFewQueries);
  }
  Node node;
  node.num_queries = 32;
  EXPECT_EQ(decline(node.build(), dense()), Decline::kNone);
}

TEST(Decline, WhatIsNotPlainCausal) {
  {
    Node node;
    node.mask = false;
    EXPECT_EQ(decline(node.build(), dense()), Decline::kNoMask);
  }
  {
    Node node;
    node.max_bias = 8;
    EXPECT_EQ(decline(node.build(), dense()), Decline::kAlibi);
  }
  {
    Node node;
    node.sinks = true;
    EXPECT_EQ(decline(node.build(), dense()), Decline::kSinks);
  }
}

TEST(Decline, CachesOfOtherTypes) {
  for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_BF16, GGML_TYPE_F32}) {
    Node node;
    node.cache_type = type;
    EXPECT_EQ(decline(node.build(), dense()), Decline::kCacheType) << ggml_type_name(type);
  }
}

TEST(Decline, LayersWithoutANumber) {
  for (const char* name : {"", "cache_v_l7", "cache_k_l", "cache_k_lx"}) {
    Node node;
    node.cache_name = name;
    EXPECT_EQ(decline(node.build(), dense()), Decline::kUnknownLayer) << name;
  }
}

TEST(Decline, ThresholdsOfAnotherModel) {
  Node node;
  const ggml_tensor* tensor = node.build();
  EXPECT_EQ(decline(tensor, threshold(7, 9, 0.125F)), Decline::kThresholds);  // layer 7 is the 8th
  EXPECT_EQ(decline(tensor, threshold(8, 9, 0.125F)), Decline::kNone);
  EXPECT_EQ(decline(tensor, threshold(30, 8, 0.125F)), Decline::kThresholds);
  EXPECT_EQ(decline(tensor, threshold(30, 9, 0.25F)), Decline::kThresholds);
}

TEST(Decline, ShapesThatNoBackendServes) {
  Node node;
  node.head_dim = 512;
  EXPECT_EQ(decline(node.build(),
                    [] {
                      Settings settings;
                      settings.backend = "cpu";
                      return settings;
                    }()),
            Decline::kUnsupported);
}

TEST(Decline, EveryReasonHasAText) {
  for (int i = 1; i < static_cast<int>(Decline::kCount); ++i) {
    EXPECT_STRNE(decline_reason(static_cast<Decline>(i)), "") << i;
  }
}

}  // namespace
}  // namespace bsfa::ggml
