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

}  // namespace bsfa::cli
