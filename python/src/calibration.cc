#include <bsfa/calibration.hpp>

#include "binding.hpp"

namespace bsfa::python {
namespace {

using Pair = std::pair<std::int64_t, std::int64_t>;

void select(nb::object block_max, nb::object thresholds, const std::vector<Integer>& budget_list,
            std::int64_t first_q_block, std::int64_t first_kv_block, Pair block,
            const std::string& backend, std::uintptr_t stream,
            const std::optional<Integer>& num_threads) {
  Borrow borrow;
  SelectThresholdsParams params;
  params.block_max = borrow.view<const float, 3>("block_max", block_max);
  params.thresholds = borrow.view<float, 3>("thresholds", thresholds);
  params.first_q_block = first_q_block;
  params.first_kv_block = first_kv_block;
  params.block = block_from(block);
  const std::vector<std::int64_t> budgets = get("budgets", budget_list);
  params.budgets = budgets.data();
  params.num_budgets = static_cast<std::int64_t>(budgets.size());
  params.device = borrow.device();
  params.backend = backend;
  params.stream = reinterpret_cast<void*>(stream);
  std::shared_ptr<Executor> executor;
  if (params.device.type == DeviceType::kCpu) {
    executor = shared_executor(get("num_threads", num_threads));
    params.executor = executor.get();
  }
  const nb::gil_scoped_release released;
  select_thresholds(params);
}

}  // namespace

void bind_calibration(nb::module_& module) {
  module.def("select_thresholds", &select, "block_max"_a, "thresholds"_a, nb::kw_only(),
             "budgets"_a, "first_q_block"_a = 0, "first_kv_block"_a = 0, "block"_a = Pair(128, 64),
             "backend"_a = "", "stream"_a = 0, "num_threads"_a = nb::none(),
             "From block maxima, float32 [num_heads_q, q blocks, kv blocks], to the threshold of\n"
             "each budget, written into `thresholds` [num_budgets, num_heads_q, q blocks].");

  nb::class_<Calibration>(module, "Calibration",
                          "The running result of a calibration: mergeable, and a file.")
      .def(
          "__init__",
          [](Calibration* self, const std::vector<Integer>& budgets, float softmax_scale,
             const std::string& model, std::int64_t num_layers, std::int64_t num_heads_q,
             Pair block, const std::string& producer,
             const std::optional<Integer>& recommended_budget, const std::string& fingerprint) {
            ThresholdMetadata metadata;
            metadata.budgets = get("budgets", budgets);
            metadata.block = block_from(block);
            metadata.softmax_scale = softmax_scale;
            metadata.model = model;
            metadata.producer = producer;
            metadata.recommended_budget = get("recommended_budget", recommended_budget);
            metadata.fingerprint = fingerprint;
            new (self) Calibration(std::move(metadata), num_layers, num_heads_q);
          },
          nb::kw_only(), "budgets"_a, "softmax_scale"_a, "model"_a, "num_layers"_a, "num_heads_q"_a,
          "block"_a = Pair(128, 64), "producer"_a = "", "recommended_budget"_a = nb::none(),
          "fingerprint"_a = "")
      .def("begin_sample", &Calibration::begin_sample, "name"_a, "num_tokens"_a)
      .def(
          "add",
          [](Calibration& self, std::int64_t layer, std::int64_t q_offset, std::int64_t seqlen_q,
             nb::object thresholds) {
            Borrow borrow;
            const auto view = borrow.view<const float, 3>("thresholds", thresholds);
            if (borrow.device().type != DeviceType::kCpu) {
              refuse("thresholds is on a GPU; expected cpu");
            }
            self.add(layer, q_offset, seqlen_q, view);
          },
          "layer"_a, "q_offset"_a, "seqlen_q"_a, "thresholds"_a,
          "thresholds: float32 [num_budgets, num_heads_q, q blocks] of rows [q_offset,\n"
          "q_offset + seqlen_q) of one layer, from select_thresholds.")
      .def("end_sample", &Calibration::end_sample)
      .def("drop_sample", &Calibration::drop_sample)
      .def("merge", &Calibration::merge, "other"_a, nb::kw_only(), "allow_other_model"_a = false,
           "Adds the samples of another calibration of the same model, budgets and grid. Refuses\n"
           "samples that are in here already, and weights whose fingerprints differ.")
      .def("finish", &Calibration::finish, "The table: the mean over the samples.")
      .def(
          "save", [](const Calibration& c, const FileName& path) { c.save(path.get("path")); },
          "path"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_static(
          "load", [](const FileName& path) { return Calibration::load(path.get("path")); },
          "path"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("set_model", &Calibration::set_model, "model"_a)
      .def_prop_ro("num_samples", &Calibration::num_samples)
      .def_prop_ro("num_layers", &Calibration::num_layers)
      .def_prop_ro("num_heads_q", &Calibration::num_heads_q)
      .def_prop_ro("num_q_blocks", &Calibration::num_q_blocks)
      .def_prop_ro("budgets", [](const Calibration& c) { return c.metadata().budgets; })
      .def_prop_ro("model", [](const Calibration& c) { return c.metadata().model; })
      .def_prop_ro("fingerprint", [](const Calibration& c) { return c.metadata().fingerprint; })
      .def_prop_ro("max_seqlen", [](const Calibration& c) { return c.metadata().max_seqlen; })
      .def_prop_ro("softmax_scale",
                   [](const Calibration& c) { return c.metadata().softmax_scale; });

  module.def(
      "merge_files",
      [](const std::vector<FileName>& parts, const FileName& out, bool partial,
         const std::string& model, const std::optional<Integer>& recommended_budget,
         bool allow_other_model) {
        std::vector<std::string> names;
        for (const FileName& part : parts) names.push_back(part.get("parts"));
        return merge_files({std::move(names), out.get("out"), partial, model,
                            get("recommended_budget", recommended_budget), allow_other_model});
      },
      "parts"_a, "out"_a, nb::kw_only(), "partial"_a = false, "model"_a = "",
      "recommended_budget"_a = nb::none(), "allow_other_model"_a = false,
      nb::call_guard<nb::gil_scoped_release>(),
      "Adds partial calibrations and writes thresholds, or with `partial` sums again. Nothing is\n"
      "written if a part is given twice under whatever name, if parts do not fit together, or if\n"
      "thresholds would replace one of them.");
}

}  // namespace bsfa::python
