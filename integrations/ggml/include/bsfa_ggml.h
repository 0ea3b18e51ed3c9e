#ifndef BSFA_GGML_H
#define BSFA_GGML_H

/* The C interface of the loadable ggml backend, for programs that want more than its environment
 * variables give: statistics, switching between policies in one process, calibration.
 *
 *   ggml_backend_reg_t reg = ggml_backend_load("libggml-bsfa.so");
 *   const struct bsfa_ggml_api* (*get)(void) =
 *       ggml_backend_reg_get_proc_address(reg, BSFA_GGML_API_NAME);
 *
 * One configuration serves the whole process. Change it while no llama.cpp context computes; a
 * context keeps the division of work of the graph that it built last, so a program that compares
 * policies gives each its own context and sets the policy before every use of it. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BSFA_GGML_API_NAME "bsfa_ggml_api"
#define BSFA_GGML_API_VERSION 2

enum bsfa_ggml_mode {
  BSFA_GGML_OFF = 0,            /* claim nothing: llama.cpp as if the backend were not loaded */
  BSFA_GGML_HOST = 1,           /* claim, and hand every call to ggml's own kernel: to time it */
  BSFA_GGML_DENSE = 2,          /* exact attention */
  BSFA_GGML_THRESHOLD = 3,      /* Block Sparse Flash Attention */
  BSFA_GGML_SLIDING_WINDOW = 4, /* the diagonal and the `budget` blocks nearest before it */
  BSFA_GGML_CALIBRATE = 5       /* exact attention; the block maxima go to the callback */
};

enum bsfa_ggml_compute {
  BSFA_GGML_BF16 = 0, /* the default: queries, keys and values rounded to bf16 */
  BSFA_GGML_EXACT = 1 /* fp16 keys and values as they are, fp32 arithmetic */
};

/* Block maxima of one layer for the query rows [q_offset, q_offset + seqlen_q) of one call,
 * [num_heads][q_blocks][kv_blocks], -inf where invisible; row 0 is the gate block of q_offset
 * (which starts it), column 0 is gate block 0. Returns 0 to go on, anything else to stop the
 * computation of the graph with an error. */
typedef int (*bsfa_ggml_block_max_callback)(void* user, int layer, int64_t q_offset,
                                            int64_t seqlen_q, int64_t num_heads, int64_t q_blocks,
                                            int64_t kv_blocks, float softmax_scale,
                                            const float* block_max);

struct bsfa_ggml_config {
  int32_t mode;           /* bsfa_ggml_mode */
  int32_t compute;        /* bsfa_ggml_compute */
  const char* thresholds; /* THRESHOLD: path of a threshold file */
  int64_t budget;         /* THRESHOLD: 0 is the file's recommended one; SLIDING_WINDOW: blocks */
  const char* backend;    /* by name, "": the best, NULL: BSFA_BACKEND's, or the best */
  bsfa_ggml_block_max_callback block_max; /* CALIBRATE */
  void* user;                             /* handed to block_max */
  int32_t allow_other_model; /* THRESHOLD: 1: no warning if the thresholds name other weights */
};

struct bsfa_ggml_layer_stats {
  int32_t layer;
  int64_t calls;          /* attention calls that were computed here */
  int64_t kept_blocks;    /* over heads and calls, the always-kept ones included */
  int64_t visible_blocks; /* density = kept_blocks / visible_blocks */
  double seconds;         /* wall time */
};

/* Attention left to llama.cpp. A reason that is known when a graph is divided counts one for each
 * time the scheduler asked; one that shows only in the data (`at_run_time`) counts calls. */
struct bsfa_ggml_decline {
  const char* reason; /* static text */
  int32_t at_run_time;
  int64_t count;
};

struct bsfa_ggml_api {
  int32_t version; /* BSFA_GGML_API_VERSION */
  /* 0, or -1 and a message in error (always terminated) and the configuration left as it was. */
  int (*configure)(const struct bsfa_ggml_config* config, char* error, size_t error_size);
  void (*reset_stats)(void);
  /* Both return how many entries there are and fill at most `capacity`. */
  size_t (*layer_stats)(struct bsfa_ggml_layer_stats* entries, size_t capacity);
  size_t (*declined)(struct bsfa_ggml_decline* entries, size_t capacity);
  /* Seconds in this backend since reset_stats, ggml's own kernel in mode HOST included. */
  double (*attention_seconds)(void);
  /* Why the last computation failed, "" if none did; valid until the next call. */
  const char* (*last_error)(void);
};

#ifdef __cplusplus
}
#endif

#endif
