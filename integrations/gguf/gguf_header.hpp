#pragma once

#include <cstdint>
#include <string>

namespace bsfa::gguf {

// What a threshold file must fit to, from the header of a GGUF model file.
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

// Which weights these are (weight_fingerprint of the source "gguf"): of every tensor its name,
// shape, type and 8 pieces of 32 bytes, spread evenly over its data. docs/method.md "Fingerprints".
// Of a model in several files it is that of the named one; "" if there are no tensors in it. Throws
// Error.
std::string gguf_fingerprint(const std::string& path);

}  // namespace bsfa::gguf
