// The layers of a graph are one call on other tensors: planned once, with each layer's own result.

#include <ggml.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention.hpp"
#include "settings.hpp"

namespace bsfa::ggml {
namespace {

constexpr float kScale = 0.125F;
constexpr std::int64_t kKeys = 256, kQueries = 128, kDim = 64, kHeads = 4, kHeadsKv = 2;

// FLASH_ATTN_EXT nodes of several layers with data, over one causal mask.
class Graph {
 public:
  Graph() { context_ = ggml_init({std::size_t{64} << 20, nullptr, false}); }
  ~Graph() { ggml_free(context_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  ggml_tensor* mask(std::int64_t queries) {
    ggml_tensor* mask = ggml_new_tensor_4d(context_, GGML_TYPE_F16, kKeys, queries, 1, 1);
    auto* values = static_cast<ggml_fp16_t*>(mask->data);
    for (std::int64_t row = 0; row < queries; ++row) {
      for (std::int64_t key = 0; key < kKeys; ++key) {
        values[row * kKeys + key] =
            ggml_fp32_to_fp16(key <= kKeys - queries + row ? 0.0F : -INFINITY);
      }
    }
    return mask;
  }

  ggml_tensor* layer(int number, std::int64_t queries, ggml_tensor* mask, float softcap = 0) {
    ggml_tensor* q = ggml_new_tensor_3d(context_, GGML_TYPE_F32, kDim, kHeads, queries);
    auto* values = static_cast<float*>(q->data);
    for (std::int64_t n = 0; n < ggml_nelements(q); ++n) values[n] = normal_(random_);
    const std::string suffix = "_l" + std::to_string(number);
    ggml_tensor* node = ggml_flash_attn_ext(context_, ggml_permute(context_, q, 0, 2, 1, 3),
                                            cache("cache_k" + suffix), cache("cache_v" + suffix),
                                            mask, kScale, 0, softcap);
    node->flags |= GGML_TENSOR_FLAG_COMPUTE;
    return node;
  }

 private:
  ggml_tensor* cache(const std::string& name) {
    ggml_tensor* root = ggml_new_tensor_2d(context_, GGML_TYPE_F16, kDim * kHeadsKv, kKeys);
    auto* values = static_cast<ggml_fp16_t*>(root->data);
    for (std::int64_t n = 0; n < ggml_nelements(root); ++n) {
      values[n] = ggml_fp32_to_fp16(normal_(random_));
    }
    ggml_set_name(root, name.c_str());
    ggml_tensor* view =
        ggml_view_4d(context_, root, kDim, kHeadsKv, kKeys, 1, ggml_row_size(GGML_TYPE_F16, kDim),
                     root->nb[1], root->nb[1] * static_cast<std::size_t>(kKeys), 0);
    return ggml_permute(context_, view, 0, 2, 1, 3);
  }

  ggml_context* context_;
  std::mt19937 random_{7};
  std::normal_distribution<float> normal_;
};

std::vector<float> result(const ggml_tensor* node) {
  const auto* data = static_cast<const float*>(node->data);
  return {data, data + ggml_nelements(node)};
}

void poison(ggml_tensor* node) { std::memset(node->data, 0xff, ggml_nbytes(node)); }

TEST(Prepared, TheLayersOfAGraphArePlannedOnce) {
  const Settings before = *current_settings();
  publish_settings({});
  Graph graph;
  Attention attention;
  std::int64_t planned = 0;
  for (const std::int64_t queries : {kQueries, kQueries / 2}) {  // two graphs
    ggml_tensor* mask = graph.mask(queries);
    std::vector<ggml_tensor*> layers;
    for (int n = 0; n < 3; ++n) layers.push_back(graph.layer(n, queries, mask));
    for (ggml_tensor* node : layers) {
      poison(node);
      attention.compute(node);
    }
    EXPECT_EQ(attention.num_prepared(), ++planned);
    std::vector<float> last;
    for (ggml_tensor* node : layers) {
      const std::vector<float> shared = result(node);
      poison(node);
      Attention alone;
      alone.compute(node);
      EXPECT_EQ(alone.num_prepared(), 1);
      EXPECT_EQ(result(node), shared);
      EXPECT_NE(shared, last);
      for (const float value : shared) ASSERT_TRUE(std::isfinite(value));
      last = shared;
    }
  }
  attention.set_num_threads(2);  // more than was planned for
  ggml_tensor* node = graph.layer(0, kQueries, graph.mask(kQueries));
  attention.compute(node);
  EXPECT_EQ(attention.num_prepared(), ++planned);
  attention.set_num_threads(1);
  attention.compute(node);
  EXPECT_EQ(attention.num_prepared(), planned);
  publish_settings(before);
}

// Element d of row t of head h of a node's operand [d, row, head].
float operand(const ggml_tensor* tensor, std::int64_t d, std::int64_t t, std::int64_t h) {
  const char* at = static_cast<const char*>(tensor->data) +
                   static_cast<std::size_t>(d) * tensor->nb[0] +
                   static_cast<std::size_t>(t) * tensor->nb[1] +
                   static_cast<std::size_t>(h) * tensor->nb[2];
  if (tensor->type == GGML_TYPE_F32) return *reinterpret_cast<const float*>(at);
  return ggml_fp16_to_fp32(*reinterpret_cast<const ggml_fp16_t*>(at));
}

TEST(Softcap, IsComputedAsTheNodeSays) {
  constexpr float kSoftcap = 0.7F;
  const Settings before = *current_settings();
  Settings exact;
  exact.compute = BSFA_GGML_EXACT;
  publish_settings(exact);
  Graph graph;
  Attention attention;
  ggml_tensor* mask = graph.mask(kQueries);
  ggml_tensor* node = graph.layer(0, kQueries, mask, kSoftcap);
  poison(node);
  attention.compute(node);
  const std::vector<float> capped = result(node);
  double largest_change = 0;
  for (std::int64_t h = 0; h < kHeads; ++h) {
    for (std::int64_t row = 0; row < kQueries; row += 13) {
      std::vector<double> expected(kDim), uncapped(kDim);
      double sum = 0, uncapped_sum = 0;
      for (std::int64_t key = 0; key <= kKeys - kQueries + row; ++key) {
        double score = 0;
        for (std::int64_t d = 0; d < kDim; ++d) {
          score += double{operand(node->src[0], d, row, h)} *
                   double{operand(node->src[1], d, key, h / 2)};
        }
        score *= double{kScale};
        const double weight = std::exp(double{kSoftcap} * std::tanh(score / double{kSoftcap}));
        sum += weight;
        uncapped_sum += std::exp(score);
        for (std::int64_t d = 0; d < kDim; ++d) {
          const double value = operand(node->src[2], d, key, h / 2);
          expected[static_cast<std::size_t>(d)] += weight * value;
          uncapped[static_cast<std::size_t>(d)] += std::exp(score) * value;
        }
      }
      for (std::int64_t d = 0; d < kDim; ++d) {
        const double want = expected[static_cast<std::size_t>(d)] / sum;
        const auto at = static_cast<std::size_t>((row * kHeads + h) * kDim + d);
        ASSERT_NEAR(capped[at], want, 1e-4) << "head " << h << " row " << row << " column " << d;
        largest_change = std::max(
            largest_change,
            std::abs(want - uncapped[static_cast<std::size_t>(d)] / uncapped_sum));
      }
    }
  }
  EXPECT_GT(largest_change, 0.05) << "a softcap that changes nothing shows nothing";
  publish_settings(before);
}

}  // namespace
}  // namespace bsfa::ggml
