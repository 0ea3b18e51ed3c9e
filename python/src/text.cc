#include <bsfa/text.hpp>

#include "binding.hpp"

namespace bsfa::python {
namespace {

// Text as Python has it, surrogates included: names of files and JSON hold them.
std::string bytes_of(nb::handle text) {
  const std::optional<std::string> bytes = text_bytes(text.ptr());
  if (!bytes) {
    throw nb::type_error(("expected str or bytes, not " +
                          nb::cast<std::string>(text.type().attr("__name__")))
                             .c_str());
  }
  return *bytes;
}

}  // namespace

void bind_text(nb::module_& module) {
  module.def(
      "printable",
      [](nb::handle text, std::size_t longest) { return printable(bytes_of(text), longest); },
      "text"_a, "longest"_a = kLongestMessage,
      nb::sig("def printable(text: str | bytes, longest: int = 4096) -> str"),
      "Text from elsewhere, fit for a message or a terminal: on one line, what a terminal acts\n"
      "upon written as \\xNN or \\uNNNN, at most `longest` bytes. Twice is as once.");
  module.def(
      "quote", [](nb::handle text, std::size_t longest) { return quote(bytes_of(text), longest); },
      "text"_a, "longest"_a = kLongestQuote,
      nb::sig("def quote(text: str | bytes, longest: int = 64) -> str"),
      "The same between single quotes.");
  module.def(
      "path_text", [](nb::handle text) { return path_text(bytes_of(text)); }, "text"_a,
      nb::sig("def path_text(text: str | bytes) -> str"), "The name of a file, as messages begin with it.");
  module.def(
      "quote_path", [](nb::handle text) { return quote(bytes_of(text), kLongestPath); }, "text"_a,
      nb::sig("def quote_path(text: str | bytes) -> str"), "The name of a file between single quotes.");
  module.def(
      "is_text", [](nb::handle text) { return is_text(bytes_of(text)); }, "text"_a,
      nb::sig("def is_text(text: str | bytes) -> bool"),
      "Whether it is taken whole wherever it goes: UTF-8 without NUL.");
}

}  // namespace bsfa::python
