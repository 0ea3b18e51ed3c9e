#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <thread>

#include "command.hpp"

namespace bsfa::cli {

// What every verb that runs a model takes.
struct ModelOptions {
  std::string model;
  int threads = 0;

  void add_to(CLI::App& verb) {
    verb.add_option("--model", model, "The model: a GGUF file that llama.cpp runs")
        ->required()
        ->type_name("FILE");
    threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 1024U));
    verb.add_option("--threads", threads, "CPU threads")
        ->transform(whole_number(1, 1024))
        ->capture_default_str();
  }
};

// What every verb that runs a model with thresholds takes besides.
struct ThresholdOptions {
  std::string thresholds;
  bool allow_other_model = false;

  void add_to(CLI::App& verb) {
    verb.add_option("--thresholds", thresholds,
                    "The model's threshold file (bsfa calibrate makes one)")
        ->required()
        ->type_name("FILE");
    verb.add_flag("--allow-other-model", allow_other_model,
                  "No warning if the thresholds were made for other weights");
  }
};

}  // namespace bsfa::cli
