// Requantises a GGUF model to BF16 with llama.cpp's own quantiser:  requantize_gguf IN OUT
// (llama.cpp has a program for this, but the set-up builds its libraries alone.)
#include <cstdio>

#include "llama.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s IN.gguf OUT.gguf\n", argv[0]);
    return 2;
  }
  // Only what goes wrong is worth a line: the quantiser reports every tensor.
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_MOSTLY_BF16;
  params.allow_requantize = true;
  const uint32_t status = llama_model_quantize(argv[1], argv[2], &params);
  llama_backend_free();
  if (status != 0) std::fprintf(stderr, "error: could not requantise %s\n", argv[1]);
  return status == 0 ? 0 : 1;
}
