#ifndef BSFA_C_H_
#define BSFA_C_H_

#include <stddef.h>
#include <stdint.h>

#include "bsfa/export.hpp"

/* The library for C and for whatever calls C. The meaning of every field is that of the C++ headers
 * (attention.hpp, thresholds.hpp, calibration.hpp), whose names are used.
 *
 * - A function returns a bsfa_status. Unless it is BSFA_OK, bsfa_last_error() says what came and
 *   what is accepted, and nothing was written. No C++ exception leaves a function.
 * - A struct that starts with struct_size is set to zero, then struct_size to sizeof of it. Zero is
 *   the default of every field. Later versions append fields; programs built against this header
 *   keep working, and a newer struct is accepted by this library if what it does not know is zero.
 *   (No version of a struct is larger than 4096 bytes.)
 * - Pointers are aligned to what they point to, numbers are within limits.hpp, and what is written
 *   overlaps neither itself nor anything else: all else is refused by name.
 * - Objects (thresholds, calibration, thread pool) are used by one thread at a time, except that
 *   thresholds are only read by the functions that take them as const.
 */

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t bsfa_status;
enum {
  BSFA_OK = 0,
  BSFA_INVALID_ARGUMENT = 1, /* an argument contradicts the contract, or another argument */
  BSFA_UNSUPPORTED = 2,      /* a valid request that no backend here serves */
  BSFA_FORMAT = 3,           /* a file that is not what it should be */
  BSFA_IO = 4,               /* a file that cannot be read or written */
  BSFA_RUNTIME = 5           /* a device or driver failure, or no memory */
};

/* Of the last function of this library that this thread called; "" after BSFA_OK. Valid until the
 * next one. (bsfa_version and bsfa_last_error itself do not count.) */
BSFA_API const char* bsfa_last_error(void);

/* "0.1.0" */
BSFA_API const char* bsfa_version(void);

/* ---- types ---------------------------------------------------------------------------------- */

typedef int32_t bsfa_dtype;
enum { BSFA_FLOAT32 = 0, BSFA_FLOAT16 = 1, BSFA_BFLOAT16 = 2 };

typedef int32_t bsfa_device_type;
enum { BSFA_CPU = 0, BSFA_CUDA = 1 };

typedef int32_t bsfa_compute_type;
enum { BSFA_COMPUTE_NATIVE = 0, BSFA_COMPUTE_FLOAT32 = 1, BSFA_COMPUTE_BFLOAT16 = 2 };

typedef int32_t bsfa_policy;
enum {
  BSFA_DENSE = 0,
  BSFA_THRESHOLD = 1,
  BSFA_SLIDING_WINDOW = 2,
  BSFA_MASS = 3,
  BSFA_SKIP_SOFTMAX = 4
};

/* In which order BSFA_SKIP_SOFTMAX looks at blocks; see SkipOrder in attention.hpp. */
typedef int32_t bsfa_skip_order;
enum { BSFA_SKIP_ASCENDING = 0, BSFA_SKIP_OUTWARDS = 1 };

/* Strided views; strides count elements. The last axis of a tensor has stride 1. */
typedef struct bsfa_tensor {
  const void* data;
  bsfa_dtype dtype;
  int64_t shape[4];
  int64_t stride[4];
} bsfa_tensor;

typedef struct bsfa_output {
  void* data;
  bsfa_dtype dtype;
  int64_t shape[4];
  int64_t stride[4];
} bsfa_output;

/* Statistics of up to four axes; a null pointer: not asked for. */
typedef struct bsfa_f32_view {
  float* data;
  int64_t shape[4];
  int64_t stride[4];
} bsfa_f32_view;

typedef struct bsfa_const_f32_view {
  const float* data;
  int64_t shape[4];
  int64_t stride[4];
} bsfa_const_f32_view;

typedef struct bsfa_i64_view {
  int64_t* data;
  int64_t shape[4];
  int64_t stride[4];
} bsfa_i64_view;

typedef struct bsfa_u8_view {
  uint8_t* data;
  int64_t shape[4];
  int64_t stride[4];
} bsfa_u8_view;

/* The thresholds of one layer at one budget. */
typedef struct bsfa_threshold_view {
  const float* data; /* [num_heads, num_q_blocks] */
  int64_t num_heads;
  int64_t num_q_blocks;
  int64_t stride_head;
  int64_t stride_batch; /* 0: one table for all sequences */
  int64_t q_block;      /* the grid it was calibrated on */
  int64_t kv_block;
} bsfa_threshold_view;

/* ---- threads -------------------------------------------------------------------------------- */

typedef void (*bsfa_task)(void* context, int64_t task, int32_t worker);

/* A host's own threads. parallel_for calls task(context, t, worker) once for each t in
 * [0, num_tasks), in ascending order as workers become free, and returns when all have returned.
 * Two tasks that run at the same time have different workers, below max_workers (1 to 4096). */
typedef struct bsfa_executor {
  size_t struct_size;
  void* user;
  int32_t max_workers;
  void (*parallel_for)(void* user, int64_t num_tasks, bsfa_task task, void* context);
} bsfa_executor;

typedef struct bsfa_thread_pool bsfa_thread_pool;
/* num_threads: 1 to 4096. BSFA_RUNTIME if the system does not give so many. */
BSFA_API bsfa_status bsfa_thread_pool_create(int32_t num_threads, bsfa_thread_pool** pool);
BSFA_API void bsfa_thread_pool_free(bsfa_thread_pool* pool); /* null: nothing */

/* ---- attention ------------------------------------------------------------------------------ */

/* The key/value blocks that each query block visits; see BlockLists in attention.hpp. */
typedef struct bsfa_block_lists {
  const int32_t* indices; /* [num_indices] */
  int64_t num_indices;
  const int64_t* offsets; /* [batch * num_heads * q_blocks + 1], or */
  const int32_t* counts;  /* [batch, num_heads, q_blocks], with */
  int64_t stride;
  int64_t num_heads; /* of q or of k; 0: no lists */
  int64_t q_blocks;
} bsfa_block_lists;

typedef struct bsfa_attention_params {
  size_t struct_size;

  bsfa_tensor q;   /* [batch, seqlen_q, num_heads_q, head_dim] */
  bsfa_tensor k;   /* [batch, seqlen_k, num_heads_kv, head_dim] */
  bsfa_tensor v;   /* [batch, seqlen_k, num_heads_kv, head_dim_v] */
  bsfa_output out; /* [batch, seqlen_q, num_heads_q, head_dim_v], dtype of q */

  float softmax_scale;  /* 0: 1/sqrt(head_dim) */
  int32_t causal;       /* 0 or 1 */
  int32_t has_q_offset; /* 0: seqlen_k - seqlen_q if causal, else 0 */
  int64_t q_offset;
  int64_t kv_offset;
  int64_t window;     /* tokens; 0: none */
  float softcap;      /* 0: none */
  const float* sinks; /* [num_heads_q] */
  bsfa_policy policy;
  bsfa_threshold_view thresholds; /* BSFA_THRESHOLD */
  int64_t window_blocks;          /* BSFA_SLIDING_WINDOW */
  int64_t q_block;                /* 0: 128 */
  int64_t kv_block;               /* 0: 64 */
  bsfa_compute_type compute_type;

  /* Batches of different lengths; see attention.hpp. */
  const int32_t* cu_seqlens_q; /* [num_sequences + 1] */
  const int32_t* cu_seqlens_k;
  const int32_t* seqused_k; /* [batch] */
  const int32_t* leftpad_k;
  const int32_t* q_offsets;
  int64_t num_sequences;
  int64_t max_seqlen_q;
  int64_t max_seqlen_k;
  const int32_t* page_table; /* with seqused_k: k and v are [pages, page_size, heads, head_dim] */
  int64_t page_size;         /* tokens; a multiple of 16 */
  int64_t page_table_stride; /* 0: one row for all sequences */

  /* Results on request. */
  bsfa_f32_view lse;            /* [batch, num_heads_q, seqlen_q] */
  bsfa_i64_view kept_blocks;    /* [batch, num_heads_q] */
  bsfa_i64_view visible_blocks; /* [batch, num_heads_q] */
  bsfa_u8_view kept_mask;       /* [batch, num_heads_q, q blocks, kv blocks] */
  bsfa_f32_view block_max;      /* likewise */

  bsfa_device_type device;
  int32_t device_index;
  const char* backend;           /* null or "": the best that serves the call */
  void* stream;                  /* cudaStream_t */
  bsfa_thread_pool* thread_pool; /* CPU: this, */
  const bsfa_executor* executor; /* or this, or neither: the calling thread alone */
  void* workspace;               /* aligned to 256 bytes */
  size_t workspace_bytes;

  bsfa_block_lists lists;

  float mass_c;               /* BSFA_MASS; 0: 0.1 */
  float skip_lambda;          /* BSFA_SKIP_SOFTMAX: above 0, at most 1 */
  bsfa_skip_order skip_order; /* BSFA_SKIP_SOFTMAX */
} bsfa_attention_params;

typedef struct bsfa_attention_plan {
  size_t struct_size;
  size_t workspace_bytes;
  int64_t q_blocks; /* extent of kept_mask and block_max */
  int64_t kv_blocks;
  char backend[32]; /* "cpu", ...; names are cut to fit */
  char kernel[64];
  char compute[32];
} bsfa_attention_plan;

/* Whether the call is served, by what, and with how much workspace. Fills q_blocks and kv_blocks
 * even where it is not served, if the shapes are valid. */
BSFA_API bsfa_status bsfa_plan_attention(const bsfa_attention_params* params,
                                         bsfa_attention_plan* plan);
BSFA_API bsfa_status bsfa_attention_forward(const bsfa_attention_params* params);

/* The sampled selector, which makes lists for a call to come; see selection.hpp. */
typedef struct bsfa_select_blocks_params {
  size_t struct_size;
  /* q, k, who sees what and where it runs, with its workspace; the rest is not looked at. */
  const bsfa_attention_params* call;
  int64_t rows;           /* 8, 16, 32 or 64; 0: 32 */
  float coverage;         /* above 0, up to 1; 0: 0.98 */
  float floor;            /* above 0, up to 1; 0: 0.003 */
  int64_t sink_blocks;    /* 0: 1; -1: none */
  int64_t local_blocks;   /* 0: 2; -1: none */
  int32_t previous;       /* 0 or 1 */
  float max_left_out;     /* above 0, up to 1; 0: no bound */
  int32_t* indices;       /* [batch, num_heads_q, q_blocks, stride] */
  int32_t* counts;        /* [batch, num_heads_q, q_blocks] */
  int64_t stride;         /* kv_blocks of the plan, or a budget */
  bsfa_f32_view left_out; /* [batch, num_heads_q, q_blocks] */
} bsfa_select_blocks_params;

typedef struct bsfa_selection_plan {
  size_t struct_size;
  size_t workspace_bytes;
  int64_t q_blocks;
  int64_t kv_blocks;
  char backend[32]; /* names are cut to fit */
  char kernel[64];
} bsfa_selection_plan;

/* As bsfa_plan_attention. */
BSFA_API bsfa_status bsfa_plan_selection(const bsfa_select_blocks_params* params,
                                         bsfa_selection_plan* plan);
BSFA_API bsfa_status bsfa_select_blocks(const bsfa_select_blocks_params* params);

/* A call that is planned once and run many times: PreparedAttention of attention.hpp, which says
 * what may differ between runs (pointers, stream, threads, workspace) and what is checked. Several
 * threads may run one at a time. */
typedef struct bsfa_prepared_attention bsfa_prepared_attention;
BSFA_API bsfa_status bsfa_prepared_attention_create(const bsfa_attention_params* params,
                                                    bsfa_prepared_attention** prepared);
BSFA_API void bsfa_prepared_attention_free(bsfa_prepared_attention* prepared); /* null: nothing */
BSFA_API bsfa_status bsfa_prepared_attention_get_plan(const bsfa_prepared_attention* prepared,
                                                      bsfa_attention_plan* plan);
/* serves: 1 if run(params) would be the call that was prepared, else 0. */
BSFA_API bsfa_status bsfa_prepared_attention_serves(const bsfa_prepared_attention* prepared,
                                                    const bsfa_attention_params* params,
                                                    int32_t* serves);
/* params: null for those that it was prepared with, whose thread pool must still be there. */
BSFA_API bsfa_status bsfa_prepared_attention_run(const bsfa_prepared_attention* prepared,
                                                 const bsfa_attention_params* params);

/* ---- backends ------------------------------------------------------------------------------- */

typedef struct bsfa_backend_info {
  size_t struct_size;
  bsfa_device_type device;
  int32_t available; /* on this machine */
  char name[32];
  char description[256];
} bsfa_backend_info;

BSFA_API int32_t bsfa_num_backends(void);
BSFA_API bsfa_status bsfa_get_backend(int32_t index, bsfa_backend_info* info);

/* ---- thresholds ----------------------------------------------------------------------------- */

typedef struct bsfa_thresholds bsfa_thresholds;

/* What a table holds, or is made of. Pointers that the library fills in are valid as long as the
 * table and until the next change of it. */
typedef struct bsfa_thresholds_info {
  size_t struct_size;
  const int64_t* budgets; /* [num_budgets] ascending */
  int64_t num_budgets;
  int64_t num_layers;
  int64_t num_heads_q;
  int64_t num_q_blocks;
  int64_t q_block;  /* 0: 128 */
  int64_t kv_block; /* 0: 64 */
  float softmax_scale;
  int64_t max_seqlen;
  int64_t num_samples;
  int64_t recommended_budget; /* 0: none */
  const char* model;
  const char* producer;
  const float* values;     /* [num_budgets, num_layers, num_heads_q, num_q_blocks] */
  const char* fingerprint; /* of the weights (bsfa_weight_fingerprint); "" or null: not known */
} bsfa_thresholds_info;

BSFA_API bsfa_status bsfa_thresholds_load(const char* path, bsfa_thresholds** thresholds);
BSFA_API bsfa_status bsfa_thresholds_create(const bsfa_thresholds_info* info,
                                            bsfa_thresholds** thresholds);
BSFA_API bsfa_status bsfa_thresholds_save(const bsfa_thresholds* thresholds, const char* path);
BSFA_API void bsfa_thresholds_free(bsfa_thresholds* thresholds); /* null: nothing */
BSFA_API bsfa_status bsfa_thresholds_get_info(const bsfa_thresholds* thresholds,
                                              bsfa_thresholds_info* info);
/* For bsfa_attention_params::thresholds on the CPU, or to be copied to a device. */
BSFA_API bsfa_status bsfa_thresholds_view(const bsfa_thresholds* thresholds, int64_t budget,
                                          int64_t layer, bsfa_threshold_view* view);
BSFA_API bsfa_status bsfa_thresholds_set_recommended_budget(bsfa_thresholds* thresholds,
                                                            int64_t budget); /* 0: none */
/* `what` names the model in the message. */
BSFA_API bsfa_status bsfa_thresholds_check_model(const bsfa_thresholds* thresholds,
                                                 const char* what, int64_t num_layers,
                                                 int64_t num_heads_q, float softmax_scale);
/* What speaks against these being the thresholds of this model, as a sentence for a warning of at
 * most `size` bytes, always terminated; "" if nothing does. Null or "": not known. */
BSFA_API bsfa_status bsfa_thresholds_other_model(const bsfa_thresholds* thresholds,
                                                 const char* name, const char* fingerprint,
                                                 char* warning, size_t size);

/* What a fingerprint sees of one tensor. */
typedef struct bsfa_weight_sample {
  const char* name;
  const int64_t* shape; /* [num_axes] */
  int64_t num_axes;
  const void* bytes; /* some of its values */
  size_t num_bytes;
} bsfa_weight_sample;

/* "<source>:<32 hexadecimal digits>" of the weights of a model, in any order of the tensors;
 * `source` names the kind of model source. fingerprint: at least 64 bytes. */
BSFA_API bsfa_status bsfa_weight_fingerprint(const char* source, const bsfa_weight_sample* tensors,
                                             size_t num_tensors, char* fingerprint, size_t size);
BSFA_API bsfa_status bsfa_predicted_density(int64_t budget, int64_t seqlen, int64_t q_block,
                                            int64_t kv_block, double* density);

/* ---- calibration ---------------------------------------------------------------------------- */

typedef struct bsfa_select_thresholds_params {
  size_t struct_size;
  bsfa_const_f32_view block_max; /* [num_heads_q, q blocks, kv blocks] */
  int64_t first_q_block;
  int64_t first_kv_block;
  int64_t q_block;        /* 0: 128 */
  int64_t kv_block;       /* 0: 64 */
  const int64_t* budgets; /* [num_budgets] */
  int64_t num_budgets;
  bsfa_f32_view thresholds; /* [num_budgets, num_heads_q, q blocks] */
  bsfa_device_type device;
  int32_t device_index;
  const char* backend;
  void* stream;
  bsfa_thread_pool* thread_pool;
  const bsfa_executor* executor;
} bsfa_select_thresholds_params;

BSFA_API bsfa_status bsfa_select_thresholds(const bsfa_select_thresholds_params* params);

typedef struct bsfa_calibration bsfa_calibration;

typedef struct bsfa_calibration_config {
  size_t struct_size;
  const int64_t* budgets; /* [num_budgets] ascending */
  int64_t num_budgets;
  int64_t num_layers;
  int64_t num_heads_q;
  int64_t q_block;  /* 0: 128 */
  int64_t kv_block; /* 0: 64 */
  float softmax_scale;
  int64_t recommended_budget; /* 0: none */
  const char* model;
  const char* producer;    /* null or "": this library */
  const char* fingerprint; /* of the weights; null or "": not known */
} bsfa_calibration_config;

BSFA_API bsfa_status bsfa_calibration_create(const bsfa_calibration_config* config,
                                             bsfa_calibration** calibration);
BSFA_API bsfa_status bsfa_calibration_load(const char* path, bsfa_calibration** calibration);
BSFA_API bsfa_status bsfa_calibration_save(const bsfa_calibration* calibration, const char* path);
BSFA_API void bsfa_calibration_free(bsfa_calibration* calibration); /* null: nothing */
BSFA_API bsfa_status bsfa_calibration_begin_sample(bsfa_calibration* calibration, const char* name,
                                                   int64_t num_tokens);
/* What this and end_sample refuse drops the whole sample. thresholds: [num_budgets, num_heads_q,
 * q blocks] in host memory. */
BSFA_API bsfa_status bsfa_calibration_add(bsfa_calibration* calibration, int64_t layer,
                                          int64_t q_offset, int64_t seqlen_q,
                                          const bsfa_const_f32_view* thresholds);
BSFA_API bsfa_status bsfa_calibration_end_sample(bsfa_calibration* calibration);
BSFA_API bsfa_status bsfa_calibration_drop_sample(bsfa_calibration* calibration);
/* Refuses samples that are in `calibration` already, and weights whose fingerprints differ. */
BSFA_API bsfa_status bsfa_calibration_merge(bsfa_calibration* calibration,
                                            const bsfa_calibration* other);
BSFA_API bsfa_status bsfa_calibration_num_samples(const bsfa_calibration* calibration,
                                                  int64_t* num_samples);
BSFA_API bsfa_status bsfa_calibration_finish(const bsfa_calibration* calibration,
                                             bsfa_thresholds** thresholds);

/* Partial calibrations that are added, and the file that comes of it. */
typedef struct bsfa_merge_files_params {
  size_t struct_size;
  const char* const* parts; /* [num_parts] files of bsfa_calibration_save */
  int64_t num_parts;
  const char* out;
  int32_t partial;            /* 1: sums again, not thresholds */
  int32_t allow_other_model;  /* 1: fingerprints may differ */
  int64_t recommended_budget; /* of thresholds; 0: as the parts have it */
  const char* model;          /* its name in the new file; null or "": as the parts agree */
} bsfa_merge_files_params;

/* Nothing is written if a part is given twice under whatever name, if parts do not fit together, or
 * if the thresholds would replace one of them. */
BSFA_API bsfa_status bsfa_merge_files(const bsfa_merge_files_params* params);

#ifdef __cplusplus
}
#endif

#endif /* BSFA_C_H_ */
