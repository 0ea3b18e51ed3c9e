#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <thread>

namespace bsfa::cli {

// What every verb that runs a model takes.
struct ModelOptions {
  std::string model;
  int threads = 0;

  void add_to(CLI::App& verb) {
    verb.add_option("--model", model, "The model: a GGUF file that llama.cpp runs")
        ->required()
        ->type_name("FILE");
    threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    verb.add_option("--threads", threads, "CPU threads")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
  }
};

}  // namespace bsfa::cli
