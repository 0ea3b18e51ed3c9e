#pragma once

#include "kernel/contestants.hpp"

namespace bsfa::bench {

// ggml's flash attention on the same fp16 keys and values, with queries in fp32, on ggml's own
// threads. `problem` must outlive it.
Contestant make_ggml_contestant(const CausalProblem& problem, int threads);

}  // namespace bsfa::bench
