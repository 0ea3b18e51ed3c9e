#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"
#include "bsfa/selection.hpp"
#include "source_tree.hpp"

// Block lists, and the sampled selector, against the own dense form on one card: causal, batch 1, 32 query and 8 key/value
// heads, head_dim 128, bf16. A list for each query head and query block, ascending, of a share of
// the visible blocks: at random, or in runs of four that a group's heads and four neighbouring
// query blocks share ("structured"). Block 0 and the diagonal are always among them. "select r" is
// the selector alone, with r rows of each query block, and "r + lists" is that followed by attention
// over random lists: what selection and attention of that density cost together.
//
// First the result is checked: with lists of all blocks the output has to be the dense one's to the
// bit, and with the kept blocks of a gated call to a few units in the last place the gated one's.
// Then the contenders run in rotating order, each the larger of one call and 12 ms a sample; median
// and spread ((max - min) / median) of 7. `share` is the part of 1/density that is reached.
//
//   block_lists [--out results.json [--dirty]] [TOKENS...]       (default 8192 32768 65536 131072)
//
// A results file names the date and the commit of the build; with --dirty, which marks it, the build
// may have been one of a tree with changes.

namespace {

using namespace bsfa;

constexpr std::int64_t kHeads = 32, kKeyHeads = 8, kDim = 128, kSamples = 7;
constexpr double kSampleMs = 12;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  std::exit(1);
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "error: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

class Device {
 public:
  explicit Device(std::size_t bytes) {
    check(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
  }
  template <typename T>
  explicit Device(const std::vector<T>& from) : Device(from.size() * sizeof(T)) {
    check(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice),
          "upload");
  }
  Device(Device&& other) noexcept { std::swap(data_, other.data_); }
  ~Device() { cudaFree(data_); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <typename T>
  std::vector<T> download(std::size_t count) const {
    std::vector<T> to(count);
    check(cudaMemcpy(to.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return to;
  }

 private:
  void* data_ = nullptr;
};

std::uint16_t to_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bf16(std::uint16_t x) {
  const std::uint32_t bits = std::uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// NaN if any is.
double largest_difference(const std::vector<std::uint16_t>& a,
                          const std::vector<std::uint16_t>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(from_bf16(a[i]) - from_bf16(b[i]));
    worst = difference <= worst ? worst : difference;
  }
  return worst;
}

std::vector<std::uint16_t> random_tensor(std::int64_t elements, float scale, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(static_cast<std::size_t>(elements));
  // A million numbers repeated: drawing them all takes longer than the measurement.
  const std::size_t drawn = std::min<std::size_t>(values.size(), (1 << 20) + 7);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = i < drawn ? to_bf16(scale * normal(random)) : values[i - drawn];
  }
  return values;
}

// What a command prints, without the end of its last line; nothing if it fails.
std::string output_of(const char* command) {
  std::string output;
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return output;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) output += static_cast<char>(c);
  if (pclose(pipe) != 0) return "";
  while (!output.empty() && output.back() == '\n') output.pop_back();
  return output;
}

struct Lists {
  std::vector<std::int32_t> indices;
  std::vector<std::int64_t> offsets{0};
  std::int64_t visible = 0;
  double density() const {
    return static_cast<double>(indices.size()) / static_cast<double>(visible);
  }
};

// The listed blocks of every head and query block, as `choose` says: (head, query block, visible
// blocks) -> one flag a block.
Lists make_lists(
    std::int64_t tokens,
    const std::function<std::vector<char>(std::int64_t, std::int64_t, std::int64_t)>& choose) {
  Lists lists;
  for (std::int64_t head = 0; head < kHeads; ++head) {
    for (std::int64_t i = 0; i < tokens / 128; ++i) {
      const std::int64_t visible = 2 * (i + 1);
      const std::vector<char> chosen = choose(head, i, visible);
      for (std::int64_t j = 0; j < visible; ++j) {
        if (chosen[static_cast<std::size_t>(j)] != 0) {
          lists.indices.push_back(static_cast<std::int32_t>(j));
        }
      }
      lists.offsets.push_back(static_cast<std::int64_t>(lists.indices.size()));
      lists.visible += visible;
    }
  }
  return lists;
}

Lists drawn_lists(std::int64_t tokens, double density, bool structured) {
  std::mt19937_64 random(7);
  return make_lists(tokens, [&](std::int64_t head, std::int64_t i, std::int64_t visible) {
    std::vector<char> chosen(static_cast<std::size_t>(visible), 0);
    chosen[0] = chosen[static_cast<std::size_t>(visible - 1)] =
        chosen[static_cast<std::size_t>(visible - 2)] = 1;
    std::int64_t have = std::accumulate(chosen.begin(), chosen.end(), std::int64_t{0});
    const auto want =
        static_cast<std::int64_t>(std::lround(density * static_cast<double>(visible)));
    std::mt19937_64 own(static_cast<std::uint64_t>(head / 4 * 7919 + i / 4));
    std::mt19937_64& source = structured ? own : random;
    const std::int64_t run = structured ? 4 : 1;
    while (have < want) {
      const auto begin = static_cast<std::int64_t>(source() % static_cast<std::uint64_t>(visible));
      for (std::int64_t j = begin; j < std::min(begin + run, visible) && have < want; ++j) {
        have += chosen[static_cast<std::size_t>(j)] == 0 ? 1 : 0;
        chosen[static_cast<std::size_t>(j)] = 1;
      }
    }
    return chosen;
  });
}

struct Contender {
  std::string name;
  double density = 1;
  bool attends = true;
  AttentionParams params;
  bool selects = false;
  SelectBlocksParams selection;
  std::vector<Device> owned;
  std::vector<double> ms;

  void plan() {
    const std::size_t bytes = workspace_size(params);
    owned.emplace_back(bytes);
    params.workspace = owned.back().as<void>();
    params.workspace_bytes = bytes;
    if (!selects) return;
    const SelectionPlan planned = plan_selection(selection);
    if (!planned.status.ok()) fail(planned.status.message);
    owned.emplace_back(planned.workspace_bytes);
    selection.call.workspace = owned.back().as<void>();
    selection.call.workspace_bytes = planned.workspace_bytes;
  }
  void run() const {
    if (selects) select_blocks(selection);
    if (attends) attention_forward(params);
  }
  // Lists of its own, which the attention that follows does not take.
  void set_selector(std::int64_t rows, std::int64_t tokens) {
    selects = true;
    selection.call = params;
    selection.selector.rows = rows;
    selection.selector.coverage = 0.95f;
    selection.selector.floor = 1;
    selection.stride = tokens / 64;
    const std::int64_t lists = kHeads * (tokens / 128);
    owned.emplace_back(static_cast<std::size_t>(lists * selection.stride) * 4);
    selection.indices = owned.back().as<std::int32_t>();
    owned.emplace_back(static_cast<std::size_t>(lists) * 4);
    selection.counts = owned.back().as<std::int32_t>();
    owned.emplace_back(static_cast<std::size_t>(lists) * 4);
    selection.left_out = {owned.back().as<float>(), {1, kHeads, tokens / 128}, {}};
    set_contiguous(selection.left_out.shape, selection.left_out.stride);
  }
  void set_lists(const Lists& lists, std::int64_t tokens) {
    owned.emplace_back(lists.indices);
    owned.emplace_back(lists.offsets);
    params.lists.indices = owned[owned.size() - 2].as<std::int32_t>();
    params.lists.offsets = owned.back().as<std::int64_t>();
    params.lists.num_indices = static_cast<std::int64_t>(lists.indices.size());
    params.lists.num_heads = kHeads;
    params.lists.q_blocks = tokens / 128;
    density = lists.density();
  }
};

class Bench {
 public:
  explicit Bench(std::int64_t tokens)
      : tokens_(tokens),
        q_(random_tensor(tokens * kHeads * kDim, 1, 1)),
        k_(random_tensor(tokens * kKeyHeads * kDim, 1, 2)),
        v_(random_tensor(tokens * kKeyHeads * kDim, 1, 3)),
        out_(static_cast<std::size_t>(tokens * kHeads * kDim) * 2) {}

  Contender contender(const std::string& name) const {
    Contender c;
    c.name = name;
    AttentionParams& p = c.params;
    const DType type = DType::kBFloat16;
    p.q = contiguous<const void*>(q_.as<void>(), type, 1, tokens_, kHeads, kDim);
    p.k = contiguous<const void*>(k_.as<void>(), type, 1, tokens_, kKeyHeads, kDim);
    p.v = contiguous<const void*>(v_.as<void>(), type, 1, tokens_, kKeyHeads, kDim);
    p.out = contiguous<void*>(out_.as<void>(), type, 1, tokens_, kHeads, kDim);
    p.causal = true;
    p.device = {DeviceType::kCuda, 0};
    return c;
  }

  std::vector<std::uint16_t> output_of(Contender& c) const {
    check(cudaMemset(out_.as<void>(), 0xff, static_cast<std::size_t>(size()) * 2), "memset");
    attention_forward(c.params);
    check(cudaDeviceSynchronize(), "attention");
    return out_.download<std::uint16_t>(static_cast<std::size_t>(size()));
  }

  // Stops the program if lists do not compute what they should.
  void check_results() const {
    Contender dense = contender("dense");
    dense.plan();
    Contender all = contender("all blocks");
    // From the last block to the first, as the dense form goes.
    Lists lists;
    for (std::int64_t n = 0; n < kHeads * (tokens_ / 128); ++n) {
      const std::int64_t visible = 2 * (n % (tokens_ / 128) + 1);
      for (std::int64_t j = visible - 1; j >= 0; --j) {
        lists.indices.push_back(static_cast<std::int32_t>(j));
      }
      lists.offsets.push_back(static_cast<std::int64_t>(lists.indices.size()));
      lists.visible += visible;
    }
    all.set_lists(lists, tokens_);
    all.plan();
    if (output_of(dense) != output_of(all)) fail("lists of all blocks differ from dense");

    const std::int64_t q_blocks = tokens_ / 128;
    const std::int64_t kv_blocks = tokens_ / 64;
    Contender gated = contender("gated");
    const std::vector<float> thresholds(static_cast<std::size_t>(kHeads * q_blocks), 4.2f);
    gated.owned.emplace_back(thresholds);
    ThresholdView table;
    table.data = gated.owned.back().as<float>();
    table.num_heads = kHeads;
    table.num_q_blocks = table.stride_head = q_blocks;
    gated.params.policy = Policy::threshold(table);
    const auto cells = static_cast<std::size_t>(kHeads * q_blocks * kv_blocks);
    gated.owned.emplace_back(cells);
    gated.params.kept_mask = {
        gated.owned.back().as<std::uint8_t>(), {1, kHeads, q_blocks, kv_blocks}, {}};
    set_contiguous(gated.params.kept_mask.shape, gated.params.kept_mask.stride);
    gated.plan();
    const auto expected = output_of(gated);
    const auto mask = Device(std::move(gated.owned[1])).download<std::uint8_t>(cells);
    Contender kept = contender("kept");
    const Lists of_mask =
        make_lists(tokens_, [&](std::int64_t head, std::int64_t i, std::int64_t visible) {
          const auto begin = mask.begin() + (head * q_blocks + i) * kv_blocks;
          return std::vector<char>(begin, begin + visible);
        });
    kept.set_lists(of_mask, tokens_);
    kept.plan();
    const auto got = output_of(kept);
    const double worst = largest_difference(got, expected);
    if (!(worst < 0.02)) fail("lists of a gated call's kept blocks differ from it");

    // All of the attention: what no block is left out of is dense, but for what rounds to nothing.
    Contender selected = contender("selected");
    selected.set_selector(32, tokens_);
    selected.selection.selector.coverage = 1;
    selected.params.lists.indices = selected.selection.indices;
    selected.params.lists.counts = selected.selection.counts;
    selected.params.lists.stride = selected.selection.stride;
    selected.params.lists.num_indices = kHeads * q_blocks * selected.selection.stride;
    selected.params.lists.num_heads = kHeads;
    selected.params.lists.q_blocks = q_blocks;
    selected.plan();
    select_blocks(selected.selection);
    if (!(largest_difference(output_of(selected), output_of(dense)) < 0.02)) {
      fail("lists that the selector made of all attention differ from dense");
    }
    std::printf(
        "checked: all blocks give dense's bits; the %.2f that a gate keeps differ from it by "
        "%.1e at most\n",
        of_mask.density(), worst);
  }

  nlohmann::json measure() const {
    std::vector<Contender> all;
    all.push_back(contender("dense"));
    for (const double density : {0.5, 0.24, 0.1, 0.05}) {
      for (const bool structured : {false, true}) {
        Contender c = contender(structured ? "structured" : "random");
        c.set_lists(drawn_lists(tokens_, density, structured), tokens_);
        all.push_back(std::move(c));
      }
    }
    for (const std::int64_t rows : {16, 32}) {
      Contender alone = contender("select " + std::to_string(rows));
      alone.set_selector(rows, tokens_);
      alone.attends = false;
      all.push_back(std::move(alone));
      for (const double density : {0.24, 0.1}) {
        Contender c = contender(std::to_string(rows) + " + lists");
        c.set_selector(rows, tokens_);
        c.set_lists(drawn_lists(tokens_, density, false), tokens_);
        all.push_back(std::move(c));
      }
    }
    for (Contender& c : all) c.plan();
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    for (std::int64_t sample = -1; sample < kSamples; ++sample) {
      for (std::size_t n = 0; n < all.size(); ++n) {
        Contender& c = all[(n + static_cast<std::size_t>(sample + 1)) % all.size()];
        const int calls =
            sample < 0 ? 1 : std::max(1, static_cast<int>(std::ceil(kSampleMs / c.ms.front())));
        check(cudaEventRecord(begin), "record");
        for (int i = 0; i < calls; ++i) c.run();
        check(cudaEventRecord(end), "record");
        check(cudaEventSynchronize(end), "attention");
        float ms = 0;
        check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
        c.ms.push_back(ms / calls);
      }
    }
    const auto median = [](std::vector<double> values) {
      std::sort(values.begin(), values.end());
      return values[values.size() / 2];
    };
    nlohmann::json rows = nlohmann::json::array();
    double dense = 0;
    for (Contender& c : all) {
      c.ms.erase(c.ms.begin());  // warm-up
      const double ms = median(c.ms);
      if (dense == 0) dense = ms;
      const auto [low, high] = std::minmax_element(c.ms.begin(), c.ms.end());
      nlohmann::json row{{"lists", c.name},
                         {"density", c.density},
                         {"ms", ms},
                         {"spread", (*high - *low) / ms},
                         {"speed_over_dense", dense / ms},
                         {"share", dense / ms * c.density}};
      if (!c.attends) row = {{"lists", c.name}, {"ms", ms}, {"of_dense", ms / dense}};
      std::printf("%7lld %-11s density %.3f %9.3f ms  over dense %6.2f  share %.3f  spread %.2f\n",
                  static_cast<long long>(tokens_), c.name.c_str(), c.density, ms, dense / ms,
                  dense / ms * c.density, (*high - *low) / ms);
      rows.push_back(row);
    }
    return {{"tokens", tokens_}, {"rows", rows}};
  }

 private:
  std::int64_t size() const { return tokens_ * kHeads * kDim; }

  std::int64_t tokens_;
  Device q_, k_, v_, out_;
};

}  // namespace

int main(int argc, char** argv) {
  std::string out;
  bool allow_changes = false;
  std::vector<std::int64_t> lengths;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--out" && i + 1 < argc) {
      out = argv[++i];
      continue;
    }
    if (argument == "--dirty") {
      allow_changes = true;
      continue;
    }
    char* end = nullptr;
    const long long tokens = std::strtoll(argv[i], &end, 10);
    if (*end != '\0' || tokens < 256 || tokens % 128 != 0) {
      std::fprintf(
          stderr,
          "error: '%s' is not accepted; usage: block_lists [--out FILE [--dirty]] [TOKENS...], "
          "tokens a multiple of 128 from 256\n",
          argv[i]);
      return 2;
    }
    lengths.push_back(tokens);
  }
  if (lengths.empty()) lengths = {8192, 32768, 65536, 131072};
  const SourceTree tree = source_tree();
  if (!out.empty()) {
    try {
      commit_for_results(tree, allow_changes);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "error: --out: %s\n", error.what());
      return 1;
    }
  }
  cudaDeviceProp card{};
  check(cudaGetDeviceProperties(&card, 0), "device");
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "driver");
  Bench(2048).check_results();
  nlohmann::json result{{"benchmark", "block_lists"},
                        {"commit", tree.commit},
                        {"date", output_of("date -u +%Y-%m-%d")},
                        {"card", card.name},
                        {"driver", output_of("nvidia-smi --query-gpu=driver_version "
                                             "--format=csv,noheader -i 0")},
                        {"cuda", driver / 1000 + driver % 1000 / 10 / 10.0},
                        {"protocol",
                         "rotating order, the larger of one call and 12 ms a sample, "
                         "median of 7; causal, 32/8 heads, head_dim 128, bf16"},
                        {"lengths", nlohmann::json::array()}};
  if (tree.changed) result["dirty"] = true;
  for (const std::int64_t tokens : lengths) result["lengths"].push_back(Bench(tokens).measure());
  if (out.empty()) return 0;
  std::FILE* file = std::fopen(out.c_str(), "w");
  const std::string text = result.dump(1) + "\n";
  if (file == nullptr || std::fwrite(text.data(), 1, text.size(), file) != text.size() ||
      std::fclose(file) != 0) {
    std::fprintf(stderr, "error: cannot write '%s'\n", out.c_str());
    return 1;
  }
  return 0;
}
