#include "cpu_common.hpp"

namespace bsfa::bench {

bool ggml_available() { return false; }

std::unique_ptr<GgmlAttention> make_ggml_attention(const CausalProblem&, int) { return nullptr; }

}  // namespace bsfa::bench
