// bsfa bench: measurements. `kernel` times the attention call by itself; the others run a model.

#include <bsfa/error.hpp>
#include <bsfa/limits.hpp>
#include <bsfa/text.hpp>
#include <charconv>
#include <cstdio>
#include <memory>
#include <thread>

#include "command.hpp"
#include "kernel/measure.hpp"
#include "model_benches.hpp"

namespace bsfa::cli {
namespace {

struct KernelOptions {
  std::string heads = "9/3";
  std::int64_t head_dim = 64;
  std::vector<std::int64_t> tokens{4096};
  std::vector<double> densities{0.5, 0.24, 0.1};
  int threads = 1;
  int rounds = 5;
  bool json = false;
};

// "9/3": query heads / KV heads.
void parse_heads(const std::string& text, bench::KernelShape& shape) {
  const char* const end = text.data() + text.size();
  const auto [slash, error] = std::from_chars(text.data(), end, shape.heads_q);
  if (error == std::errc() && slash != end && *slash == '/') {
    const auto [rest, kv_error] = std::from_chars(slash + 1, end, shape.heads_kv);
    if (kv_error == std::errc() && rest == end && shape.heads_q > 0 && shape.heads_kv > 0 &&
        shape.heads_q <= kMaxHeads && shape.heads_q % shape.heads_kv == 0) {
      return;
    }
  }
  throw Error(ErrorCode::kInvalidArgument,
              "--heads is " + quote(text) +
                  "; accepted: query heads / KV heads, the first a multiple of the second, "
                  "such as 32/8");
}

nlohmann::json spread_json(const bench::Spread& spread, double factor) {
  return {{"median", spread.median * factor},
          {"min", spread.min * factor},
          {"max", spread.max * factor}};
}

nlohmann::json to_json(const bench::KernelShape& shape, const bench::KernelReport& report) {
  nlohmann::json json = {{"tokens", shape.tokens},
                         {"heads_q", shape.heads_q},
                         {"heads_kv", shape.heads_kv},
                         {"head_dim", shape.head_dim},
                         {"threads", shape.threads},
                         {"kernel", report.kernel},
                         {"peak_fp32_gflops_core", report.peak.fp32},
                         {"peak_bf16_dot_gflops_core", report.peak.bf16},
                         {"contestants", nlohmann::json::array()}};
  for (const bench::Measurement& row : report.contestants) {
    nlohmann::json entry = {{"name", row.name},
                            {"milliseconds", spread_json(row.seconds, 1e3)},
                            {"gflops", row.gflops},
                            {"share_of_peak", row.share_of_peak},
                            {"relative_error", row.relative_error},
                            {"density", row.density}};
    if (row.gated) {
      entry["gain_over_dense"] = spread_json(row.gain, 1);
      entry["gain_of_limit"] = row.of_limit;
    }
    json["contestants"].push_back(std::move(entry));
  }
  return json;
}

void print_text(const bench::KernelShape& shape, const bench::KernelReport& report) {
  std::printf(
      "\nCausal attention of %lld tokens, %lld/%lld heads of %lld, %d thread%s, kernel %s\n",
      static_cast<long long>(shape.tokens), static_cast<long long>(shape.heads_q),
      static_cast<long long>(shape.heads_kv), static_cast<long long>(shape.head_dim), shape.threads,
      shape.threads == 1 ? "" : "s", report.kernel.c_str());
  std::printf("  %-20s %22s %8s %8s %8s %8s  %s\n", "", "ms (min to max)", "GFLOP/s", "of peak",
              "error", "density", "gain over dense (min to max), of limit");
  for (const bench::Measurement& row : report.contestants) {
    char times[64];
    std::snprintf(times, sizeof times, "%.1f (%.1f to %.1f)", row.seconds.median * 1e3,
                  row.seconds.min * 1e3, row.seconds.max * 1e3);
    std::printf("  %-20s %22s %8.1f %8.2f %8.1e %8.2f", row.name.c_str(), times, row.gflops,
                row.share_of_peak, row.relative_error, row.density);
    if (row.gated) {
      std::printf("  %.2f (%.2f to %.2f), %.2f", row.gain.median, row.gain.min, row.gain.max,
                  row.of_limit);
    }
    std::printf("\n");
  }
}

void kernel(const KernelOptions& options) {
  std::vector<bench::KernelShape> shapes;
  for (const std::int64_t tokens : options.tokens) {
    bench::KernelShape& shape = shapes.emplace_back();
    parse_heads(options.heads, shape);
    shape.head_dim = options.head_dim;
    shape.tokens = tokens;
    shape.threads = options.threads;
  }
  nlohmann::json json = nlohmann::json::array();
  for (const bench::KernelShape& shape : shapes) {
    const std::int64_t contestants = 4 + std::ssize(options.densities);
    Progress progress(std::to_string(shape.tokens) + " tokens", contestants * (1 + options.rounds));
    const bench::KernelReport report =
        bench::measure(shape, options.densities, options.rounds, [&] { progress.advance(); });
    if (options.json) {
      json.push_back(to_json(shape, report));
    } else {
      progress.finish();
      print_text(shape, report);
      check_output();
    }
  }
  if (options.json) {
    nlohmann::json report = {{"rounds", options.rounds}, {"shapes", json}};
    add_commit(report);
    print_json(report);
    return;
  }
  std::printf(
      "\nof peak: multiply-adds in registers, one core, measured now; error: largest of a row, on\n"
      "four query blocks, against the fp64 oracle; limit: 2 / (1 + density), since scores are\n"
      "always computed. Medians of %d rounds, in turn.\n",
      options.rounds);
}

void add_bench_kernel(CLI::App& bench) {
  auto options = std::make_shared<KernelOptions>();
  CLI::App* verb = bench.add_subcommand(
      "kernel",
      "Time one attention call on the CPU: dense in each precision, and gated near some\n"
      "densities. Needs no model; results are checked before anything is timed");
  verb->add_option("--heads", options->heads, "Query heads / KV heads")->capture_default_str();
  verb->add_option("--head-dim", options->head_dim, "A multiple of 8, at most 256")
      ->transform(whole_number(1, 256))
      ->capture_default_str();
  verb->add_option("--tokens", options->tokens, "Length of the prompt; one or more")
      ->delimiter(',')
      ->transform(whole_number(128, std::int64_t{1} << 20))
      ->capture_default_str();
  verb->add_option("--density", options->densities, "Shares of the blocks to keep; one or more")
      ->delimiter(',')
      ->transform(number_between(0, 0.99))
      ->capture_default_str();
  verb->add_option("--threads", options->threads, "CPU threads")
      ->transform(whole_number(1, 1024))
      ->capture_default_str();
  verb->add_option("--rounds", options->rounds, "Timed rounds, all contestants in turn")
      ->transform(whole_number(1, 1000))
      ->capture_default_str();
  add_json_flag(*verb, options->json);
  verb->callback([options] { kernel(*options); });
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* verb =
      app.add_subcommand("bench", "Measure the kernel by itself, or the method inside a model");
  verb->require_subcommand(1);
  add_bench_kernel(*verb);
  add_bench_needle(*verb);
  add_bench_logits(*verb);
}

}  // namespace bsfa::cli
