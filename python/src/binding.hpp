#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <bsfa/attention.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.hpp"

// What the files of the extension share. Tensors cross as DLPack; nothing here knows torch.

namespace bsfa::python {

namespace nb = nanobind;
using nb::literals::operator""_a;

// Borrows the tensors of one call: keeps them alive, turns them into views, and checks that all of
// them are on one device. Every refusal names the argument.
class Borrow {
 public:
  TensorView operand(const char* name, nb::handle value);  // 4 axes, float32/float16/bfloat16
  OutputView output_operand(const char* name, nb::handle value);  // likewise, writable

  // Views of a fixed element type and rank; None gives an empty view.
  template <typename T, int kRank>
  StridedView<T, kRank> view(const char* name, nb::handle value);

  // Thresholds [heads, blocks], or [batch, heads, blocks] with *per_sequence set.
  StridedView<const float, 3> table(const char* name, nb::handle value, bool* per_sequence);

  // A contiguous vector; None gives null and leaves *length alone.
  template <typename T>
  T* vector(const char* name, nb::handle value, std::int64_t* length);

  Device device() const { return device_.value_or(Device{}); }

 private:
  using Reader = nb::ndarray<nb::ro>;
  using Writer = nb::ndarray<>;

  nb::dlpack::dltensor read(const char* name, nb::handle value);
  nb::dlpack::dltensor write(const char* name, nb::handle value);
  void check_device(const char* name, const nb::dlpack::dltensor& tensor);

  // What did not come through the exchange API.
  std::vector<std::unique_ptr<Reader>> readers_;
  std::vector<std::unique_ptr<Writer>> writers_;
  std::optional<Device> device_;
  std::string first_name_;
};

using FloatArray = nb::ndarray<nb::array_api, float>;

// A fresh writable array (DLPack and buffer protocol) that owns a copy of `values`.
FloatArray make_array(std::vector<float> values, const std::vector<std::size_t>& shape);

// A pool of this many threads (empty: as many as the machine has), shared by the calls of this
// process. Survives fork().
std::shared_ptr<Executor> shared_executor(std::optional<std::int64_t> num_threads);

BlockShape block_from(std::pair<std::int64_t, std::int64_t> block);

[[noreturn]] void refuse(const std::string& message);  // throws Error (kInvalidArgument)

void bind_attention(nb::module_& module);
void bind_text(nb::module_& module);
void bind_thresholds(nb::module_& module);
void bind_calibration(nb::module_& module);
void bind_files(nb::module_& module);

}  // namespace bsfa::python
