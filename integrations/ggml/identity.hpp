#pragma once

#include <ggml.h>

#include <bsfa/thresholds.hpp>
#include <string>

namespace bsfa::ggml {

// The GGUF file that the weights before this node are mapped from, which is how llama.cpp loads a
// model unless it is told not to; "" if they are not.
std::string model_file_of(const ggml_tensor* node);

// Says once on stderr if the thresholds name weights, or a model, that the node's file is not.
// Weights that are not mapped from a file cannot be told from others, and nothing is said.
void warn_of_other_model(const ThresholdTable& thresholds, const ggml_tensor* node);

}  // namespace bsfa::ggml
