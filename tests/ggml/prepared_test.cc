// The layers of a graph are one call on other tensors: planned once, with each layer's own result.

#include <ggml.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention.hpp"
#include "settings.hpp"

namespace bsfa::ggml {
namespace {

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

  ggml_tensor* layer(int number, std::int64_t queries, ggml_tensor* mask) {
    ggml_tensor* q = ggml_new_tensor_3d(context_, GGML_TYPE_F32, kDim, kHeads, queries);
    auto* values = static_cast<float*>(q->data);
    for (std::int64_t n = 0; n < ggml_nelements(q); ++n) values[n] = normal_(random_);
    const std::string suffix = "_l" + std::to_string(number);
    ggml_tensor* node = ggml_flash_attn_ext(context_, ggml_permute(context_, q, 0, 2, 1, 3),
                                            cache("cache_k" + suffix), cache("cache_v" + suffix),
                                            mask, 0.125F, 0, 0);
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

}  // namespace
}  // namespace bsfa::ggml
