#include <utility>
#include <vector>

#include "api/c_abi.hpp"
#include "bsfa/fingerprint.hpp"
#include "bsfa/limits.hpp"
#include "bsfa/text.hpp"
#include "core/memory.hpp"

namespace {

using namespace bsfa;         // the entry points are in the global namespace, as C wants them
using namespace bsfa::c_abi;  // NOLINT

constexpr std::size_t kInfoV1 = BSFA_FIRST_VERSION(bsfa_thresholds_info, values);
constexpr std::size_t kSelectV1 = BSFA_FIRST_VERSION(bsfa_select_thresholds_params, executor);
constexpr std::size_t kConfigV1 = BSFA_FIRST_VERSION(bsfa_calibration_config, producer);
constexpr std::size_t kMergeV1 = BSFA_FIRST_VERSION(bsfa_merge_files_params, model);

// Text that has to arrive as a whole.
void write_text(const char* name, const std::string& text, char* to, std::size_t size) {
  required(name, to);
  if (text.size() >= size) {
    throw Error(invalid_argument("size is ", size, "; ", name, " needs ", text.size() + 1));
  }
  std::memcpy(to, text.c_str(), text.size() + 1);
}

void throw_if_error(const Status& status) {
  if (!status.ok()) throw Error(status);
}

// Where info and config agree.
template <typename Given>
ThresholdMetadata metadata_of(const Given& from) {
  ThresholdMetadata metadata;
  if (from.num_budgets < 0 || from.num_budgets > kMaxBudgets) {
    throw Error(
        invalid_argument("num_budgets is ", from.num_budgets, "; accepted: 1 to ", kMaxBudgets));
  }
  if (from.num_budgets > 0) {
    required("budgets", from.budgets);
    throw_if_error(check_view(memory_of("budgets", from.budgets, from.num_budgets)));
    metadata.budgets.assign(from.budgets, from.budgets + from.num_budgets);
  }
  metadata.block = block_shape(from.q_block, from.kv_block);
  metadata.softmax_scale = from.softmax_scale;
  metadata.model = text_of(from.model);
  metadata.producer = text_of(from.producer);
  metadata.fingerprint = text_of(from.fingerprint);
  if (from.recommended_budget != 0) metadata.recommended_budget = from.recommended_budget;
  return metadata;
}

std::vector<float> values_of(const bsfa_thresholds_info& info) {
  std::int64_t count = 1;
  for (const std::int64_t extent :
       {info.num_budgets, info.num_layers, info.num_heads_q, info.num_q_blocks}) {
    if (extent < 1 || __builtin_mul_overflow(count, extent, &count)) {
      throw Error(invalid_argument(
          "num_budgets, num_layers, num_heads_q, num_q_blocks are ", info.num_budgets, ", ",
          info.num_layers, ", ", info.num_heads_q, ", ", info.num_q_blocks,
          "; accepted: 1 or more, and no more together than memory holds"));
    }
  }
  required("values", info.values);
  throw_if_error(check_view(memory_of("values", info.values, count)));
  return {info.values, info.values + count};
}

}  // namespace

bsfa_status bsfa_thresholds_load(const char* path, bsfa_thresholds** thresholds) {
  return guarded([&] {
    required("thresholds", thresholds);
    *thresholds = new bsfa_thresholds{ThresholdTable::load(required("path", path))};
  });
}

bsfa_status bsfa_thresholds_create(const bsfa_thresholds_info* info, bsfa_thresholds** thresholds) {
  return guarded([&] {
    required("thresholds", thresholds);
    const bsfa_thresholds_info known = read_struct("info", info, kInfoV1);
    ThresholdMetadata metadata = metadata_of(known);
    metadata.max_seqlen = known.max_seqlen;
    metadata.num_samples = known.num_samples;
    *thresholds =
        new bsfa_thresholds{ThresholdTable(std::move(metadata), known.num_layers, known.num_heads_q,
                                           known.num_q_blocks, values_of(known))};
  });
}

bsfa_status bsfa_thresholds_save(const bsfa_thresholds* thresholds, const char* path) {
  return guarded([&] { required("thresholds", thresholds)->table.save(required("path", path)); });
}

void bsfa_thresholds_free(bsfa_thresholds* thresholds) { delete thresholds; }

bsfa_status bsfa_thresholds_get_info(const bsfa_thresholds* thresholds,
                                     bsfa_thresholds_info* info) {
  return guarded([&] {
    const ThresholdTable& table = required("thresholds", thresholds)->table;
    const ThresholdMetadata& metadata = table.metadata();
    bsfa_thresholds_info result{};
    result.budgets = metadata.budgets.data();
    result.num_budgets = static_cast<std::int64_t>(metadata.budgets.size());
    result.num_layers = table.num_layers();
    result.num_heads_q = table.num_heads_q();
    result.num_q_blocks = table.num_q_blocks();
    result.q_block = metadata.block.q;
    result.kv_block = metadata.block.kv;
    result.softmax_scale = metadata.softmax_scale;
    result.max_seqlen = metadata.max_seqlen;
    result.num_samples = metadata.num_samples;
    result.recommended_budget = metadata.recommended_budget.value_or(0);
    result.model = metadata.model.c_str();
    result.producer = metadata.producer.c_str();
    result.values = table.values().data();
    result.fingerprint = metadata.fingerprint.c_str();
    write_struct("info", result, info, kInfoV1);
  });
}

bsfa_status bsfa_thresholds_view(const bsfa_thresholds* thresholds, int64_t budget, int64_t layer,
                                 bsfa_threshold_view* view) {
  return guarded([&] {
    required("view", view);
    const ThresholdView found = required("thresholds", thresholds)->table.view(budget, layer);
    *view = {found.data,         found.num_heads, found.num_q_blocks, found.stride_head,
             found.stride_batch, found.block.q,   found.block.kv};
  });
}

bsfa_status bsfa_thresholds_set_recommended_budget(bsfa_thresholds* thresholds, int64_t budget) {
  return guarded([&] {
    required("thresholds", thresholds)
        ->table.set_recommended_budget(budget != 0 ? std::optional(budget) : std::nullopt);
  });
}

bsfa_status bsfa_thresholds_check_model(const bsfa_thresholds* thresholds, const char* what,
                                        int64_t num_layers, int64_t num_heads_q,
                                        float softmax_scale) {
  return guarded([&] {
    required("thresholds", thresholds)
        ->table.check_model(required("what", what), num_layers, num_heads_q, softmax_scale);
  });
}

bsfa_status bsfa_thresholds_other_model(const bsfa_thresholds* thresholds, const char* name,
                                        const char* fingerprint, char* warning, size_t size) {
  return guarded([&] {
    if (required("warning", warning) != nullptr && size == 0) {
      throw Error(invalid_argument("size is 0; expected room for a warning"));
    }
    const std::string text =
        required("thresholds", thresholds)->table.other_model(text_of(name), text_of(fingerprint));
    write_text("warning", printable(text, size - 1), warning, size);
  });
}

bsfa_status bsfa_weight_fingerprint(const char* source, const bsfa_weight_sample* tensors,
                                    size_t num_tensors, char* fingerprint, size_t size) {
  return guarded([&] {
    required("source", source);
    required("fingerprint", fingerprint);
    if (num_tensors > 0) required("tensors", tensors);
    std::vector<WeightSample> samples;
    for (size_t n = 0; n < num_tensors; ++n) {
      const bsfa_weight_sample& from = tensors[n];
      WeightSample& sample = samples.emplace_back();
      sample.name = required("name", from.name);
      if (from.num_axes < 0) {
        throw Error(invalid_argument("num_axes is ", from.num_axes, "; accepted: 0 or more"));
      }
      if (from.num_axes > 0) {
        sample.shape.assign(required("shape", from.shape), from.shape + from.num_axes);
      }
      if (from.num_bytes > 0) {
        sample.bytes.assign(static_cast<const char*>(required("bytes", from.bytes)),
                            from.num_bytes);
      }
    }
    write_text("fingerprint", weight_fingerprint(source, std::move(samples)), fingerprint, size);
  });
}

bsfa_status bsfa_predicted_density(int64_t budget, int64_t seqlen, int64_t q_block,
                                   int64_t kv_block, double* density) {
  return guarded([&] {
    *required("density", density) =
        predicted_density(budget, seqlen, block_shape(q_block, kv_block));
  });
}

bsfa_status bsfa_select_thresholds(const bsfa_select_thresholds_params* given) {
  return guarded([&] {
    const bsfa_select_thresholds_params known = read_struct("params", given, kSelectV1);
    const CallerThreads threads(known.thread_pool, known.executor);
    SelectThresholdsParams params;
    params.block_max = strided_view<const float, 3>(known.block_max);
    params.first_q_block = known.first_q_block;
    params.first_kv_block = known.first_kv_block;
    params.block = block_shape(known.q_block, known.kv_block);
    params.budgets = known.budgets;
    params.num_budgets = known.num_budgets;
    params.thresholds = strided_view<float, 3>(known.thresholds);
    params.device = {static_cast<DeviceType>(known.device), known.device_index};
    params.backend = text_of(known.backend);
    params.stream = known.stream;
    params.executor = threads.get();
    select_thresholds(params);
  });
}

bsfa_status bsfa_calibration_create(const bsfa_calibration_config* config,
                                    bsfa_calibration** calibration) {
  return guarded([&] {
    required("calibration", calibration);
    const bsfa_calibration_config known = read_struct("config", config, kConfigV1);
    *calibration =
        new bsfa_calibration{Calibration(metadata_of(known), known.num_layers, known.num_heads_q)};
  });
}

bsfa_status bsfa_calibration_load(const char* path, bsfa_calibration** calibration) {
  return guarded([&] {
    required("calibration", calibration);
    *calibration = new bsfa_calibration{Calibration::load(required("path", path))};
  });
}

bsfa_status bsfa_calibration_save(const bsfa_calibration* calibration, const char* path) {
  return guarded(
      [&] { required("calibration", calibration)->calibration.save(required("path", path)); });
}

void bsfa_calibration_free(bsfa_calibration* calibration) { delete calibration; }

bsfa_status bsfa_calibration_begin_sample(bsfa_calibration* calibration, const char* name,
                                          int64_t num_tokens) {
  return guarded([&] {
    required("calibration", calibration)
        ->calibration.begin_sample(required("name", name), num_tokens);
  });
}

bsfa_status bsfa_calibration_add(bsfa_calibration* calibration, int64_t layer, int64_t q_offset,
                                 int64_t seqlen_q, const bsfa_const_f32_view* thresholds) {
  return guarded([&] {
    required("calibration", calibration)
        ->calibration.add(layer, q_offset, seqlen_q,
                          strided_view<const float, 3>(*required("thresholds", thresholds)));
  });
}

bsfa_status bsfa_calibration_end_sample(bsfa_calibration* calibration) {
  return guarded([&] { required("calibration", calibration)->calibration.end_sample(); });
}

bsfa_status bsfa_calibration_drop_sample(bsfa_calibration* calibration) {
  return guarded([&] { required("calibration", calibration)->calibration.drop_sample(); });
}

bsfa_status bsfa_calibration_merge(bsfa_calibration* calibration, const bsfa_calibration* other) {
  return guarded([&] {
    required("calibration", calibration)->calibration.merge(required("other", other)->calibration);
  });
}

bsfa_status bsfa_calibration_num_samples(const bsfa_calibration* calibration,
                                         int64_t* num_samples) {
  return guarded([&] {
    *required("num_samples", num_samples) =
        required("calibration", calibration)->calibration.num_samples();
  });
}

bsfa_status bsfa_calibration_finish(const bsfa_calibration* calibration,
                                    bsfa_thresholds** thresholds) {
  return guarded([&] {
    required("thresholds", thresholds);
    *thresholds = new bsfa_thresholds{required("calibration", calibration)->calibration.finish()};
  });
}

bsfa_status bsfa_merge_files(const bsfa_merge_files_params* given) {
  return guarded([&] {
    const bsfa_merge_files_params known = read_struct("params", given, kMergeV1);
    MergeFilesParams params;
    for (std::int64_t n = 0; n < known.num_parts; ++n) {
      params.parts.emplace_back(required("parts", required("parts", known.parts)[n]));
    }
    params.out = required("out", known.out);
    params.partial = known.partial != 0;
    params.model = text_of(known.model);
    if (known.recommended_budget != 0) params.recommended_budget = known.recommended_budget;
    params.allow_other_model = known.allow_other_model != 0;
    merge_files(params);
  });
}
