/* The same from C, with threads of the program's own (one, here). */
#include <bsfa/bsfa_c.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kTokens = 700, kHeads = 2, kDim = 16 };

static int calls_of_parallel_for = 0;

static void parallel_for(void* user, int64_t num_tasks, bsfa_task task, void* context) {
  int64_t t;
  *(int*)user += 1;
  for (t = 0; t < num_tasks; ++t) task(context, t, 0);
}

static int check(bsfa_status status, const char* what) {
  if (status == BSFA_OK) return 1;
  fprintf(stderr, "%s: %d: %s\n", what, (int)status, bsfa_last_error());
  return 0;
}

static float* noise(size_t count, uint32_t seed) {
  size_t n;
  float* values = malloc(count * sizeof(float));
  if (values == NULL) abort();
  for (n = 0; n < count; ++n) {
    seed = seed * 1664525u + 1013904223u;
    values[n] = (float)(seed >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

static void set_tensor(int64_t* shape, int64_t* stride, int64_t heads) {
  shape[0] = 1;
  shape[1] = kTokens;
  shape[2] = heads;
  shape[3] = kDim;
  stride[0] = kTokens * heads * kDim;
  stride[1] = heads * kDim;
  stride[2] = kDim;
  stride[3] = 1;
}

static bsfa_f32_view view3(float* data, int64_t a, int64_t b, int64_t c) {
  bsfa_f32_view view;
  memset(&view, 0, sizeof(view));
  view.data = data;
  view.shape[0] = a;
  view.shape[1] = b;
  view.shape[2] = c;
  view.stride[0] = b * c;
  view.stride[1] = c;
  view.stride[2] = 1;
  return view;
}

/* Runs the call with a workspace of the size that it needs. */
static int forward(bsfa_attention_params* params, bsfa_attention_plan* plan) {
  void* raw;
  int ok;
  memset(plan, 0, sizeof(*plan));
  plan->struct_size = sizeof(*plan);
  if (!check(bsfa_plan_attention(params, plan), "plan")) return 0;
  raw = malloc(plan->workspace_bytes + 256);
  if (raw == NULL) abort();
  params->workspace = (void*)(((uintptr_t)raw + 255) / 256 * 256);
  params->workspace_bytes = plan->workspace_bytes;
  ok = check(bsfa_attention_forward(params), "forward");
  free(raw);
  return ok;
}

int main(int argc, char** argv) {
  const int64_t budget = 2;
  const float scale = 0.25f; /* 1/sqrt(16) */
  int64_t kept[kHeads], visible[kHeads], samples = 0, blocks, columns;
  double predicted = 0;
  float *q, *k, *v, *out, *maxima, *selected;
  int head;
  bsfa_executor executor;
  bsfa_attention_params params;
  bsfa_attention_plan plan;
  bsfa_select_thresholds_params select;
  bsfa_calibration_config config;
  bsfa_calibration* calibration = NULL;
  bsfa_thresholds* thresholds = NULL;
  bsfa_thresholds_info info;
  bsfa_const_f32_view chosen;
  bsfa_f32_view chosen_view;

  if (argc != 2) return 2;
  q = noise((size_t)kTokens * kHeads * kDim, 1);
  k = noise((size_t)kTokens * kDim, 2);
  v = noise((size_t)kTokens * kDim, 3);
  out = noise((size_t)kTokens * kHeads * kDim, 4);

  memset(&executor, 0, sizeof(executor));
  executor.struct_size = sizeof(executor);
  executor.user = &calls_of_parallel_for;
  executor.max_workers = 1;
  executor.parallel_for = parallel_for;

  memset(&params, 0, sizeof(params));
  params.struct_size = sizeof(params);
  params.q.data = q;
  params.k.data = k;
  params.v.data = v;
  params.out.data = out;
  set_tensor(params.q.shape, params.q.stride, kHeads);
  set_tensor(params.k.shape, params.k.stride, 1);
  set_tensor(params.v.shape, params.v.stride, 1);
  set_tensor(params.out.shape, params.out.stride, kHeads);
  params.causal = 1;
  params.executor = &executor;

  /* Calibration. */
  memset(&plan, 0, sizeof(plan));
  plan.struct_size = sizeof(plan);
  if (!check(bsfa_plan_attention(&params, &plan), "plan")) return 1;
  blocks = plan.q_blocks;
  columns = plan.kv_blocks;
  maxima = noise((size_t)(kHeads * blocks * columns), 5);
  selected = noise((size_t)(kHeads * blocks), 6);
  params.block_max.data = maxima;
  params.block_max.shape[0] = 1;
  params.block_max.shape[1] = kHeads;
  params.block_max.shape[2] = blocks;
  params.block_max.shape[3] = columns;
  params.block_max.stride[0] = kHeads * blocks * columns;
  params.block_max.stride[1] = blocks * columns;
  params.block_max.stride[2] = columns;
  params.block_max.stride[3] = 1;
  if (!forward(&params, &plan)) return 1;

  memset(&select, 0, sizeof(select));
  select.struct_size = sizeof(select);
  chosen_view = view3(maxima, kHeads, blocks, columns);
  memcpy(&select.block_max, &chosen_view, sizeof(select.block_max));
  select.budgets = &budget;
  select.num_budgets = 1;
  select.thresholds = view3(selected, 1, kHeads, blocks);
  select.executor = &executor;
  if (!check(bsfa_select_thresholds(&select), "select")) return 1;

  memset(&config, 0, sizeof(config));
  config.struct_size = sizeof(config);
  config.budgets = &budget;
  config.num_budgets = 1;
  config.num_layers = 1;
  config.num_heads_q = kHeads;
  config.softmax_scale = scale;
  config.recommended_budget = budget;
  config.model = "noise";
  if (!check(bsfa_calibration_create(&config, &calibration), "create")) return 1;
  if (!check(bsfa_calibration_begin_sample(calibration, "s", kTokens), "begin")) return 1;
  memcpy(&chosen, &select.thresholds, sizeof(chosen));
  if (!check(bsfa_calibration_add(calibration, 0, 0, kTokens, &chosen), "add")) return 1;
  if (!check(bsfa_calibration_end_sample(calibration), "end")) return 1;
  if (!check(bsfa_calibration_num_samples(calibration, &samples), "samples")) return 1;
  if (samples != 1) return 1;
  if (!check(bsfa_calibration_finish(calibration, &thresholds), "finish")) return 1;
  bsfa_calibration_free(calibration);
  if (!check(bsfa_thresholds_save(thresholds, argv[1]), "save")) return 1;
  bsfa_thresholds_free(thresholds);

  /* Use. */
  if (!check(bsfa_thresholds_load(argv[1], &thresholds), "load")) return 1;
  memset(&info, 0, sizeof(info));
  info.struct_size = sizeof(info);
  if (!check(bsfa_thresholds_get_info(thresholds, &info), "info")) return 1;
  if (info.num_q_blocks != blocks || info.recommended_budget != budget) return 1;
  if (!check(bsfa_thresholds_check_model(thresholds, "noise", 1, kHeads, scale), "model")) return 1;
  memset(&params.block_max, 0, sizeof(params.block_max));
  params.policy = BSFA_THRESHOLD;
  if (!check(bsfa_thresholds_view(thresholds, budget, 0, &params.thresholds), "view")) return 1;
  params.kept_blocks.data = kept;
  params.visible_blocks.data = visible;
  params.kept_blocks.shape[0] = params.visible_blocks.shape[0] = 1;
  params.kept_blocks.shape[1] = params.visible_blocks.shape[1] = kHeads;
  params.kept_blocks.stride[0] = params.visible_blocks.stride[0] = kHeads;
  params.kept_blocks.stride[1] = params.visible_blocks.stride[1] = 1;
  if (!forward(&params, &plan)) return 1;
  if (!check(bsfa_predicted_density(budget, kTokens, 0, 0, &predicted), "density")) return 1;
  for (head = 0; head < kHeads; ++head) {
    const double density = (double)kept[head] / (double)visible[head];
    printf("head %d: density %.3f, predicted %.3f\n", head, density, predicted);
    if (fabs(density - predicted) > 1e-9) return 1;
  }
  if (calls_of_parallel_for == 0) return 1;

  params.backend = "no such backend";
  if (bsfa_attention_forward(&params) != BSFA_INVALID_ARGUMENT) return 1;
  if (strstr(bsfa_last_error(), "no such backend") == NULL) return 1;
  printf("bsfa %s, %d backends: %s\n", bsfa_version(), (int)bsfa_num_backends(), plan.backend);
  bsfa_thresholds_free(thresholds);
  free(q);
  free(k);
  free(v);
  free(out);
  free(maxima);
  free(selected);
  return 0;
}
