#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"
#include "core/problem.hpp"

// Attention calls on a card, compared with the fp64 oracle on the same data.

namespace bsfa::gpu_test {

#define BSFA_CUDA_OK(call) ASSERT_EQ(call, cudaSuccess)

// Every CUDA backend of this build, present card or not.
std::vector<std::string> cuda_backends();

// Its name as that of a test.
inline std::string backend_test_name(const testing::TestParamInfo<std::string>& backend) {
  std::string name = backend.param;
  for (char& c : name) {
    if (c == '-') c = '_';
  }
  return name;
}

// Device memory; what it holds at first is 0xff bytes: NaN, -1, and no valid decision.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  void* data() const { return data_; }
  void upload(const void* from, std::size_t bytes);
  std::vector<std::uint8_t> download() const;

 private:
  void swap(DeviceBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

enum class Layout {
  kTokens,     // [batch, token, head, head_dim], dense
  kHeads,      // [batch, head, token, head_dim] in memory
  kGaps,       // unused columns behind each row, unused rows behind each sequence; rows on 16 bytes
  kUnaligned,  // rows anywhere
};

enum class Batch { kFixed, kPacked, kPadded };

struct Case {
  std::string name;
  DType dtype = DType::kBFloat16;
  std::int64_t head_dim = 128;
  std::int64_t heads_q = 2;
  std::int64_t heads_kv = 1;
  Batch batch = Batch::kFixed;
  std::vector<std::int64_t> seqlens_q = {200};  // kFixed and kPadded: all the same
  std::vector<std::int64_t> seqlens_k = {200};  // kFixed: all the same
  std::vector<std::int64_t> leftpad;            // kPadded
  bool causal = true;
  std::optional<std::int64_t> q_offset;
  std::vector<std::int64_t> q_offsets;
  std::int64_t kv_offset = 0;
  std::optional<std::int64_t> window;
  bool sinks = false;
  float softcap = 0;
  Layout layout = Layout::kTokens;
  PolicyKind policy = PolicyKind::kDense;
  double density = 0.4;            // kThreshold: wanted among the blocks off the diagonal
  std::int64_t table_blocks = 0;   // kThreshold: entries a head; 0: as many as needed
  bool extreme_heads = false;      // kThreshold: head 0 has -inf, head 1 +inf
  std::int64_t window_blocks = 1;  // kSlidingWindow
  bool block_max = false;          // with kDense: the calibrating form
  bool negative_scores = false;    // all of them
  float poison_score = 0;          // NaN or infinity in one key, if not 0
  unsigned seed = 1;
};

inline void PrintTo(const Case& c, std::ostream* stream) { *stream << c.name; }

// A case with its tensors, once on the host as the oracle reads them, once on the device.
class Call {
 public:
  explicit Call(const Case& spec);

  const AttentionParams& device_params() const { return device_; }
  AttentionParams& device_params() { return device_; }
  const Problem& host_problem() const { return problem_; }

  // Poisons every result again.
  void poison_results();
  // Every result as bytes, in order.
  std::vector<std::vector<std::uint8_t>> results() const;

  // Compares what is on the device with the oracle; failures name coordinates.
  void check() const;

 private:
  struct Tensor {
    std::int64_t shape[4];
    std::int64_t stride[4];
    std::int64_t offset;  // elements before the first
    std::size_t elements;
    std::vector<std::uint16_t> host;
    DeviceBuffer device;
  };
  Tensor make_tensor(std::int64_t batch, std::int64_t rows, std::int64_t heads) const;
  void fill(Tensor* tensor, float scale, bool queries);
  void place_thresholds();
  void check_head(std::int64_t sequence, std::int64_t head,
                  const std::vector<std::vector<std::uint8_t>>& got) const;

  Case spec_;
  Tensor q_, k_, v_, out_;
  std::vector<std::int32_t> cu_q_, cu_k_, seqused_, leftpad_, q_offsets_;
  DeviceBuffer cu_q_device_, cu_k_device_, seqused_device_, leftpad_device_, q_offsets_device_;
  std::vector<float> table_, sinks_;
  DeviceBuffer table_device_, sinks_device_;
  DeviceBuffer lse_, kept_, visible_, mask_, maxima_;
  std::size_t lse_elements_ = 0, cells_ = 0;
  AttentionParams host_, device_;
  Problem problem_;
};

}  // namespace bsfa::gpu_test
