#include "arguments.hpp"

#include <bsfa/text.hpp>

#include "binding.hpp"

namespace bsfa::python {
namespace {

// Of numbers that 64 bits do not hold. Python itself writes no number of thousands of digits.
std::string number_text(PyObject* number) {
  const nb::object text = nb::steal(PyObject_Str(number));
  if (text.is_valid()) return printable(PyUnicode_AsUTF8(text.ptr()), kLongestQuote);
  PyErr_Clear();
  return "a number of thousands of digits";
}

}  // namespace

bool read_integer(PyObject* object, Integer* integer) noexcept {
  if (PyFloat_Check(object)) return false;
  const nb::object number = nb::steal(PyNumber_Index(object));
  if (!number.is_valid()) {
    PyErr_Clear();
    return false;
  }
  int overflow = 0;
  integer->value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow == 0) {
    integer->beyond.clear();
  } else {
    integer->beyond = number_text(number.ptr());
  }
  return true;
}

std::int64_t Integer::get(const char* name) const {
  if (!beyond.empty()) {
    refuse(std::string(name) + " is " + beyond + "; accepted: whole numbers of 64 bits");
  }
  return value;
}

std::optional<std::int64_t> get(const char* name, const std::optional<Integer>& integer) {
  if (!integer) return std::nullopt;
  return integer->get(name);
}

std::vector<std::int64_t> get(const char* name, const std::vector<Integer>& integers) {
  std::vector<std::int64_t> values;
  values.reserve(integers.size());
  for (const Integer& integer : integers) values.push_back(integer.get(name));
  return values;
}

std::optional<std::string> text_bytes(PyObject* text) noexcept {
  if (PyBytes_Check(text)) {
    return std::string(PyBytes_AS_STRING(text), static_cast<std::size_t>(PyBytes_GET_SIZE(text)));
  }
  if (!PyUnicode_Check(text)) return std::nullopt;
  for (const char* errors : {"surrogateescape", "surrogatepass"}) {
    const nb::object bytes = nb::steal(PyUnicode_AsEncodedString(text, "utf-8", errors));
    if (bytes.is_valid()) return text_bytes(bytes.ptr());
    PyErr_Clear();
  }
  return std::nullopt;
}

bool read_file_name(PyObject* object, FileName* name) noexcept {
  const nb::object path = nb::steal(PyOS_FSPath(object));
  if (!path.is_valid()) {
    PyErr_Clear();
    return false;
  }
  nb::object encoded = path;
  if (PyUnicode_Check(path.ptr())) encoded = nb::steal(PyUnicode_EncodeFSDefault(path.ptr()));
  if (!encoded.is_valid()) {
    PyErr_Clear();
    return false;
  }
  const std::optional<std::string> bytes = text_bytes(encoded.ptr());
  if (bytes) name->bytes = *bytes;
  return bytes.has_value();
}

const std::string& FileName::get(const char* name) const {
  if (const std::size_t at = bytes.find('\0'); at != std::string::npos) {
    refuse(std::string(name) + " is " + quote(bytes, kLongestPath) + ", with a NUL at byte " +
           std::to_string(at) + "; accepted: a name that files can have");
  }
  return bytes;
}

}  // namespace bsfa::python
