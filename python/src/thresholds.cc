#include <bsfa/thresholds.hpp>

#include "binding.hpp"

namespace bsfa::python {
namespace {

using Pair = std::pair<std::int64_t, std::int64_t>;

std::vector<float> copy_values(const StridedView<const float, 4>& view) {
  std::vector<float> values;
  values.reserve(
      static_cast<std::size_t>(view.shape[0] * view.shape[1] * view.shape[2] * view.shape[3]));
  for (std::int64_t a = 0; a < view.shape[0]; ++a) {
    for (std::int64_t b = 0; b < view.shape[1]; ++b) {
      for (std::int64_t c = 0; c < view.shape[2]; ++c) {
        for (std::int64_t d = 0; d < view.shape[3]; ++d) {
          values.push_back(view.data[a * view.stride[0] + b * view.stride[1] + c * view.stride[2] +
                                     d * view.stride[3]]);
        }
      }
    }
  }
  return values;
}

ThresholdTable make_table(nb::handle values, std::vector<std::int64_t> budgets, float softmax_scale,
                          std::int64_t max_seqlen, const std::string& model, Pair block,
                          std::int64_t num_samples, const std::string& producer,
                          std::optional<std::int64_t> recommended_budget,
                          const std::string& fingerprint) {
  Borrow borrow;
  const auto view = borrow.view<const float, 4>("values", values);
  if (borrow.device().type != DeviceType::kCpu) refuse("values is on a GPU; expected cpu");
  if (!view) refuse("values is None or empty; expected [budgets, layers, heads, query blocks]");
  ThresholdMetadata metadata;
  metadata.budgets = std::move(budgets);
  metadata.block = block_from(block);
  metadata.softmax_scale = softmax_scale;
  metadata.max_seqlen = max_seqlen;
  metadata.model = model;
  metadata.num_samples = num_samples;
  metadata.producer = producer;
  metadata.recommended_budget = recommended_budget;
  metadata.fingerprint = fingerprint;
  if (static_cast<std::int64_t>(metadata.budgets.size()) != view.shape[0]) {
    refuse("values has " + std::to_string(view.shape[0]) + " budgets on its first axis; budgets " +
           "lists " + std::to_string(metadata.budgets.size()));
  }
  return ThresholdTable(std::move(metadata), view.shape[1], view.shape[2], view.shape[3],
                        copy_values(view));
}

FloatArray budget_values(const ThresholdTable& table, const Integer& budget) {
  const auto layers = static_cast<std::size_t>(table.num_layers());
  const auto heads = static_cast<std::size_t>(table.num_heads_q());
  const auto blocks = static_cast<std::size_t>(table.num_q_blocks());
  const float* first = table.view(budget.get("budget"), 0).data;  // the layers of a budget follow each other
  return make_array(std::vector<float>(first, first + layers * heads * blocks),
                    {layers, heads, blocks});
}

FloatArray all_values(const ThresholdTable& table) {
  return make_array(table.values(),
                    {table.metadata().budgets.size(), static_cast<std::size_t>(table.num_layers()),
                     static_cast<std::size_t>(table.num_heads_q()),
                     static_cast<std::size_t>(table.num_q_blocks())});
}

}  // namespace

void bind_thresholds(nb::module_& module) {
  using Table = ThresholdTable;
  nb::class_<Table>(module, "ThresholdTable",
                    "Thresholds of a model at several budgets, and their file.\n\n"
                    "A budget is a number of key/value blocks kept beside the diagonal.")
      .def(
          "__init__",
          [](Table* self, nb::object values, const std::vector<Integer>& budgets,
             float softmax_scale, const Integer& max_seqlen, const std::string& model, Pair block,
             const Integer& num_samples, const std::string& producer,
             const std::optional<Integer>& recommended_budget, const std::string& fingerprint) {
            new (self)
                Table(make_table(values, get("budgets", budgets), softmax_scale,
                                 max_seqlen.get("max_seqlen"), model, block,
                                 num_samples.get("num_samples"), producer,
                                 get("recommended_budget", recommended_budget), fingerprint));
          },
          "values"_a, nb::kw_only(), "budgets"_a, "softmax_scale"_a, "max_seqlen"_a, "model"_a,
          "block"_a = Pair(128, 64), "num_samples"_a, "producer"_a,
          "recommended_budget"_a = nb::none(), "fingerprint"_a = "",
          "values: float32 [num_budgets, num_layers, num_heads_q, num_q_blocks]; max_seqlen in\n"
          "tokens. Raises bsfa.Error if they disagree or hold NaN.")
      .def_static(
          "load", [](const FileName& path) { return Table::load(path.get("path")); }, "path"_a,
          nb::call_guard<nb::gil_scoped_release>(),
                  "Reads a safetensors threshold file; nothing in it is ever executed.")
      .def(
          "save", [](const Table& table, const FileName& path) { table.save(path.get("path")); },
          "path"_a, nb::call_guard<nb::gil_scoped_release>(),
           "Writes beside `path` and renames, as write_file does.")
      .def_prop_ro(
          "budgets", [](const Table& t) { return t.metadata().budgets; },
          "Ascending; key/value blocks.")
      .def_prop_ro(
          "block", [](const Table& t) { return Pair(t.metadata().block.q, t.metadata().block.kv); },
          "The gate grid: query rows, keys.")
      .def_prop_ro("softmax_scale", [](const Table& t) { return t.metadata().softmax_scale; })
      .def_prop_ro(
          "max_seqlen", [](const Table& t) { return t.metadata().max_seqlen; },
          "Tokens of the longest sample.")
      .def_prop_ro("model", [](const Table& t) { return t.metadata().model; })
      .def_prop_ro("num_samples", [](const Table& t) { return t.metadata().num_samples; })
      .def_prop_ro("producer", [](const Table& t) { return t.metadata().producer; })
      .def_prop_ro(
          "fingerprint", [](const Table& t) { return t.metadata().fingerprint; },
          "Of the weights that were calibrated on; empty: not known.")
      .def_prop_rw(
          "recommended_budget", [](const Table& t) { return t.metadata().recommended_budget; },
          [](Table& t, const std::optional<Integer>& budget) {
            t.set_recommended_budget(get("recommended_budget", budget));
          },
          nb::for_setter(nb::arg("budget").none()), "One of budgets, or None.")
      .def_prop_ro("num_layers", &Table::num_layers)
      .def_prop_ro("num_heads_q", &Table::num_heads_q)
      .def_prop_ro("num_q_blocks", &Table::num_q_blocks)
      .def("thresholds", &budget_values, "budget"_a,
           "A copy of one budget: float32 [num_layers, num_heads_q, num_q_blocks].")
      .def("values", &all_values,
           "A copy of everything: float32 [num_budgets, num_layers, num_heads_q, num_q_blocks].")
      .def("check_model", &Table::check_model, "what"_a, "num_layers"_a, "num_heads_q"_a,
           "softmax_scale"_a, "Raises bsfa.Error if this is not for a model of that shape.")
      .def("other_model", &Table::other_model, "name"_a, "fingerprint"_a,
           "What speaks against these being the thresholds of this model, as a sentence for a\n"
           "warning; empty if nothing does. An empty argument: not known.");
  module.def(
      "predicted_density",
      [](const Integer& budget, const Integer& seqlen, Pair block) {
        return predicted_density(budget.get("budget"), seqlen.get("seqlen"), block_from(block));
      },
      "budget"_a, "seqlen"_a, "block"_a = Pair(128, 64),
      "Kept over visible blocks that a budget gives on a causal prefill of `seqlen` tokens.");
}

}  // namespace bsfa::python
