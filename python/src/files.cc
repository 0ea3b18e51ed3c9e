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
      [](const FileName& path, nb::bytes content) {
        const std::string_view bytes(content.c_str(), content.size());
        const std::string& name = path.get("path");
        const nb::gil_scoped_release released;
        write_file(name, bytes);
      },
      "path"_a, "content"_a,
      "Replaces a file as a whole or leaves everything as it was, whatever interrupts it. A\n"
      "symbolic link stays, and what it names is written.");
  module.def(
      "same_file",
      [](const FileName& a, const FileName& b) { return same_file(a.get("a"), b.get("b")); }, "a"_a,
      "b"_a, "Whether two paths name one file, also through links, or would if they were there.");
  module.def(
      "check_writable",
      [](const std::string& argument, const FileName& path) {
        check_writable(argument, path.get(argument.c_str()));
      },
      "argument"_a, "path"_a,
      "Refuses, under the name of the argument, a file that could not be written at the end.");
  module.def("weight_fingerprint", &fingerprint_of, "source"_a, "tensors"_a,
             "tensors: (name, shape, bytes of some values) of each.");
  module.def(
      "read_samples",
      [](const std::vector<FileName>& paths) {
        std::vector<std::string> names;
        for (const FileName& path : paths) names.push_back(path.get("paths"));
        std::vector<TextSample> samples;
        {
          const nb::gil_scoped_release released;
          samples = read_samples(names);
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
