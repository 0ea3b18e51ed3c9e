#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/detail/traits.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

// Arguments that nanobind's own casters refuse without naming them: whole numbers of any size, and
// names of files as the operating system has them. Both are taken as they come, and refused, where
// they have to be, under the name of the argument.

namespace bsfa::python {

// A Python int, whatever its size.
struct Integer {
  std::int64_t value = 0;
  std::string beyond;  // the number in words, if 64 bits do not hold it

  Integer() = default;
  Integer(std::int64_t v) : value(v) {}  // NOLINT: defaults of arguments are written as numbers

  std::int64_t get(const char* name) const;  // throws Error (kInvalidArgument)
};

std::optional<std::int64_t> get(const char* name, const std::optional<Integer>& integer);
std::vector<std::int64_t> get(const char* name, const std::vector<Integer>& integers);

// A str, bytes or os.PathLike as the bytes that the operating system knows a file by.
struct FileName {
  std::string bytes;

  const std::string& get(const char* name) const;  // throws Error: a NUL would cut it
};

// The bytes of a str (surrogates that stand for bytes as those, others as they are) or of bytes.
// Empty without an error set: neither of them.
std::optional<std::string> text_bytes(PyObject* text) noexcept;

bool read_integer(PyObject* object, Integer* integer) noexcept;
bool read_file_name(PyObject* object, FileName* name) noexcept;

}  // namespace bsfa::python

namespace nanobind::detail {

template <>
struct type_caster<bsfa::python::Integer> {
  NB_TYPE_CASTER(bsfa::python::Integer, const_name("int"))
  bool from_python(handle source, std::uint8_t, cleanup_list*) noexcept {
    return bsfa::python::read_integer(source.ptr(), &value);
  }
  static handle from_cpp(const bsfa::python::Integer& integer, rv_policy, cleanup_list*) noexcept {
    return PyLong_FromLongLong(integer.value);
  }
};

template <>
struct type_caster<bsfa::python::FileName> {
  NB_TYPE_CASTER(bsfa::python::FileName, const_name("str | bytes | os.PathLike"))
  bool from_python(handle source, std::uint8_t, cleanup_list*) noexcept {
    return bsfa::python::read_file_name(source.ptr(), &value);
  }
};

}  // namespace nanobind::detail
