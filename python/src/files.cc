#include <bsfa/file.hpp>
#include <bsfa/fingerprint.hpp>
#include <bsfa/samples.hpp>
#include <string_view>
#include <tuple>

#include "binding.hpp"

namespace bsfa::python {
namespace {

using Tensor = std::tuple<std::string, std::vector<std::int64_t>, nb::bytes>;

std::string fingerprint_of(const std::string& source, const std::vector<Tensor>& tensors) {
  std::vector<WeightSample> samples;
  for (const auto& [name, shape, bytes] : tensors) {
    samples.push_back({name, shape, std::string(bytes.c_str(), bytes.size())});
  }
  return weight_fingerprint(source, std::move(samples));
}

}  // namespace

void bind_files(nb::module_& module) {
  module.def(
      "write_file",
      [](const std::string& path, nb::bytes content) {
        const std::string_view bytes(content.c_str(), content.size());
        const nb::gil_scoped_release released;
        write_file(path, bytes);
      },
      "path"_a, "content"_a,
      "Replaces a file as a whole or leaves everything as it was, whatever interrupts it. A\n"
      "symbolic link stays, and what it names is written.");
  module.def("same_file", &same_file, "a"_a, "b"_a,
             "Whether two paths name one file, also through links, or would if they were there.");
  module.def("weight_fingerprint", &fingerprint_of, "source"_a, "tensors"_a,
             "tensors: (name, shape, bytes of some values) of each.");
  module.def(
      "read_samples",
      [](const std::vector<std::string>& paths) {
        std::vector<TextSample> samples;
        {
          const nb::gil_scoped_release released;
          samples = read_samples(paths);
        }
        std::vector<std::pair<std::string, std::string>> result;
        for (TextSample& sample : samples) {
          result.emplace_back(std::move(sample.name), std::move(sample.text));
        }
        return result;
      },
      "paths"_a, "(name, text) of every sample in files and folders.");
}

}  // namespace bsfa::python
