#pragma once

#include <cstdint>
#include <string>

namespace bsfa::cli {

// What a threshold file must fit to, from the header of a GGUF model file. Needs no llama.cpp.
struct GgufShape {
  std::string name;  // general.name, or the path
  std::int64_t num_layers = 0;
  std::int64_t num_heads_q = 0;
  std::int64_t head_dim = 0;
  std::int64_t context_length = 0;  // 0: not said
  float softmax_scale = 0;          // as the header gives it, else 1/sqrt(head_dim)
};

// Throws Error naming the file and the field.
GgufShape read_gguf_shape(const std::string& path);

}  // namespace bsfa::cli
