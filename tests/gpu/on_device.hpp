#pragma once

#include <cstring>
#include <functional>

#include "harness.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"

// The cases of the CPU's suites on a card.

namespace bsfa::gpu_test {

using bsfa::testing::AttentionCase;
using bsfa::testing::AttentionData;
using bsfa::testing::Buffer;
using bsfa::testing::compare_with_oracle;
using bsfa::testing::run_case;

// Device copies of everything that a call points to, and the way back of its results.
class OnDevice {
 public:
  explicit OnDevice(AttentionData& data) : data_(data), params_(data.params()) {
    data.poison();
    move(&params_.q.data, data.q);
    move(&params_.k.data, data.k);
    move(&params_.v.data, data.v);
    move(&params_.out.data, data.out);
    move(&params_.lse.data, data.lse);
    move(&params_.policy.thresholds.data, data.thresholds);
    move(&params_.sinks, data.sinks);
    move(&params_.cu_seqlens_q, data.cu_seqlens_q);
    move(&params_.cu_seqlens_k, data.cu_seqlens_k);
    move(&params_.leftpad_k, data.c.leftpad_k);
    move(&params_.seqused_k, data.c.seqused_k);
    move(&params_.q_offsets, data.c.q_offsets);
    move(&params_.lists.indices, data.list_indices);
    if (params_.lists.offsets != nullptr) move(&params_.lists.offsets, data.list_offsets);
    if (params_.lists.counts != nullptr) move(&params_.lists.counts, data.list_counts);
    move(&params_.kept_blocks.data, data.kept_blocks);
    move(&params_.visible_blocks.data, data.visible_blocks);
    move(&params_.kept_mask.data, data.kept_mask);
    params_.block_max = {};
    params_.device = {DeviceType::kCuda, 0};
  }

  AttentionParams& params() { return params_; }

  void run() {
    const std::size_t bytes = workspace_size(params_);
    DeviceBuffer workspace(std::max<std::size_t>(1, bytes));
    params_.workspace = workspace.data();
    params_.workspace_bytes = bytes;
    attention_forward(params_);
    BSFA_CUDA_OK(cudaDeviceSynchronize());
    for (const auto& back : results_) back();
  }

 private:
  template <typename Pointer>
  void move(Pointer* pointer, const void* from, std::size_t bytes) {
    buffers_.emplace_back(std::max<std::size_t>(1, bytes));
    buffers_.back().upload(from, bytes);
    *pointer = static_cast<Pointer>(buffers_.back().data());
    if constexpr (!std::is_const_v<std::remove_pointer_t<Pointer>>) {
      results_.push_back([=, to = const_cast<void*>(from), index = buffers_.size() - 1, this] {
        std::memcpy(to, buffers_[index].download().data(), bytes);
      });
    }
  }
  template <typename Pointer>
  void move(Pointer* pointer, Buffer& buffer) {
    if (*pointer != nullptr) move(pointer, buffer.data(), buffer.bytes());
  }
  template <typename Pointer, typename T>
  void move(Pointer* pointer, const std::vector<T>& values) {
    if (*pointer != nullptr) move(pointer, values.data(), values.size() * sizeof(T));
  }

  AttentionData& data_;
  AttentionParams params_;
  std::vector<DeviceBuffer> buffers_;
  std::vector<std::function<void()>> results_;
};

// Probabilities are rounded against a reference that may be 2^8 below the maximum, where the plain
// attention of the comparison rounds them against the maximum.
inline constexpr double kCardFactor = 3;

// Block maxima are not asked for: those of the reference stand in for them.
inline void expect_matches_oracle(AttentionData& data, const std::string& backend) {
  ASSERT_EQ(run_case(data, "reference"), "");
  const std::vector<float> maxima = data.block_max;
  OnDevice call(data);
  call.params().backend = backend;
  call.run();
  data.block_max = maxima;
  EXPECT_EQ(compare_with_oracle(data, true, kCardFactor), "");
}

}  // namespace bsfa::gpu_test
