#pragma once

#include <CLI/CLI.hpp>

// The measurements of `bsfa bench` that run a model; a build without llama.cpp refuses them.

namespace bsfa::cli {

void add_bench_needle(CLI::App& bench);
void add_bench_logits(CLI::App& bench);

}  // namespace bsfa::cli
