// How long a call keeps the host, through the C++ API and the C ABI: one line of JSON for each.
//
//   host_time cpu|cuda BATCH SEQLEN_Q SEQLEN_K
//
// 8 query and 2 key/value heads of 128, bf16, causal, dense. A sample is 50 calls, on CUDA enqueued
// without waiting, after the device has become idle; 200 samples, of which the median and the least
// are given. "moved": two sets of tensors in turn, so that no pointer is the last call's. On the
// CPU a call also computes: with one query and one key that is next to nothing.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"
#include "bsfa/bsfa_c.h"
#include "source_tree.hpp"

#ifdef BSFA_BENCH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace {

constexpr int kCalls = 50;
constexpr int kSamples = 200;
constexpr std::int64_t kHeads = 8, kHeadsKv = 2, kDim = 128;
bool cuda = false;

void* allocate(std::size_t bytes) {
  bytes = (bytes + 255) / 256 * 256;
#ifdef BSFA_BENCH_CUDA
  if (cuda) {
    void* data = nullptr;
    if (cudaMalloc(&data, bytes) != cudaSuccess || cudaMemset(data, 0, bytes) != cudaSuccess) {
      std::fprintf(stderr, "host_time: no CUDA memory\n");
      std::exit(1);
    }
    return data;
  }
#endif
  void* data = std::aligned_alloc(256, std::max<std::size_t>(bytes, 256));
  std::fill_n(static_cast<char*>(data), bytes, char{0});
  return data;
}

void wait() {
#ifdef BSFA_BENCH_CUDA
  if (cuda && cudaDeviceSynchronize() != cudaSuccess) {
    std::fprintf(stderr, "host_time: a call failed on the device\n");
    std::exit(1);
  }
#endif
}

bsfa::AttentionParams call(std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k) {
  using bsfa::contiguous;
  using bsfa::DType;
  const auto tensor = [&](std::int64_t seqlen, std::int64_t heads) {
    return contiguous(allocate(static_cast<std::size_t>(2 * batch * seqlen * heads * kDim)),
                      DType::kBFloat16, batch, seqlen, heads, kDim);
  };
  const auto input = [&](std::int64_t seqlen, std::int64_t heads) {
    const bsfa::OutputView view = tensor(seqlen, heads);
    return contiguous<const void*>(view.data, view.dtype, batch, seqlen, heads, kDim);
  };
  bsfa::AttentionParams params;
  params.q = input(seqlen_q, kHeads);
  params.k = input(seqlen_k, kHeadsKv);
  params.v = input(seqlen_k, kHeadsKv);
  params.out = tensor(seqlen_q, kHeads);
  params.causal = true;
  if (cuda) params.device.type = bsfa::DeviceType::kCuda;
  params.workspace_bytes = bsfa::workspace_size(params);
  params.workspace = allocate(params.workspace_bytes);
  return params;
}

template <typename View>
void copy_view(const View& from, bsfa_tensor* to) {
  to->data = from.data;
  to->dtype = static_cast<bsfa_dtype>(from.dtype);
  std::copy_n(from.shape, 4, to->shape);
  std::copy_n(from.stride, 4, to->stride);
}

bsfa_attention_params in_c(const bsfa::AttentionParams& from) {
  bsfa_attention_params params{};
  params.struct_size = sizeof(params);
  copy_view(from.q, &params.q);
  copy_view(from.k, &params.k);
  copy_view(from.v, &params.v);
  params.out.data = from.out.data;
  params.out.dtype = static_cast<bsfa_dtype>(from.out.dtype);
  std::copy_n(from.out.shape, 4, params.out.shape);
  std::copy_n(from.out.stride, 4, params.out.stride);
  params.causal = 1;
  params.device = static_cast<bsfa_device_type>(from.device.type);
  params.workspace = from.workspace;
  params.workspace_bytes = from.workspace_bytes;
  return params;
}

void require(bsfa_status status) {
  if (status == BSFA_OK) return;
  std::fprintf(stderr, "host_time: %s\n", bsfa_last_error());
  std::exit(1);
}

void measure(const char* name, const bsfa::AttentionParams& params,
             const std::function<void(int)>& run) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> microseconds;
  for (int sample = -3; sample < kSamples; ++sample) {
    wait();
    const auto start = Clock::now();
    for (int n = 0; n < kCalls; ++n) run(n);
    const std::chrono::duration<double, std::micro> elapsed = Clock::now() - start;
    if (sample >= 0) microseconds.push_back(elapsed.count() / kCalls);
  }
  wait();
  std::sort(microseconds.begin(), microseconds.end());
  std::printf(
      "{\"call\": \"%s\", \"batch\": %lld, \"seqlen_q\": %lld, \"seqlen_k\": %lld, "
      "\"median_us\": %.3f, \"least_us\": %.3f}\n",
      name, static_cast<long long>(params.q.shape[0]), static_cast<long long>(params.q.shape[1]),
      static_cast<long long>(params.k.shape[1]), microseconds[microseconds.size() / 2],
      microseconds.front());
}

void measure_all(std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k) {
  const bsfa::AttentionParams params = call(batch, seqlen_q, seqlen_k);
  const bsfa::AttentionParams pair[2] = {params, call(batch, seqlen_q, seqlen_k)};
  measure("C++ attention_forward", params, [&](int) { bsfa::attention_forward(params); });
  const bsfa::PreparedAttention prepared(params);
  measure("C++ PreparedAttention", params, [&](int) { prepared.run(params); });
  measure("C++ PreparedAttention, moved", params, [&](int n) { prepared.run(pair[1 - n % 2]); });

  const bsfa_attention_params c = in_c(params);
  const bsfa_attention_params c_pair[2] = {c, in_c(pair[1])};
  measure("C bsfa_attention_forward", params, [&](int) { require(bsfa_attention_forward(&c)); });
  bsfa_prepared_attention* handle = nullptr;
  require(bsfa_prepared_attention_create(&c, &handle));
  measure("C bsfa_prepared_attention_run", params,
          [&](int) { require(bsfa_prepared_attention_run(handle, &c)); });
  measure("C bsfa_prepared_attention_run, moved", params,
          [&](int n) { require(bsfa_prepared_attention_run(handle, &c_pair[1 - n % 2])); });
  bsfa_prepared_attention_free(handle);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "source") {
    const bsfa::SourceTree tree = bsfa::source_tree();
    std::printf("{\"commit\": \"%s\", \"changed\": %s}\n", tree.commit.c_str(),
                tree.changed ? "true" : "false");
    return 0;
  }
  const std::string device = argc == 5 ? argv[1] : "";
  if (device != "cpu" && device != "cuda") {
    std::fprintf(stderr, "usage: host_time cpu|cuda BATCH SEQLEN_Q SEQLEN_K, or host_time source\n");
    return 2;
  }
#ifndef BSFA_BENCH_CUDA
  if (device == "cuda") {
    std::fprintf(stderr, "host_time: built without CUDA\n");
    return 2;
  }
#endif
  cuda = device == "cuda";
  try {
    measure_all(std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4]));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "host_time: %s\n", error.what());
    return 1;
  }
  return 0;
}
